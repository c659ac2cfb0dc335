"""CounterFact's records: a fact to rewrite, paraphrases that should follow, neighbours that should stay."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.data.facts import Fact, FactError, read_list
from rome_lens.data.record_type import Record


@dataclass(frozen=True, kw_only=True)
class CounterFactRecord:
    """A fact with both targets and what is asked about it. An empty field is not asked.

    Source: Meng et al. 2022, section 3.3 and appendix D (CounterFact).

    Attributes:
        case_id: the record's name.
        fact: with its true target ``o`` and its new target ``o*``.
        paraphrases: prompts with the fact's answer.
        neighborhood: pairs of a prompt about another subject and its true answer; in CounterFact that is always ``o``.
        generation_prompts: beginnings of texts about the subject.
        reference_texts: texts about things of which ``o*`` is true.
        relation_id: of Wikidata.

    Raises:
        FactError: no new target; one text where several are expected; a prompt that is empty or ends in white space; a
            neighbour of which the new target is true. The message names record and field.
    """

    case_id: int | str
    fact: Fact
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[tuple[str, str], ...] = ()
    generation_prompts: tuple[str, ...] = ()
    reference_texts: tuple[str, ...] = ()
    relation_id: str | None = None

    def __post_init__(self) -> None:
        where = f"The record {self.case_id!r}"
        if self.fact.new_target is None:
            raise FactError(
                f"{where}, field 'fact': it has no new target, which an evaluation compares with the true one."
            )
        for name in ("paraphrases", "generation_prompts", "reference_texts"):
            if not _are_texts(value := getattr(self, name)):
                raise FactError(f"{where}, field {name!r}: expected several texts, (text,), got {str(value)[:80]!r}.")
        if not _are_pairs(self.neighborhood):
            raise FactError(
                f"{where}, field 'neighborhood': expected several pairs of a prompt and its answer, ((prompt, answer),), got "
                f"{str(self.neighborhood)[:80]!r}."
            )
        prompts = {"paraphrases": self.paraphrases, "neighborhood": tuple(prompt for prompt, _ in self.neighborhood)}
        for name, values in {**prompts, "generation_prompts": self.generation_prompts}.items():
            for value in values:
                if not value.strip() or value != value.rstrip():
                    raise FactError(
                        f"{where}, field {name!r}: {value!r} is empty or ends in white space; expected words, and no "
                        "white space at the end, since one space joins prompt and answer."
                    )
        for prompt, target in self.neighborhood:
            if not target.strip() or target.strip() == self.fact.new_target:
                raise FactError(
                    f"{where}, field 'neighborhood': the answer to {prompt!r} is {target!r}; expected words other than the "
                    f"new target {self.fact.new_target!r}, or what an edit spills over could not be told from the truth."
                )

    @classmethod
    def from_dict(cls, item: Mapping[str, Any]) -> "CounterFactRecord":
        """One of CounterFact's own records, in the form that :func:`read_counterfact` says; a nameless one is case 0.

        Raises:
            FactError: it has another form; the message names the field.
        """
        return _record(item, 0, "The record")

    @classmethod
    def of(cls, record: "Record | CounterFactRecord") -> "CounterFactRecord":
        """One of the project's own records (:func:`rome_lens.data.limits`), whose neighbours have answers of their own.

        A neighbour of which the new target is true is left out: of it the score asks nothing. Open prompts are continued.
        A record that has this form already is given back.

        Raises:
            FactError: it is neither.
        """
        if isinstance(record, CounterFactRecord):
            return record
        if not isinstance(record, Record):
            raise FactError(
                f"Expected a CounterFactRecord or a record of rl.data.limits(), got {type(record).__name__}: "
                "CounterFactRecord.from_dict(...) takes CounterFact's own form, CounterFactRecord(case_id=..., fact=...) a fact."
            )
        return cls(
            case_id=record.id,
            fact=record.fact,
            paraphrases=record.paraphrases,
            neighborhood=tuple(
                (question.prompt, question.target)
                for question in record.neighborhood
                if question.target != record.fact.new_target
            ),
            generation_prompts=tuple(prompt.replace("{}", record.fact.subject) for prompt in record.open_prompts),
        )


def read_counterfact(path: str | Path) -> list[CounterFactRecord]:
    """Records from a JSON list in CounterFact's form.

    Of each: ``requested_rewrite`` with ``prompt``, ``subject``, ``target_true``, ``target_new`` (each with ``str``) and
    perhaps ``relation_id``; ``case_id`` (else its index); and the lists of texts ``paraphrase_prompts``,
    ``neighborhood_prompts``, ``generation_prompts`` and ``reference_texts``, each of which may be absent. Further fields
    are left alone.

    Raises:
        FactError: the file is no such list, or holds no record; the message names record and field.
    """
    records = [_record(item, index, f"{path}, record {index}") for index, item in enumerate(read_list(path, "records"))]
    seen: dict[int | str, int] = {}
    for index, record in enumerate(records):
        if record.case_id in seen:
            raise FactError(
                f"{path}, record {index}, field 'case_id': {record.case_id!r} is record {seen[record.case_id]}'s already."
            )
        seen[record.case_id] = index
    return records


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)


def _are_pairs(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(_are_texts(pair) and len(pair) == 2 for pair in value)


def _record(item: Any, index: int, where: str) -> CounterFactRecord:
    if not isinstance(item, Mapping):
        raise FactError(f"{where}: expected an object, got {str(item)[:80]!r}.")
    case_id = item.get("case_id", index)
    if not isinstance(case_id, int | str) or isinstance(case_id, bool):
        raise FactError(f"{where}, field 'case_id': expected a number or a name, got {case_id!r}.")
    where = f"{where} (case {case_id})"
    fact = _fact(item.get("requested_rewrite"), where)
    relation = item["requested_rewrite"].get("relation_id")
    names = ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts", "reference_texts")
    paraphrases, neighbours, generation_prompts, reference_texts = (_texts(item, name, where) for name in names)
    try:
        return CounterFactRecord(
            case_id=case_id,
            fact=fact,
            paraphrases=paraphrases,
            neighborhood=tuple((prompt, fact.target) for prompt in neighbours),
            generation_prompts=generation_prompts,
            reference_texts=reference_texts,
            relation_id=None if relation is None else str(relation),
        )
    except FactError as error:
        raise FactError(f"{where}: {error}") from error


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
            raise FactError(f"{where}, field 'requested_rewrite.{name}': expected words, got {rewrite.get(name)!r}.")
    try:
        return Fact(rewrite["prompt"], subject=rewrite["subject"], target=targets[0], new_target=targets[1])
    except FactError as error:
        raise FactError(f"{where}, field 'requested_rewrite': {error}") from error


def _texts(item: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = item.get(name, [])
    if not _are_texts(values):
        raise FactError(f"{where}, field {name!r}: expected a list of texts, got {str(values)[:80]!r}.")
    return tuple(values)
