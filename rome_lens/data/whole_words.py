"""Where words stand in a text as whole words.

"Art" stands in "Art's book" and in "(Art)", but not in "Arthur". Scripts that put no spaces between
words, such as Chinese and Thai, give no such sign, so there every occurrence counts.
"""

import re
import unicodedata

_JOINING = "-\u2010\u2011'\u2019\u02bc.&/@\u00b7"
"""Marks that make one expression of two words: Jean-Luc, O'Brien, Node.js, AT&T."""

_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u318f\u31f0-\u31ff"
    "\u3400-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
"""Letters of scripts without spaces between words: Thai to Tibetan, Burmese, Khmer, kana, Chinese
characters. Hangul is among them because Korean particles follow a name without a space."""


def places(words: str, text: str, *, ignore_case: bool = False) -> list[int]:
    """The indices at which the words stand in the text as whole words.

    If they stand alone somewhere, places where a mark joins them to another word do not count:
    "Jean" is found once in "Jean-Luc met Jean". A possessive ("Art's") does not join.

    Example:
        >>> from rome_lens.data.whole_words import places
        >>> places("Art", "In Arthur's book, Art was born in")
        [18]
        >>> places("Jean", "Jean-Luc was born in")
        [0]
    """
    flags = re.IGNORECASE if ignore_case else 0
    spans = (match.span(1) for match in re.finditer(f"(?=({re.escape(words)}))", text, flags))
    found = [span for span in spans if not _within_word(text, *span)]
    alone = [span for span in found if not _is_joined(text, *span)]
    return [start for start, _ in alone or found]


def _within_word(text: str, start: int, end: int) -> bool:
    """Whether a letter before the span or after it belongs to the same word."""
    if start == end or _is_mark(text[start]) or (end < len(text) and _is_mark(text[end])):
        return True
    if text[end - 1] != " " and text[end : end + 1] in ("+", "#"):  # C++ and C# are not C
        return True
    if re.search(r"\d[.,]\Z", text[:start]) and text[start].isdigit():  # 14 in 3.14
        return True
    if text[end - 1].isdigit() and re.match(r"[.,]\d", text[end:]):
        return True
    before, after = text[start - 1 : start], text[end : end + 1]
    return _continues(text[start], before) or _continues(text[end - 1], after)


def _continues(inner: str, outer: str) -> bool:
    """Whether the character outside the span continues the word at the span's edge."""
    return _is_letter(outer) and not (_UNSPACED.match(inner) or _UNSPACED.match(outer))


def _is_joined(text: str, start: int, end: int) -> bool:
    """Whether a mark joins the span to a further word before or after it."""
    if start > 1 and text[start - 1] in _JOINING and _is_letter(text[start - 2]):
        return True
    if re.match(r"['\u2019\u02bc][sS](?!\w)", text[end:]):
        return False
    return end + 1 < len(text) and text[end] in _JOINING and _is_letter(text[end + 1])


def _is_letter(character: str) -> bool:
    """Whether the character is a letter, a digit, an underscore or a mark on a letter."""
    return character != "" and (character.isalnum() or character == "_" or _is_mark(character))


def _is_mark(character: str) -> bool:
    """Whether the character belongs to the letter before it, such as an accent or a vowel sign."""
    return unicodedata.category(character).startswith("M") or character == "\u200d"
