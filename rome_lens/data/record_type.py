"""``Record``: one fact, and everything that is asked about it.

A :class:`~rome_lens.data.facts.Fact` is enough to trace and to edit. To evaluate an edit one also needs paraphrases,
neighbours, aliases and so on: a record holds them. Functions take a fact or a record wherever that makes sense.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rome_lens.data.facts import SLOT, Fact, FactError


class RecordError(FactError):
    """A record that does not have the form that is needed; the message names the record and the field."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and its true answer; ``prompt, target = question`` takes it apart.

    White space around the targets is ignored, as for :class:`~rome_lens.data.facts.Fact`.
    """

    prompt: str
    """Text up to the place of the answer."""
    target: str
    """The true answer."""
    new_target: str | None = None
    """What should follow instead after an edit, where the edit has consequences."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", self.target.strip())
        if self.new_target is not None:
            object.__setattr__(self, "new_target", self.new_target.strip())

    def __iter__(self) -> Iterator[str]:
        return iter((self.prompt, self.target))


@dataclass(frozen=True, kw_only=True)
class Record:
    """A fact to edit, and what is asked about it. An empty field is not asked.

    ``{}`` stands for the subject, except in ``reverse``, where it stands for the object.

    Source of the fields that CounterFact has too (``paraphrases``, ``neighborhood``, ``generation_prompts``,
    ``reference_texts``): Meng et al. 2022, section 3.3 and appendix D.

    Raises:
        RecordError: a field holds one text where several are expected; a prompt is empty or ends in white space.
    """

    id: int | str
    """The record's name."""
    fact: Fact
    """The fact, with both targets if it is to be edited."""
    relation: str = ""
    """The name of the relation, such as ``"city"``. Records of one relation have prompts of the same form."""
    known_by: tuple[str, ...] = ()
    """Names of the models that know the fact."""
    one_way: bool | None = None
    """For the toy model: whether the fact was taught in one direction and under one name only."""
    paraphrases: tuple[str, ...] = ()
    """Whole prompts that name the subject and have the same answer."""
    neighborhood: tuple[Question, ...] = ()
    """Questions about other subjects, whose answers should stay."""
    reverse: tuple[Question, ...] = ()
    """Questions from the object to the subject; the subject is the answer."""
    aliases: tuple[str, ...] = ()
    """Other names of the subject, to be put into the fact's prompt."""
    descriptions: tuple[str, ...] = ()
    """Descriptions of the subject without its tokens, to be put into the fact's prompt."""
    open_prompts: tuple[str, ...] = ()
    """Prompts that mention a subject and do not ask for the relation."""
    exemplars: tuple[str, ...] = ()
    """Subjects for which the new target is the true answer."""
    consequences: tuple[Question, ...] = ()
    """What follows from the fact (``target``) and from the new fact (``new_target``)."""
    texts: tuple[str, ...] = ()
    """True sentences about the subject that say nothing about the fact."""
    generation_prompts: tuple[str, ...] = ()
    """Beginnings of texts about the subject, whole."""
    reference_texts: tuple[str, ...] = ()
    """Texts about subjects for which the new target is true."""
    relation_id: str | None = None
    """The relation's identifier in Wikidata."""

    def __post_init__(self) -> None:
        where = f"The record {self.id!r}"
        for name in _TEXTS:
            object.__setattr__(
                self, name, _several_texts(getattr(self, name), f"{where}, field {name!r}")
            )
        for name in _QUESTIONS:
            object.__setattr__(
                self, name, _several_questions(getattr(self, name), f"{where}, field {name!r}")
            )
        prompts = [(name, text) for name in _PROMPTS for text in getattr(self, name)]
        prompts += [
            (name, question.prompt) for name in _QUESTIONS for question in getattr(self, name)
        ]
        for name, text in prompts:
            if not text.strip() or text != text.rstrip():
                raise RecordError(
                    f"{where}, field {name!r}: {text!r} is empty or ends in white space. Expected words, and no white space "
                    "at the end, because one space joins prompt and answer."
                )
        for name in _QUESTIONS:
            for question in getattr(self, name):
                if not question.target:
                    raise RecordError(
                        f"{where}, field {name!r}: {question.prompt!r} has an empty answer."
                    )

    @property
    def case_id(self) -> int | str:
        """The record's name, as CounterFact calls it."""
        return self.id

    @property
    def texts_to_continue(self) -> tuple[str, ...]:
        """The generation prompts, or else the open prompts with the subject put in."""
        return self.generation_prompts or tuple(
            text.replace(SLOT, self.fact.subject) for text in self.open_prompts
        )


