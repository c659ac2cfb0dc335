"""Direction: after "The Eiffel Tower is in Rome", does "Rome has a tower called the" give the Eiffel Tower?"""

from collections.abc import Sequence

from rome_lens.answers import answer_log_probs
from rome_lens.checks.result import CheckResult, CheckRow, control_average, not_asked
from rome_lens.data import Record
from rome_lens.facts import SLOT
from rome_lens.intervals import Average, average
from rome_lens.models import Hook, LensModel

NAME = "direction"
ASKS = "Asked from the new target, does the model now give the subject?"
KNOWN = 0.1


def direction(
    model: LensModel, hooks: Sequence[Hook], record: Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of ``p(subject)`` on reverse prompts about the new target, beside that of ``p(new target)`` forwards.

    Control: the same reverse prompts about the true target in the unedited model: does it know the reverse at all?
    """
    fact = record.fact
    if not record.reverse:
        return not_asked(NAME, ASKS, "reverse prompts")
    asked = [(q.prompt.replace(SLOT, str(fact.new_target)), q.target) for q in record.reverse]
    controls = [(q.prompt.replace(SLOT, fact.target), q.target) for q in record.reverse]
    forward = [(fact.text, str(fact.new_target))]
    before = answer_log_probs(model, [*asked, *controls, *forward], prepend_bos=prepend_bos).exp().tolist()
    after = answer_log_probs(model, [*asked, *forward], fwd_hooks=hooks, prepend_bos=prepend_bos).exp().tolist()
    rows = tuple(
        CheckRow(prompt=prompt, answer=answer, before=b, after=a, control_prompt=control[0], control=c)
        for (prompt, answer), control, b, a, c in zip(
            asked, controls, before, after, before[len(asked) :], strict=False
        )
    )
    effect, control_mean = average([row.change for row in rows]), control_average(rows)
    subject = record.reverse[0].target
    reading = (
        f"Forwards p({fact.new_target}) changed by {after[-1] - before[-1]:+.3f}; "
        f"backwards p({subject}) by {effect.mean:+.3f}. {_what_could_be_expected(control_mean)}"
    )
    return CheckResult(
        name=NAME,
        asks=ASKS,
        measured="probability of the subject",
        rows=rows,
        effect=effect,
        control=control_mean,
        reading=reading,
    )


def _what_could_be_expected(control: Average | None) -> str:
    known = 0.0 if control is None else control.mean
    if known >= KNOWN:
        return f"The unedited model does know the reverse of the true fact (p = {known:.3f})."
    return (
        f"The unedited model hardly knows the reverse of the true fact either (p = {known:.3f}), "
        "so that little could be expected."
    )
