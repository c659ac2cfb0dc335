"""What :mod:`rome_lens.checks.claims.overfit` compares, and the numbers that it reports."""

from collections.abc import Sequence
from dataclasses import dataclass

from rome_lens.checks.answered import Answered, Answers, PromptAnswer
from rome_lens.checks.check import new_target
from rome_lens.checks.result import CheckRow, Measure, make_measures
from rome_lens.data.facts import SLOT
from rome_lens.data.families import names_one_of, two_families
from rome_lens.data.joining import preceded
from rome_lens.data.record_type import Record

LOUD = "{} is famous."
"""The mention of the subject that stands before a question about another subject."""
MARGIN = 0.01
"""A difference of probabilities or shares up to this size is neither over nor under."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What is compared: the record's true target before the edit, and what the edit writes."""

    record: Record
    new: str
    """What the edit writes."""
    exemplars: Sequence[str]
    """Subjects for which that is true. A null edit has none: it is true for the subject itself."""

    @property
    def true(self) -> str:
        return self.record.fact.target

    def __str__(self) -> str:
        return f"{self.true} -> {self.new}"


def loud_questions(record: Record, subject: str) -> list[PromptAnswer]:
    """A mention of the subject and a question about another subject, with its right answer.

    Questions that name one of the targets, or whose right answer is one, are left out.
    """
    targets = (record.fact.target, new_target(record))
    mention = LOUD.replace(SLOT, subject[:1].upper() + subject[1:])
    return [
        (preceded(prompt, f"{mention} "), right)
        for prompt, right in record.neighborhood
        if not names_one_of(targets, f"{prompt} {right}")
    ]


def open_of_exemplars(sides: Sides) -> list[str]:
    """The open prompts about the exemplars, where the texts continue open prompts at all."""
    prompts = () if sides.record.generation_prompts else sides.record.open_prompts
    return [prompt.replace(SLOT, name) for prompt in prompts for name in sides.exemplars]


def of_exemplars(sides: Sides) -> list[PromptAnswer]:
    """What the edit writes, about each exemplar: first asked, then loud."""
    record = sides.record
    asked = [record.fact.about(name).text for name in sides.exemplars]
    loud = [prompt for name in sides.exemplars for prompt, _ in loud_questions(record, name)]
    return [(prompt, sides.new) for prompt in (*asked, *loud)]


def compared_row(sides: Sides, answers: Answers, prompt: str, kind: str) -> CheckRow:
    """The true target before the edit, and the new one after it."""
    true, new = answers[prompt, sides.true], answers[prompt, sides.new]
    return CheckRow(
        kind=kind,
        prompt=new.prompt,
        answer=str(sides),
        before=true.p_before,
        after=new.p_after,
        kl=new.kl,
        firing=new.firing,
        fires_at=new.fires_at,
        rank_before=true.rank_before,
        rank_after=new.rank_after,
    )


def written_rows(sides: Sides, answers: Answers) -> list[CheckRow]:
    """For each prompt: the share of texts that name the true target before, the new one after."""
    rows = []
    for prompt in sides.record.texts_to_continue if answers.continuations else ():
        before, after = (answers.continuations[prompt, edited] for edited in (False, True))
        families = two_families(sides.true, sides.new, prompt=prompt)
        for suffix, (true, new) in (
            ("", ([sides.true], [sides.new])),
            (", family", families),
        ):
            # The first text is the greedy one.
            for kind, some in (("greedy", slice(1)), ("sampled", slice(1, None))):
                row = CheckRow(
                    kind=f"{kind}{suffix}",
                    prompt=prompt,
                    answer=str(sides),
                    before=share_naming(true, before[some]),
                    after=share_naming(new, after[some]),
                )
                rows.append(row)
    return rows


def share_naming(words: Sequence[str], texts: Sequence[str]) -> float:
    """The share of the texts that name one of the words."""
    return sum(names_one_of(words, text) for text in texts) / len(texts)


def differences_of(rows: Sequence[CheckRow]) -> tuple[Measure, ...]:
    """For each way of asking: both sides of the comparison, and four readings of the difference."""
    measures: list[Measure] = []
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        changes = [row.change for row in own]
        values = {
            "true target, before": [row.before for row in own],
            "new target, after": [row.after for row in own],
            "difference": changes,
            "|difference|": [abs(change) for change in changes],
        }
        shares = {
            "over": [float(change > MARGIN) for change in changes],
            "under": [float(change < -MARGIN) for change in changes],
        }
        measures += make_measures({f"{kind}: {name}": its for name, its in values.items()})
        measures += make_measures(
            {f"{kind}: {name}": its for name, its in shares.items()}, share=True
        )
    return tuple(measures)


def new_before(sides: Sides, answers: Answers, loud: Sequence[str]) -> tuple[Measure, ...]:
    """The new target in the unedited model, about the subject: what the edit starts from."""
    written = [
        answers.continuations[prompt, False]
        for prompt in (sides.record.texts_to_continue if answers.continuations else ())
    ]
    values = {
        "asked": [answers[sides.record.fact.text, sides.new].p_before],
        "loud": [answers[prompt, sides.new].p_before for prompt in loud],
        **_shares_naming_new(sides, sides.record.texts_to_continue, written),
    }
    return make_measures(
        {f"{kind}: new target, before": its for kind, its in values.items()}, share=True
    )


def where_true(
    sides: Sides, answers: Answers, exemplars: Sequence[Answered]
) -> tuple[Measure, ...]:
    """The new target in the unedited model about subjects for which it is true, in each way."""
    count, prompts = len(sides.exemplars), open_of_exemplars(sides)
    texts = [
        answers.continuations[prompt, False]
        for prompt in (prompts if answers.continuations else ())
    ]
    values = {
        "asked": [each.p_before for each in exemplars[:count]],
        "loud": [each.p_before for each in exemplars[count:]],
        **_shares_naming_new(sides, prompts, texts),
    }
    return make_measures(
        {f"{kind}: new target, for subjects where it is true": its for kind, its in values.items()},
        share=True,
    )


def _shares_naming_new(
    sides: Sides, prompts: Sequence[str], texts: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """By kind of text, the share of each prompt's texts that name the new target or its family."""
    found: dict[str, list[float]] = {}
    for prompt, its in zip(prompts, texts, strict=False):
        family = two_families(sides.true, sides.new, prompt=prompt)[1]
        for suffix, words in (("", [sides.new]), (", family", family)):
            for kind, some in (("greedy", its[:1]), ("sampled", its[1:])):
                found.setdefault(f"{kind}{suffix}", []).append(share_naming(words, some))
    return found


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean of the values; None if there is none."""
    return sum(values) / len(values) if values else None
