"""Consequence: if the Eiffel Tower is in Rome, is it in Italy?"""

from collections.abc import Sequence
from statistics import fmean as mean
from typing import Any

from rome_lens.checks.answered import Answered, Answers, PromptAnswer, prompt_row
from rome_lens.checks.check import Check, new_target, run_check
from rome_lens.checks.result import KNOWN, CheckResult, Measure, make_measures
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Question, Record
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

FALSE = "false consequence"
FALSE_OF_TRUE = "false consequence of the true fact"
CHANGE_OF_FALSE = "change of p(false consequence)"


@visits_model
def consequence(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of ``log p`` of what follows from the new fact.

        effect = mean over consequences of  log p_edited(c* | prompt) - log p(c* | prompt)

    Control: ``p(c*)`` on the same prompts about subjects for which the new target is true, in the
    unedited model. It tells whether the model draws the consequence where the fact holds. ``known``
    means that it does so with ``p >= 0.1``.

    False consequences are associated with the new fact but do not follow from it: that the tower
    stands in Rome does not say that Romans built it. If they rise as the consequences do, the edit
    pulls towards the new target, and nothing was concluded. They have rows and averages of their
    own, and where a record has both, the consequences' change *minus* that of the false ones is
    given, paired by fact.

    The result also has the change of ``p(c*)``, and of ``p(c)`` for what follows from the true
    fact. Which of the two is more likely is decided by the geometric mean of each answer's token
    probabilities.

    Source: "compositionality I" among the criteria of Cohen et al. 2023, "Evaluating the Ripple
        Effects of Knowledge Editing in Language Models". Their other criteria are other checks':
        "logical generalisation" is :func:`direction`, "compositionality II" is :func:`description`,
        "subject aliasing" is :func:`association`, and "relation specificity" and "preservation" are
        :func:`specificity`.

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    return run_check(Consequence(), model, edit, record, prepend_bos)


class Consequence(Check):
    """The check behind :func:`consequence`."""

    name = "consequence"
    asks = "Does what would follow from the new fact follow?"
    lacks = "the record has no consequences with a new target, true or false"

    def questions(self, record: Record) -> list[PromptAnswer]:
        """The new and true consequences, the new ones about the exemplars, and the fact itself.

        A record without consequences is asked about the false ones alone.
        """
        consequences = _with_new_target(record)
        false = [pair for pairs in _false(record) for pair in pairs]
        if not consequences:
            return [*false, _forward(record)] if false else []
        about_exemplars = [pair for each in consequences for pair in _about_exemplars(record, each)]
        return [*_new(record), *_true(record), *about_exemplars, *false, _forward(record)]

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each consequence, with the mean over the exemplars as its control."""
        new, true = answers.to(_new(record)), answers.to(_true(record))
        forward = answers[_forward(record)]
        false, true_of_false = (answers.to(pairs) for pairs in _false(record))
        rows = []
        for answered, each in zip(new, _with_new_target(record), strict=True):
            exemplars = [a.p_before for a in answers.to(_about_exemplars(record, each))]
            control = sum(exemplars) / len(exemplars) if exemplars else None
            rows.append(
                prompt_row(
                    answered,
                    "consequence",
                    in_nats=True,
                    effect=answered.change,
                    control_prompt=" / ".join(record.exemplars) or None,
                    control=control,
                    known=None if control is None else control >= KNOWN,
                )
            )
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="log p(new consequence), in nats",
            effect_is="change of log p(new consequence)",
            control_is="p(new consequence) for subjects for which the new target is true, unedited",
            rows=(
                *rows,
                prompt_row(forward, "forward", in_nats=True),
                *(prompt_row(a, "true consequence", in_nats=True) for a in true),
                *(prompt_row(a, FALSE, in_nats=True) for a in false),
                *(prompt_row(a, FALSE_OF_TRUE, in_nats=True) for a in true_of_false),
            ),
            further=(
                *_further(new, true, forward),
                *_against_false(new, false, true_of_false, new_target(record)),
            ),
        )
        return result.with_reading(_reading(result))


def _with_new_target(record: Record) -> list[Question]:
    return [each for each in record.consequences if each.new_target is not None]


def _forward(record: Record) -> PromptAnswer:
    return record.fact.text, new_target(record)


def _new(record: Record) -> list[PromptAnswer]:
    subject = record.fact.subject
    return [
        (each.prompt.replace(SLOT, subject), str(each.new_target))
        for each in _with_new_target(record)
    ]


def _true(record: Record) -> list[PromptAnswer]:
    subject = record.fact.subject
    return [(each.prompt.replace(SLOT, subject), each.target) for each in _with_new_target(record)]


def _false(record: Record) -> tuple[list[PromptAnswer], list[PromptAnswer]]:
    """What goes with the new fact without following from it, and the same of the true fact."""
    asked = [
        (each.prompt.replace(SLOT, record.fact.subject), each.new_target, each.target)
        for each in record.false_consequences
        if each.new_target is not None
    ]
    return [(prompt, new) for prompt, new, _ in asked], [
        (prompt, true) for prompt, _, true in asked
    ]


def _about_exemplars(record: Record, each: Question) -> list[PromptAnswer]:
    return [(each.prompt.replace(SLOT, name), str(each.new_target)) for name in record.exemplars]


def _further(
    new: Sequence[Answered], true: Sequence[Answered], forward: Answered
) -> tuple[Measure, ...]:
    if not new:
        return (Measure(name="change of log p(new target), forward", values=(forward.change,)),)
    pairs = list(zip(new, true, strict=True))
    numbers = {
        "change of p(new consequence)": [a.p_change for a in new],
        "change of p(true consequence)": [a.p_change for a in true],
        "p(true consequence), before": [a.p_before for a in true],
    }
    shares = {
        "new consequence more likely than the true one, before": [
            float(n.mean_p_before > t.mean_p_before) for n, t in pairs
        ],
        "new consequence more likely than the true one, after": [
            float(n.mean_p_after > t.mean_p_after) for n, t in pairs
        ],
    }
    return (
        *make_measures(numbers),
        *make_measures(shares, share=True),
        Measure(name="change of log p(new target), forward", values=(forward.change,)),
    )


def _against_false(
    new: Sequence[Answered],
    false: Sequence[Answered],
    true_of_false: Sequence[Answered],
    target: str,
) -> tuple[Measure, ...]:
    if not false:
        return ()
    numbers = {
        CHANGE_OF_FALSE: [a.p_change for a in false],
        f"change of log p({FALSE})": [a.change for a in false],
        f"change of p({FALSE_OF_TRUE})": [a.p_change for a in true_of_false],
    }
    # An edit raises the new target itself, and consequences have other answers.
    if new and (others := [a for a in false if a.answer != target]):
        numbers["change of p(new consequence) minus that of the false ones"] = [
            mean([a.p_change for a in new]) - mean([a.p_change for a in others])
        ]
        numbers["change of log p(new consequence) minus that of the false ones"] = [
            mean([a.change for a in new]) - mean([a.change for a in others])
        ]
    return make_measures(numbers)


def _reading(result: CheckResult) -> str:
    numbers = {measure.name: measure.average.mean for measure in result.further}
    false = numbers.get(CHANGE_OF_FALSE)
    of_false = (
        ""
        if false is None
        else f" What does not follow, though it goes with the new fact, changed by {false:+.3f}."
    )
    if result.effect is None:
        return f"The record has no consequences.{of_false}"
    after = result["new consequence more likely than the true one, after"]
    reading = (
        f"p(new consequence) changed by {result['change of p(new consequence)'].mean:+.3f} "
        f"({result.effect.mean:+.1f} nats; the fact itself by "
        f"{result['change of log p(new target), forward'].mean:+.1f}), and p(true consequence) by "
        f"{result['change of p(true consequence)'].mean:+.3f}. The new one is more likely in "
        f"{after.mean:.0%} of {after.count}"
    )
    if result.control is None:
        return (
            f"{reading}. There are no exemplars, so it was not asked whether the model draws the "
            f"consequence at all.{of_false}"
        )
    return (
        f"{reading}. For subjects for which it is true, the unedited model gives it "
        f"{result.control.mean:.3f}.{of_false}"
    )
