"""Consequence: if the Eiffel Tower is in Rome, is it in Italy?"""

from typing import Any

from rome_lens.checks.asking import before_and_after, fact_of, row
from rome_lens.checks.result import KNOWN, CheckResult, Measure, not_asked
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Record
from rome_lens.models.lens import LensModel

NAME = "consequence"
ASKS = "Does what would follow from the new fact follow?"


def consequence(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of ``log p`` of what follows from the new fact.

        effect = mean over consequences of  log p_edited(c* | prompt) - log p(c* | prompt)

    Control: ``p(c*)`` on the same prompts about subjects of which the new target is really true, unedited: does the
    model draw the consequence where the fact is so? ``known`` says that it does with 0.1 at least. The change of ``p``, and of
    ``p(c)`` of what follows from the true fact, stand beside it; which of the two is the likelier is asked of the geometric mean
    over each one's tokens.

    Source: "ripple effects", Cohen et al. 2023, "Evaluating the Ripple Effects of Knowledge Editing in Language Models".
    """
    record, fact, new = fact_of(edit, record)
    asked = [q for q in record.consequences if q.new_target is not None]
    if not asked:
        return not_asked(NAME, ASKS, "the record has no consequences with a new target")
    prompts = [q.prompt.replace(SLOT, fact.subject) for q in asked]
    now = [(prompt, str(q.new_target)) for prompt, q in zip(prompts, asked, strict=True)]
    once = [(prompt, q.target) for prompt, q in zip(prompts, asked, strict=True)]
    really = [
        (q.prompt.replace(SLOT, name), str(q.new_target))
        for q in asked
        for name in record.exemplars
    ]
    answered = before_and_after(
        model, edit, [(fact.text, new), *now, *once, *really], prepend_bos=prepend_bos
    )
    forward, n, each = answered[0], len(asked), len(record.exemplars)
    gained, lost, exemplars = (
        answered[1 : n + 1],
        answered[n + 1 : 2 * n + 1],
        answered[2 * n + 1 :],
    )
    controls = [
        sum(x.p_before for x in exemplars[each * i : each * (i + 1)]) / each if each else None
        for i in range(n)
    ]
    rows = [
        row(
            a,
            "consequence",
            in_nats=True,
            effect=a.change,
            control_prompt=" / ".join(record.exemplars) or None,
            control=control,
            known=None if control is None else control >= KNOWN,
        )
        for a, control in zip(gained, controls, strict=True)
    ]
    further = (
        Measure(name="change of p(new consequence)", values=tuple(a.p_change for a in gained)),
        Measure(name="change of p(true consequence)", values=tuple(t.p_change for t in lost)),
        Measure(name="p(true consequence), before", values=tuple(t.p_before for t in lost)),
        Measure(
            name="new consequence likelier than the true one, before",
            values=tuple(
                float(a.mean_p_before > t.mean_p_before) for a, t in zip(gained, lost, strict=True)
            ),
            share=True,
        ),
        Measure(
            name="new consequence likelier than the true one, after",
            values=tuple(
                float(a.mean_p_after > t.mean_p_after) for a, t in zip(gained, lost, strict=True)
            ),
            share=True,
        ),
        Measure(name="change of log p(new target), forward", values=(forward.change,)),
    )
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured="log p(new consequence), in nats",
        effect_is="change of log p(new consequence)",
        control_is="p(new consequence) of subjects of which the new target is true, unedited",
        rows=(
            *rows,
            row(forward, "forward", in_nats=True),
            *(row(t, "true consequence", in_nats=True) for t in lost),
        ),
        further=further,
    )
    return result.with_reading(_reading(result))


def _reading(result: CheckResult) -> str:
    assert result.effect is not None
    after = result["new consequence likelier than the true one, after"]
    reading = (
        f"p(new consequence) changed by {result['change of p(new consequence)'].mean:+.3f} ({result.effect.mean:+.1f} nats, the "
        f"fact itself by {result['change of log p(new target), forward'].mean:+.1f}), p(true consequence) by "
        f"{result['change of p(true consequence)'].mean:+.3f}; the new one is the likelier in {after.mean:.0%} of {after.count}"
    )
    if result.control is None:
        return f"{reading}. No exemplars: whether the model draws the consequence at all was not asked."
    return f"{reading}. Of subjects of which it is so the unedited model gives it {result.control.mean:.3f}."
