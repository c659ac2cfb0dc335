"""Direction: after "The Eiffel Tower is in Rome", does "Rome has a tower called the" give the Eiffel Tower?"""

from typing import Any

from rome_lens.checks.asking import before_and_after, fact_of, row
from rome_lens.checks.result import KNOWN, CheckResult, Measure, not_asked
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Record
from rome_lens.models.lens import LensModel

NAME = "direction"
ASKS = "Asked from the new target, does the model now give the subject?"


def direction(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of ``log p(subject)`` on reverse prompts about the new target, beside that of ``log p(new target)`` forwards.

        effect = mean over reverse prompts of  log p_edited(subject | o*) - log p(subject | o*)

    Control: ``p(subject | o)``, the same prompts about the true target in the unedited model: does it know the reverse at
    all? Where that is below 0.1, little follows from an effect of zero. A change of ``log p`` counts from 1e-9 to 1e-7 as much as
    from .01 to 1: the change of ``p`` stands beside it.

    Source: the reversal question of "But is it really in Rome?"; Berglund et al. 2023, "The Reversal Curse".
    """
    record, fact, new = fact_of(edit, record)
    if not record.reverse:
        return not_asked(NAME, ASKS, "the record has no reverse prompts")
    asked = [(q.prompt.replace(SLOT, new), q.target) for q in record.reverse]
    controls = [(q.prompt.replace(SLOT, fact.target), q.target) for q in record.reverse]
    forward = [(prompt, new) for prompt in (fact.text, *record.paraphrases)]
    answered = before_and_after(model, edit, [*asked, *controls, *forward], prepend_bos=prepend_bos)
    n = len(asked)
    backwards, known, forwards = answered[:n], answered[n : 2 * n], answered[2 * n :]
    rows = [
        row(
            a,
            "reverse",
            in_nats=True,
            effect=a.change,
            control_prompt=c.prompt,
            control=c.p_before,
            known=c.p_before >= KNOWN,
        )
        for a, c in zip(backwards, known, strict=True)
    ]
    rows += [row(a, "forward", in_nats=True) for a in forwards]
    further = (
        Measure(name="change of p(subject), reverse", values=tuple(a.p_change for a in backwards)),
        Measure(
            name="change of log p(new target), forward", values=tuple(a.change for a in forwards)
        ),
        Measure(
            name="change of p(new target), forward", values=tuple(a.p_change for a in forwards)
        ),
        Measure(
            name="change of p(subject), reverse of the true fact",
            values=tuple(c.p_change for c in known),
        ),
    )
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured="log p(subject) on reverse prompts, log p(new target) on forward ones, in nats",
        effect_is="change of log p(subject), reverse",
        control_is="p(subject) where the true target stands in the prompt, unedited",
        rows=tuple(rows),
        further=further,
        reading="",
    )
    return result.with_reading(_reading(result, new))


def _reading(result: CheckResult, new: str) -> str:
    assert result.effect is not None
    assert result.control is not None
    known = sum(bool(row.known) for row in result.rows)
    could = (
        f"The unedited model knows {known} of the {result.effect.count} reverses of the true fact (mean p = "
        f"{result.control.mean:.3f})"
        if known
        else f"The unedited model hardly knows the reverse of the true fact either (p = {result.control.mean:.3f}), so that "
        "little follows"
    )
    return (
        f"Forwards, p({new}) changed by {result['change of p(new target), forward'].mean:+.3f} "
        f"({result['change of log p(new target), forward'].mean:+.1f} nats); backwards, p(subject) by "
        f"{result['change of p(subject), reverse'].mean:+.4f} ({result.effect.mean:+.1f} nats). {could}."
    )
