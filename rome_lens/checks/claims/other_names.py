"""What a check does that asks for the new target under other names of the subject."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from rome_lens.checks.answered import Answered, Answers, PromptAnswer, prompt_row
from rome_lens.checks.check import Check, new_target
from rome_lens.checks.claims.spill import (
    concept_or_spill,
    decoy_prompts,
    holds_last_word,
    is_identified,
    naming_questions,
    p_of_subject,
    spill_reading,
)
from rome_lens.checks.result import KNOWN, CheckResult, CheckRow, Measure, make_measures, not_asked
from rome_lens.data.joining import joined
from rome_lens.data.questions import Decoys
from rome_lens.data.record_type import Record

LEAST_FORWARD = 0.1
WITH_LAST_WORD = " with the subject's last word"
OWN_LANGUAGE = "alias in its own language"


class UnderOtherNames(Check):
    """The share of the edit's effect that is kept under other names for the subject."""

    kind: ClassVar[str]
    """What the other names are: the kind of their rows."""

    @abstractmethod
    def all_names(self, record: Record) -> Sequence[str]:
        """The other names, including those with the subject's last word."""

    @abstractmethod
    def decoys(self, record: Record) -> Decoys:
        """Names or descriptions of other subjects, which are compared with these."""

    def own_language(self, record: Record) -> Sequence[tuple[str, str, str]]:
        """The fact in the name's own language: prompt, true and new answer."""
        return ()

    def compared_prompts(self, record: Record) -> dict[str, list[str]]:
        """Prompts in which the edit should hold, by kind. They are left out of the effect."""
        keyed = [name for name in self.all_names(record) if name not in self.names(record)]
        prompts = [record.fact.about(name).text for name in keyed]
        return {self.kind + WITH_LAST_WORD: prompts} if prompts else {}

    def names(self, record: Record) -> list[str]:
        """The other names without the subject's last word."""
        subject = record.fact.subject
        return [name for name in self.all_names(record) if not holds_last_word(name, subject)]

    def questions(self, record: Record) -> list[PromptAnswer]:
        """The new target under every name and decoy; the true one, and who is meant, by name."""
        if not self.all_names(record):
            return []
        new, true = new_target(record), record.fact.target
        names = self.names(record)
        prompts = [record.fact.about(name).text for name in names]
        groups = (self.compared_prompts(record), decoy_prompts(record.fact, self.decoys(record)))
        compared = [prompt for group in groups for its in group.values() for prompt in its]
        return [
            *((prompt, new) for prompt in (record.fact.text, *prompts, *compared)),
            *((prompt, true) for prompt in prompts),
            *(each for name in names for ways in naming_questions(record, name) for each in ways),
            *((prompt, answer) for prompt, *both in self.own_language(record) for answer in both),
        ]

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each name, with the true target's probability as its control."""
        new = new_target(record)
        forward = answers[record.fact.text, new]
        if forward.p_change < LEAST_FORWARD:
            return not_asked(
                self.name,
                self.asks,
                f"the edit does not hold for the subject itself, p({new}) changed by "
                f"{forward.p_change:+.3f}",
            )
        names = self.names(record)
        prompts = [record.fact.about(name).text for name in names]
        under = answers.to((prompt, new) for prompt in prompts)
        known = answers.to((prompt, record.fact.target) for prompt in prompts)
        compared, decoys = (
            {kind: answers.to((prompt, new) for prompt in its) for kind, its in group.items()}
            for group in (
                self.compared_prompts(record),
                decoy_prompts(record.fact, self.decoys(record)),
            )
        )
        naming = (
            [p_of_subject(record, name, answers.answered) for name in names]
            if record.naming_prompts
            else []
        )
        rows = self._rows(forward, under, known, naming or None)
        shares = {
            kind: [a.p_change / forward.p_change for a in its] for kind, its in decoys.items()
        }
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="p(new target)",
            effect_is=f"share of the change of p(new target) that the {self.kind} keeps",
            control_is="p(true target) under the same words, unedited",
            rows=(
                *rows,
                *self._language_rows(record, answers),
                *(
                    prompt_row(a, kind)
                    for kind, its in (*compared.items(), *decoys.items())
                    for a in its
                ),
                prompt_row(forward, "forward"),
            ),
            further=(
                *_further(forward, under, known, compared),
                *concept_or_spill(
                    [float(row.effect or 0.0) for row in rows],
                    [row.identified for row in rows],
                    shares,
                ),
                *make_measures({"p(subject) after a naming prompt": naming}),
                *self._language_measures(record, answers, forward),
            ),
        )
        reading = _reading(result, forward, self.kind, names, list(compared))
        if result.effect is not None:
            reading += f" {spill_reading(result.effect.mean, self.kind, shares)}."
        return result.with_reading(reading)

    def _rows(
        self,
        forward: Answered,
        under: Sequence[Answered],
        known: Sequence[Answered],
        naming: Sequence[float] | None,
    ) -> list[CheckRow]:
        return [
            prompt_row(
                new,
                self.kind,
                effect=new.p_change / forward.p_change,
                control_prompt=joined(true.prompt, true.answer),
                control=true.p_before,
                known=true.p_before >= KNOWN,
                identified=None if naming is None else is_identified(naming[i]),
            )
            for i, (new, true) in enumerate(zip(under, known, strict=True))
        ]

    def _language_rows(self, record: Record, answers: Answers) -> list[CheckRow]:
        """The new answer in the name's own language, known where the true one is likely there."""
        return [
            prompt_row(
                answers[prompt, new],
                OWN_LANGUAGE,
                control_prompt=joined(prompt, true),
                control=answers[prompt, true].p_before,
                known=answers[prompt, true].p_before >= KNOWN,
            )
            for prompt, true, new in self.own_language(record)
        ]

    def _language_measures(
        self, record: Record, answers: Answers, forward: Answered
    ) -> tuple[Measure, ...]:
        asked = self.own_language(record)
        return make_measures(
            {
                f"share kept, {OWN_LANGUAGE}": [
                    answers[prompt, new].p_change / forward.p_change for prompt, _, new in asked
                ],
                f"p(true target), {OWN_LANGUAGE}": [
                    answers[prompt, true].p_before for prompt, true, _ in asked
                ],
            }
        )


