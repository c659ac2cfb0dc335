"""Families of words: what else names an answer in free text, such as "Roman" and "Italy" for Rome.

The families are listed by hand (``families.json``), about two to five words for each target of the
bundled records: derived forms, inhabitants, the country of a city, and a few words that belong to
hardly anything else. They are short on purpose, because a long list counts texts that say nothing
about the answer.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from rome_lens.data.whole_words import places

_FILE = Path(__file__).parent / "families.json"


def family(word: str) -> tuple[str, ...]:
    """The words that are listed for an answer, without the answer itself. Empty if none are.

    Example:
        >>> from rome_lens.data.families import family
        >>> family("Rome")
        ('Roman', 'Romans', 'Italy', 'Italian', 'Italians')
        >>> family("Ondavel")
        ()
    """
    return _every_family().get(word, ())


def two_families(one: str, other: str, *, prompt: str = "") -> tuple[list[str], list[str]]:
    """Each word with its family, without what cannot tell the two apart.

    A listed word is left out if it is in both families, if it is the other word, or if the prompt
    holds it: a text that follows the prompt may repeat it. Equal words have one family.

    Example:
        >>> from rome_lens.data.families import two_families
        >>> two_families("Rome", "Florence", prompt="The Roman Forum is")
        (['Rome', 'Romans', 'Italians'], ['Florence', 'Florentine', 'Florentines', 'Tuscany', ...])
    """
    first, second = family(one), family(other)
    if one == other:
        own = [one, *_telling(first, (), prompt)]
        return own, own
    return (
        [one, *_telling(first, (other, *second), prompt)],
        [other, *_telling(second, (one, *first), prompt)],
    )


def names_one_of(words: Sequence[str], text: str) -> bool:
    """Whether one of the words stands in the text as a whole word.

    Words that begin with a small letter are found at the beginning of a sentence too.
    """
    return any(places(word, text, ignore_case=word[:1].islower()) for word in words)


def _telling(words: Sequence[str], others: Sequence[str], prompt: str) -> list[str]:
    return [word for word in words if word not in others and not places(word, prompt)]


@functools.cache
def _every_family() -> dict[str, tuple[str, ...]]:
    listed = json.loads(_FILE.read_text(encoding="utf-8"))
    return {word: tuple(its) for word, its in listed.items()}
