"""A record: one fact, and the questions that the checks ask about it."""

import re
from dataclasses import dataclass

from rome_lens.data.facts import Fact
from rome_lens.errors import RomeLensError


class RecordError(RomeLensError):
    """A record that does not have the form that the checks need; the message names record and field."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and its true answer; after an edit that has consequences, ``new_target`` should follow instead.

    Space around the targets does not count, as in :class:`~rome_lens.facts.Fact`.
    """

    prompt: str
    target: str
    new_target: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", self.target.strip())
        if self.new_target is not None:
            object.__setattr__(self, "new_target", self.new_target.strip())


@dataclass(frozen=True, kw_only=True)
class Record:
    """A fact to edit and what to ask about it. An empty field is not asked.

    Attributes:
        fact: with both targets.
        relation: its name, such as ``"city"``; records of one relation ask alike.
        known_by: names of the models that know the fact.
        paraphrases: whole prompts that name the subject and have the same answer.
        neighborhood: questions about other subjects, which do not name this one and whose answers should stay.
        reverse: questions from object to subject, ``{}`` standing for the object, the subject being the answer.
        aliases: other names of the subject, put into the fact's prompt.
        descriptions: the subject described without its tokens, put into the fact's prompt.
        open_prompts: prompts that mention a subject (``{}``) without asking for the relation.
        exemplars: subjects of which the new target is really true.
        consequences: what follows from the fact, and from the new one; ``{}`` stands for the subject.
        texts: true sentences about the subject that say nothing of the fact.
    """

    id: str
    fact: Fact
    relation: str = ""
    known_by: tuple[str, ...] = ()
    one_way: bool | None = None
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[Question, ...] = ()
    reverse: tuple[Question, ...] = ()
    aliases: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    open_prompts: tuple[str, ...] = ()
    exemplars: tuple[str, ...] = ()
    consequences: tuple[Question, ...] = ()
    texts: tuple[str, ...] = ()


def _names(name: str, text: str) -> bool:
    """Whether the name stands in the text as whole words, in whatever case."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def _without_article(name: str) -> str:
    return re.sub(r"^the\s+", "", name, flags=re.IGNORECASE)
