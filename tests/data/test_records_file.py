"""A file of records is read field by field, or refused with the record and the field named."""

import json
from pathlib import Path
from typing import Any

import pytest

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Decoys, Question, Record, RecordError
from rome_lens.data.records_file import read_records

FACT = {"prompt": "{} is in", "subject": "The Louvre", "target": "Paris", "new_target": "Rome"}
QUESTION = {"prompt": "It is in", "target": "Paris"}
ABOUT = {"prompt": "In {} stands", "target": "The Louvre"}

# The type checks of the tests would refuse a wrong type in the package's place.
pytestmark = pytest.mark.usefixtures("unchecked")


def write(path: Path, **fields: Any) -> Path:
    """A file with a good record and one that has these fields; None leaves a field out."""
    second = {"id": "second", "fact": FACT, **fields}
    records = [
        {"id": "first", "fact": FACT},
        {name: value for name, value in second.items() if value is not None},
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The message with which the file is refused, or what was read instead."""
    try:
        return f"not refused: {read_records(path)[-1]}"
    except RecordError as error:
        return str(error)


def test_a_record_is_read_field_by_field(tmp_path: Path) -> None:
    fields = {"aliases": ["Musée"], "neighborhood": [QUESTION], "reverse": [ABOUT]}
    path = write(tmp_path / "records.json", **fields, one_way=True, relation_id="P131")
    assert read_records(path) == [
        Record(id="first", fact=Fact(**FACT)),
        Record(
            id="second",
            fact=Fact(**FACT),
            one_way=True,
            reverse=(Question(**ABOUT),),
            aliases=("Musée",),
            neighborhood=(Question(**QUESTION),),
            relation_id="P131",
        ),
    ]


def test_the_fields_of_controls_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "records.json",
        decoys={"same_answer": ["The Sorbonne"], "invented": ["The Marlow"]},
        naming_prompts=["{} is called"],
        other_relations=[{"prompt": "{} is a", "target": "museum"}],
        false_consequences=[{"prompt": "{} is liked in", "target": "Oslo", "new_target": "Bern"}],
        alias_questions=[{"prompt": "Il est à", "target": "Paris", "new_target": "Rome"}],
        other_answers=["France"],
        half="report",
        primary=True,
    )
    record = read_records(path)[-1]
    assert record.decoys == Decoys(same_answer=("The Sorbonne",), invented=("The Marlow",))
    assert record.description_decoys == Decoys()
    assert record.naming_prompts == ("{} is called",)
    assert record.other_relations[0] == Question(prompt="{} is a", target="museum")
    assert record.false_consequences[0].new_target == "Bern"
    assert record.alias_questions[0].new_target == "Rome"
    assert (record.other_answers, record.half, record.primary) == (("France",), "report", True)


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in FACT.items() if key != name}


CASES: list[tuple[str, Any, str]] = [
    ("fact", {**FACT, "new_target": None}, "the field 'new_target' is missing"),
    ("fact", without("new_target"), "the field 'new_target' is missing"),
    ("fact", without("prompt"), "the field 'prompt' is missing; found ['new_target', "),
    ("fact", without("target"), "the field 'target' is missing; found ['new_target', "),
    ("fact", {**FACT, "answer": "Rome"}, "unknown fields ['answer']; expected an object with "),
    ("fact", {**FACT, "new_target": "Paris "}, "there is nothing to change"),
    ("fact", {**FACT, "prompt": "It is in"}, "the prompt has no {} for it"),
    ("fact", {**FACT, "prompt": 5}, "its 'prompt' is 5; expected an object with "),
    ("fact", {**FACT, "subject": 5}, "its 'subject' is 5; expected an object with "),
    ("fact", {**FACT, "new_target": 5}, "its 'new_target' is 5; expected an object with "),
    ("fact", {**FACT, "target": None}, "its 'target' is None; expected an object with "),
    ("fact", "The Louvre is in Paris", "with 'prompt', 'subject', 'target' and 'new_target'"),
    ("fact", [], "each a text, got []"),
    ("known_by", "toy", "expected a list, got 'toy'"),
    ("one_way", "yes", "expected true, false or null, got 'yes'"),
    ("relation", 5, "expected a text, got 5"),
    ("relation_id", 5, "expected a text or null, got 5"),
    ("paraphrases", {"It is in": "Paris"}, "expected a list"),
    ("paraphrases", [5], "expected a text, got 5"),
    ("paraphrases", [""], "expected a text, got ''"),
    ("paraphrases", ["It stands in "], "expected no white space around it"),
    ("aliases", "Musée", "expected a list, got 'Musée'"),  # it would be taken letter by letter
    ("aliases", 5, "expected a list, got 5"),
    ("aliases", ["A", " "], "expected a text, got ' '"),
    ("aliases", ["Musée "], "expected no white space around it"),
    ("exemplars", [QUESTION], "expected a text, got {'prompt'"),
    ("open_prompts", ["It is"], "expected one {} in 'It is'"),
    ("open_prompts", ["{} and {}"], "expected one {} in '{} and {}'"),
    ("reverse", [{**ABOUT, "prompt": "Here stands"}], "expected one {} in 'Here stands'"),
    ("reverse", ["In {} stands"], "with 'prompt' and 'target', got 'In {} stands'"),
    ("consequences", [{**ABOUT, "prompt": "{} {}"}], "expected one {} in '{} {}'"),
    ("neighborhood", [{"prompt": "It is in"}], "'target'"),
    ("neighborhood", [{"target": "Paris"}], "expected an object with 'prompt' and 'target'"),
    ("neighborhood", [{**QUESTION, "true": "Paris"}], "has unknown fields ['true']"),
    ("neighborhood", [{**QUESTION, "prompt": 5}], "expected an object with 'prompt'"),
    ("neighborhood", [{**QUESTION, "target": 5}], "expected an object with 'prompt'"),
    ("neighborhood", [{**QUESTION, "target": " "}], "expected an object with 'prompt'"),
    ("neighborhood", [{**QUESTION, "prompt": " It is in"}], "no white space around it"),
    ("neighborhood", [{**QUESTION, "prompt": "It is in "}], "no white space around it"),
    ("neighborhood", [{**QUESTION, "prompt": "{} is in"}], "without {}, got '{} is in'"),
    ("paraphrases", ["{} stands in"], "the words themselves without {}, got '{} stands in'"),
    ("aliases", ["{}"], "expected the words themselves without {}, got '{}'"),
    ("paraphrases", ["It stands in"], "does not name the subject, expected a prompt with 'The Lou"),
    ("paraphrases", ["The Louvres stand in"], "does not name the subject"),
    ("neighborhood", [{**QUESTION, "prompt": "Below the Louvre is"}], "names the subject"),
    ("aliases", ["the Louvre"], "'the Louvre' is the subject itself, expected other words"),
    ("descriptions", ["The Louvre"], "'The Louvre' is the subject itself"),
    ("exemplars", ["The Colosseum", "The Louvre"], "'The Louvre' is the subject itself"),
    ("aliases", ["Le Louvre", "le Louvre"], "'Le Louvre' occurs twice"),
    ("reverse", [{**ABOUT, "target": "Big Ben"}], "the target 'Big Ben', expected the subject"),
    ("consequences", [ABOUT], "has no 'new_target', expected what follows from the new fact"),
    ("consequences", [{**ABOUT, "new_target": "The Louvre "}], "as target and as new_target"),
    ("false_consequences", [ABOUT], "has no 'new_target', expected what goes with the new fact"),
    ("false_consequences", [{**ABOUT, "new_target": "The Louvre "}], "as target and as new_t"),
    ("other_relations", [{"prompt": "It has a", "target": "roof"}], "expected one {} in 'It has"),
    ("naming_prompts", ["It is called"], "expected one {} in 'It is called'"),
    ("other_answers", ["France", "Rome"], "'Rome' is the true or the new target"),
    ("decoys", ["Big Ben"], "expected an object with lists of texts, got ['Big Ben']"),
    ("decoys", {"invented": "Big Ben"}, "its 'invented' is 'Big Ben'; expected a list of texts"),
    ("decoys", {"imagined": []}, "unknown fields ['imagined']; known are ['same_answer', "),
    ("description_decoys", {"invented": [" it"]}, "has white space around it"),
    ("half", "test", "expected 'development', 'report' or null, got 'test'"),
    ("primary", "yes", "expected true, false or null, got 'yes'"),
    ("texts", ["Museum"], "expected a sentence, got 'Museum'"),
]


def test_a_wrong_field_is_named_with_its_record(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    wrong = []
    for field, value, message in CASES:
        found = refusal(write(path, **{field: value}))
        beginning = f"{path}, record 1 (second), field {field!r}: "
        if not found.startswith(beginning) or message not in found:
            wrong.append((field, value, found))
    assert wrong == []


def test_a_file_or_record_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    good = {"id": "second", "fact": FACT}
    cases: list[tuple[Any, str]] = [
        ({"records": [good]}, f"{path} holds no records: it is a dict, expected a list of them"),
        ([{"fact": FACT}], f"{path}, record 0: expected an object with at least 'id' and 'fact'"),
        ([{"id": "first"}], f"{path}, record 0 lacks the fields of a fact: it has ['id']. The "),
        (["first"], f"{path}, record 0: expected an object, got 'first'"),
        ([good, good], f"{path}, record 1, field 'id': record 0 already has the id 'second'"),
        ([{**good, "id": ""}], "record 0 (), field 'id': expected a name for the record, got ''"),
        ([{**good, "id": " "}], "record 0 ( ), field 'id': expected a name for the record"),
        ([{**good, "id": 5}], "record 0 (5), field 'id': expected a text, got 5"),
        (
            [{**good, "paraphrase": ["It is in"]}],
            f"{path}, record 0 (second): unknown fields ['paraphrase']; known are ['alias_qu",
        ),
    ]
    wrong = []
    for content, message in cases:
        path.write_text(json.dumps(content), encoding="utf-8")
        if message not in (found := refusal(path)):
            wrong.append((content, found))
    path.write_text("[{")
    assert refusal(path).startswith(f"{path} is not JSON")
    assert wrong == []


def test_space_around_a_target_does_not_count(tmp_path: Path) -> None:
    """As in a fact: a tokenizer would put a second space before the answer, and ask for another."""
    spaced = {
        "fact": {**FACT, "target": " Paris", "new_target": "Rome "},
        "reverse": [{**ABOUT, "target": " The Louvre"}],
        "neighborhood": [{**QUESTION, "target": " Paris\n"}],
        "consequences": [{"prompt": "{} lies in", "target": " France", "new_target": " Italy "}],
    }
    record = read_records(write(tmp_path / "records.json", **spaced))[1]
    assert record.fact == Fact(**FACT)
    assert record.reverse == (Question(**ABOUT),)
    assert record.neighborhood == (Question(**QUESTION),)
    consequence = Question(prompt="{} lies in", target="France", new_target="Italy")
    assert record.consequences == (consequence,)


def test_what_only_looks_like_a_contradiction_is_read(tmp_path: Path) -> None:
    """Another case or article of the subject, and its letters inside another word."""
    fields = {
        "fact": {**FACT, "subject": "Rome", "target": "Italy", "new_target": "France"},
        "paraphrases": ["Whoever visits Rome's ruins is in", "ROME lies in"],
        "neighborhood": [{"prompt": "Romeo lives in", "target": "Italy"}],
        "reverse": [{"prompt": "The capital of {} is", "target": "rome"}],
        "aliases": ["The Eternal City", "Rome on the Tiber"],
    }
    record = read_records(write(tmp_path / "records.json", **fields))[1]
    assert len(record.paraphrases) == len(record.aliases) == 2
    louvre = {
        "paraphrases": ["Every Louvre visitor is in"],
        "reverse": [{**ABOUT, "target": "the Louvre"}],
    }
    record = read_records(write(tmp_path / "records.json", **louvre))[1]
    assert record.reverse[0].target == "the Louvre"


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "records.json", aliases=["Musée"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_records(path)[1].aliases == ("Musée",)