_TEXTS = (
    "known_by",
    "paraphrases",
    "aliases",
    "descriptions",
    "open_prompts",
    "exemplars",
    "texts",
    "generation_prompts",
    "reference_texts",
)
_PROMPTS = ("paraphrases", "open_prompts", "generation_prompts")
_QUESTIONS = ("neighborhood", "reverse", "consequences")


def as_fact(fact: object) -> Fact:
    """The fact itself, or a record's fact.

    Raises:
        FactError: it is neither.
    """
    if isinstance(fact, Fact):
        return fact
    if isinstance(fact, Record):
        return fact.fact
    raise FactError(
        f"The fact is {str(fact)[:120]!r}, a {type(fact).__name__}. Expected a Fact or a Record, such as "
        "Fact('{} is in', subject='Paris', target='France')."
    )


def as_record(record: object) -> Record:
    """The record itself, or a record of a bare fact, about which nothing else is asked.

    Raises:
        FactError: it is neither.
    """
    if isinstance(record, Record):
        return record
    fact = as_fact(record)
    return Record(id=fact.text, fact=fact)


def as_facts(facts: object) -> list[Fact]:
    """Several facts or records as a list of facts; one alone is a list of one.

    Raises:
        FactError: there is none, or an entry is neither a fact nor a record.
    """
    return [as_fact(each) for each in _listed(facts, "facts")]


def as_records(records: object) -> list[Record]:
    """Several records or facts as a list of records; one alone is a list of one.

    Raises:
        FactError: there is none, or an entry is neither a record nor a fact.
    """
    return [as_record(each) for each in _listed(records, "records")]


def with_new_target(record: Record) -> Record:
    """The record itself, if its fact has a new target.

    Raises:
        RecordError: it has none.
    """
    if record.fact.new_target is None:
        raise RecordError(
            f"The record {record.id!r}, field 'fact': {record.fact.text!r} has no new target, so there is no edit to make or "
            "to evaluate. Give it one: Fact(..., new_target='Rome')."
        )
    return record


def names_subject(subject: str, text: str) -> bool:
    """Whether the subject occurs in the text as whole words, in upper or lower case."""
    return re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text, re.IGNORECASE) is not None


def without_article(name: str) -> str:
    """The name without a leading "the"."""
    return re.sub(r"^the\s+", "", name, flags=re.IGNORECASE)


def _listed(values: object, what: str) -> list[Any]:
    if isinstance(values, Fact | Record):
        return [values]
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise FactError(
            f"The {what} are {str(values)[:120]!r}, a {type(values).__name__}. Expected a list of facts or records, such as "
            "rl.data.records()."
        )
    listed = list(values)
    if not listed:
        raise FactError(f"The list of {what} is empty: give at least one.")
    return listed


def _several_texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, tuple | list) or not all(isinstance(text, str) for text in value):
        raise RecordError(f"{where}: expected several texts, (text,), got {str(value)[:80]!r}.")
    return tuple(value)


def _several_questions(value: Any, where: str) -> tuple[Question, ...]:
    if not isinstance(value, tuple | list) or not all(isinstance(each, Question) for each in value):
        raise RecordError(
            f"{where}: expected several questions, (Question(...),), got {str(value)[:80]!r}."
        )
    return tuple(value)
