"""The records and texts that come with the package."""

import json
import random
from pathlib import Path
from typing import Any

from rome_lens.data.facts import SLOT
from rome_lens.data.record_type import RecordError
from rome_lens.data.records_file import read_records

_HERE = Path(__file__).parent
FILES = (_HERE / "records.json", _HERE / "toy" / "records.json")


def limits(id: str | None = None) -> Any:
    """Every record, or the one of this id (such as ``"eiffel-tower"``).

    Raises:
        RecordError: there is no record of this id.
    """
    records = [record for file in FILES for record in read_records(file)]
    if id is None:
        return records
    for record in records:
        if record.id == id:
            return record
    raise RecordError(f"There is no record {id!r}; there are: {', '.join(record.id for record in records)}.")


def texts() -> list[str]:
    """About 14 000 tokens of ordinary text full of names, for key statistics: sampled once from Gemma 3 270M.

    What they say is made up. ``scripts/sample_texts.py`` wrote them.
    """
    return list(json.loads((_HERE / "texts.json").read_text(encoding="utf-8")))


def name_texts(*, seed: int = 0) -> list[str]:
    """About 40 000 tokens of short sentences, each about one name, for key statistics; the same for the same seed.

    A fact is looked up at the last token of a name, and ``C`` can only tell names apart whose kind it has seen: of ordinary
    text few tokens are ends of names. People are first and last names put together at random within a language; places and
    things are real; names like "Keller Glacier" end in a common noun, and events begin with a year.
    """
    names = json.loads((_HERE / "names.json").read_text(encoding="utf-8"))
    draw = random.Random(seed)
    people = [
        f"{draw.choice(each['first'])} {draw.choice(each['last'])}"
        for each in names["people"].values()
        for _ in range(170)
    ]
    parts = [*(last for each in names["people"].values() for last in each["last"]), *names["places"]]
    compounds = [f"{draw.choice(parts)} {head}" for head in names["heads"] for _ in range(12)]
    events = [f"the {draw.randrange(1900, 2020)} {event}" for event in names["events"] for _ in range(10)]
    chosen = [*people, *compounds, *events, *2 * names["places"], *2 * names["things"]]
    texts = [draw.choice(names["sentences"]).replace(SLOT, name) for name in chosen]
    return [text[0].upper() + text[1:] for text in texts]


def held_texts() -> list[str]:
    """Six short paragraphs on everyday topics, to measure perplexity on before and after an edit.

    They name nothing that a record is about, and are never used for key statistics.
    """
    return list(json.loads((_HERE / "held.json").read_text(encoding="utf-8")))


def openings() -> list[str]:
    """Beginnings of sentences about named people, places and things, which a model can continue (see :func:`texts`)."""
    return list(json.loads((_HERE / "openings.json").read_text(encoding="utf-8")))
