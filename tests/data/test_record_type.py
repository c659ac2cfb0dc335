"""A record holds a fact and questions; a fact and a record are each taken for the other."""

import dataclasses
import re
from typing import Any

import pytest

import rome_lens as rl
from rome_lens.data import Question, Record, RecordError, as_fact, as_facts, as_record, as_records
from rome_lens.data.facts import FactError
from rome_lens.data.record_type import names_subject

FACT = rl.Fact("{} is in", subject="The Louvre", target="Paris", new_target="Rome")
RECORD = Record(id="louvre", fact=FACT, aliases=("Le Louvre",))
WRONG: list[Any] = [None, "The Louvre is in", {"prompt": "{} is in"}, 3, Question, FACT.text]

pytestmark = pytest.mark.usefixtures("unchecked")


def test_a_question_unpacks_as_a_pair_and_strips_its_targets() -> None:
    question = Question(prompt="It is in", target=" Paris\n", new_target=" Rome")
    prompt, target = question
    assert (prompt, target, question.new_target) == ("It is in", "Paris", "Rome")


def test_a_fact_or_a_record_is_taken_for_either() -> None:
    assert as_fact(FACT) is as_fact(RECORD) is FACT
    assert as_record(RECORD) is RECORD
    assert as_record(FACT) == Record(id="The Louvre is in", fact=FACT)


def test_one_or_several_facts_or_records_are_taken_as_a_list() -> None:
    assert as_facts(FACT) == as_facts(RECORD) == as_facts([RECORD]) == [FACT]
    assert as_records(RECORD) == as_records([RECORD]) == [RECORD]
    assert as_facts((FACT, RECORD)) == as_facts(iter([FACT, RECORD])) == [FACT, FACT]
    assert as_records([FACT, RECORD]) == [as_record(FACT), RECORD]


def test_anything_else_is_refused_with_what_to_give() -> None:
    wrong = []
    for value in WRONG:
        for convert in (as_fact, as_record):
            with pytest.raises(FactError) as error:
                convert(value)
            if not re.search(r"Expected a Fact or a Record, such as Fact\(", str(error.value)):
                wrong.append((convert, value, error.value))
        for convert_all, entries in ((as_facts, [FACT, value]), (as_records, [RECORD, value])):
            with pytest.raises(FactError, match="Expected a Fact or a Record, such as"):
                convert_all(entries)
            with pytest.raises(FactError) as error:
                convert_all(value)
            if not re.search(r"Expected a list of facts or records, such as", str(error.value)):
                wrong.append((convert_all, value, error.value))
    for convert_all in (as_facts, as_records):
        for empty in ([], (), iter(())):
            with pytest.raises(FactError, match="is empty: give at least one"):
                convert_all(empty)
    assert wrong == []


def test_several_are_not_taken_for_one() -> None:
    for convert in (as_fact, as_record):
        with pytest.raises(FactError, match=r"a list\. Expected a Fact or a Record"):
            convert([FACT])


def test_a_field_of_another_form_is_refused_by_name() -> None:
    question = Question(prompt="It is in", target="Paris")
    cases: list[tuple[str, Any, str]] = [
        ("fact", "The Louvre is in Paris", "expected a Fact"),
        ("fact", RECORD, "expected a Fact"),
        ("paraphrases", "It is in", "expected several texts"),
        ("paraphrases", None, "expected several texts"),
        ("aliases", ("A", 3), "expected several texts"),
        ("neighborhood", question, "expected several questions"),
        ("neighborhood", ("It is in",), "expected several questions"),
        ("reverse", (("It is in", "Paris"),), "expected several questions"),
        ("paraphrases", ("It is in ",), "is empty or ends in white space"),
        ("open_prompts", ("",), "is empty or ends in white space"),
        ("generation_prompts", (" ",), "is empty or ends in white space"),
        ("consequences", (Question(prompt="It is in ", target="Paris"),), "ends in white space"),
        ("neighborhood", (Question(prompt="It is in", target=" "),), "has an empty answer"),
    ]
    wrong = []
    for name, value, message in cases:
        with pytest.raises(RecordError) as error:
            Record(**{"id": "louvre", "fact": FACT, name: value})
        found = str(error.value)
        if not found.startswith(f"The record 'louvre', field {name!r}: ") or message not in found:
            wrong.append((name, value, found))
    assert wrong == []
    for fields in ({"prompt": 3, "target": "Paris"}, {"prompt": "It is in", "target": None}):
        with pytest.raises(RecordError, match="A question's prompt and answers are words, got"):
            Question(**fields)


def test_half_a_character_is_refused_in_every_field() -> None:
    """No tokenizer and no file takes it."""
    half = "a \ud83d"
    for name in ("prompt", "target", "new_target"):
        with pytest.raises(RecordError, match="lone surrogate"):
            Question(**{"prompt": "It is in", "target": "Paris", name: half})
    texts = ("paraphrases", "aliases", "descriptions", "open_prompts", "exemplars", "texts")
    for name in (*texts, "generation_prompts", "reference_texts", "known_by"):
        with pytest.raises(RecordError, match=rf"'louvre', field {name!r}: a text is .*surrogate"):
            Record(id="louvre", fact=FACT, **{name: (half,)})
    for name in ("id", "relation", "relation_id"):
        with pytest.raises(RecordError, match=rf"field {name!r}: it is .*surrogate"):
            Record(**{"id": "louvre", "fact": FACT, name: half})


@pytest.mark.parametrize(
    ("subject", "text", "named"),
    [
        ("Rome", "ROME's ruins are in", True),
        ("Rome", "Romeo lives in", False),
        ("東京", "日本の東京は", True),
        ("C++", "c++ comes from", True),
        ("C", "C++ comes from", False),
        ("Straße", "die Straßen von", False),
        ("हिन", "हिन्दी भाषा", False),
    ],
)
def test_a_text_names_a_subject_in_whole_words(subject: str, text: str, named: bool) -> None:
    assert names_subject(subject, text) == named


def test_lists_are_taken_as_tuples() -> None:
    record = Record(
        id=1, fact=FACT, aliases=["Le Louvre"], reverse=[Question(prompt="a", target="b")]
    )
    assert (record.aliases, record.case_id) == (("Le Louvre",), 1)
    assert dataclasses.replace(record, id=2).reverse == record.reverse


def test_texts_to_continue_are_the_generation_prompts_or_else_the_open_prompts() -> None:
    record = Record(id=1, fact=FACT, open_prompts=("I saw {} and",))
    assert record.texts_to_continue == ("I saw The Louvre and",)
    both = dataclasses.replace(record, generation_prompts=("The Louvre was",))
    assert both.texts_to_continue == ("The Louvre was",)
    assert Record(id=1, fact=FACT).texts_to_continue == ()
