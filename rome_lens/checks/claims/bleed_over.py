"""Bleed-over: do other subjects keep their answers, even after a sentence that states the edit?"""

from collections.abc import Sequence
from typing import Any

from rome_lens.checks.answered import Answered, Answers, PromptAnswer, prompt_row
from rome_lens.checks.check import Check, new_target, run_check
from rome_lens.checks.result import CheckResult, Measure, make_measures
from rome_lens.data.facts import Fact
from rome_lens.data.joining import preceded
from rome_lens.data.record_type import Record
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

AFTER_SENTENCE = "neighbour after the sentence"
CHANGE_AFTER_SENTENCE = "change of p(true answer) after the sentence"
COUNTERFACT, REST = "CounterFact's neighbours", "the rest"
SAME, OTHER, NEW = "neighbour", "neighbour with another answer", "neighbour with the new answer"


@visits_model
def bleed_over(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of the neighbours' ``p(o)``, alone and after the edit's sentence.

        effect = mean over neighbours of  p_edited(o | prompt) - p(o | prompt)

    After the edit's sentence, a prompt reads "The Eiffel Tower is in Rome. The Louvre is in".

    The mean leaves out neighbours for which the new target is the true answer, because they gain
    where the others lose. They have rows and an average of their own. Two more groups have their
    own average: neighbours that share the fact's true target, which are CounterFact's neighbours
    and are closest to the edit, and neighbours with another answer.

    Control: ``p(o | sentence. prompt) - p(o | prompt)``, which is what the sentence does to the
    same neighbours without any edit.

    CounterFact's neighbours are those that share the true answer, and published scores are of them
    alone. NS, NM, NS+ and NM+ are given for them apart ("CounterFact's neighbours"), for the other
    ones apart ("the rest"), and for both together.

    Further numbers: NS and NM as in :func:`rome_lens.evaluate` (the share of neighbours with ``p(o)
    > p(o*)``, and the mean of ``p(o) - p(o*)``, both without neighbours for which the new target is
    true); NS+ and NM+ after the sentence, unedited and edited; and ``KL(before || after)`` of the
    next token in nats. If the edit is itself that sentence in the context (``InContext``), the
    edited half of "+" holds the sentence twice.

    Source: Hoelscher-Obermaier et al. 2023, "Detecting Edit Failures In Large Language Models"
        (CounterFact+).

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    return run_check(BleedOver(), model, edit, record, prepend_bos)


class BleedOver(Check):
    """The check behind :func:`bleed_over`."""

    name = "bleed-over"
    asks = "Do other subjects keep their answers, even after a sentence that states the edit?"
    lacks = "the record has no neighbours with another answer than the new target"

    def questions(self, record: Record) -> list[PromptAnswer]:
        """Every neighbour's true answer and the new target, each alone and after the sentence."""
        new, true = new_target(record), _alone(record)
        if all(answer == new for _, answer in true):
            return []
        both = [*true, *_after_sentence(record, true)]
        return [*both, *((prompt, new) for prompt, _ in both)]

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each neighbour, with the effect of the sentence as its control."""
        new, true = new_target(record), _alone(record)
        alone, after = answers.to(true), answers.to(_after_sentence(record, true))
        kinds = [{record.fact.target: SAME, new: NEW}.get(answer, OTHER) for _, answer in true]
        rows = [
            prompt_row(
                plain,
                kind,
                effect=None if kind == NEW else plain.p_change,
                control_prompt=told.prompt,
                control=told.p_before - plain.p_before,
            )
            for kind, plain, told in zip(kinds, alone, after, strict=True)
        ]
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="p(true answer)",
            effect_is="change of p(true answer), neighbours whose answer is not the new target",
            control_is="change of the same by the edit's sentence before them, unedited",
            rows=(*rows, *(prompt_row(a, AFTER_SENTENCE) for a in after)),
            further=_further(answers, new, kinds, alone, after),
        )
        return result.with_reading(_reading(result))


def _alone(record: Record) -> list[PromptAnswer]:
    return [(each.prompt, each.target) for each in record.neighborhood]


def _after_sentence(record: Record, pairs: Sequence[PromptAnswer]) -> list[PromptAnswer]:
    sentence = record.fact.stated(new_target(record))
    return [(preceded(prompt, f"{sentence} "), answer) for prompt, answer in pairs]


def _further(
    answers: Answers,
    new: str,
    kinds: Sequence[str],
    alone: Sequence[Answered],
    after: Sequence[Answered],
) -> tuple[Measure, ...]:
    changes = {
        f"change of p(true answer), {kind}": [
            a.p_change for its, a in zip(kinds, alone, strict=True) if its == kind
        ]
        for kind in (SAME, OTHER, NEW)
    }
    counted = [i for i, kind in enumerate(kinds) if kind != NEW]
    groups = {
        name: [i for i, kind in enumerate(kinds) if kind == its]
        for name, its in ((COUNTERFACT, SAME), (REST, OTHER))
    }
    apart = [
        measure
        for name, places in groups.items()
        for suffix, asked in (("", alone), ("+", after))
        for measure in _preferences(answers, suffix, [asked[i] for i in places], new, of=name)
    ]
    return (
        *_preferences(answers, "", [alone[i] for i in counted], new),
        *_preferences(answers, "+", [after[i] for i in counted], new),
        *apart,
        *make_measures(changes),
        *make_measures(
            {
                CHANGE_AFTER_SENTENCE: [after[i].p_change for i in counted],
                "KL": [a.kl for a in alone],
                "KL+": [a.kl for a in after],
            }
        ),
    )


def _preferences(
    answers: Answers, suffix: str, true: Sequence[Answered], new: str, *, of: str = ""
) -> tuple[Measure, ...]:
    """NS and NM of the unedited and the edited model; ``of`` says of which neighbours."""
    pairs = [(a, answers[a.prompt, new]) for a in true]
    gaps = {
        "unedited": [t.mean_p_before - n.mean_p_before for t, n in pairs],
        "edited": [t.mean_p_after - n.mean_p_after for t, n in pairs],
    }
    gaps = {f"{of}, {when}" if of else when: its for when, its in gaps.items()}
    shares = {f"NS{suffix}, {name}": [float(gap > 0) for gap in its] for name, its in gaps.items()}
    means = {f"NM{suffix}, {name}": its for name, its in gaps.items()}
    return (*make_measures(shares, share=True), *make_measures(means))


def _reading(result: CheckResult) -> str:
    assert result.effect is not None
    assert result.control is not None
    numbers = {measure.name: measure.average.mean for measure in result.further}
    return (
        f"The edit changes p(true answer) of the neighbours by {result.effect.mean:+.3f} "
        f"(KL {numbers['KL']:.3f} nats). Its sentence before them, without any edit, changes it by "
        f"{result.control.mean:+.3f}, and the edit then by {numbers[CHANGE_AFTER_SENTENCE]:+.3f} "
        f"more. NS {numbers['NS, unedited']:.2f} -> {numbers['NS, edited']:.2f}; after the "
        f"sentence (NS+) {numbers['NS+, unedited']:.2f} -> {numbers['NS+, edited']:.2f}."
    )
