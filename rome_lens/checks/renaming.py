"""Association or concept, and description: does the edit reach the subject under another name, or without any?"""

from collections.abc import Sequence

from rome_lens.answers import answer_log_probs
from rome_lens.checks.result import CheckResult, CheckRow, control_average, not_asked
from rome_lens.data import Record
from rome_lens.intervals import average
from rome_lens.models import Hook, LensModel

KNOWN = 0.1


def association(
    model: LensModel, hooks: Sequence[Hook], record: Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of ``p(new target)`` under aliases of the subject; control: unedited ``p(true target)`` under the alias."""
    asks = "Does the edit hold for the subject under another name?"
    return _renamed(model, hooks, record, record.aliases, "association", asks, "alias", "aliases", prepend_bos)


def description(
    model: LensModel, hooks: Sequence[Hook], record: Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Change of ``p(new target)`` for descriptions without the subject's tokens; control: unedited ``p(true target)``."""
    asks = "Does the edit hold for the subject described without its name?"
    return _renamed(
        model, hooks, record, record.descriptions, "description", asks, "description", "descriptions", prepend_bos
    )


def _renamed(
    model: LensModel,
    hooks: Sequence[Hook],
    record: Record,
    names: tuple[str, ...],
    check: str,
    asks: str,
    one: str,
    many: str,
    prepend_bos: bool | None,
) -> CheckResult:
    if not names:
        return not_asked(check, asks, many)
    fact = record.fact
    new = str(fact.new_target)
    prompts = [fact.about(name).text for name in names]
    asked = [(prompt, new) for prompt in (*prompts, fact.text)]
    before = answer_log_probs(model, asked, prepend_bos=prepend_bos).exp().tolist()
    after = answer_log_probs(model, asked, fwd_hooks=hooks, prepend_bos=prepend_bos).exp().tolist()
    known = (
        answer_log_probs(model, [(prompt, fact.target) for prompt in prompts], prepend_bos=prepend_bos).exp().tolist()
    )
    rows = tuple(
        CheckRow(prompt=prompt, answer=new, before=b, after=a, control_prompt=f"{prompt} {fact.target}", control=c)
        for prompt, b, a, c in zip(prompts, before, after, known, strict=False)
    )
    effect, control = average([row.change for row in rows]), control_average(rows)
    forward = after[-1] - before[-1]
    known_names = [name for name, p in zip(names, known, strict=True) if p >= KNOWN]
    reached = [row.change for row in rows if row.control is not None and row.control >= KNOWN]
    could = (
        f"The unedited model knows the fact (p >= {KNOWN}) under {', '.join(known_names)}, where it changed by "
        f"{average(reached).mean:+.3f}."
        if known_names
        else f"The unedited model knows the true fact under no {one} (p < {KNOWN}), so that nothing follows from this."
    )
    reading = f"p({new}) changed by {forward:+.3f} under the subject's name and by {effect.mean:+.3f} under the {one}. {could}"
    return CheckResult(
        name=check,
        asks=asks,
        measured=f"probability of {new!r}",
        rows=rows,
        effect=effect,
        control=control,
        reading=reading,
    )
