"""A fact is asked as it was written, or refused with a message that says what to write instead."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rome_lens.data.facts import Fact, FactError, read_facts

PARIS = {"subject": "The Louvre", "target": "Paris"}
ENDS = (" ", "\n ", "\t", "  ", "\u00a0")
EMPTY = ("", " ", "\n")


def test_the_text_is_the_template_with_the_subject_in_its_slot() -> None:
    fact = Fact("I hear that {} is located in", **PARIS)
    assert fact.text == "I hear that The Louvre is located in"


def test_the_subject_starts_where_the_slot_is_and_not_where_its_words_stand_first() -> None:
    fact = Fact("The Louvre, I mean {}, is located in", **PARIS)
    assert fact.subject_start == len("The Louvre, I mean ")
    assert fact.text[fact.subject_start :].startswith("The Louvre, is located in")


def test_a_subject_that_holds_braces_is_put_in_as_it_is() -> None:
    fact = Fact("The set {} has a name,", subject="{} or {a}", target="Paris")
    assert fact.text == "The set {} or {a} has a name,"
    assert fact.subject_start == len("The set ")


def test_white_space_around_subject_and_targets_does_not_count() -> None:
    spaced = Fact("{} is in", subject=" The Louvre\n", target=" Paris ", new_target="\tRome")
    assert spaced == Fact("{} is in", subject="The Louvre", target="Paris", new_target="Rome")


def test_a_template_without_a_slot_is_answered_with_the_template_to_write() -> None:
    with pytest.raises(FactError, match=re.escape("Write it as '{} is in', or use Fact.from_text")):
        Fact("The Louvre is in", **PARIS)


def test_a_suggested_template_gives_the_text_that_was_meant() -> None:
    with pytest.raises(FactError) as refusal:
        Fact("So The Louvre is in", **PARIS)
    suggested = re.search(r"Write it as '(.*?)',", str(refusal.value))
    assert suggested is not None
    assert Fact(suggested[1], **PARIS).text == "So The Louvre is in"


def test_a_subject_that_is_not_in_a_slotless_prompt_is_named() -> None:
    with pytest.raises(
        FactError, match=re.escape("'The Louvre' is not in the prompt 'Big Ben is in'")
    ):
        Fact("Big Ben is in", **PARIS)


def test_wrong_words_are_refused_with_what_to_write(unchecked: None) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "{} is {} is"}, "has 2 slots {}, expected one"),
        ({"prompt": "{} is {} is {}"}, "has 3 slots {}, expected one"),
        *(({"prompt": f"{{}} is in{end}"}, "ends in white space. Remove it") for end in ENDS),
        *(({"subject": empty}, "The subject of '{} is in' is empty") for empty in EMPTY),
        *(({"target": empty}, "The target of '{} is in' is empty") for empty in EMPTY),
        *(({"new_target": empty}, "The new target of '{} is in' is empty") for empty in EMPTY),
        *(
            ({"new_target": same}, "are both 'Paris': there is nothing to change")
            for same in ("Paris", " Paris", "Paris\n")
        ),
        ({"prompt": 3}, "The prompt is 3, expected words"),
        ({"subject": None}, "The subject is None, expected words"),
        ({"target": 3}, "The target is 3, expected words"),
        ({"new_target": 3}, "The new target is 3, expected words"),
    ]
    wrong = []
    for words, message in cases:
        with pytest.raises(FactError) as error:
            Fact(**{"prompt": "{} is in", **PARIS, **words})
        if message not in str(error.value):
            wrong.append((words, str(error.value)))
    assert wrong == []


def test_a_fact_without_a_new_target_holds_none() -> None:
    assert Fact("{} is in", **PARIS).new_target is None


def test_a_fact_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Fact("{} is in", **PARIS).target = "Rome"  # type: ignore[misc]


def test_from_text_makes_the_first_occurrence_the_slot_and_gives_the_text_back() -> None:
    fact = Fact.from_text(
        "Ann said that Ann lives in", subject="Ann", target="Paris", new_target="Rome"
    )
    assert fact == Fact(
        "{} said that Ann lives in", subject="Ann", target="Paris", new_target="Rome"
    )
    assert fact.text == "Ann said that Ann lives in"


def test_from_text_does_not_read_the_white_space_around_a_subject() -> None:
    assert Fact.from_text("Ann lives in", subject=" Ann ", target="Paris").prompt == "{} lives in"


def test_from_text_refuses_a_subject_that_is_not_there_letter_by_letter(unchecked: None) -> None:
    for subject in ("ann", "Bob", "", " "):
        message = f"The subject {subject!r} is not in the prompt 'Ann lives in'"
        with pytest.raises(FactError, match=re.escape(message)):
            Fact.from_text("Ann lives in", subject=subject, target="Paris")
    with pytest.raises(FactError, match="The subject is None, expected words"):
        Fact.from_text("Ann lives in", subject=None, target="Paris")


def test_from_text_refuses_a_template() -> None:
    with pytest.raises(FactError, match=re.escape("already has a slot {}")):
        Fact.from_text("Ann says that {} lives in", subject="Ann", target="Paris")


def test_about_asks_the_same_question_of_another_subject() -> None:
    fact = Fact("I hear that {} is in", subject="The Louvre", target="Paris", new_target="Rome")
    other = fact.about("Big Ben")
    assert other.text == "I hear that Big Ben is in"
    assert (other.prompt, other.target, other.new_target) == (fact.prompt, "Paris", "Rome")
    assert other.about("The Louvre") == fact


REWRITE = {
    "prompt": "{} is in",
    "subject": "The Louvre",
    "target_true": {"str": "Paris"},
    "target_new": {"str": "Rome"},
}


def test_three_forms_of_files_are_read(tmp_path: Path) -> None:
    entries = [
        {"prompt": "{} is in", **PARIS, "new_target": "Rome", "more": 1},
        {"prompt": "The Louvre is in", "subject": "The Louvre", "attribute": "Paris"},
        {"requested_rewrite": REWRITE},
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    edited = Fact("{} is in", **PARIS, new_target="Rome")
    assert read_facts(path) == [edited, Fact("{} is in", **PARIS), edited]


def test_a_file_of_another_form_is_refused_with_the_fact_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    good = {"prompt": "{} is in", **PARIS}
    cases: list[tuple[Any, str]] = [
        ([], "holds no facts: the list is empty"),
        ({"facts": [good]}, "holds no facts: it is a dict"),
        ([good, {"prompt": "{} is in"}], f"Fact 1 of {path} lacks 'target': expected prompt"),
        ([3], f"Fact 0 of {path} lacks"),
        ([{"requested_rewrite": {**REWRITE, "target_new": {}}}], "Fact 0 of .* lacks 'str'"),
        ([{**good, "prompt": "It is in"}], f"Fact 0 of {path}: The subject 'The Louvre' is not"),
    ]
    wrong = []
    for content, message in cases:
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(FactError) as error:
            read_facts(path)
        if not re.search(message, str(error.value)):
            wrong.append((content, str(error.value)))
    path.write_text("[", encoding="utf-8")
    with pytest.raises(FactError, match=r"facts\.json is not JSON"):
        read_facts(path)
    assert wrong == []
