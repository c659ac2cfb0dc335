"""A reader of CounterFact's file.

Each of its entries is a fact to rewrite, with paraphrases that should follow the rewrite and
neighbours that should not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_lens.data.facts import Fact, FactError, read_list
from rome_lens.data.record_type import Question, Record, RecordError, as_record, with_new_target


def read_counterfact(path: str | Path) -> list[Record]:
    """The records of a JSON list in CounterFact's form.

    Each entry has ``requested_rewrite``, with ``prompt``, ``subject``, ``target_true``,
    ``target_new`` (the targets are objects with ``str``) and optionally ``relation_id``. The other
    fields are optional: ``case_id`` (by default the entry's index), and ``paraphrase_prompts``,
    ``neighborhood_prompts``, ``generation_prompts`` and ``reference_texts``, which are lists of
    texts. Fields with other names are ignored. As in CounterFact, the true answer to neighbours'
    prompts is the fact's true target.

    Raises:
        FactError: the file does not hold such a list, the list is empty, or a ``case_id`` occurs
            twice; the message names the record and the field.
    """
    records = [
        record_from_counterfact(item, default_id=index, where=f"{path}, record {index}")
        for index, item in enumerate(read_list(path, "records"))
    ]
    seen: dict[int | str, int] = {}
    for index, record in enumerate(records):
        if record.id in seen:
            raise FactError(
                f"{path}, record {index}, field 'case_id': record {seen[record.id]} already has "
                f"the id {record.id!r}."
            )
        seen[record.id] = index
    return records


def record_from_counterfact(
    item: object, *, default_id: int = 0, where: str = "The record"
) -> Record:
    """The record of one CounterFact entry; :func:`read_counterfact` describes its form.

    Raises:
        FactError: the entry has another form; the message names the field.
    """
    if not isinstance(item, Mapping):
        raise FactError(f"{where}: expected an object, got {str(item)[:80]!r}.")
    case_id = item.get("case_id", default_id)
    if not isinstance(case_id, int | str) or isinstance(case_id, bool):
        raise FactError(f"{where}, field 'case_id': expected a number or a name, got {case_id!r}.")
    where = f"{where} (case {case_id})"
    fact = _fact(item.get("requested_rewrite"), where)
    relation = item["requested_rewrite"].get("relation_id")
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


def _fact(rewrite: Any, where: str) -> Fact:
    if not isinstance(rewrite, Mapping):
        raise FactError(f"{where}, field 'requested_rewrite': expected an object, got {rewrite!r}.")
    targets = []
    for name in ("target_true", "target_new"):
        target = rewrite.get(name)
        if not isinstance(target, Mapping) or not isinstance(target.get("str"), str):
            raise FactError(
                f"{where}, field 'requested_rewrite.{name}': expected an object with the words in "
                f"'str', got {target!r}."
            )
        targets.append(target["str"])
    for name in ("prompt", "subject"):
        if not isinstance(rewrite.get(name), str):
            raise FactError(
                f"{where}, field 'requested_rewrite.{name}': expected words, got "
                f"{rewrite.get(name)!r}."
            )
    try:
        return Fact(
            rewrite["prompt"], subject=rewrite["subject"], target=targets[0], new_target=targets[1]
        )
    except FactError as error:
        raise FactError(f"{where}, field 'requested_rewrite': {error}") from error


def _texts(item: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = item.get(name, [])
    if not isinstance(values, tuple | list) or not all(isinstance(text, str) for text in values):
        raise FactError(
            f"{where}, field {name!r}: expected a list of texts, got {str(values)[:80]!r}."
        )
    return tuple(values)
