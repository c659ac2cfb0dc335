"""Bleed-over: are other subjects left alone, also where the edit's own sentence stands before them?"""

from collections.abc import Sequence
from typing import Any

from rome_lens.checks.asking import Answered, before_and_after, fact_of, row
from rome_lens.checks.result import CheckResult, Measure, not_asked
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.models.lens import LensModel

NAME = "bleed-over"
ASKS = "Do other subjects keep their answers, also behind a sentence that states the edit?"
BEHIND = "neighbour behind the sentence"
BEHIND_CHANGE = "change of p(true answer) behind the sentence"
SAME, OTHER, NEW = "neighbour", "neighbour with another answer", "neighbour with the new answer"


def bleed_over(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of the neighbours' ``p(o)``, alone and behind the edit's sentence ("The Eiffel Tower is in Rome. The Louvre is in").

        effect = mean over neighbours of  p_edited(o | prompt) - p(o | prompt)

    over the neighbours of which the new target is not true: one of which it is true gains where the others lose, and has a row
    and an average of its own. So have those that share the fact's true target, which are CounterFact's neighbours and stand
    nearest to the edit, and those with another answer. Control: what the sentence does to the same neighbours without any
    edit, ``p(o | sentence. prompt) - p(o | prompt)``. Further: NS and NM as :func:`rome_lens.evaluate` has them (share of
    neighbours with ``p(o) > p(o*)``, mean of ``p(o) - p(o*)``; those of which the new target is true have none), NS+ and
    NM+ behind the sentence, unedited and edited, and ``KL(before || after)`` of the next token in nats. Under an
    edit that is itself that sentence in the context (``InContext``), the edited half of "+" holds it twice.

    Source: Hoelscher-Obermaier et al. 2023, "Detecting Edit Failures In Large Language Models" (CounterFact+).
    """
    record, fact, new = fact_of(edit, record)
    if all(question.target == new for question in record.neighborhood):
        return not_asked(
            NAME, ASKS, "the record has no neighbours of which the new target is not true"
        )
    sentence = f"{fact.text} {new}."
    alone = [(q.prompt, q.target) for q in record.neighborhood]
    behind = [(f"{sentence} {prompt}", answer) for prompt, answer in alone]
    others = [(prompt, new) for prompt, _ in (*alone, *behind)]
    answered = before_and_after(model, edit, [*alone, *behind, *others], prepend_bos=prepend_bos)
    n = len(alone)
    plain, plus, plain_new, plus_new = (answered[i * n : (i + 1) * n] for i in range(4))
    kinds = [{fact.target: SAME, new: NEW}.get(answer, OTHER) for _, answer in alone]
    asks_ns = [i for i, kind in enumerate(kinds) if kind != NEW]
    rows = [
        row(
            a,
            kind,
            effect=None if kind == NEW else a.p_change,
            control_prompt=b.prompt,
            control=b.p_before - a.p_before,
        )
        for kind, a, b in zip(kinds, plain, plus, strict=True)
    ]
    further = [
        *_preferences("", [plain[i] for i in asks_ns], [plain_new[i] for i in asks_ns]),
        *_preferences("+", [plus[i] for i in asks_ns], [plus_new[i] for i in asks_ns]),
        *(
            Measure(name=f"change of p(true answer), {kind}", values=changes)
            for kind in (SAME, OTHER, NEW)
            if (
                changes := tuple(
                    a.p_change for each, a in zip(kinds, plain, strict=True) if each == kind
                )
            )
        ),
        Measure(name=BEHIND_CHANGE, values=tuple(plus[i].p_change for i in asks_ns)),
        Measure(name="KL", values=tuple(a.kl for a in plain)),
        Measure(name="KL+", values=tuple(a.kl for a in plus)),
    ]
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured="p(true answer)",
        effect_is="change of the neighbours' p(true answer), the new target's own left out",
        control_is="change of the same by the edit's sentence before them, unedited",
        rows=(*rows, *(row(a, BEHIND) for a in plus)),
        further=tuple(further),
    )
    return result.with_reading(_reading(result))


def _preferences(suffix: str, true: Sequence[Answered], new: Sequence[Answered]) -> list[Measure]:
    """NS and NM of the unedited and the edited model."""
    before = tuple(t.mean_p_before - x.mean_p_before for t, x in zip(true, new, strict=True))
    after = tuple(t.mean_p_after - x.mean_p_after for t, x in zip(true, new, strict=True))
    return [
        Measure(
            name=f"NS{suffix}, unedited", values=tuple(float(gap > 0) for gap in before), share=True
        ),
        Measure(
            name=f"NS{suffix}, edited", values=tuple(float(gap > 0) for gap in after), share=True
        ),
        Measure(name=f"NM{suffix}, unedited", values=before),
        Measure(name=f"NM{suffix}, edited", values=after),
    ]


def _reading(result: CheckResult) -> str:
    assert result.effect is not None
    assert result.control is not None
    names = {measure.name: measure.average.mean for measure in result.further}
    reading = (
        f"The edit changes p(true answer) of the neighbours by {result.effect.mean:+.3f} (KL {names['KL']:.3f} nats); its sentence "
        f"before them, without any edit, by {result.control.mean:+.3f}, and the edit then by "
        f"{names[BEHIND_CHANGE]:+.3f} more"
    )
    return reading + (
        f". NS {names['NS, unedited']:.2f} -> {names['NS, edited']:.2f}; behind the sentence (NS+) "
        f"{names['NS+, unedited']:.2f} -> {names['NS+, edited']:.2f}."
    )
