"""Bleed-over: are other subjects left alone, also where the edit's own sentence stands before them?"""

from collections.abc import Sequence
from typing import Any

from rome_lens.checks.asking import Answered, before_and_after, fact_of, row
from rome_lens.checks.result import CheckResult, Measure, not_asked
from rome_lens.data import Record
from rome_lens.models import LensModel

NAME = "bleed-over"
ASKS = "Do other subjects keep their answers, also behind a sentence that states the edit?"
ALONE, BEHIND = "neighbour", "neighbour behind the sentence"


def bleed_over(model: LensModel, edit: Any, record: Record, *, prepend_bos: bool | None = None) -> CheckResult:
    """Change of the neighbours' ``p(o)``, alone and behind the edit's sentence ("The Eiffel Tower is in Rome. The Louvre is in").

        effect = mean over neighbours of  p_edited(o | prompt) - p(o | prompt)

    Control: what the sentence does to the same neighbours without any edit, ``p(o | sentence. prompt) - p(o | prompt)``. Further:
    NS and NM as :func:`rome_lens.evaluate` has them (share of neighbours with ``p(o) > p(o*)``, mean of ``p(o) - p(o*)``), NS+ and
    NM+ behind the sentence, unedited and edited, and ``KL(before || after)`` of the next token in nats. A neighbour of which
    the new target is true has no NS. Under an edit that is itself that sentence in the context (``InContext``), the edited
    half of "+" holds it twice.

    Source: Hoelscher-Obermaier et al. 2023, "Detecting Edit Failures In Large Language Models" (CounterFact+).
    """
    fact, new = fact_of(edit, record)
    if not record.neighborhood:
        return not_asked(NAME, ASKS, "the record has no neighbours")
    sentence = f"{fact.text} {new}."
    alone = [(q.prompt, q.target) for q in record.neighborhood]
    behind = [(f"{sentence} {prompt}", answer) for prompt, answer in alone]
    others = [(prompt, new) for prompt, _ in (*alone, *behind)]
    answered = before_and_after(model, edit, [*alone, *behind, *others], prepend_bos=prepend_bos)
    n = len(alone)
    plain, plus, plain_new, plus_new = (answered[i * n : (i + 1) * n] for i in range(4))
    rows = [
        row(a, ALONE, effect=a.p_change, control_prompt=b.prompt, control=b.p_before - a.p_before)
        for a, b in zip(plain, plus, strict=True)
    ]
    asks_ns = [i for i, question in enumerate(record.neighborhood) if question.target != new]
    further = [
        *_preferences("", [plain[i] for i in asks_ns], [plain_new[i] for i in asks_ns]),
        *_preferences("+", [plus[i] for i in asks_ns], [plus_new[i] for i in asks_ns]),
        Measure(name="change of p(true answer) behind the sentence", values=tuple(a.p_change for a in plus)),
        Measure(name="KL", values=tuple(a.kl for a in plain)),
        Measure(name="KL+", values=tuple(a.kl for a in plus)),
    ]
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured="p(true answer)",
        effect_is="change of the neighbours' p(true answer)",
        control_is="change of the same by the edit's sentence before them, unedited",
        rows=(*rows, *(row(a, BEHIND) for a in plus)),
        further=tuple(further),
    )
    return result.with_reading(_reading(result))


def _preferences(suffix: str, true: Sequence[Answered], new: Sequence[Answered]) -> list[Measure]:
    """NS and NM of the unedited and the edited model."""
    if not true:
        return []
    before = tuple(t.mean_p_before - x.mean_p_before for t, x in zip(true, new, strict=True))
    after = tuple(t.mean_p_after - x.mean_p_after for t, x in zip(true, new, strict=True))
    return [
        Measure(name=f"NS{suffix}, unedited", values=tuple(float(gap > 0) for gap in before), share=True),
        Measure(name=f"NS{suffix}, edited", values=tuple(float(gap > 0) for gap in after), share=True),
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
        f"{names['change of p(true answer) behind the sentence']:+.3f} more"
    )
    if "NS, edited" in names:
        reading += (
            f". NS {names['NS, unedited']:.2f} -> {names['NS, edited']:.2f}; behind the sentence (NS+) "
            f"{names['NS+, unedited']:.2f} -> {names['NS+, edited']:.2f}"
        )
    return reading + "."
