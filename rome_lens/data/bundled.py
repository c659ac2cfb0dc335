"""The records and texts that come with the package."""

import functools
import json
import random
from pathlib import Path
from typing import get_args, overload

from rome_lens.arguments import whole_number
from rome_lens.data.completing import with_relation
from rome_lens.data.deriving import with_decoys
from rome_lens.data.facts import SLOT
from rome_lens.data.record_type import Half, Record, RecordError
from rome_lens.data.records_file import read_records

_HERE = Path(__file__).parent
FILES = (_HERE / "records.json", _HERE / "toy" / "records.json")


def records(*, known_by: str | None = None, half: Half | None = None) -> list[Record]:
    """The bundled records: facts about the world, and the toy model's invented people.

    ``records.json`` holds what is particular to a fact. What its relation says, and the decoys
    that other records and neighbours make, are added here (:func:`with_decoys`).

    Args:
        known_by: keep only the records whose fact this model knows: ``"gemma-3-270m"``,
            ``"smollm2-135m"`` or ``"toy"``.
        half: keep only the records of one half. The halves have no relation in common. Settings
            are to be chosen on ``"development"``, and results to be reported of ``"report"``.

    Raises:
        RecordError: no record is known by a model of this name; the half is neither of the two.

    Example:
        >>> import rome_lens as rl
        >>> len(rl.data.records())
        131
        >>> len(rl.data.records(known_by="toy"))
        10
        >>> {record.half for record in rl.data.records(half="report")}
        {'report'}
    """
    if half not in (None, *get_args(Half)):
        raise RecordError(f"half is {half!r}, expected 'development', 'report' or None for both.")
    every = [record for record in _every_record() if half in (None, record.half)]
    if known_by is None:
        return list(every)
    names = sorted({name for record in _every_record() for name in record.known_by})
    if known_by not in names:
        raise RecordError(
            f"known_by is {known_by!r}, expected one of {', '.join(map(repr, names))}, or None for "
            "all records."
        )
    return [record for record in every if known_by in record.known_by]


def record(id: str) -> Record:
    """The bundled record with this id.

    Raises:
        RecordError: no record has this id; the message lists all ids.

    Example:
        >>> import rome_lens as rl
        >>> record = rl.data.record("eiffel-tower")
        >>> record.fact.text
        'The Eiffel Tower is located in the city of'
        >>> record.aliases[0]
        'La Tour Eiffel'
    """
    for each in _every_record():
        if each.id == id:
            return each
    ids = ", ".join(str(each.id) for each in _every_record())
    raise RecordError(f"There is no record {id!r}. There are: {ids}.")


@overload
def limits(id: None = None) -> list[Record]: ...
@overload
def limits(id: str) -> Record: ...
def limits(id: str | None = None) -> list[Record] | Record:
    """All bundled records, or the one with this id.

    This is the name that version 0.1 used. New code calls :func:`records` or :func:`record`.
    """
    return records() if id is None else record(id)


@functools.cache
def _every_record() -> tuple[Record, ...]:
    return tuple(
        each for file in FILES for each in with_decoys(map(with_relation, read_records(file)))
    )


def texts() -> list[str]:
    """About 14 000 tokens of ordinary text that is full of names, for key statistics.

    Gemma 3 270M generated these texts (``scripts/sample_texts.py``), so what they say is made up.
    """
    return list(json.loads((_HERE / "texts.json").read_text(encoding="utf-8")))


def name_texts(*, seed: int = 0) -> list[str]:
    """About 40 000 tokens of short sentences, each about one name, for key statistics.

    A fact is looked up at the last token of a name, and ``C`` can only tell apart kinds of names
    that it has seen. Few tokens of ordinary text end a name.

    People's first and last names are combined at random within a language. Places and things are
    real. Names such as "Keller Glacier" end in a common noun, and events begin with a year. The
    same seed gives the same texts.
    """
    seed = whole_number("seed", seed)
    names = json.loads((_HERE / "names.json").read_text(encoding="utf-8"))
    draw = random.Random(seed)
    people = [
        f"{draw.choice(each['first'])} {draw.choice(each['last'])}"
        for each in names["people"].values()
        for _ in range(170)
    ]
    parts = [
        *(last for each in names["people"].values() for last in each["last"]),
        *names["places"],
    ]
    compounds = [f"{draw.choice(parts)} {head}" for head in names["heads"] for _ in range(12)]
    events = [
        f"the {draw.randrange(1900, 2020)} {event}" for event in names["events"] for _ in range(10)
    ]
    chosen = [*people, *compounds, *events, *2 * names["places"], *2 * names["things"]]
    texts = [draw.choice(names["sentences"]).replace(SLOT, name) for name in chosen]
    return [text[0].upper() + text[1:] for text in texts]


def held_texts() -> list[str]:
    """Six short paragraphs on everyday topics, for perplexity before and after an edit.

    They mention nothing that a record is about, and are never used for key statistics.
    """
    return list(json.loads((_HERE / "held.json").read_text(encoding="utf-8")))


def openings() -> list[str]:
    """Beginnings of sentences about named people, places and things, for a model to continue.

    The texts of :func:`texts` were sampled from them.
    """
    return list(json.loads((_HERE / "openings.json").read_text(encoding="utf-8")))
