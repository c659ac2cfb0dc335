"""Direction: does an edit hold in reverse?

After "The Eiffel Tower is in Rome", does "Rome has a tower called the" give the Eiffel Tower?
"""

from statistics import fmean as mean
from typing import Any

from rome_lens.checks.answered import Answers, PromptAnswer, prompt_row
from rome_lens.checks.check import Check, new_target, run_check
from rome_lens.checks.result import KNOWN, CheckResult, make_measures
from rome_lens.data.deriving import words_in_slot
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Record
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

_OTHER_TARGETS = 2
"""How many other targets the reverse prompts are asked about, at most."""


@visits_model
def direction(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of ``log p(subject)`` on reverse prompts about the new target.

        effect = mean over reverse prompts of  log p_edited(subject | o*) - log p(subject | o*)

    The result also has the change of ``log p(new target)`` on forward prompts, for comparison.

    Control: ``p(subject | o)``, the same prompts about the true target in the unedited model. It
    tells whether the model knows the reverse at all. If it is below 0.1, an effect of zero says
    little.

    Decoys: the same prompts about other answers of the relation, which are those of the neighbours
    whose prompts have the form of the fact's. An edit that raises the subject's name wherever it is
    asked for raises it there too, and that is spill.

    A change of ``log p`` counts a step from 1e-9 to 1e-7 as much as one from 0.01 to 1, so the
    change of ``p`` is given too.

    Source: the reversal question of "But is it really in Rome?"; Berglund et al. 2023, "The
        Reversal Curse"; the inverse of a relation is "logical generalisation" in Cohen et al. 2023.

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.records(known_by="toy")[0]
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=C, contexts=["{}"])
        >>> result = rl.checks.direction(model, edit, record)
        >>> round(result["change of log p(new target), forward"].mean, 1)
        9.1
        >>> round(result.effect.mean, 1)  # backwards, nothing has changed
        -0.1
    """
    return run_check(Direction(), model, edit, record, prepend_bos)


class Direction(Check):
    """The check behind :func:`direction`."""

    name = "direction"
    asks = "Asked from the new target, does the model now give the subject?"
    lacks = "the record has no reverse prompts"

    def questions(self, record: Record) -> list[PromptAnswer]:
        """Reverse prompts about the new, the true and other targets, and forward prompts."""
        if not record.reverse:
            return []
        targets = (new_target(record), record.fact.target, *_other_targets(record))
        reverse = [question for target in targets for question in _reverse(record, target)]
        return [*reverse, *_forward(record)]

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each reverse prompt, with the true target's as its control."""
        backwards = answers.to(_reverse(record, new_target(record)))
        true_backwards = answers.to(_reverse(record, record.fact.target))
        forwards = answers.to(_forward(record))
        others = [
            answered
            for target in _other_targets(record)
            for answered in answers.to(_reverse(record, target))
        ]
        rows = [
            prompt_row(
                new,
                "reverse",
                in_nats=True,
                effect=new.change,
                control_prompt=true.prompt,
                control=true.p_before,
                known=true.p_before >= KNOWN,
            )
            for new, true in zip(backwards, true_backwards, strict=True)
        ]
        rows += [prompt_row(a, "reverse of another target", in_nats=True) for a in others]
        rows += [prompt_row(a, "forward", in_nats=True) for a in forwards]
        numbers = {
            "change of p(subject), reverse": [a.p_change for a in backwards],
            "change of log p(new target), forward": [a.change for a in forwards],
            "change of p(new target), forward": [a.p_change for a in forwards],
            "change of p(subject), reverse of the true fact": [a.p_change for a in true_backwards],
            "change of log p(subject), reverse of another target": [a.change for a in others],
            "change of p(subject), reverse of another target": [a.p_change for a in others],
        }
        if others:
            numbers |= {
                "change of log p(subject), reverse, minus another target": [
                    mean([a.change for a in backwards]) - mean([a.change for a in others])
                ],
                "change of p(subject), reverse, minus another target": [
                    mean([a.p_change for a in backwards]) - mean([a.p_change for a in others])
                ],
            }
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured=(
                "log p(subject) on reverse prompts, log p(new target) on forward ones, in nats"
            ),
            effect_is="change of log p(subject), reverse",
            control_is="p(subject) with the true target in the prompt, unedited",
            rows=tuple(rows),
            further=make_measures(numbers),
        )
        return result.with_reading(_reading(result, new_target(record)))


def _other_targets(record: Record) -> list[str]:
    """Answers of neighbours whose prompts have the form of the fact's, without its own two."""
    fact = record.fact
    found = dict.fromkeys(
        question.target
        for question in record.neighborhood
        if words_in_slot(fact, question.prompt) is not None
        and question.target not in (fact.target, fact.new_target)
    )
    return list(found)[:_OTHER_TARGETS]


def _reverse(record: Record, target: str) -> list[PromptAnswer]:
    return [(each.prompt.replace(SLOT, target), each.target) for each in record.reverse]


def _forward(record: Record) -> list[PromptAnswer]:
    return [(prompt, new_target(record)) for prompt in (record.fact.text, *record.paraphrases)]


def _reading(result: CheckResult, new: str) -> str:
    assert result.effect is not None
    assert result.control is not None
    known = sum(bool(row.known) for row in result.rows)
    if known:
        could = (
            f"The unedited model knows {known} of the {result.effect.count} reverses of the true "
            f"fact (mean p = {result.control.mean:.3f})"
        )
    else:
        could = (
            "The unedited model hardly knows the reverse of the true fact either "
            f"(p = {result.control.mean:.3f}), so little follows"
        )
    other = "change of p(subject), reverse of another target"
    if any(measure.name == other for measure in result.further):
        could += f". Asked from other targets, it changed by {result[other].mean:+.4f}"
    return (
        f"Forwards, p({new}) changed by {result['change of p(new target), forward'].mean:+.3f} "
        f"({result['change of log p(new target), forward'].mean:+.1f} nats). "
        f"Backwards, p(subject) changed by {result['change of p(subject), reverse'].mean:+.4f} "
        f"({result.effect.mean:+.1f} nats). {could}."
    )
