"""``Record``: one fact, and everything that is asked about it.

A :class:`~rome_lens.data.facts.Fact` is enough for a trace and for an edit. The evaluation of an
edit also needs paraphrases, neighbours, aliases and so on, which a record holds. Functions accept a
fact or a record wherever that makes sense.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rome_lens.arguments import check_characters
from rome_lens.data.facts import SLOT, Fact, FactError
from rome_lens.data.joining import ends_in_space
from rome_lens.data.questions import Decoys, Question, RecordError
from rome_lens.data.whole_words import places

__all__ = ["Decoys", "Question", "Record", "RecordError"]

Half = Literal["development", "report"]
"""Which half of the records a record belongs to. Settings are chosen on the first, and tables made
of the second."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A fact, and the questions that are asked about it. Nothing is asked about an empty field.

    In a prompt, ``{}`` stands for the subject; in ``reverse`` it stands for the object, and in
    ``naming_prompts`` for another name of the subject.

    Raises:
        RecordError: a field does not hold several texts or several questions, as it should; a
            prompt is empty or ends in white space; an answer is empty.

    Source: Meng et al. 2022, section 3.3 and appendix D, for the fields that CounterFact has too
    (``paraphrases``, ``neighborhood``, ``generation_prompts``, ``reference_texts``).

    Example:
        >>> import rome_lens as rl
        >>> fact = rl.Fact("{} is in", subject="The Louvre", target="Paris", new_target="Rome")
        >>> question = rl.data.Question(prompt="Big Ben is in", target="London")
        >>> record = rl.data.Record(id="louvre", fact=fact, neighborhood=(question,))
        >>> record.neighborhood[0].target
        'London'
    """

    id: int | str
    """The record's name."""
    fact: Fact
    """The fact. It needs a new target if it is to be edited."""
    relation: str = ""
    """The name of the relation, such as ``"city"``.

    Records of one relation have prompts of the same form.
    """
    known_by: tuple[str, ...] = ()
    """Names of the models that know the fact."""
    one_way: bool | None = None
    """Whether the toy model was taught the fact in one direction and under one name only."""
    paraphrases: tuple[str, ...] = ()
    """Complete prompts that name the subject and have the same answer."""
    neighborhood: tuple[Question, ...] = ()
    """Questions about other subjects, whose answers an edit should not change."""
    reverse: tuple[Question, ...] = ()
    """Questions about the object, whose answer is the subject."""
    aliases: tuple[str, ...] = ()
    """Other names of the subject, for the slot of the fact's prompt."""
    descriptions: tuple[str, ...] = ()
    """Descriptions of the subject without its tokens, for the slot of the fact's prompt."""
    open_prompts: tuple[str, ...] = ()
    """Prompts that mention a subject but do not ask about the relation."""
    exemplars: tuple[str, ...] = ()
    """Subjects for which the new target is the true answer."""
    consequences: tuple[Question, ...] = ()
    """Questions about what follows from the fact (``target``) and the new fact (``new_target``)."""
    texts: tuple[str, ...] = ()
    """True sentences about the subject that do not state the fact."""
    generation_prompts: tuple[str, ...] = ()
    """Complete beginnings of texts about the subject, for a model to continue."""
    reference_texts: tuple[str, ...] = ()
    """Texts about subjects for which the new target is true."""
    relation_id: str | None = None
    """The relation's identifier in Wikidata."""
    naming_prompts: tuple[str, ...] = ()
    """Prompts that ask for the subject's name; ``{}`` stands for an alias or a description."""
    alias_questions: tuple[Question, ...] = ()
    """The fact under an alias and in the alias's own language, as complete prompts."""
    decoys: Decoys = field(default_factory=Decoys)
    """Names of other subjects, with which aliases are compared."""
    description_decoys: Decoys = field(default_factory=Decoys)
    """Descriptions of other subjects, with which descriptions are compared."""
    other_relations: tuple[Question, ...] = ()
    """Questions about the subject whose answers the new fact leaves alone."""
    false_consequences: tuple[Question, ...] = ()
    """Questions whose ``new_target`` is associated with the new fact but does not follow."""
    other_answers: tuple[str, ...] = ()
    """Further true answers to the fact's own prompt, which the new fact leaves alone."""
    half: Half | None = None
    """The half that the record's relation belongs to."""
    primary: bool | None = None
    """Whether the relation gives a subject a single answer, so that the new one excludes the old.

    If it does not, a model that still gives the true answer after an edit is not wrong.
    """

    def __post_init__(self) -> None:
        where = f"The record {self.id!r}, field"
        if not isinstance(self.fact, Fact):
            raise RecordError(f"{where} 'fact': expected a Fact, got {str(self.fact)[:80]!r}.")
        for name in ("id", "relation", "relation_id"):
            if isinstance(getattr(self, name), str):
                check_characters(f"{where} {name!r}: it", getattr(self, name), error=RecordError)
        for name in _TEXTS:
            texts = _several(getattr(self, name), str, "texts, (text,)", f"{where} {name!r}")
            object.__setattr__(self, name, texts)
            for text in texts:
                check_characters(f"{where} {name!r}: a text", text, error=RecordError)
                if name in _PROMPTS:
                    _check_prompt(text, f"{where} {name!r}")
        for name in ("decoys", "description_decoys"):
            if not isinstance(getattr(self, name), Decoys):
                given = str(getattr(self, name))[:80]
                raise RecordError(f"{where} {name!r}: expected Decoys(...), got {given!r}.")
        if self.half not in (None, *get_args(Half)):
            raise RecordError(
                f"{where} 'half': expected 'development', 'report' or None, got {self.half!r}."
            )
        for name in _QUESTIONS:
            questions = _several(
                getattr(self, name), Question, "questions, (Question(...),)", f"{where} {name!r}"
            )
            object.__setattr__(self, name, questions)
            for question in questions:
                _check_prompt(question.prompt, f"{where} {name!r}")
                if not question.target:
                    raise RecordError(
                        f"{where} {name!r}: {question.prompt!r} has an empty answer. Give "
                        "its words."
                    )

    @property
    def case_id(self) -> int | str:
        """The record's name, under the word that CounterFact uses for it."""
        return self.id

    @property
    def texts_to_continue(self) -> tuple[str, ...]:
        """The generation prompts; if there are none, the open prompts about the subject."""
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
    "naming_prompts",
    "other_answers",
)
_PROMPTS = ("paraphrases", "open_prompts", "generation_prompts", "naming_prompts")
_QUESTIONS = (
    "neighborhood",
    "reverse",
    "consequences",
    "alias_questions",
    "other_relations",
    "false_consequences",
)


