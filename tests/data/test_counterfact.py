"""CounterFact's records: what is read, and what is refused with record and field named."""

import json
from typing import Any

import jaxtyping
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


def written(tmp_path: Any, items: Any) -> Any:
    path = tmp_path / "records.json"
    path.write_text(items if isinstance(items, str) else json.dumps(items))
    return path


def changed(**changes: Any) -> list[dict[str, Any]]:
    return [{**ITEM, **changes}]


def rewrite(**changes: Any) -> list[dict[str, Any]]:
    return changed(requested_rewrite={**ITEM["requested_rewrite"], **changes})  # type: ignore[dict-item]


def test_a_record_is_read_field_by_field(tmp_path: Any) -> None:
    (record,) = rl.read_counterfact(written(tmp_path, [ITEM]))
    fact = rl.Fact(
        "{} lives in the city of", subject="Wanda Brandt", target="Pralec", new_target="Ondavel"
    )
    assert record == rl.CounterFactRecord(
        case_id=7,
        fact=fact,
        paraphrases=("The home of Wanda Brandt is in the city of",),
        neighborhood=(("Greta Marchetti lives in the city of", "Pralec"),),
        generation_prompts=("Wanda Brandt is",),
        reference_texts=("Ondavel is a city.",),
        relation_id="P551",
    )


def test_what_may_be_absent_is_empty_and_the_index_names_a_nameless_record(tmp_path: Any) -> None:
    bare = {
        "requested_rewrite": {
            k: v for k, v in ITEM["requested_rewrite"].items() if k != "relation_id"
        }
    }  # type: ignore[attr-defined]
    first, second = rl.read_counterfact(written(tmp_path, [ITEM, bare]))
    assert (second.case_id, second.paraphrases, second.neighborhood, second.relation_id) == (
        1,
        (),
        (),
        None,
    )
    assert (second.generation_prompts, second.reference_texts) == ((), ())
    assert second.fact == first.fact


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("{", "not JSON"),
        ([], "no records"),
        ({"a": 1}, "dict of no records"),
        (["text"], "record 0: expected an object"),
        (changed(case_id=None), r"record 0, field 'case_id'"),
        (changed(requested_rewrite=None), r"record 0 \(case 7\), field 'requested_rewrite'"),
        (
            rewrite(target_new="Ondavel"),
            r"record 0 \(case 7\), field 'requested_rewrite.target_new'",
        ),
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
        (changed() + changed(), r"record 1, field 'case_id': 7 is record 0's already"),
    ],
)
def test_a_record_of_another_form_is_refused_by_name_and_field(
    tmp_path: Any, items: Any, message: str
) -> None:
    with pytest.raises(FactError, match=message):
        rl.read_counterfact(written(tmp_path, items))


def test_a_record_without_a_new_target_or_with_a_neighbour_that_has_it_is_refused() -> None:
    fact = rl.Fact("{} is in", subject="The Eiffel Tower", target="Paris")
    with pytest.raises(FactError, match="'tower', field 'fact': it has no new target"):
        rl.CounterFactRecord(case_id="tower", fact=fact)
    edited = rl.Fact("{} is in", subject="The Eiffel Tower", target="Paris", new_target="Rome")
    with pytest.raises(FactError, match=r"'tower', field 'neighborhood'.*'Rome'"):
        rl.CounterFactRecord(
            case_id="tower", fact=edited, neighborhood=(("The Colosseum is in", "Rome"),)
        )


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("paraphrases", "A tower is in"),
        ("generation_prompts", "A tower is"),
        ("reference_texts", "Rome is a city."),
        ("reference_texts", (3,)),
        ("paraphrases", None),
        ("neighborhood", "The Louvre is in"),
        ("neighborhood", ("The Louvre is in",)),
        ("neighborhood", ("ab",)),
        ("neighborhood", (("The Louvre is in", "Paris", "Rome"),)),
        ("neighborhood", (("The Louvre is in", None),)),
    ],
)
def test_a_single_text_is_not_taken_apart(monkeypatch: Any, field: str, wrong: Any) -> None:
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # the tests' type checks are not the users'
    fact = rl.Fact("{} is in", subject="The Eiffel Tower", target="Paris", new_target="Rome")
    with pytest.raises(FactError, match=f"'tower', field '{field}': expected several"):
        rl.CounterFactRecord(case_id="tower", fact=fact, **{field: wrong})


def test_one_raw_record_is_what_a_file_of_it_gives(tmp_path: Any) -> None:
    assert [rl.CounterFactRecord.from_dict(ITEM)] == rl.read_counterfact(written(tmp_path, [ITEM]))
    nameless = {name: value for name, value in ITEM.items() if name != "case_id"}
    assert rl.CounterFactRecord.from_dict(nameless).case_id == 0
    (wrong,) = changed(paraphrase_prompts="one")
    with pytest.raises(FactError, match=r"The record \(case 7\), field 'paraphrase_prompts'"):
        rl.CounterFactRecord.from_dict(wrong)


@pytest.mark.parametrize("record", rl.data.limits(), ids=lambda record: record.id)
def test_the_projects_own_records_can_be_evaluated(record: rl.data.Record) -> None:
    case = rl.CounterFactRecord.of(record)
    new = record.fact.new_target
    assert (case.case_id, case.fact, case.paraphrases) == (
        record.id,
        record.fact,
        record.paraphrases,
    )
    assert dict(case.neighborhood) == {
        q.prompt: q.target for q in record.neighborhood if q.target != new
    }
    assert all(
        "{}" not in prompt and record.fact.subject in prompt for prompt in case.generation_prompts
    )
