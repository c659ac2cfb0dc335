"""A fact: a prompt about a subject, its answer, and the answer an edit shall give instead."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.errors import RomeLensError
from rome_lens.results import plain_value

SLOT = "{}"


class FactError(RomeLensError):
    """A fact that cannot be asked: no slot, no subject, no answer, or nothing to change."""


@plain_value
@dataclass(frozen=True, init=False)
class Fact:
    """A fact ``(s, r, o)`` as a prompt: subject ``s`` in the slot of a template for the relation ``r``, answer ``o``.

    Targets are words. Space around them does not count: the space between prompt and answer belongs to the
    tokenizer, which joins them with exactly one.

    Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2.

    Args:
        prompt: the template, with ``{}`` once where the subject stands, up to the place of the answer.
        subject: the words that fill the slot.
        target: the true answer ``o``, which follows the prompt.
        new_target: the answer ``o*`` after an edit, where one is wanted.

    Raises:
        FactError: the template has no ``{}`` or several, or ends in white space; subject or a target is empty; the
            new target is the target.
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
                    f"Target and new target of {prompt!r} are both {target!r}: there is nothing to change."
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
        """A fact from a prompt that is already filled in: the subject's first occurrence becomes the slot.

        Raises:
            FactError: the subject does not occur in the text, or as for :class:`Fact`.
        """
        if not subject.strip() or subject.strip() not in text:
            raise FactError(
                f"The subject {subject!r} is not in the prompt {text!r}: it must occur there letter by letter."
            )
        if SLOT in text:
            raise FactError(
                f"{text!r} holds a slot already: use Fact({text!r}, subject={subject!r}, ...)."
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
        """Index of the subject's first character in :attr:`text`; the slot decides, wherever else the words occur."""
        return self.prompt.index(SLOT)

    def about(self, subject: str) -> "Fact":
        """The same question asked about another subject; the answers stay as they are."""
        return Fact(self.prompt, subject=subject, target=self.target, new_target=self.new_target)


def _check_template(prompt: str, subject: str) -> None:
    if SLOT not in prompt:
        if subject.strip() and subject.strip() in prompt:
            suggestion = prompt.replace(subject.strip(), SLOT, 1)
            raise FactError(
                f"The prompt {prompt!r} has no {{}} for the subject. Write it as {suggestion!r}, or use Fact.from_text."
            )
        raise FactError(
            f"The subject {subject!r} is not in the prompt {prompt!r}, which has no {{}} to put it in."
        )
    if prompt.count(SLOT) > 1:
        raise FactError(f"The prompt {prompt!r} has {prompt.count(SLOT)} slots {{}}, expected one.")
    if prompt != prompt.rstrip():
        raise FactError(
            f"The prompt {prompt!r} ends in white space. Remove it: the space before an answer is part of the answer's first token."
        )


def read_facts(path: str | Path) -> list[Fact]:
    """Facts from a JSON list of objects, each of one of three shapes.

    * this project's: ``prompt`` with ``{}``, ``subject``, ``target``, and ``new_target`` where there is one;
    * known_1000's: ``prompt`` with the subject written out, ``subject``, ``attribute``;
    * CounterFact's: ``requested_rewrite`` with ``prompt``, ``subject``, ``target_true`` and ``target_new`` (each with
      ``str``).

    Further fields are left alone.

    Raises:
        FactError: the file is no such list, or holds no fact; the message names the fact by its index and what it lacks.
    """
    facts = []
    for index, record in enumerate(read_list(path, "facts")):
        try:
            facts.append(_fact_of(record))
        except (KeyError, TypeError) as error:
            raise FactError(
                f"Fact {index} of {path} lacks {error}: expected prompt, subject and target (or attribute), or a "
                f"requested_rewrite; it is {str(record)[:120]}."
            ) from error
        except FactError as error:
            raise FactError(f"Fact {index} of {path}: {error}") from error
    return facts


def read_list(path: str | Path, what: str) -> list[Any]:
    """The JSON list in a file, of at least one entry; ``what`` names the entries.

    Raises:
        FactError: the file is no such list.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FactError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise FactError(
            f"{path} holds {type(entries).__name__} of no {what}, expected a list with at least one."
        )
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