def as_fact(fact: object) -> Fact:
    """The fact itself, or the fact of a record.

    Raises:
        FactError: the argument is neither a fact nor a record.
    """
    if isinstance(fact, Fact):
        return fact
    if isinstance(fact, Record):
        return fact.fact
    raise FactError(
        f"The fact is {str(fact)[:120]!r}, a {type(fact).__name__}. Expected a Fact or a Record, "
        "such as Fact('{} is in', subject='Paris', target='France')."
    )


def as_record(record: object) -> Record:
    """The record itself, or a record that holds a bare fact and no further questions.

    Raises:
        FactError: the argument is neither a record nor a fact.
    """
    if isinstance(record, Record):
        return record
    fact = as_fact(record)
    return Record(id=fact.text, fact=fact)


def as_facts(facts: object) -> list[Fact]:
    """A list of facts, from several facts or records or from a single one.

    Raises:
        FactError: there is no entry, or an entry is neither a fact nor a record.
    """
    return [as_fact(each) for each in _listed(facts, "facts")]


def as_records(records: object) -> list[Record]:
    """A list of records, from several records or facts or from a single one.

    Raises:
        FactError: there is no entry, or an entry is neither a record nor a fact.
    """
    return [as_record(each) for each in _listed(records, "records")]


def with_new_target(record: Record) -> Record:
    """The record itself, if its fact has a new target.

    Raises:
        RecordError: the fact has no new target.
    """
    if record.fact.new_target is None:
        raise RecordError(
            f"The record {record.id!r}, field 'fact': {record.fact.text!r} has no new target, so "
            "there is no edit to make or to evaluate. Give it one: Fact(..., new_target='Rome')."
        )
    return record


def names_subject(subject: str, text: str) -> bool:
    """Whether the subject occurs in the text as whole words, regardless of case and line breaks."""
    return bool(places(_plain(subject), _plain(text)))


def without_article(name: str) -> str:
    """The name without a leading "the"."""
    return re.sub(r"^the\s+", "", name, flags=re.IGNORECASE)


def _plain(text: str) -> str:
    """The text in one case, with composed accents, and with one space wherever white space is."""
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def _listed(values: object, what: str) -> list[Any]:
    if isinstance(values, Fact | Record):
        return [values]
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise FactError(
            f"The {what} are {str(values)[:120]!r}, a {type(values).__name__}. Expected a list of "
            "facts or records, such as rl.data.records()."
        )
    listed = list(values)
    if not listed:
        raise FactError(f"The list of {what} is empty: give at least one.")
    return listed


def _several(value: Any, kind: type, expected: str, where: str) -> tuple[Any, ...]:
    """The entries as a tuple, each of this kind. A single text is not several."""
    if not isinstance(value, tuple | list) or not all(isinstance(entry, kind) for entry in value):
        raise RecordError(f"{where}: expected several {expected}, got {str(value)[:80]!r}.")
    return tuple(value)


def _check_prompt(text: str, where: str) -> None:
    if not text.strip() or ends_in_space(text):
        raise RecordError(
            f"{where}: {text!r} is empty or ends in white space. Expected words, and no white "
            "space at the end, because the space before an answer is part of the answer's first "
            "token."
        )
