"""A reader of records: the project's own form in every detail, and the shapes of the field."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from rome_lens.data.counterfact import check_new_id, record_from_counterfact
from rome_lens.data.entries import OnError, ReadList, collect
from rome_lens.data.facts import SLOT, Fact, FactError
from rome_lens.data.fields import fields_of, shown
from rome_lens.data.questions import DECOY_GROUPS, Decoys, Question, RecordError
from rome_lens.data.record_type import Half, Record, names_subject, without_article
from rome_lens.data.shapes import records_of


def read_records(path: str | Path, *, on_error: OnError = "raise") -> ReadList[Record]:
    """The records of a file that holds a JSON list of objects, or JSON lines.

    An object with a ``fact`` has the fields of :class:`Record`. The others have one of the shapes
    that :func:`read_facts` reads. Of those, the record takes what has exactly its meaning:

    * CounterFact: everything that :func:`read_counterfact` reads;
    * EasyEdit and KnowEdit: rephrased prompts that name the subject, as paraphrases; locality
      prompts about other subjects, as neighbours; other names of the subject in the fact's own
      prompt, as aliases; questions about the new target that the subject answers, as ``reverse``;
    * zsRE: ``rephrase`` as a paraphrase, ``loc`` as a neighbour;
    * MQuAKE: a record for each rewrite, with its ``question`` as a paraphrase. If there is one
      rewrite, the ``questions`` are its consequences.

    Args:
        path: the file, in UTF-8, or in UTF-16 with a byte order mark.
        on_error: ``"raise"`` stops at a record that cannot be read. ``"skip"`` leaves such records
            out with a warning; ``skipped`` of the returned list holds each one's index and reason.

    Raises:
        RecordError: the file does not hold such a list; a record has a field of another form, or
            one that contradicts its fact; two records have one id. The message names the record
            and the field.

    Example:
        >>> import rome_lens as rl
        >>> records = rl.data.read_records(rl.data.FILES[0])
        >>> records[0].id, records[0].fact.target
        ('eiffel-tower', 'Paris')
    """
    seen: dict[int | str, int] = {}

    def read(index: int, entry: object) -> list[Record]:
        where = f"{path}, record {index}"
        item = fields_of(entry, where, error=RecordError)
        if "fact" in item:
            records = [_record(item, where)]
        elif isinstance(item.get("requested_rewrite"), Mapping):
            records = [record_from_counterfact(item, default_id=index, where=where)]
        else:
            records = records_of(item, where, default_id=index)
        for record in records:
            check_new_id(record.id, index, seen, where=f"{where}, field 'id'")
        return records

    try:
        return collect(path, "records", read, on_error=on_error)
    except RecordError:
        raise
    except FactError as error:
        raise RecordError(str(error)) from error


_QUOTES = "'\""
_QUESTIONS = (
    "neighborhood",
    "reverse",
    "consequences",
    "alias_questions",
    "other_relations",
    "false_consequences",
)
_SLOTTED = (
    "reverse",
    "open_prompts",
    "consequences",
    "naming_prompts",
    "other_relations",
    "false_consequences",
)
_DECOYS = ("decoys", "description_decoys")
_FACT = "an object with 'prompt', 'subject', 'target' and 'new_target', each a text"
_QUESTION = "an object with 'prompt' and 'target'"


def _record(item: Any, where: str) -> Record:
    if not isinstance(item, Mapping) or "id" not in item or "fact" not in item:
        raise RecordError(
            f"{where}: expected an object with at least 'id' and 'fact', got {shown(item)}."
        )
    where = f"{where} ({shown(item['id']).strip(_QUOTES)})"
    known = {field.name for field in dataclasses.fields(Record)}
    if unknown := set(item) - known:
        raise RecordError(f"{where}: unknown fields {sorted(unknown)}; known are {sorted(known)}.")
    fields = _single_fields(item, where)
    fields["fact"] = _fact(item["fact"], f"{where}, field 'fact'")
    for name in _DECOYS:
        fields[name] = _decoys(item.get(name, {}), f"{where}, field {name!r}")
    for name in sorted(known - set(fields)):
        entries = item.get(name, [])
        if not isinstance(entries, list):
            raise RecordError(f"{where}, field {name!r}: expected a list, got {shown(entries)}.")
        fields[name] = tuple(_entry(name, value, f"{where}, field {name!r}") for value in entries)
    try:
        record = Record(**fields)
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from error
    for name, wrong in _contradictions(record):
        raise RecordError(f"{where}, field {name!r}: {wrong}.")
    return record


def _single_fields(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that hold one value and not a list, all but the fact."""
    fields = {
        "id": item["id"],
        "one_way": item.get("one_way"),
        "relation": item.get("relation", ""),
        "relation_id": item.get("relation_id"),
        "half": item.get("half"),
        "primary": item.get("primary"),
    }
    expected = {
        "id": (str, "a text"),
        "one_way": (bool | None, "true, false or null"),
        "relation": (str, "a text"),
        "relation_id": (str | None, "a text or null"),
        "half": (str | None, "'development', 'report' or null"),
        "primary": (bool | None, "true, false or null"),
    }
    for name, (kind, words) in expected.items():
        if not isinstance(fields[name], kind):
            raise RecordError(
                f"{where}, field {name!r}: expected {words}, got {shown(fields[name])}."
            )
    if fields["half"] not in (None, *get_args(Half)):
        raise RecordError(
            f"{where}, field 'half': expected 'development', 'report' or null, got "
            f"{shown(fields['half'])}."
        )
    if not fields["id"].strip():
        raise RecordError(
            f"{where}, field 'id': expected a name for the record, got {fields['id']!r}."
        )
    return fields


