"""Association or concept, and description: does the edit reach the subject under another name, or without any?"""

from collections.abc import Sequence
from typing import Any

from rome_lens.checks.asking import Answered, before_and_after, fact_of, row
from rome_lens.checks.result import KNOWN, CheckResult, Measure, not_asked
from rome_lens.data import Record
from rome_lens.facts import Fact
from rome_lens.models import LensModel

LEAST_FORWARD = 0.05
CONTROL_IS = "p(true target) under the same words, unedited"


def association(model: LensModel, edit: Any, record: Record, *, prepend_bos: bool | None = None) -> CheckResult:
    """The share of the edit's effect that an alias of the subject keeps.

        effect = mean over aliases of  [p_edited(o* | alias) - p(o* | alias)] / [p_edited(o* | s) - p(o* | s)]

    Control: ``p(o | alias)``, unedited: does the model know the fact under the alias? ``effect_where_known`` is over those
    aliases alone. The same share in ``log p`` stands beside it. Where the edit does not hold forwards (p changes by less
    than 0.05) there is nothing to have a share of, and the check says so.

    Source: "Cheese is not Fromage" of "But is it really in Rome?".
    """
    fact, new = fact_of(edit, record)
    asks = "Does the edit hold for the subject under another name?"
    if not record.aliases:
        return not_asked("association", asks, "the record has no aliases")
    return _renamed(model, edit, fact, new, record.aliases, ("association", asks, "alias"), prepend_bos)


def description(model: LensModel, edit: Any, record: Record, *, prepend_bos: bool | None = None) -> CheckResult:
    """The share of the edit's effect that a description of the subject without its name keeps; see :func:`association`.

    A second control: the description with the name put before it ("The Eiffel Tower, the iron lattice structure ..., is"),
    where an edit that is bound to the name's tokens should hold.

    Source: "The Rock" of "But is it really in Rome?".
    """
    fact, new = fact_of(edit, record)
    asks = "Does the edit hold for the subject described without its name?"
    if not record.descriptions:
        return not_asked("description", asks, "the record has no descriptions")
    words = ("description", asks, "description")
    return _renamed(model, edit, fact, new, record.descriptions, words, prepend_bos)


def _renamed(
    model: LensModel,
    edit: Any,
    fact: Fact,
    new: str,
    names: Sequence[str],
    words: tuple[str, str, str],
    prepend_bos: bool | None,
) -> CheckResult:
    check, asks, kind = words
    prompts = [fact.about(name).text for name in names]
    named = [fact.about(f"{fact.subject}, {_inside(name)},").text for name in names] if check == "description" else []
    questions = [(fact.text, new), *((prompt, new) for prompt in (*prompts, *named))]
    forward, *answered = before_and_after(
        model, edit, [*questions, *((prompt, fact.target) for prompt in prompts)], prepend_bos=prepend_bos
    )
    n = len(prompts)
    under, with_name, true = answered[:n], answered[n:-n], answered[-n:]
    if abs(forward.p_change) < LEAST_FORWARD:
        lacking = f"the edit does not hold for the subject itself, p({new}) changed by {forward.p_change:+.3f}"
        return not_asked(check, asks, lacking)
    rows = [
        row(
            a,
            kind,
            effect=a.p_change / forward.p_change,
            control_prompt=f"{a.prompt} {fact.target}",
            control=t.p_before,
            known=t.p_before >= KNOWN,
        )
        for a, t in zip(under, true, strict=True)
    ]
    rows += [row(a, "description with the name") for a in with_name]
    result = CheckResult(
        name=check,
        asks=asks,
        measured="p(new target)",
        effect_is=f"share of the change of p(new target) that the {kind} keeps",
        control_is=CONTROL_IS,
        rows=(*rows, row(forward, "forward")),
        further=_further(forward, under, with_name, true),
    )
    return result.with_reading(_reading(result, forward, kind, names, new))


def _inside(name: str) -> str:
    """A description as it stands within a sentence."""
    return name[0].lower() + name[1:] if name.split()[0] in ("The", "A", "An") else name


def _further(
    forward: Answered, under: Sequence[Answered], with_name: Sequence[Answered], true: Sequence[Answered]
) -> tuple[Measure, ...]:
    found = [
        Measure(name="change of p(new target)", values=tuple(a.p_change for a in under)),
        Measure(
            name="share of the change of log p(new target)", values=tuple(a.change / forward.change for a in under)
        ),
        Measure(name="change of p(true target)", values=tuple(t.p_change for t in true)),
        Measure(name="change of p(new target), the subject's own name", values=(forward.p_change,)),
    ]
    if with_name:
        shares = tuple(a.p_change / forward.p_change for a in with_name)
        found.append(Measure(name="share kept with the name added", values=shares))
    fires = tuple(a.firing for a in under if a.firing is not None)
    return (*found, Measure(name="strongest firing", values=fires)) if fires else tuple(found)


def _reading(result: CheckResult, forward: Answered, kind: str, names: Sequence[str], new: str) -> str:
    assert result.effect is not None
    own = [each for each in result.rows if each.kind == kind]
    known = [name for name, each in zip(names, own, strict=True) if each.known]
    reading = (
        f"p({new}) changed by {forward.p_change:+.3f} under the subject's name; of that the {kind} keeps "
        f"{result.effect.mean:+.3f}. "
    )
    if known:
        assert result.effect_where_known is not None
        reading += f"The unedited model knows the fact (p >= {KNOWN}) for {', '.join(known)}: there "
        reading += f"{result.effect_where_known.mean:+.3f}"
    else:
        reading += f"The unedited model knows the fact under no {kind} (p < {KNOWN}), so that little follows"
    if all(each.firing is not None for each in own):
        strongest = max(own, key=lambda each: abs(each.firing or 0.0))
        reading += f"; the edit fires there with {strongest.firing:+.2f} at most (1 on its own fact)"
    return reading + "."