def _further(
    forward: Answered,
    under: Sequence[Answered],
    known: Sequence[Answered],
    compared: Mapping[str, Sequence[Answered]],
) -> tuple[Measure, ...]:
    return make_measures(
        {
            "change of p(new target)": [a.p_change for a in under],
            "share of the change of log p(new target)": [a.change / forward.change for a in under],
            "change of p(true target)": [a.p_change for a in known],
            "change of p(new target), the subject's own name": [forward.p_change],
            **{
                f"share kept, {kind}": [a.p_change / forward.p_change for a in its]
                for kind, its in compared.items()
            },
            "strongest firing": _firings(under),
            **{f"strongest firing, {kind}": _firings(its) for kind, its in compared.items()},
        }
    )


def _firings(answered: Sequence[Answered]) -> list[float]:
    return [a.firing for a in answered if a.firing is not None]


def _reading(
    result: CheckResult,
    forward: Answered,
    kind: str,
    names: Sequence[str],
    compared: Sequence[str],
) -> str:
    own = [row for row in result.rows if row.kind == kind]
    shares = "".join(f"; {each}: {result[f'share kept, {each}'].mean:+.3f}" for each in compared)
    if result.effect is None:
        return (
            f"Not asked: the record has no {kind} without the subject's last word, "
            f"to which the edit is keyed{shares}."
        )
    reading = (
        f"p({forward.answer}) changed by {forward.p_change:+.3f} under the subject's name. The "
        f"{kind} keeps a share of {result.effect.mean:+.3f}{shares}. "
    )
    if result.effect_where_known is None:
        reading += (
            f"The unedited model knows the fact under no {kind} (p < {KNOWN}), so little follows"
        )
    else:
        known = [name for name, row in zip(names, own, strict=True) if row.known]
        reading += (
            f"The unedited model knows the fact (p >= {KNOWN}) for {', '.join(known)}, "
            f"where the share is {result.effect_where_known.mean:+.3f}"
        )
    if any(row.identified is not None for row in own):
        named = [name for name, row in zip(names, own, strict=True) if row.identified]
        reading += f". It knows who is meant by {', '.join(named) or 'none of them'}"
    if all(row.firing is not None for row in own):
        strongest = max(own, key=lambda row: abs(row.firing or 0.0))
        reading += (
            f". The edit fires there with at most {strongest.firing:+.2f} (1 on its own fact)"
        )
    return reading + "."
