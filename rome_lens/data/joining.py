"""What stands between a prompt and its answer: one space, or nothing.

In most languages, words are separated by a space, and the space belongs to the answer's first
token. So ``"The Louvre is in the city of"`` is continued with ``" Paris"``. A prompt may also end
where no space belongs: in a script without spaces, after an open quotation mark, after a hyphen, or
after a line break, as chat templates do. A space there would ask for, and an edit would teach, text
that nobody writes.
"""

import re
import unicodedata


class Prompt(str):
    """A complete prompt that also says what joins it and its answer.

    It is a text like any other, and compares as one. Functions that put an answer after a prompt
    read :attr:`joiner` if the prompt has one, and ask :func:`joiner_after` if it is a plain text.
    """

    joiner: str
    """The text between the prompt and its answer: white space, or nothing."""

    def __new__(cls, text: str, joiner: str) -> "Prompt":
        prompt = super().__new__(cls, text)
        prompt.joiner = joiner
        return prompt

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # for copies
        return str(self), self.joiner

    def preceded_by(self, text: str) -> "Prompt":
        """The same prompt with other text before it."""
        return Prompt(text + self, self.joiner)


def joiner_of(prompt: str) -> str:
    """The text between a prompt and its answer."""
    return prompt.joiner if isinstance(prompt, Prompt) else joiner_after(prompt)


def joined(prompt: str, answer: str) -> str:
    """A prompt and its answer as one text."""
    return f"{prompt}{joiner_of(prompt)}{answer}"


def preceded(prompt: str, text: str) -> str:
    """A prompt with other text before it. What joins it and its answer stays the same.

    A token that marks the beginning of a text, such as ``"<bos>"``, stays at the beginning.
    """
    marks = [_BEGINNING.match(each) for each in (prompt, text)]
    own, others = (match[0] if match else "" for match in marks)
    return Prompt(f"{own or others}{text[len(others) :]}{prompt[len(own) :]}", joiner_of(prompt))


def ends_in_space(text: str) -> bool:
    """Whether a text ends in white space other than a line break.

    Such a space is nearly always a mistake: in most tokenizers it is part of the next word's token.
    A line break is not, and chat templates end in one.
    """
    return text[-1:].isspace() and not text.endswith("\n")


def joiner_after(text: str) -> str:
    """What the end of a text asks for before the next word: one space, or nothing.

    Nothing stands after white space, after scripts that are written without spaces (Chinese,
    Japanese, Thai, Lao, Khmer, Burmese, Tibetan), after an opening bracket or quotation mark, after
    a hyphen or slash that is attached to a word, after a currency sign, after an elided article
    (``l'``), and after a tag such as ``<|assistant|>``. Everywhere else it is one space.

    Example:
        >>> from rome_lens.data.joining import joiner_after
        >>> joiner_after("The Louvre is in the city of"), joiner_after("卢浮宫位于")
        (' ', '')
        >>> joiner_after('He said "'), joiner_after("the city of Baden-")
        ('', '')
    """
    if not text or text[-1].isspace() or any(end.search(text) for end in _NOTHING_FOLLOWS):
        return ""
    last = text[-1]
    head = text.rstrip(last)
    before = head[-1:] or " "
    is_attached, is_after_unspaced = not before.isspace(), bool(re.match(UNSPACED, before))
    if unicodedata.category(last) == "Ps" or last in "¿¡":
        return ""
    if last == '"' and is_attached and not before.isalnum() and head.count(last) % 2 == 0:
        return ""  # it opens, as in {"city":"
    if last in _QUOTES:
        # The same mark may open or close. It closes what stands right before it.
        closes = is_attached and not is_after_unspaced and joiner_after(head) == " "
        return " " if closes else ""
    if last in _ATTACHING:
        return "" if is_attached else " "
    is_punctuation = unicodedata.category(last).startswith("P")
    return "" if re.match(UNSPACED, last) or (is_punctuation and is_after_unspaced) else " "


UNSPACED = (
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff"
    "\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
)
"""A pattern of characters of scripts without spaces between words, and of their punctuation."""
_QUOTES = "\"'`*_“”‘’«»‹›„‚"
_ATTACHING = "-‐‑–—/\\=@&^"
_NOTHING_FOLLOWS = (
    re.compile(r"<(?!/)[^<>\s][^<>]*>$"),  # a tag
    re.compile(r"(?<!\S)[#@]$"),  # a hashtag or a name
    # a currency sign that stands before its number
    re.compile(r"(?<!\d)(?<!\d\s)[$£¥\u20a0-\u20cf]$"),
    re.compile(
        r"(?<!['’])\b([cdjlmnst]|qu|jusqu|lorsqu|puisqu|dell|all|dall|nell|sull|un|quell|bell)['’]$",
        re.IGNORECASE,
    ),  # an elided word, in French or Italian
)
_BEGINNING = re.compile(
    r"(?:<s>|<bos>|\[BOS\]|<[|｜](?:begin|start|end)[_▁]?of[_▁]?(?:text|sentence)[|｜]>)+"
)
"""What tokenizers write for BOS."""
