"""``Fact``: a prompt about a subject, its true answer, and the answer that an edit should give."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    if prompt != prompt.rstrip():
        raise FactError(
            f"The prompt {prompt!r} ends in white space. Remove it: the space before an answer is "
            "part of the answer's first token."
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
