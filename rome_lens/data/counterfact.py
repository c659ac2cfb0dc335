"""A reader of CounterFact's file.

Each of its entries is a fact to rewrite, with paraphrases that should follow the rewrite and
neighbours that should not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_lens.data.entries import OnError, ReadList, collect
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.fields import fields_of, shown
from rome_lens.data.record_type import Question, Record, RecordError, as_record, with_new_target


def read_counterfact(path: str | Path, *, on_error: OnError = "raise") -> ReadList[Record]:
    """The records of a JSON list, or of JSON lines, in CounterFact's form.

    Each entry has ``requested_rewrite``, with ``prompt``, ``subject``, ``target_true``,
    ``target_new`` (the targets are objects with ``str``) and optionally ``relation_id``. The other
    fields are optional: ``case_id`` (by default the entry's index), and ``paraphrase_prompts``,
    ``neighborhood_prompts``, ``generation_prompts`` and ``reference_texts``, which are lists of
    texts. Fields with other names are ignored. As in CounterFact, the true answer to neighbours'
    prompts is the fact's true target. :func:`~rome_lens.data.read_records` reads other forms too.

    Args:
        path: the file.
        on_error: ``"raise"`` stops at an entry that cannot be read. ``"skip"`` leaves such entries
            out with a warning; ``skipped`` of the returned list holds each one's index and reason.

    Raises:
        FactError: the file does not hold such entries, or none at all, or a ``case_id`` occurs
            twice; the message names the record and the field.
    """
    seen: dict[int | str, int] = {}

    def read(index: int, entry: object) -> list[Record]:
        where = f"{path}, record {index}"
        record = record_from_counterfact(entry, default_id=index, where=where)
        check_new_id(record.id, index, seen, where=f"{where}, field 'case_id'")
        return [record]

    return collect(path, "records", read, on_error=on_error)


def check_new_id(id: int | str, index: int, seen: dict[int | str, int], *, where: str) -> None:
    """Note a record's id in ``seen``.

    Raises:
        RecordError: another record has the id already.
    """
    if id in seen:
        raise RecordError(f"{where}: record {seen[id]} already has the id {id!r}.")
    seen[id] = index


def record_from_counterfact(
    item: object, *, default_id: int = 0, where: str = "The record"
) -> Record:
    """The record of one CounterFact entry; :func:`read_counterfact` describes its form.

    Raises:
        FactError: the entry has another form; the message names the field.
    """
    item = fields_of(item, where)
    case_id = item.get("case_id", default_id)
    if not isinstance(case_id, int | str) or isinstance(case_id, bool):
        raise FactError(
            f"{where}, field 'case_id': expected a number or a name, got {shown(case_id)}."
        )
    where = f"{where} (case {shown(case_id)})"
    rewrite = item.get("requested_rewrite")
    if not isinstance(rewrite, Mapping):
        raise RecordError(
            f"{where}, field 'requested_rewrite': expected an object, got {shown(rewrite)}. "
            "rl.data.read_records reads other shapes, such as MQuAKE's."
        )
    fact = rewritten_fact(rewrite, where)
    relation = rewrite.get("relation_id")
    try:
        return Record(
            id=case_id,
            fact=fact,
            paraphrases=_texts(item, "paraphrase_prompts", where),
            neighborhood=tuple(
                Question(prompt=prompt, target=fact.target)
                for prompt in _texts(item, "neighborhood_prompts", where)
            ),
            generation_prompts=_texts(item, "generation_prompts", where),
            reference_texts=_texts(item, "reference_texts", where),
            relation_id=None if relation is None else str(relation),
        )
    except RecordError as error:
        raise FactError(f"{where}: {error}") from error


class CounterFactRecord(Record):
    """Makes a :class:`Record` from the arguments that version 0.1 used.

    The result is a plain ``Record``, equal to one that was made directly. New code calls
    ``Record``.

    Args:
        case_id: the record's ``id``.
        fact: a fact with a true target and a new target.
        neighborhood: pairs of a prompt about another subject and its true answer.

    Raises:
        FactError: the fact has no new target, or the new target is the true answer to a neighbour;
            otherwise as for :class:`Record`.
    """

    def __new__(  # type: ignore[misc]  # a Record, as the docstring says
        cls,
        *,
        case_id: int | str,
        fact: Fact,
        paraphrases: tuple[str, ...] = (),
        neighborhood: tuple[tuple[str, str] | Question, ...] = (),
        generation_prompts: tuple[str, ...] = (),
        reference_texts: tuple[str, ...] = (),
        relation_id: str | None = None,
    ) -> Record:
        record = Record(
            id=case_id,
            fact=fact,
            paraphrases=paraphrases,
            neighborhood=_questions(neighborhood, f"The record {case_id!r}, field 'neighborhood'"),
            generation_prompts=generation_prompts,
            reference_texts=reference_texts,
            relation_id=relation_id,
        )
        for question in record.neighborhood:
            if question.target == fact.new_target:
                raise RecordError(
                    f"The record {case_id!r}, field 'neighborhood': the true answer to "
                    f"{question.prompt!r} is the new target {fact.new_target!r}. Such a "
                    "neighbour cannot show that the edit spills over: leave it out."
                )
        return with_new_target(record)

    @staticmethod
    def from_dict(item: Mapping[str, Any]) -> Record:
        """The record of one CounterFact entry; see :func:`record_from_counterfact`."""
        return record_from_counterfact(item)

    @staticmethod
    def of(record: Fact | Record) -> Record:
        """A record, or the record of a fact, which must have a new target.

        Raises:
            FactError: the argument is neither a record nor a fact, or it has no new target.
        """
        return with_new_target(as_record(record))


def _questions(pairs: Any, where: str) -> tuple[Question, ...]:
    """The pairs of a prompt and its answer as questions."""
    try:
        if isinstance(pairs, str) or any(isinstance(pair, str) for pair in pairs):
            raise TypeError("a single text is not a pair")
        return tuple(Question(prompt=prompt, target=target) for prompt, target in pairs)
    except (TypeError, ValueError) as error:
        raise RecordError(
            f"{where}: expected several pairs of a prompt and its answer, ((prompt, answer),), got "
            f"{str(pairs)[:80]!r}."
        ) from error


def rewritten_fact(rewrite: object, where: str, *, name: str = "requested_rewrite") -> Fact:
    """The fact of a ``requested_rewrite``.

    Args:
        name: the field that holds the rewrite, for messages.

    Raises:
        RecordError: a field is missing, or does not hold what it should; the message names it.
    """
    rewrite = fields_of(rewrite, f"{where}, field {name!r}", error=RecordError)
    targets = []
    for part in ("target_true", "target_new"):
        target = rewrite.get(part)
        if not isinstance(target, Mapping) or not isinstance(target.get("str"), str):
            raise RecordError(
                f"{where}, field '{name}.{part}': expected an object with the words in 'str', got "
                f"{shown(target)}."
            )
        targets.append(target["str"])
    for part in ("prompt", "subject"):
        if not isinstance(rewrite.get(part), str):
            raise RecordError(
                f"{where}, field '{name}.{part}': expected words, got {shown(rewrite.get(part))}."
            )
    prompt, subject = rewrite["prompt"], rewrite["subject"]
    try:
        return Fact(prompt, subject=subject, target=targets[0], new_target=targets[1])
    except FactError as error:
        raise RecordError(f"{where}, field {name!r}: {error}") from error


def _texts(item: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = item.get(name, [])
    if not isinstance(values, tuple | list) or not all(isinstance(text, str) for text in values):
        raise FactError(f"{where}, field {name!r}: expected a list of texts, got {shown(values)}.")
    return tuple(values)
