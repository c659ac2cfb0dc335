"""CounterFact's file is read as records, or refused with the record and the field named."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import rome_lens as rl
from rome_lens.data.facts import FactError

ITEM = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} lives in the city of",
        "subject": "Wanda Brandt",
        "relation_id": "P551",
        "target_true": {"str": "Pralec", "id": "Q1"},
        "target_new": {"str": "Ondavel", "id": "Q2"},
    },
    "paraphrase_prompts": ["The home of Wanda Brandt is in the city of"],
    "neighborhood_prompts": ["Greta Marchetti lives in the city of"],
    "attribute_prompts": ["Somebody else lives in the city of"],
    "generation_prompts": ["Wanda Brandt is"],
    "reference_texts": ["Ondavel is a city."],
}


def written(tmp_path: Path, items: Any) -> Path:
    path = tmp_path / "records.json"
    path.write_text(items if isinstance(items, str) else json.dumps(items))
    return path


def changed(**changes: Any) -> list[dict[str, Any]]:
    return [{**ITEM, **changes}]


def rewrite(**changes: Any) -> list[dict[str, Any]]:
    return changed(requested_rewrite={**ITEM["requested_rewrite"], **changes})  # type: ignore[dict-item]


def test_a_record_is_read_field_by_field(tmp_path: Path) -> None:
    (record,) = rl.read_counterfact(written(tmp_path, [ITEM]))
    fact = rl.Fact(
        "{} lives in the city of", subject="Wanda Brandt", target="Pralec", new_target="Ondavel"
    )
    neighbour = ("Greta Marchetti lives in the city of", "Pralec")
    assert record == rl.data.Record(
        id=7,
        fact=fact,
        paraphrases=("The home of Wanda Brandt is in the city of",),
        neighborhood=(rl.data.Question(prompt=neighbour[0], target=neighbour[1]),),
        generation_prompts=("Wanda Brandt is",),
        reference_texts=("Ondavel is a city.",),
        relation_id="P551",
    )


def test_what_may_be_absent_is_empty_and_the_index_names_a_nameless_record(tmp_path: Path) -> None:
    rewrite: Any = ITEM["requested_rewrite"]
    bare = {name: value for name, value in rewrite.items() if name != "relation_id"}
    first, second = rl.read_counterfact(written(tmp_path, [ITEM, {"requested_rewrite": bare}]))
    assert second == rl.data.Record(id=1, fact=first.fact)


CASES: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ([], "holds no records: the list is empty"),
    ({"a": 1}, "holds no records: it is a dict"),
    (["text"], "record 0: expected an object"),
    (changed(case_id=None), r"record 0, field 'case_id'"),
    (changed(case_id=True), r"record 0, field 'case_id'"),
    (changed(requested_rewrite=None), r"record 0 \(case 7\), field 'requested_rewrite'"),
    (rewrite(target_new="Ondavel"), r"record 0 \(case 7\), field 'requested_rewrite.target_new'"),
    (rewrite(target_true={}), r"field 'requested_rewrite.target_true'"),
    (rewrite(subject=3), r"field 'requested_rewrite.subject'"),
    (rewrite(prompt="lives in"), r"record 0 \(case 7\), field 'requested_rewrite': .*\{\}"),
    (
        rewrite(target_new={"str": " Pralec "}),
        r"record 0 \(case 7\), .*both 'Pralec': there is nothing to change",
    ),
    (changed(paraphrase_prompts="one"), r"record 0 \(case 7\), field 'paraphrase_prompts'"),
    (changed(neighborhood_prompts=[3]), r"field 'neighborhood_prompts'"),
    (
        changed(paraphrase_prompts=["a city "]),
        r"record 0 \(case 7\).*field 'paraphrases': 'a city ' .*white space",
    ),
    (
        changed(neighborhood_prompts=[""]),
        r"record 0 \(case 7\).*field 'neighborhood': '' is empty",
    ),
    (changed(generation_prompts=[" "]), r"field 'generation_prompts'"),
    (changed() + changed(), r"record 1, field 'case_id': record 0 already has the id 7"),
]


def test_a_record_of_another_form_is_refused_by_name_and_field(tmp_path: Path) -> None:
    wrong = []
    for items, message in CASES:
        with pytest.raises(FactError) as error:
            rl.read_counterfact(written(tmp_path, items))
        if not re.search(message, str(error.value)):
            wrong.append((items, str(error.value)))
    assert wrong == []


def test_one_raw_record_is_what_a_file_of_it_gives(tmp_path: Path) -> None:
    assert [rl.CounterFactRecord.from_dict(ITEM)] == rl.read_counterfact(written(tmp_path, [ITEM]))
    nameless = {name: value for name, value in ITEM.items() if name != "case_id"}
    assert rl.CounterFactRecord.from_dict(nameless).case_id == 0
    (wrong,) = changed(paraphrase_prompts="one")
    with pytest.raises(FactError, match=r"The record \(case 7\), field 'paraphrase_prompts'"):
        rl.CounterFactRecord.from_dict(wrong)


FACT = rl.Fact("{} is in", subject="The Eiffel Tower", target="Paris", new_target="Rome")


def test_the_constructor_of_the_first_version_makes_a_plain_record() -> None:
    pair = ("The Louvre is in", "Paris")
    record = rl.CounterFactRecord(case_id="tower", fact=FACT, neighborhood=(pair,))
    same = rl.data.Record(
        id="tower", fact=FACT, neighborhood=(rl.data.Question(prompt=pair[0], target=pair[1]),)
    )
    assert record == same
    assert repr(record) == repr(same)  # a store names results by it
    assert dataclasses.replace(record, id=3).case_id == 3
    assert dict(record.neighborhood) == dict([pair])


def test_a_record_without_a_new_target_or_with_a_neighbour_that_has_it_is_refused() -> None:
    known = rl.Fact("{} is in", subject="The Eiffel Tower", target="Paris")
    for make in (lambda: rl.CounterFactRecord(case_id="tower", fact=known), lambda: of(known)):
        with pytest.raises(FactError, match=r"field 'fact': .*has no new target"):
            make()
    with pytest.raises(FactError, match=r"'tower', field 'neighborhood'.*'Rome'"):
        rl.CounterFactRecord(
            case_id="tower", fact=FACT, neighborhood=(("The Colosseum is in", "Rome"),)
        )


def test_a_single_text_is_not_taken_apart(unchecked: None) -> None:
    cases: list[tuple[str, Any]] = [
        ("paraphrases", "A tower is in"),
        ("generation_prompts", "A tower is"),
        ("reference_texts", "Rome is a city."),
        ("reference_texts", (3,)),
        ("paraphrases", None),
        ("neighborhood", "The Louvre is in"),
        ("neighborhood", None),
        ("neighborhood", ("The Louvre is in",)),
        ("neighborhood", ("ab",)),
        ("neighborhood", (("The Louvre is in", "Paris", "Rome"),)),
        ("neighborhood", (("The Louvre is in", None),)),
    ]
    wrong = []
    for field, value in cases:
        with pytest.raises(FactError) as error:
            rl.CounterFactRecord(case_id="tower", fact=FACT, **{field: value})
        if f"'tower', field {field!r}: expected several" not in str(error.value):
            wrong.append((field, value, str(error.value)))
    assert wrong == []


def of(record: Any) -> rl.data.Record:
    return rl.CounterFactRecord.of(record)


def test_of_takes_a_record_or_a_fact() -> None:
    record = rl.data.record("eiffel-tower")
    assert of(record) is record
    assert of(FACT) == rl.data.Record(id=FACT.text, fact=FACT)


def test_a_neighbour_whose_true_answer_is_the_new_target_is_not_scored(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    """CounterFact has none. There an effect of the edit would look like the truth."""
    first, *_ = toy_record.neighborhood
    new = dataclasses.replace(first, target=str(toy_record.fact.new_target))
    record = dataclasses.replace(toy_record, neighborhood=(new, first))
    rows = [row for row in rl.evaluate(one_toy, None, record).rows if row.kind == "neighborhood"]
    assert [(row.prompt, row.target) for row in rows] == [(first.prompt, first.target)]
