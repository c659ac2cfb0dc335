"""What all records of a relation share: their half, naming prompts and false consequences.

``relations.json`` states it once for each relation. A record's own fields come first.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rome_lens.data.questions import Question
from rome_lens.data.record_type import Record

FILE = Path(__file__).parent / "relations.json"


@functools.cache
def _relations() -> dict[str, Mapping[str, Any]]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def with_relation(record: Record) -> Record:
    """The record with what its relation says about the fields that the record itself leaves empty.

    A record of a relation that the file does not have is returned as it is.
    """
    relation = _relations().get(record.relation)
    if relation is None:
        return record
    found: dict[str, Any] = {
        "half": relation["half"],
        "primary": relation["primary"],
        "naming_prompts": tuple(relation["naming_prompts"]),
        "false_consequences": tuple(
            question
            for each in relation["false_consequences"]
            if (question := _false_consequence(record, each)) is not None
        ),
    }
    return dataclasses.replace(
        record,
        **{name: value for name, value in found.items() if getattr(record, name) in (None, ())},
    )


def _false_consequence(record: Record, each: Mapping[str, Any]) -> Question | None:
    """The false consequence of a record's new fact, if it can be told from that of the true one.

    Its answers are the fact's own, or what ``answers`` says of them.
    """
    fact, answers = record.fact, each.get("answers")
    pair = [fact.target, str(fact.new_target)]
    if answers is not None:
        pair = [answers[target] for target in pair if target in answers]
    if len(set(pair)) < 2:
        return None
    return Question(prompt=each["prompt"], target=pair[0], new_target=pair[1])
