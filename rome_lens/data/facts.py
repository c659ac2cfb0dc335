"""``Fact``: a prompt about a subject, its true answer, and the answer that an edit should give."""

from dataclasses import dataclass

from rome_lens.arguments import check_characters
from rome_lens.data.whole_words import places
from rome_lens.errors import RomeLensError
from rome_lens.results import plain_value

SLOT = "{}"


class FactError(RomeLensError):
    """A fact that cannot be asked or edited.

    For example, its prompt has no slot, its subject or an answer is empty, or its new target is its
    target.
    """


@plain_value
@dataclass(frozen=True, init=False)
class Fact:
    """A fact ``(s, r, o)``: subject ``s`` in a prompt template for relation ``r``, answer ``o``.

    Targets are plain words, and white space around them is ignored: prompt and answer are joined by
    exactly one space before they are tokenized.

    Args:
        prompt: the template of the prompt, with ``{}`` once in the place of the subject. It ends
            where the answer begins.
        subject: the words that fill the slot.
        target: the true answer ``o``.
        new_target: the answer ``o*`` that an edit should give instead; None if there is no edit.

    Raises:
        FactError: the template has no ``{}``, or more than one, or ends in white space; the subject
            or a target is empty; the new target is the target.

    Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2.

    Example:
        >>> import rome_lens as rl
        >>> fact = rl.Fact("{} is in the city of", subject="The Louvre", target="Paris")
        >>> fact.text
        'The Louvre is in the city of'
        >>> fact.about("Big Ben").text
        'Big Ben is in the city of'
    """

    prompt: str
    subject: str
    target: str
    new_target: str | None

    def __init__(
        self, prompt: str, *, subject: str, target: str, new_target: str | None = None
    ) -> None:
        for name, text in (("prompt", prompt), ("subject", subject), ("target", target)):
            if not isinstance(text, str):
                raise FactError(f"The {name} is {text!r}, expected words.")
            check_characters(f"The {name}", text, error=FactError)
        _check_template(prompt, subject)
        if not subject.strip():
            raise FactError(
                f"The subject of {prompt!r} is empty: give the words that fill the slot."
            )
        subject, target = subject.strip(), target.strip()
        if not target:
            raise FactError(
                f"The target of {prompt!r} is empty: give the answer's words, such as 'Paris'."
            )
        if new_target is not None:
            if not isinstance(new_target, str):
                raise FactError(
                    f"The new target is {new_target!r}, expected words, or None for no edit."
                )
            check_characters("The new target", new_target, error=FactError)
            new_target = new_target.strip()
            if not new_target:
                raise FactError(
                    f"The new target of {prompt!r} is empty: give its words, or None for no edit."
                )
            if new_target == target:
                raise FactError(
                    f"Target and new target of {prompt!r} are both {target!r}: there is nothing to "
                    "change."
                )
        for name, value in (
            ("prompt", prompt),
            ("subject", subject),
            ("target", target),
            ("new_target", new_target),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_text(
        cls, text: str, *, subject: str, target: str, new_target: str | None = None
    ) -> "Fact":
        """A fact from a complete prompt, in which the subject becomes the slot.

        The subject is looked for as a whole word: "Art" is not found in "Arthur". In scripts
        without spaces between words, such as Chinese, every occurrence counts.

        Raises:
            FactError: the subject does not stand in the text as a whole word, or stands there
                several times, so that you have to write the ``{}`` yourself; the text already has a
                slot; otherwise as for :class:`Fact`.

        Example:
            >>> import rome_lens as rl
            >>> text = "In Arthur's book, Art was born in"
            >>> rl.Fact.from_text(text, subject="Art", target="Paris").prompt
            "In Arthur's book, {} was born in"
        """
        for name, words in (("prompt", text), ("subject", subject)):
            if not isinstance(words, str):
                raise FactError(f"The {name} is {words!r}, expected words.")
        found = places(subject.strip(), text)
        if SLOT in text and found:
            raise FactError(
                f"{text!r} already has a slot {{}}: use Fact({text!r}, subject={subject!r}, ...)."
            )
        if len(found) != 1:
            raise FactError(_why_no_slot(text, subject))
        return cls(
            _with_slot(text, subject, found[0]),
            subject=subject,
            target=target,
            new_target=new_target,
        )

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def subject_start(self) -> int:
        """Index of the subject's first character in :attr:`text`.

        It is the place of the slot, even if the same words occur elsewhere in the prompt too.
        """
        return self.prompt.index(SLOT)

    def about(self, subject: str) -> "Fact":
        """A fact with another subject; the prompt and both answers stay the same."""
        return Fact(self.prompt, subject=subject, target=self.target, new_target=self.new_target)


def _check_template(prompt: str, subject: str) -> None:
    if SLOT not in prompt:
        found = places(subject.strip(), prompt)
        if len(found) == 1:
            suggestion = _with_slot(prompt, subject, found[0])
            raise FactError(
                f"The prompt {prompt!r} has no {{}} for the subject. Write it as {suggestion!r}, "
                "or use Fact.from_text."
            )
        if not found and subject.strip() not in prompt:
            raise FactError(
                f"The subject {subject!r} is not in the prompt {prompt!r}, and the prompt has no "
                "{} for it. Write {} where the subject belongs."
            )
        raise FactError(f"The prompt has no {{}} for the subject. {_why_no_slot(prompt, subject)}")
    if prompt.count(SLOT) > 1:
        raise FactError(
            f"The prompt {prompt!r} has {prompt.count(SLOT)} slots {{}}, expected one. "
            "Write {} once, where the subject stands."
        )
    if prompt != prompt.rstrip():
        raise FactError(
            f"The prompt {prompt!r} ends in white space. Remove it: the space before an answer is "
            "part of the answer's first token."
        )


def _with_slot(text: str, subject: str, start: int) -> str:
    return text[:start] + SLOT + text[start + len(subject.strip()) :]


def _why_no_slot(text: str, subject: str) -> str:
    """Why the subject's place in the text cannot be told, and what to write instead."""
    found = places(subject.strip(), text)
    if found:
        first, second = (_with_slot(text, subject, start) for start in found[:2])
        return (
            f"The subject {subject!r} stands {len(found)} times in the prompt {text!r}. Write {{}} "
            f"in the place that is meant: Fact({first!r}, ...) or Fact({second!r}, ...)."
        )
    if subject.strip() and subject.strip() in text:
        return (
            f"The subject {subject!r} is in the prompt {text!r} only as a part of other words. "
            "Give the subject's whole words, or write {} in its place: Fact('{} is in', ...)."
        )
    return (
        f"The subject {subject!r} is not in the prompt {text!r}: it must occur there letter by "
        "letter."
    )
