"""Concept or spill: what decoys keep of an edit, beside what another name of the subject keeps.

An edit that raises the new target for every subject raises it for aliases too. The share that an
alias keeps therefore says something about the subject only as far as it exceeds what decoys keep,
i.e. other subjects with the same true answer, subjects with another answer, and invented ones.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from rome_lens.checks.answered import Answered, PromptAnswer
from rome_lens.checks.result import KNOWN, Measure, make_measures
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.questions import Decoys
from rome_lens.data.record_type import Record, without_article
from rome_lens.data.whole_words import places

Verdict = Literal["followed", "spilled", "not kept"]
"""What became of an edit under another name of its subject; see :func:`verdict_of`."""
LEAST_KEPT = 0.1
"""Least share of an edit's effect that counts as kept."""
_SHARE_OF_ITS_OWN = 0.5
SAME, OTHER, INVENTED = (
    "decoy with the same answer",
    "decoy with another answer",
    "invented decoy",
)
DECOY_KINDS = (SAME, OTHER, INVENTED)
"""The kinds of decoys' rows."""


def verdict_of(kept: float, decoys: Sequence[float]) -> Verdict:
    """Whether an edit follows its subject to another name, or spills, or stays behind.

    ``"not kept"``: the name keeps a share below 0.1. ``"followed"``: at least half of what it keeps
    is more than the decoys keep that keep most. ``"spilled"``: otherwise.

    Args:
        kept: the share of the edit's effect that the name keeps.
        decoys: the share that each group of decoys keeps. There must be decoys with the same
            answer among them, because to those an edit spills most.

    Example:
        >>> from rome_lens.checks.claims.spill import verdict_of
        >>> verdict_of(0.8, [0.1, 0.0]), verdict_of(0.5, [0.4]), verdict_of(0.02, [0.3])
        ('followed', 'spilled', 'not kept')
    """
    if kept < LEAST_KEPT:
        return "not kept"
    most = max([0.0, *decoys])
    return "followed" if kept - most >= _SHARE_OF_ITS_OWN * kept else "spilled"


def decoy_prompts(fact: Fact, decoys: Decoys) -> dict[str, list[str]]:
    """The fact's prompt about each decoy, by the kind of its row.

    A decoy with the subject's last word is left out, as such an alias is: it holds the very token
    that the edit is keyed to.
    """
    groups = {SAME: decoys.same_answer, OTHER: decoys.other_answer, INVENTED: decoys.invented}
    prompts = {
        kind: [fact.about(name).text for name in names if not holds_last_word(name, fact.subject)]
        for kind, names in groups.items()
    }
    return {kind: its for kind, its in prompts.items() if its}


def naming_questions(record: Record, name: str) -> list[list[PromptAnswer]]:
    """For each naming prompt, the ways to write the subject after another name of it.

    They exclude each other, so their probabilities add up.
    """
    subject = record.fact.subject
    bare = without_article(subject)
    ways = [bare, f"the {bare}"] if bare != subject else [bare, bare[0].lower() + bare[1:]]
    return [
        [(_with_name(prompt, name), way) for way in dict.fromkeys([subject, *ways])]
        for prompt in record.naming_prompts
    ]


def p_of_subject(record: Record, name: str, answers: Mapping[PromptAnswer, Answered]) -> float:
    """The probability with which the unedited model gives the subject for another name of it.

    It is that of the best naming prompt.
    """
    return max(
        sum(answers[question].p_before for question in ways)
        for ways in naming_questions(record, name)
    )


def concept_or_spill(
    kept: Sequence[float],
    identified: Sequence[bool | None],
    decoys: Mapping[str, Sequence[float]],
) -> tuple[Measure, ...]:
    """The further numbers of a check that asks under other names.

    Differences are of means over one fact's names and decoys, so over facts they are paired.

    Args:
        kept: the share of the edit's effect that each name keeps.
        identified: whether the unedited model knows who is meant by it, None where not asked.
        decoys: the share that each decoy keeps, by kind.
    """
    named = [share for share, known in zip(kept, identified, strict=True) if known]
    groups = {"share kept": kept, "share kept where identified": named}
    means = {kind: _mean(its) for kind, its in decoys.items()}
    differences = {
        f"{name} minus {kind}": [_mean(its) - mean]
        for name, its in groups.items()
        if its
        for kind, mean in means.items()
    }
    asked = [float(known) for known in identified if known is not None]
    verdict = verdict_of(_mean(kept), list(means.values())) if kept and SAME in means else None
    verdicts = {
        name: [float(verdict == name)] if verdict is not None else [] for name in get_args(Verdict)
    }
    return (
        *make_measures({f"share kept, {kind}": its for kind, its in decoys.items()}),
        *make_measures({"share kept where identified": named, **differences}),
        *make_measures({"identified": asked, **verdicts}, share=True),
    )


def spill_reading(kept: float, kind: str, decoys: Mapping[str, Sequence[float]]) -> str:
    """What the decoys keep, and what follows for the edit, in one or two sentences."""
    if not decoys:
        return "There are no decoys, so it is not told from spill"
    shares = ", ".join(f"{_mean(its):+.3f} ({name})" for name, its in decoys.items())
    if SAME not in decoys:
        return (
            f"Decoys keep {shares}. None of them has the same answer, so what the {kind} keeps is "
            "not told from spill"
        )
    means = {
        "followed": f"the edit follows its subject to the {kind}",
        "spilled": f"what the {kind} keeps is spill",
        "not kept": f"the {kind} does not keep the edit",
    }
    verdict = verdict_of(kept, [_mean(its) for its in decoys.values()])
    return f"Decoys keep {shares}: {means[verdict]}"


def is_identified(p: float) -> bool:
    """Whether the subject was given with a probability of at least 0.1."""
    return p >= KNOWN


def holds_last_word(name: str, subject: str) -> bool:
    """Whether a name contains the last word of the subject, where ROME looks up its key.

    Case and accents make no difference. In scripts without spaces, a part of a name is a word too.
    """
    last = _words(subject)[-1]
    return last in _words(name) or bool(places(last, _plain(name)))


def within_sentence(name: str) -> str:
    """A description as it is written inside a sentence."""
    return name[0].lower() + name[1:] if name.split()[0] in ("The", "A", "An") else name


def _with_name(prompt: str, name: str) -> str:
    """The prompt with a name in its slot, written as its place in the sentence asks for."""
    if prompt.startswith(SLOT):
        return prompt.replace(SLOT, name[0].upper() + name[1:])
    return prompt.replace(SLOT, within_sentence(name))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", _plain(text)) or [_plain(text)]


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
