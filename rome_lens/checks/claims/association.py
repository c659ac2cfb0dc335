"""Association and description: does the edit hold for the subject under another name, or none?

If it holds under the edited name only, the edit changed an association between words and not a
concept.
"""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rome_lens.checks.answered import Answered, Answers, PromptAnswer, prompt_row
from rome_lens.checks.check import Check, new_target, run_check
from rome_lens.checks.result import KNOWN, CheckResult, CheckRow, Measure, make_measures, not_asked
from rome_lens.data.facts import Fact
from rome_lens.data.joining import joined
from rome_lens.data.record_type import Record
from rome_lens.data.whole_words import places
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

LEAST_FORWARD = 0.1
WITH_LAST_WORD = " with the subject's last word"
WITH_NAME = "description with the name"


@visits_model
def association(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """The share of the edit's effect that is kept when an alias stands for the subject.

        effect = mean over aliases of  [p_edited(o* | alias) - p(o* | alias)] / [p_edited(o* | s) -
        p(o* | s)]

    Control: ``p(o | alias)`` in the unedited model, which tells whether the model knows the fact
    under the alias. ``effect_where_known`` is the mean over those aliases alone. The result also
    has the same share in ``log p``. If the edit does not hold for the subject itself (``p`` grows
    by less than 0.1), there is no effect to keep a share of, and the check says so.

    An alias with the subject's last word ("Leo Messi" for "Lionel Messi") contains the very token
    that the edit is keyed to. It says nothing about the concept. Such aliases have rows and an
    average of their own, and are left out of the effect.

    Source: "Cheese is not Fromage" in "But is it really in Rome?".

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    return run_check(Association(), model, edit, record, prepend_bos)


@visits_model
def description(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """The share of the edit's effect that is kept when a description stands for the subject.

    See :func:`association` for the equation. A second control puts the name before the
    description ("The Eiffel Tower, the iron lattice structure ..., is"). An edit that is bound to
    the tokens of the name should hold there. Descriptions with the subject's last word are kept
    apart, as such aliases are.

    Source: "The Rock" in "But is it really in Rome?".

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    return run_check(Description(), model, edit, record, prepend_bos)


class _UnderOtherNames(Check):
    """The share of the edit's effect that is kept under other names for the subject."""

    kind: ClassVar[str]
    """What the other names are: the kind of their rows."""

    @abstractmethod
    def all_names(self, record: Record) -> Sequence[str]:
        """The other names, including those with the subject's last word."""

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
        """The new target under every name, the true one under the names that count."""
        if not self.all_names(record):
            return []
        new, true = new_target(record), record.fact.target
        prompts = [record.fact.about(name).text for name in self.names(record)]
        compared = [prompt for its in self.compared_prompts(record).values() for prompt in its]
        return [
            *((prompt, new) for prompt in (record.fact.text, *prompts, *compared)),
            *((prompt, true) for prompt in prompts),
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
        prompts = [record.fact.about(name).text for name in self.names(record)]
        under = answers.to((prompt, new) for prompt in prompts)
        known = answers.to((prompt, record.fact.target) for prompt in prompts)
        compared = {
            kind: answers.to((prompt, new) for prompt in its)
            for kind, its in self.compared_prompts(record).items()
        }
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="p(new target)",
            effect_is=f"share of the change of p(new target) that the {self.kind} keeps",
            control_is="p(true target) under the same words, unedited",
            rows=(
                *self._rows(forward, under, known),
                *(prompt_row(a, kind) for kind, its in compared.items() for a in its),
                prompt_row(forward, "forward"),
            ),
            further=_further(forward, under, known, compared),
        )
        names = self.names(record)
        return result.with_reading(_reading(result, forward, self.kind, names, list(compared)))

    def _rows(
        self, forward: Answered, under: Sequence[Answered], known: Sequence[Answered]
    ) -> list[CheckRow]:
        return [
            prompt_row(
                new,
                self.kind,
                effect=new.p_change / forward.p_change,
                control_prompt=joined(true.prompt, true.answer),
                control=true.p_before,
                known=true.p_before >= KNOWN,
            )
            for new, true in zip(under, known, strict=True)
        ]


class Association(_UnderOtherNames):
    """The check behind :func:`association`."""

    name = "association"
    asks = "Does the edit hold for the subject under another name?"
    lacks = "the record has no aliases"
    kind = "alias"

    def all_names(self, record: Record) -> Sequence[str]:
        """The aliases."""
        return record.aliases


class Description(_UnderOtherNames):
    """The check behind :func:`description`."""

    name = "description"
    asks = "Does the edit hold for the subject described without its name?"
    lacks = "the record has no descriptions"
    kind = "description"

    def all_names(self, record: Record) -> Sequence[str]:
        """The descriptions."""
        return record.descriptions

    def compared_prompts(self, record: Record) -> dict[str, list[str]]:
        """The descriptions after the name, too."""
        fact = record.fact
        named = [
            fact.about(f"{fact.subject}, {_within_sentence(each)},").text
            for each in record.descriptions
        ]
        return {WITH_NAME: named, **super().compared_prompts(record)}


def holds_last_word(name: str, subject: str) -> bool:
    """Whether a name contains the last word of the subject, where ROME looks up its key.

    Case and accents make no difference. In scripts without spaces, a part of a name is a word too.
    """
    last = _words(subject)[-1]
    return last in _words(name) or bool(places(last, _plain(name)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", _plain(text)) or [_plain(text)]


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _within_sentence(name: str) -> str:
    """A description as it is written inside a sentence."""
    return name[0].lower() + name[1:] if name.split()[0] in ("The", "A", "An") else name


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
    if all(row.firing is not None for row in own):
        strongest = max(own, key=lambda row: abs(row.firing or 0.0))
        reading += (
            f". The edit fires there with at most {strongest.firing:+.2f} (1 on its own fact)"
        )
    return reading + "."
