"""``Fact``: a prompt about a subject, its true answer, and the answer that an edit should give."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.data.chat import chat_prompt
from rome_lens.data.joining import Prompt, ends_in_space, joined, joiner_after
from rome_lens.data.slots import SLOT, FactError
from rome_lens.results import plain_value

__all__ = ["SLOT", "Fact", "FactError", "read_facts", "read_list"]


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
    joiner: str = " "

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
        """A fact from a complete prompt, in which the subject's first occurrence becomes the slot.

        Raises:
            FactError: the subject does not occur in the text, or the text already has a slot;
                otherwise as for :class:`Fact`.

        Example:
            >>> import rome_lens as rl
            >>> text = "The Louvre is in the city of"
            >>> rl.Fact.from_text(text, subject="The Louvre", target="Paris").prompt
            '{} is in the city of'
        """
        for name, words in (("prompt", text), ("subject", subject)):
            if not isinstance(words, str):
                raise FactError(f"The {name} is {words!r}, expected words.")
        if not subject.strip() or subject.strip() not in text:
            raise FactError(
                f"The subject {subject!r} is not in the prompt {text!r}: it must occur there "
                "letter by letter."
            )
        if SLOT in text:
            raise FactError(
                f"{text!r} already has a slot {{}}: use Fact({text!r}, subject={subject!r}, ...)."
            )
        return cls(
            text.replace(subject.strip(), SLOT, 1),
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
        begins. A BOS token at its start is left out, because functions prepend one themselves. The
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
        if subject.strip() and subject.strip() in prompt:
            suggestion = prompt.replace(subject.strip(), SLOT, 1)
            raise FactError(
                f"The prompt {prompt!r} has no {{}} for the subject. Write it as {suggestion!r}, "
                "or use Fact.from_text."
            )
        raise FactError(
            f"The subject {subject!r} is not in the prompt {prompt!r}, and the prompt has no {{}} "
            "for it. Write {} where the subject belongs."
        )
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


def read_facts(path: str | Path) -> list[Fact]:
    """Facts from a JSON file that holds a list of objects, each in one of three forms.

    * this project's: ``prompt`` with ``{}``, ``subject``, ``target``, and optionally
      ``new_target``;
    * known_1000's: ``prompt`` with the subject written out, ``subject``, ``attribute``;
    * CounterFact's: ``requested_rewrite`` with ``prompt``, ``subject``, ``target_true`` and
      ``target_new`` (an object with ``str`` each).

    Other fields are ignored.

    Raises:
        FactError: the file does not hold such a list, or the list is empty. If a fact has another
            form, the message gives its index and what is missing or wrong.
    """
    facts = []
    for index, record in enumerate(read_list(path, "facts")):
        try:
            facts.append(_fact_of(record))
        except (KeyError, TypeError) as error:
            raise FactError(
                f"Fact {index} of {path} lacks {error}: expected prompt, subject and target (or "
                f"attribute), or a requested_rewrite; it is {str(record)[:120]}."
            ) from error
        except FactError as error:
            raise FactError(f"Fact {index} of {path}: {error}") from error
    return facts


def read_list(path: str | Path, what: str) -> list[Any]:
    """The JSON list in a file, which has at least one entry.

    Args:
        what: what the entries are, for messages.

    Raises:
        FactError: the file does not hold a list, or the list is empty.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FactError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, list):
        kind = type(entries).__name__
        raise FactError(f"{path} holds no {what}: it is a {kind}, expected a list of them.")
    if not entries:
        raise FactError(f"{path} holds no {what}: the list is empty, expected at least one.")
    return entries


def _fact_of(record: Mapping[str, Any]) -> Fact:
    if "requested_rewrite" in record:
        rewrite = record["requested_rewrite"]
        targets = {
            "target": rewrite["target_true"]["str"],
            "new_target": rewrite["target_new"]["str"],
        }
        return Fact(rewrite["prompt"], subject=rewrite["subject"], **targets)
    target = record["attribute"] if "attribute" in record else record["target"]
    new_target = record.get("new_target")
    make = Fact if SLOT in record["prompt"] else Fact.from_text
    return make(record["prompt"], subject=record["subject"], target=target, new_target=new_target)
