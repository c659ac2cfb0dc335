"""Association or concept, and description: does the edit reach the subject under another name, or without any?"""

import re
from collections.abc import Sequence
from typing import Any

from rome_lens.checks.asking import Answered, before_and_after, fact_of, row
from rome_lens.checks.result import KNOWN, CheckResult, Measure, not_asked
from rome_lens.data import Record
from rome_lens.facts import Fact
from rome_lens.models import LensModel

LEAST_FORWARD = 0.1
ALIAS_WITH_LAST_WORD = "alias with the subject's last word"
WITH_NAME = "description with the name"


def association(model: LensModel, edit: Any, record: Record, *, prepend_bos: bool | None = None) -> CheckResult:
    """The share of the edit's effect that an alias of the subject keeps.

        effect = mean over aliases of  [p_edited(o* | alias) - p(o* | alias)] / [p_edited(o* | s) - p(o* | s)]

    Control: ``p(o | alias)``, unedited: does the model know the fact under the alias? ``effect_where_known`` is over those
    aliases alone. The same share in ``log p`` stands beside it. Where the edit does not hold forwards (p grows by less
    than 0.1) there is nothing to have a share of, and the check says so.

    An alias that holds the subject's last word ("Leo Messi" for "Lionel Messi") holds the very token that the edit is keyed to, and
    tells nothing of the concept: such aliases have rows and an average of their own, and no part in the effect.

    Source: "Cheese is not Fromage" of "But is it really in Rome?".
    """
    fact, new = fact_of(edit, record)
    asks = "Does the edit hold for the subject under another name?"
    if not record.aliases:
        return not_asked("association", asks, "the record has no aliases")
    keyed = [name for name in record.aliases if holds_last_word(name, fact.subject)]
    beside = (ALIAS_WITH_LAST_WORD, [fact.about(name).text for name in keyed])
    names = [name for name in record.aliases if name not in keyed]
    return _renamed(model, edit, fact, new, names, beside, ("association", asks, "alias"), prepend_bos)


def holds_last_word(name: str, subject: str) -> bool:
    """Whether a name holds the last word of the subject, where ROME looks its key up; upper and lower case are one."""
    return _words(subject)[-1] in _words(name)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold()) or [text.casefold()]


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
    named = [fact.about(f"{fact.subject}, {_inside(name)},").text for name in record.descriptions]
    words = ("description", asks, "description")
    return _renamed(model, edit, fact, new, record.descriptions, (WITH_NAME, named), words, prepend_bos)


def _renamed(
    model: LensModel,
    edit: Any,
    fact: Fact,
    new: str,
    names: Sequence[str],
    beside: tuple[str, Sequence[str]],
    words: tuple[str, str, str],
    prepend_bos: bool | None,
) -> CheckResult:
    """The share kept under ``names``; ``beside`` are a kind of prompts that hold the edit's own token, and these."""
    check, asks, kind = words
    prompts = [fact.about(name).text for name in names]
    asked = [(fact.text, new), *((prompt, new) for prompt in (*prompts, *beside[1]))]
    true = [(prompt, fact.target) for prompt in prompts]
    forward, *rest = before_and_after(model, edit, [*asked, *true], prepend_bos=prepend_bos)
    n = len(prompts)
    under, keyed, known = rest[:n], rest[n : n + len(beside[1])], rest[n + len(beside[1]) :]
    if forward.p_change < LEAST_FORWARD:
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
        for a, t in zip(under, known, strict=True)
    ]
    result = CheckResult(
        name=check,
        asks=asks,
        measured="p(new target)",
        effect_is=f"share of the change of p(new target) that the {kind} keeps",
        control_is="p(true target) under the same words, unedited",
        rows=(*rows, *(row(a, beside[0]) for a in keyed), row(forward, "forward")),
        further=_further(forward, under, known, beside[0], keyed),
    )
    return result.with_reading(_reading(result, forward, kind, names, beside[0], new))


def _inside(name: str) -> str:
    """A description as it stands within a sentence."""
    return name[0].lower() + name[1:] if name.split()[0] in ("The", "A", "An") else name


def _further(
    forward: Answered, under: Sequence[Answered], known: Sequence[Answered], beside: str, keyed: Sequence[Answered]
) -> tuple[Measure, ...]:
    numbers = {
        "change of p(new target)": [a.p_change for a in under],
        "share of the change of log p(new target)": [a.change / forward.change for a in under],
        "change of p(true target)": [t.p_change for t in known],
        "change of p(new target), the subject's own name": [forward.p_change],
        f"share kept, {beside}": [a.p_change / forward.p_change for a in keyed],
        "strongest firing": [a.firing for a in under if a.firing is not None],
        f"strongest firing, {beside}": [a.firing for a in keyed if a.firing is not None],
    }
    return tuple(Measure(name=name, values=tuple(values)) for name, values in numbers.items() if values)


def _reading(result: CheckResult, forward: Answered, kind: str, names: Sequence[str], beside: str, new: str) -> str:
    own = [each for each in result.rows if each.kind == kind]
    kept = [m.average.mean for m in result.further if m.name == f"share kept, {beside}"]
    with_token = f"; {beside}: {kept[0]:+.3f}" if kept else ""
    if result.effect is None:
        return f"Not asked: the record has no {kind} without the subject's last word, to which the edit is keyed{with_token}."
    known = [name for name, each in zip(names, own, strict=True) if each.known]
    reading = (
        f"p({new}) changed by {forward.p_change:+.3f} under the subject's name; of that the {kind} keeps "
        f"{result.effect.mean:+.3f}{with_token}. "
    )
    if result.effect_where_known is not None:
        reading += f"The unedited model knows the fact (p >= {KNOWN}) for {', '.join(known)}: there "
        reading += f"{result.effect_where_known.mean:+.3f}"
    else:
        reading += f"The unedited model knows the fact under no {kind} (p < {KNOWN}), so that little follows"
    if all(each.firing is not None for each in own):
        strongest = max(own, key=lambda each: abs(each.firing or 0.0))
        reading += f"; the edit fires there with {strongest.firing:+.2f} at most (1 on its own fact)"
    return reading + "."
