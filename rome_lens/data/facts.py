"""``Fact``: a prompt about a subject, its true answer, and the answer that an edit should give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rome_lens.arguments import check_characters
from rome_lens.data.chat import chat_prompt
from rome_lens.data.joining import Prompt, ends_in_space, joined, joiner_after
from rome_lens.data.slots import SLOT, FactError
from rome_lens.data.whole_words import places
from rome_lens.results import plain_value

__all__ = ["SLOT", "Fact", "FactError"]


@plain_value
@dataclass(frozen=True, init=False)
class Fact:
    """A fact ``(s, r, o)``: subject ``s`` in a prompt template for relation ``r``, answer ``o``.

    Targets are plain words, and white space around them is ignored. Prompt and answer are joined
    before they are tokenized. The end of the prompt decides how: by one space, or by nothing where
    no space belongs, as in Chinese, after an open quotation mark, after a hyphen, or after a line
    break (see :func:`rome_lens.data.joining.joiner_after`). ``joiner`` overrides that.

    Args:
        prompt: the template of the prompt, with ``{}`` once in the place of the subject. It ends
            where the answer begins.
        subject: the words that fill the slot.
        target: the true answer ``o``.
        new_target: the answer ``o*`` that an edit should give instead; None if there is no edit.
        joiner: the white space between prompt and answer, or ``""`` for none. None lets the end of
            the prompt decide. The attribute holds what was decided.

    Raises:
        FactError: the template has no ``{}``, or more than one, or ends in a space; the subject or
            a target is empty; the new target is the target; the joiner is not white space.

    Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2.

    Example:
        >>> import rome_lens as rl
        >>> fact = rl.Fact("{} is in the city of", subject="The Louvre", target="Paris")
        >>> fact.text
        'The Louvre is in the city of'
        >>> fact.about("Big Ben").text
        'Big Ben is in the city of'
        >>> fact.joiner, rl.Fact("{}的首都是", subject="法国", target="巴黎").joiner
        (' ', '')
    """

    prompt: str
    subject: str
    target: str
    new_target: str | None
    joiner: str = " "  # what it was for every fact of version 0.1, whose files do not say so

    def __init__(
        self,
        prompt: str,
        *,
        subject: str,
        target: str,
        new_target: str | None = None,
        joiner: str | None = None,
    ) -> None:
        for name, text in (("prompt", prompt), ("subject", subject), ("target", target)):
            if not isinstance(text, str):
                raise FactError(f"The {name} is {text!r}, expected words.")
            check_characters(f"The {name}", text, error=FactError)
        _check_joiner(joiner)
        _check_template(prompt, subject, joiner)
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
            ("joiner", joiner_after(prompt.replace(SLOT, subject)) if joiner is None else joiner),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        subject: str,
        target: str,
        new_target: str | None = None,
        joiner: str | None = None,
    ) -> "Fact":
        """A fact from a complete prompt, in which the subject becomes the slot.

        The subject is looked for as a whole word: "Art" is not found in "Arthur". In scripts
        without spaces between words, such as Chinese, every occurrence counts.

        Raises:
            FactError: the subject does not stand in the text as a whole word; it stands there
                several times (write ``{}`` in the place that is meant); the text already has a
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
            joiner=joiner,
        )

    @classmethod
    def from_chat(
        cls,
        tokenizer: Any,
        messages: str | Sequence[Mapping[str, str]],
        *,
        subject: str,
        target: str,
        new_target: str | None = None,
        joiner: str | None = None,
    ) -> "Fact":
        """A fact that is asked in a chat, in the form of the tokenizer's chat template.

        The prompt is what the template makes of the messages, up to where the model's answer
        begins. A BOS token at its start is left out, because functions prepend one themselves. It
        stays where it also marks the turns of the chat, as SmolLM2's ``<|im_start|>`` does. The
        fact can be traced, edited and checked like any other.

        Args:
            tokenizer: a transformers tokenizer with a chat template, such as ``model.tokenizer``.
            messages: the user's question with ``{}`` in the place of the subject. Or a list of
                messages, each with ``role`` and ``content``, and ``{}`` in one of them. If the last
                message is the assistant's, the answer continues it.
            subject, target, new_target: as for :class:`Fact`.
            joiner: the white space between prompt and answer. None means nothing after a line break
                or a special token, and otherwise lets the end of the prompt decide.

        Raises:
            FactError: the tokenizer has no chat template, or it refuses the messages; the slot
                ``{}`` does not stand exactly once in the prompt that it makes; otherwise as for
                :class:`Fact`.

        Example:
            >>> import rome_lens as rl
            >>> tokenizer = rl.load_model("toy").tokenizer
            >>> tokenizer.chat_template = (
            ...     "{% for m in messages %}[{{ m.role }}] {{ m.content }}\\n{% endfor %}"
            ...     "{% if add_generation_prompt %}[assistant]\\n{% endif %}"
            ... )
            >>> fact = rl.Fact.from_chat(
            ...     tokenizer, "Where does {} live?", subject="Wanda Brandt", target="Pralec"
            ... )
            >>> fact.prompt, fact.joiner
            ('[user] Where does {} live?\\n[assistant]\\n', '')
            >>> tokenizer.chat_template = None
        """
        prompt = chat_prompt(tokenizer, messages)
        if joiner is None and prompt.endswith(tuple(tokenizer.all_special_tokens)):
            joiner = ""
        return cls(prompt, subject=subject, target=target, new_target=new_target, joiner=joiner)

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot. It also holds the joiner."""
        return Prompt(self.prompt.replace(SLOT, self.subject), self.joiner)

    def stated(self, answer: str) -> str:
        """The prompt and an answer as a sentence.

        Example:
            >>> import rome_lens as rl
            >>> fact = rl.Fact("{} is in the city of", subject="The Louvre", target="Paris")
            >>> fact.stated("Rome")
            'The Louvre is in the city of Rome.'
        """
        return f"{joined(self.text, answer)}."

    @property
    def subject_start(self) -> int:
        """Index of the subject's first character in :attr:`text`.

        It is the place of the slot, even if the same words occur elsewhere in the prompt too.
        """
        return self.prompt.index(SLOT)

    def about(self, subject: str) -> "Fact":
        """A fact with another subject; the prompt and both answers stay the same."""
        return Fact(
            self.prompt,
            subject=subject,
            target=self.target,
            new_target=self.new_target,
            joiner=self.own_joiner,
        )

    @property
    def own_joiner(self) -> str | None:
        """The joiner, if it is not the one that the end of the prompt decides; otherwise None."""
        return None if self.joiner == joiner_after(str(self.text)) else self.joiner


def _check_joiner(joiner: object) -> None:
    if joiner is not None and (not isinstance(joiner, str) or joiner.strip()):
        raise FactError(
            f"The joiner is {joiner!r}, expected white space, '' for none, or None to let the "
            "prompt decide. Words before the answer belong to the prompt."
        )


def _check_template(prompt: str, subject: str, joiner: str | None) -> None:
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
    if joiner is None and ends_in_space(prompt):
        raise FactError(
            f"The prompt {prompt!r} ends in white space. Remove it: the space before an answer is "
            "part of the answer's first token. If the answer follows it directly, give joiner=''."
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
