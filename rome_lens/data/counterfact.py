"""Reading CounterFact's records: a fact to rewrite, paraphrases that should follow, neighbours that should stay."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rome_lens.data.facts import Fact, FactError, read_list
from rome_lens.data.record_type import Question, Record, RecordError, as_record, with_new_target


def read_counterfact(path: str | Path) -> list[Record]:
    """Records from a JSON list in CounterFact's form.

    Each entry has ``requested_rewrite`` with ``prompt``, ``subject``, ``target_true``, ``target_new`` (each with ``str``) and
    perhaps ``relation_id``; ``case_id`` (by default its index); and the lists of texts ``paraphrase_prompts``,
    ``neighborhood_prompts``, ``generation_prompts`` and ``reference_texts``, each of which may be absent. The neighbours'
    answer is the fact's true target, as in CounterFact. Other fields are ignored.

    Raises:
        FactError: the file is not such a list, or holds no record; the message names record and field.
    """
    records = [
        record_from_counterfact(item, default_id=index, where=f"{path}, record {index}")
        for index, item in enumerate(read_list(path, "records"))
    ]
    seen: dict[int | str, int] = {}
    for index, record in enumerate(records):
        if record.id in seen:
            raise FactError(
                f"{path}, record {index}, field 'case_id': {record.id!r} is record {seen[record.id]}'s already."
            )
        seen[record.id] = index
    return records


def record_from_counterfact(
    item: object, *, default_id: int = 0, where: str = "The record"
) -> Record:
    """One of CounterFact's entries, as :func:`read_counterfact` describes it, as a record.

    Raises:
        FactError: it has another form; the message names the field.
    """
    if not isinstance(item, Mapping):
        raise FactError(f"{where}: expected an object, got {str(item)[:80]!r}.")
    case_id = item.get("case_id", default_id)
    if not isinstance(case_id, int | str) or isinstance(case_id, bool):
        raise FactError(f"{where}, field 'case_id': expected a number or a name, got {case_id!r}.")
    where = f"{where} (case {case_id})"
    fact = _fact(item.get("requested_rewrite"), where)
    relation = item["requested_rewrite"].get("relation_id")
    names = ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts", "reference_texts")
    paraphrases, neighbours, generation_prompts, reference_texts = (
        _texts(item, name, where) for name in names
    )
    try:
        return Record(
            id=case_id,
            fact=fact,
            paraphrases=paraphrases,
            neighborhood=tuple(
                Question(prompt=prompt, target=fact.target) for prompt in neighbours
            ),
            generation_prompts=generation_prompts,
            reference_texts=reference_texts,
            relation_id=None if relation is None else str(relation),
        )
    except FactError as error:
        raise FactError(f"{where}: {error}") from error


class CounterFactRecord(Record):
    """A :class:`Record` made with the arguments that version 0.1 of this package used; new code makes a ``Record``.

    Args:
        case_id: the record's name.
        fact: with its true target ``o`` and its new target ``o*``.
        neighborhood: pairs of a prompt about another subject and its true answer.

    Raises:
        FactError: the fact has no new target, or it is a neighbour's true answer; otherwise as for :class:`Record`.
    """

    def __init__(
        self,
        *,
        case_id: int | str,
        fact: Fact,
        paraphrases: tuple[str, ...] = (),
        neighborhood: Iterable[Any] = (),
        generation_prompts: tuple[str, ...] = (),
        reference_texts: tuple[str, ...] = (),
        relation_id: str | None = None,
    ) -> None:
        where = f"The record {case_id!r}, field 'neighborhood'"
        pairs = [tuple(pair) for pair in neighborhood if not isinstance(pair, str)]
        if (
            isinstance(neighborhood, str)
            or len(pairs) < len(tuple(neighborhood))
            or any(len(p) != 2 for p in pairs)
        ):
            raise RecordError(
                f"{where}: expected several pairs of a prompt and its answer, ((prompt, answer),), got "
                f"{str(neighborhood)[:80]!r}."
            )
        for prompt, target in pairs:
            if not target.strip() or target.strip() == fact.new_target:
                raise RecordError(
                    f"{where}: the answer to {prompt!r} is {target!r}. Expected words other than the new target "
                    f"{fact.new_target!r}, or one could not tell what an edit spills over from the truth."
                )
        super().__init__(
            id=case_id,
            fact=fact,
            paraphrases=paraphrases,
            neighborhood=tuple(Question(prompt=prompt, target=target) for prompt, target in pairs),
            generation_prompts=generation_prompts,
            reference_texts=reference_texts,
            relation_id=relation_id,
        )
        with_new_target(self)

    @staticmethod
    def from_dict(item: Mapping[str, Any]) -> Record:
        """One of CounterFact's own entries; see :func:`record_from_counterfact`."""
        return record_from_counterfact(item)

    @staticmethod
    def of(record: Fact | Record) -> Record:
        """A fact or record as a record with a new target."""
        return with_new_target(as_record(record))


def _fact(rewrite: Any, where: str) -> Fact:
    if not isinstance(rewrite, Mapping):
        raise FactError(f"{where}, field 'requested_rewrite': expected an object, got {rewrite!r}.")
    targets = []
    for name in ("target_true", "target_new"):
        target = rewrite.get(name)
        if not isinstance(target, Mapping) or not isinstance(target.get("str"), str):
            raise FactError(
                f"{where}, field 'requested_rewrite.{name}': expected an object with 'str' in words, got {target!r}."
            )
        targets.append(target["str"])
    for name in ("prompt", "subject"):
        if not isinstance(rewrite.get(name), str):
            raise FactError(
                f"{where}, field 'requested_rewrite.{name}': expected words, got {rewrite.get(name)!r}."
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
