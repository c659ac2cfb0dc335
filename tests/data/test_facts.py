"""A fact is asked as it was written, or refused with a message that says what to write instead."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rome_lens.data import read_facts
from rome_lens.data.facts import Fact, FactError

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


def test_from_text_makes_the_subject_the_slot_and_gives_the_text_back() -> None:
    fact = Fact.from_text("Ann said he lives in", subject="Ann", target="Paris", new_target="Rome")
    assert fact == Fact("{} said he lives in", subject="Ann", target="Paris", new_target="Rome")
    assert fact.text == "Ann said he lives in"


FOUND = {
    ("Art", "In Arthur's book, Art was born in"): "In Arthur's book, {} was born in",
    ("Art", "State of the Art_1: Art was born in"): "State of the Art_1: {} was born in",
    ("Art", "Arthur met Art's son in"): "Arthur met {}'s son in",
    ("Art", "Art-lovers say that Art was born in"): "Art-lovers say that {} was born in",
    ("James", "James' father was born in"): "{}' father was born in",
    ("Paris", "A Paris-based company, it lies in"): "A {}-based company, it lies in",
    ("Paris", "(Paris) is in"): "({}) is in",
    ("Paris", "Paris—the capital—is in"): "{}—the capital—is in",
    ("Allemagne", "L'Allemagne est en"): "L'{} est en",
    ("Brien", "O'Brien met Brien in"): "O'Brien met {} in",
    ("O'Brien", "O'Brien was born in"): "{} was born in",
    ("C++", "C++ was invented by"): "{} was invented by",
    ("C", "C++ and C were invented by"): "C++ and {} were invented by",
    ("U.S.", "The U.S.A. and the U.S. lie in"): "The U.S.A. and the {} lie in",
    (".NET", "ASP.NET and .NET come from"): "ASP.NET and {} come from",
    ("Pi 3", "Pi 3.14 and Pi 3 come from"): "Pi 3.14 and {} come from",
    ("World War I", "World War II came after World War I in"): "World War II came after {} in",
    ("New  York", "New York, no, New  York is in"): "New York, no, {} is in",
    ("René", "Renée and René were born in"): "Renée and {} were born in",
    ("Rene", "Rene\u0301 and Rene were born in"): "Rene\u0301 and {} were born in",
    ("Анна", "Аннабель и Анна родились в"): "Аннабель и {} родились в",
    ("हिन्द", "हिन्दी और हिन्द"): "हिन्दी और {}",
    ("法国", "法国的首都是"): "{}的首都是",
    ("東京", "日本の首都、東京は"): "日本の首都、{}は",
    ("서울", "서울은 어느 나라의"): "{}은 어느 나라의",
    ("Python", "编程语言Python的作者是"): "编程语言{}的作者是",
}


@pytest.mark.parametrize(("subject", "text"), FOUND)
def test_from_text_finds_the_subject_as_a_whole_word(subject: str, text: str) -> None:
    fact = Fact.from_text(text, subject=subject, target="somewhere")
    assert fact.prompt == FOUND[subject, text]
    assert fact.text == text
    assert fact.text[fact.subject_start :].startswith(subject)


WITHIN = [
    ("Art", "Arthur was born in"),
    ("Art", "DeviantArt was founded in"),
    ("C", "C++ was invented by"),
    ("3", "3.14 is less than"),
    ("Rene", "Rene\u0301 was born in"),
    ("हिन", "हिन्दी भाषा"),
    ("U.S.", "The U.S.A. lie in"),
]


@pytest.mark.parametrize(("subject", "text"), WITHIN)
def test_a_subject_within_other_words_is_refused(subject: str, text: str) -> None:
    message = re.escape(
        "only as a part of other words. Give the subject's whole words, or write {}"
    )
    for make in (Fact.from_text, Fact):
        with pytest.raises(FactError, match=message):
            make(text, subject=subject, target="somewhere")


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("Ann", "Ann said that Ann lives in"),
        ("Art", "Art's sister said that Art lives in"),
        ("法国", "法国人说法国的首都是"),
        ("a a", "a a a is in"),
    ],
)
def test_a_subject_that_stands_there_twice_is_refused_with_what_to_write(
    subject: str, text: str
) -> None:
    for make in (Fact.from_text, Fact):
        with pytest.raises(FactError, match=r"stands 2 times in .* Write \{\}") as refusal:
            make(text, subject=subject, target="Paris")
        templates = re.findall(r"Fact\('(.*?)', \.\.\.\)|Fact\(\"(.*?)\", ", str(refusal.value))
        written = [Fact(one or other, subject=subject, target="Paris") for one, other in templates]
        assert [fact.text for fact in written] == [text, text]
        assert written[0].subject_start < written[1].subject_start


def test_half_a_character_is_refused(unchecked: None) -> None:
    """No tokenizer takes it. JSON can hold one, as a backslash and ud83d."""
    for name in ("prompt", "subject", "target", "new_target"):
        words = {"prompt": "{} is in", **PARIS, "new_target": "Rome"}
        with pytest.raises(FactError, match=rf"{name.replace('_', ' ')} is .*lone surrogate"):
            Fact(**{**words, name: words[name] + " \ud83d"})


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
        ([good, {"prompt": "{} is in"}], f"Fact 1 of {path} lacks the fields of a fact: it has"),
        ([good, {"target": "Paris"}], f"Fact 1 of {path} lacks 'subject': it has"),
        ([3], f"Fact 0 of {path}: expected an object, got 3"),
        (
            [{"requested_rewrite": {**REWRITE, "target_new": {}}}],
            "Fact 0 of .*, field 'requested_rewrite.target_new': expected an object",
        ),
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