def _fact(value: Any, where: str) -> Fact:
    names = ("prompt", "subject", "target", "new_target")
    if not isinstance(value, Mapping):
        raise RecordError(f"{where}: expected {_FACT}, got {shown(value)}.")
    value = fields_of(value, where, error=RecordError)
    if unknown := sorted(set(value) - set(names)):
        raise RecordError(f"{where}: unknown fields {unknown}; expected {_FACT}.")
    for name in names:
        if name == "new_target" and value.get(name) is None:
            raise RecordError(f"{where}: the field 'new_target' is missing; expected {_FACT}.")
        if name not in value:
            raise RecordError(
                f"{where}: the field {name!r} is missing; found {sorted(value)}, expected {_FACT}."
            )
        if not isinstance(value[name], str):
            raise RecordError(f"{where}: its {name!r} is {shown(value[name])}; expected {_FACT}.")
    try:
        return Fact(**value)
    except FactError as error:
        raise RecordError(f"{where}: {error}") from error


def _entry(name: str, value: Any, where: str) -> Any:
    """One entry of a field that holds a list: a text or a question."""
    text = value.get("prompt") if isinstance(value, Mapping) else value
    if (
        not isinstance(text, str)
        or not text.strip()
        or isinstance(value, Mapping) != (name in _QUESTIONS)
    ):
        expected = _QUESTION if name in _QUESTIONS else "a text"
        raise RecordError(f"{where}: expected {expected}, got {shown(value)}.")
    if name in _SLOTTED and text.count(SLOT) != 1:
        raise RecordError(f"{where}: expected one {{}} in {text!r}.")
    if name not in _SLOTTED and SLOT in text:
        raise RecordError(f"{where}: expected the words themselves without {{}}, got {text!r}.")
    if text != text.strip():
        raise RecordError(f"{where}: expected no white space around it, got {text!r}.")
    if name == "texts" and len(text.split()) < 2:
        raise RecordError(f"{where}: expected a sentence, got {text!r}.")
    return _question(value, where) if name in _QUESTIONS else value


def _decoys(value: Any, where: str) -> Decoys:
    if not isinstance(value, Mapping):
        raise RecordError(f"{where}: expected an object with lists of texts, got {shown(value)}.")
    if unknown := sorted(set(value) - set(DECOY_GROUPS)):
        raise RecordError(f"{where}: unknown fields {unknown}; known are {list(DECOY_GROUPS)}.")
    for name, texts in value.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RecordError(f"{where}: its {name!r} is {shown(texts)}; expected a list of texts.")
    try:
        return Decoys(**{name: tuple(texts) for name, texts in value.items()})
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from error


def _question(value: Mapping[str, Any], where: str) -> Question:
    value = fields_of(value, where, error=RecordError)
    if unknown := sorted(set(value) - {"prompt", "target", "new_target"}):
        raise RecordError(
            f"{where}: {shown(value)} has unknown fields {unknown}; expected {_QUESTION}, and "
            "optionally 'new_target'."
        )
    answers = [
        value.get("target"),
        *([value["new_target"]] if value.get("new_target") is not None else []),
    ]
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise RecordError(f"{where}: expected {_QUESTION} in words, got {shown(value)}.")
    try:
        return Question(**value)
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from error


def _contradictions(record: Record) -> Iterator[tuple[str, str]]:
    """The fields that contradict the record's fact, each with what is wrong."""
    subject = record.fact.subject
    bare = without_article(subject)
    for name in ("aliases", "descriptions", "exemplars"):
        if same := [
            text for text in getattr(record, name) if text.casefold() == subject.casefold()
        ]:
            yield name, f"{same[0]!r} is the subject itself, expected other words"
    folded = [alias.casefold() for alias in record.aliases]
    if repeated := [alias for alias in record.aliases if folded.count(alias.casefold()) > 1]:
        yield "aliases", f"{repeated[0]!r} occurs twice, expected each name once"
    for text in record.paraphrases:
        if not names_subject(bare, text):
            yield (
                "paraphrases",
                f"{text!r} does not name the subject, expected a prompt with {subject!r} in it",
            )
    for question in record.neighborhood:
        if names_subject(subject, question.prompt):
            yield (
                "neighborhood",
                f"{question.prompt!r} names the subject {subject!r}, expected another subject",
            )
    for question in record.reverse:
        if without_article(question.target).casefold() != bare.casefold():
            yield (
                "reverse",
                f"{question.prompt!r} has the target {question.target!r}, expected the subject "
                f"{subject!r}",
            )
    for name, expected in (
        ("consequences", "what follows from the new fact"),
        ("false_consequences", "what goes with the new fact but does not follow from it"),
    ):
        for question in getattr(record, name):
            if question.new_target is None:
                yield name, f"{question.prompt!r} has no 'new_target', expected {expected}"
            elif question.new_target == question.target:
                yield (
                    name,
                    f"{question.prompt!r} has {question.target!r} as target and as new_target",
                )
    answers = {record.fact.target, record.fact.new_target}
    if wrong := [text for text in record.other_answers if text in answers]:
        yield "other_answers", f"{wrong[0]!r} is the true or the new target, expected others"
