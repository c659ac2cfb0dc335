"""Association or concept, and description: does the edit reach the subject under another name, or without any?"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rome_lens.checks.asking import Answered, before_and_after, fact_of, row
from rome_lens.checks.result import KNOWN, CheckResult, Measure, not_asked
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.models.lens import LensModel

LEAST_FORWARD = 0.1
WITH_LAST_WORD = " with the subject's last word"
WITH_NAME = "description with the name"


def association(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """The share of the edit's effect that an alias of the subject keeps.

        effect = mean over aliases of  [p_edited(o* | alias) - p(o* | alias)] / [p_edited(o* | s) - p(o* | s)]

    Control: ``p(o | alias)``, unedited: does the model know the fact under the alias? ``effect_where_known`` is over those
    aliases alone. The same share in ``log p`` stands beside it. Where the edit does not hold forwards (p grows by less
    than 0.1) there is nothing to have a share of, and the check says so.

    An alias that holds the subject's last word ("Leo Messi" for "Lionel Messi") holds the very token that the edit is keyed to, and
    tells nothing of the concept: such aliases have rows and an average of their own, and no part in the effect.

    Source: "Cheese is not Fromage" of "But is it really in Rome?".
    """
    record, fact, new = fact_of(edit, record)
    asks = "Does the edit hold for the subject under another name?"
    if not record.aliases:
        return not_asked("association", asks, "the record has no aliases")
    return _renamed(
        model, edit, fact, new, record.aliases, {}, ("association", asks, "alias"), prepend_bos
    )


def holds_last_word(name: str, subject: str) -> bool:
    """Whether a name holds the last word of the subject, where ROME looks its key up; case and accents make no difference."""
    return _words(subject)[-1] in _words(name)


def _words(text: str) -> list[str]:
    plain = "".join(
        c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c)
    )
    return re.findall(r"\w+", plain) or [plain]


def description(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """The share of the edit's effect that a description of the subject without its name keeps; see :func:`association`.

    A second control: the description with the name put before it ("The Eiffel Tower, the iron lattice structure ..., is"),
    where an edit that is bound to the name's tokens should hold. A description that holds the subject's last word stands
    beside, as such aliases do.

    Source: "The Rock" of "But is it really in Rome?".
    """
    record, fact, new = fact_of(edit, record)
    asks = "Does the edit hold for the subject described without its name?"
    if not record.descriptions:
        return not_asked("description", asks, "the record has no descriptions")
    named = [fact.about(f"{fact.subject}, {_inside(name)},").text for name in record.descriptions]
    words = ("description", asks, "description")
    return _renamed(
        model, edit, fact, new, record.descriptions, {WITH_NAME: named}, words, prepend_bos
    )


def _renamed(
    model: LensModel,
    edit: Any,
    fact: Fact,
    new: str,
    all_names: Sequence[str],
    beside: Mapping[str, Sequence[str]],
    words: tuple[str, str, str],
    prepend_bos: bool | None,
) -> CheckResult:
    """The share kept under those of the names without the subject's last word; ``beside`` are prompts with it, by kind."""
    check, asks, kind = words
    names = [name for name in all_names if not holds_last_word(name, fact.subject)]
    keyed = [fact.about(name).text for name in all_names if name not in names]
    beside = {**beside, **({kind + WITH_LAST_WORD: keyed} if keyed else {})}
    kinds = [each for each, its in beside.items() for _ in its]
    prompts = [fact.about(name).text for name in names]
    asked = [
        (fact.text, new),
        *((prompt, new) for prompt in prompts),
        *((p, new) for its in beside.values() for p in its),
    ]
    true = [(prompt, fact.target) for prompt in prompts]
    forward, *rest = before_and_after(model, edit, [*asked, *true], prepend_bos=prepend_bos)
    n, last = len(prompts), len(prompts) + len(kinds)
    under, known = rest[:n], rest[last:]
    with_token = list(zip(kinds, rest[n:last], strict=True))
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
        rows=(*rows, *(row(a, its_kind) for its_kind, a in with_token), row(forward, "forward")),
        further=_further(
            forward,
            under,
            known,
            {each: [a for k, a in with_token if k == each] for each in beside},
        ),
    )
    return result.with_reading(_reading(result, forward, kind, names, list(beside), new))


def _inside(name: str) -> str:
    """A description as it stands within a sentence."""
    return name[0].lower() + name[1:] if name.split()[0] in ("The", "A", "An") else name


def _further(
    forward: Answered,
    under: Sequence[Answered],
    known: Sequence[Answered],
    beside: Mapping[str, Sequence[Answered]],
) -> tuple[Measure, ...]:
    numbers = {
        "change of p(new target)": [a.p_change for a in under],
        "share of the change of log p(new target)": [a.change / forward.change for a in under],
        "change of p(true target)": [t.p_change for t in known],
        "change of p(new target), the subject's own name": [forward.p_change],
        **{
            f"share kept, {kind}": [a.p_change / forward.p_change for a in its]
            for kind, its in beside.items()
        },
        "strongest firing": _firings(under),
        **{f"strongest firing, {kind}": _firings(its) for kind, its in beside.items()},
    }
    return tuple(
        Measure(name=name, values=tuple(values)) for name, values in numbers.items() if values
    )


def _firings(answered: Sequence[Answered]) -> list[float]:
    return [a.firing for a in answered if a.firing is not None]


def _reading(
    result: CheckResult,
    forward: Answered,
    kind: str,
    names: Sequence[str],
    beside: Sequence[str],
    new: str,
) -> str:
    own = [each for each in result.rows if each.kind == kind]
    with_token = "".join(f"; {each}: {result[f'share kept, {each}'].mean:+.3f}" for each in beside)
    if result.effect is None:
        return f"Not asked: the record has no {kind} without the subject's last word, to which the edit is keyed{with_token}."
    known = [name for name, each in zip(names, own, strict=True) if each.known]
    reading = (
        f"p({new}) changed by {forward.p_change:+.3f} under the subject's name; of that the {kind} keeps "
        f"{result.effect.mean:+.3f}{with_token}. "
    )
    if result.effect_where_known is not None:
        reading += (
            f"The unedited model knows the fact (p >= {KNOWN}) for {', '.join(known)}: there "
        )
        reading += f"{result.effect_where_known.mean:+.3f}"
    else:
        reading += f"The unedited model knows the fact under no {kind} (p < {KNOWN}), so that little follows"
    if all(each.firing is not None for each in own):
        strongest = max(own, key=lambda each: abs(each.firing or 0.0))
        reading += (
            f"; the edit fires there with {strongest.firing:+.2f} at most (1 on its own fact)"
        )
    return reading + "."
