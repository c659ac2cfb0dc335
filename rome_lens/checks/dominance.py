"""Dominance: does the model now want to say Rome more than it ever wanted to say Paris?"""

from collections.abc import Sequence

from rome_lens.answers import answer_log_probs
from rome_lens.checks.result import CheckResult, CheckRow, control_average, not_asked
from rome_lens.data import Record
from rome_lens.facts import SLOT
from rome_lens.intervals import average
from rome_lens.models import Hook, LensModel

NAME = "dominance"
ASKS = "Where the subject is mentioned and nothing is asked, is the new target louder than the true one ever was?"


def dominance(
    model: LensModel, hooks: Sequence[Hook], record: Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """``p_edited(new target) - p_unedited(true target)`` on open prompts about the subject.

    The rows' ``before`` is the unedited true target's probability, ``after`` the edited new target's. Control: the
    unedited probability of the new target on the same prompts about subjects of which it is really true.
    """
    fact = record.fact
    if not record.open_prompts:
        return not_asked(NAME, ASKS, "open prompts")
    new = str(fact.new_target)
    prompts = [prompt.replace(SLOT, fact.subject) for prompt in record.open_prompts]
    before = answer_log_probs(model, [(p, fact.target) for p in prompts], prepend_bos=prepend_bos).exp().tolist()
    after = (
        answer_log_probs(model, [(p, new) for p in prompts], fwd_hooks=hooks, prepend_bos=prepend_bos).exp().tolist()
    )
    controls: list[float | None] = [None] * len(prompts)
    if record.exemplars:
        questions = [(p.replace(SLOT, name), new) for p in record.open_prompts for name in record.exemplars]
        each = answer_log_probs(model, questions, prepend_bos=prepend_bos).exp().reshape(len(prompts), -1)
        controls = each.mean(1).tolist()
    names = " / ".join(record.exemplars)
    rows = tuple(
        CheckRow(prompt=p, answer=f"{fact.target} -> {new}", before=b, after=a, control_prompt=names or None, control=c)
        for p, b, a, c in zip(prompts, before, after, controls, strict=True)
    )
    effect, control = average([row.change for row in rows]), control_average(rows)
    reading = (
        f"Unasked, p({new}) after the edit is {average(after).mean:.3f}, p({fact.target}) before it was "
        f"{average(before).mean:.3f}: a difference of {effect.mean:+.3f}."
    )
    if control is not None:
        reading += f" Of subjects of which it is true ({names}) the unedited model says {new} with {control.mean:.3f}."
    return CheckResult(
        name=NAME,
        asks=ASKS,
        measured=f"probability of {fact.target!r} before, of {new!r} after",
        rows=rows,
        effect=effect,
        control=control,
        reading=reading,
    )
