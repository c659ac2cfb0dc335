"""Everything that the toy model was taught about its people, as records: many facts to edit."""

import functools
import json
import random
from pathlib import Path
from typing import Any

from rome_lens.arguments import whole_number
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Question, Record

_FACTS = Path(__file__).parent / "toy" / "facts.json"
_RELATIONS = ("city", "job", "sport")
_NEIGHBOURS = 4


def toy_people(*, seed: int = 0) -> list[Record]:
    """Records of all the toy model's people: where they live, what they work as, what they play.

    A record has the fact in the training text's first wording, the other wordings as paraphrases,
    and as neighbours 4 people with the same true answer. The new target is another answer of the
    relation, drawn with the seed. The records come in an order in which every third is of the same
    relation and no person follows itself.

    The bundled records of the toy (:func:`rome_lens.data.records`) have more questions, but there
    are only 10. These are for edits of many facts.

    Example:
        >>> import rome_lens as rl
        >>> records = rl.data.toy_people()
        >>> len(records), sorted({record.relation for record in records})
        (360, ['city', 'job', 'sport'])
        >>> record = records[0]
        >>> record.fact.text, record.fact.target
        ('Pavel Whitlock lives in the city of', 'Quintar')
        >>> len(record.paraphrases), len(record.neighborhood)
        (4, 4)
    """
    seed = whole_number("seed", seed)
    taught = _taught()
    people, count = taught["people"], len(taught["people"])
    draw = random.Random(seed)
    records = []
    for turn in range(len(_RELATIONS)):
        for i in range(count):
            # Person i has another relation in each turn.
            relation = _RELATIONS[(turn + i) % len(_RELATIONS)]
            records.append(_record(people[i], relation, people, taught["templates"], draw))
    return records


@functools.cache
def _taught() -> dict[str, Any]:
    return dict(json.loads(_FACTS.read_text(encoding="utf-8")))


def _record(
    person: dict[str, Any],
    relation: str,
    people: list[dict[str, Any]],
    templates: dict[str, list[str]],
    draw: random.Random,
) -> Record:
    name, true = person["subject"], person[relation]
    others = sorted({each[relation] for each in people} - {true})
    alike = [each["subject"] for each in people if each[relation] == true and each is not person]
    prompt, *wordings = templates[relation]
    return Record(
        id=f"{name} {relation}".lower().replace(" ", "-"),
        fact=Fact(prompt, subject=name, target=true, new_target=draw.choice(others)),
        relation=relation,
        paraphrases=tuple(each.replace(SLOT, name) for each in wordings),
        neighborhood=tuple(
            Question(prompt=prompt.replace(SLOT, each), target=true)
            for each in draw.sample(alike, min(_NEIGHBOURS, len(alike)))
        ),
        known_by=("toy",),
    )
