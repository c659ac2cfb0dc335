"""Specificity: does the subject keep its other relations, and its other true answers?"""

from dataclasses import dataclass
from typing import Any
from zlib import crc32

from rome_lens.arguments import whole_number
from rome_lens.checks.answered import Answers, PromptAnswer, prompt_row
from rome_lens.checks.check import Check, run_check
from rome_lens.checks.claims.essence import random_controls
from rome_lens.checks.result import KNOWN, CheckResult, make_measures
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Record
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

OTHER_ANSWER = "other true answer"
PRESERVED = "change of p(other true answer)"
KEPT = "share of p(right answer) kept, where known"
NEW_INSTEAD = "change of p(new target) on questions about other relations"


@visits_model
def specificity(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> CheckResult:
    """Change of ``p`` of the right answers to questions about the subject's other relations.

        effect = mean over other relations of  p_edited(a | prompt) - p(a | prompt)

    A tower that is moved to Rome is still made of iron. The new fact leaves these answers alone, so
    any loss is damage: the edit acts wherever the subject is named, and not on one relation.

    Control: the same change under an edit of equal norm in a random direction, at the same place.
    ``known`` means that the unedited model gives the right answer with ``p >= 0.1``.

    Further numbers: the share of ``p(a)`` that is kept where it is known; the change of the new
    target's probability on the same questions; and *preservation*, the change of ``p`` of further
    true answers to the fact's own prompt, where a subject has several (an actor who also wrestles).

    Source: "relation specificity" and "preservation" (also "forgetfulness") in Cohen et al. 2023,
        "Evaluating the Ripple Effects of Knowledge Editing in Language Models".

    Args:
        seed: seed of the random direction.

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.data.records(known_by="toy")[0].fact
        >>> asked = rl.data.Question(prompt="{} works as a", target="nurse")
        >>> record = rl.data.Record(id=1, fact=fact, other_relations=(asked,))
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, fact, layer=2, statistics=C, contexts=["{}"])
        >>> result = rl.checks.specificity(model, edit, record)
        >>> result.effect.count
        1
    """
    return run_check(Specificity(seed=seed), model, edit, record, prepend_bos)


@dataclass(frozen=True, kw_only=True)
class Specificity(Check):
    """The check behind :func:`specificity`."""

    seed: int = 0
    """Seed of the random direction."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_number("seed", self.seed))

    name = "specificity"
    asks = "Does the subject keep its other relations?"
    lacks = "the record has no questions about other relations of the subject"

    def questions(self, record: Record) -> list[PromptAnswer]:
        """The other relations' right answers and the new target there, and other true answers."""
        right = _right(record)
        return [*right, *_instead(record), *_other_answers(record)] if right else []

    def control_edits(self, edit: Any, record: Record) -> list[Any]:
        """The edit with a random direction, if it is made of keys and directions."""
        return random_controls(edit, seed=crc32(f"{self.seed} {record.fact.text}".encode()))

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each other relation, and one for each other true answer."""
        right = answers.to(_right(record))
        control = answers.under_controls[0] if answers.under_controls else None
        rows = [
            prompt_row(
                answered,
                "other relation",
                effect=answered.p_change,
                control_prompt=None if control is None else "(random direction)",
                control=None if control is None else control[question].p_change,
                known=answered.p_before >= KNOWN,
            )
            for question, answered in zip(_right(record), right, strict=True)
        ]
        others = answers.to(_other_answers(record))
        kept = [a.p_after / a.p_before for a in right if a.p_before >= KNOWN]
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="p(right answer)",
            effect_is="change of p(right answer) to questions about other relations",
            control_is="the same for an edit of equal norm in a random direction",
            rows=(*rows, *(prompt_row(a, OTHER_ANSWER) for a in others)),
            further=make_measures(
                {
                    KEPT: kept,
                    NEW_INSTEAD: [a.p_change for a in answers.to(_instead(record))],
                    PRESERVED: [a.p_change for a in others],
                    "p(other true answer), before": [a.p_before for a in others],
                }
            ),
        )
        return result.with_reading(_reading(result))


def _right(record: Record) -> list[PromptAnswer]:
    subject = record.fact.subject
    return [(each.prompt.replace(SLOT, subject), each.target) for each in record.other_relations]


def _instead(record: Record) -> list[PromptAnswer]:
    return [(prompt, str(record.fact.new_target)) for prompt, _ in _right(record)]


def _other_answers(record: Record) -> list[PromptAnswer]:
    return [(record.fact.text, answer) for answer in record.other_answers]


def _reading(result: CheckResult) -> str:
    assert result.effect is not None
    numbers = {measure.name: measure.average.mean for measure in result.further}
    known = [row for row in result.rows if row.known]
    reading = (
        f"p(right answer) to {result.effect.count} questions about other relations changes by "
        f"{result.effect.mean:+.3f}, and p(new target) there by {numbers[NEW_INSTEAD]:+.3f}"
    )
    if result.control is not None:
        reading += (
            f"; an edit as strong in a random direction changes it by {result.control.mean:+.3f}"
        )
    if known:
        reading += f". Of the {len(known)} known ones it keeps {numbers[KEPT]:.2f}"
    else:
        reading += ". The unedited model knows none of them, so little follows"
    if PRESERVED in numbers:
        reading += f". Other true answers to the fact itself change by {numbers[PRESERVED]:+.3f}"
    return reading + "."
