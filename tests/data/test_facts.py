"""A fact is asked as it was written, or refused with a message that says what to write instead."""

import re

import pytest

from rome_lens.data.facts import Fact, FactError

PARIS = {"subject": "The Louvre", "target": "Paris"}


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


@pytest.mark.parametrize("count", [2, 3])
def test_several_slots_are_counted_and_refused(count: int) -> None:
    with pytest.raises(FactError, match=re.escape(f"has {count} slots {{}}, expected one")):
        Fact("{} is" * count, **PARIS)


@pytest.mark.parametrize("end", [" ", "\n", "\t", "  ", "\u00a0"])
def test_a_prompt_that_ends_in_white_space_is_refused(end: str) -> None:
    with pytest.raises(FactError, match=r"ends in white space\. Remove it"):
        Fact(f"{{}} is in{end}", **PARIS)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("subject", "The subject of '{} is in' is empty"),
        ("target", "The target of '{} is in' is empty"),
        ("new_target", "The new target of '{} is in' is empty"),
    ],
)
def test_empty_words_are_refused_by_name(field: str, message: str, empty: str) -> None:
    words = {"subject": "The Louvre", "target": "Paris", "new_target": "Rome", field: empty}
    with pytest.raises(FactError, match=re.escape(message)):
        Fact("{} is in", **words)


@pytest.mark.parametrize("new_target", ["Paris", " Paris", "Paris\n"])
def test_a_new_target_that_is_the_target_up_to_white_space_is_refused(new_target: str) -> None:
    with pytest.raises(FactError, match="are both 'Paris': there is nothing to change"):
        Fact("{} is in", **PARIS, new_target=new_target)


def test_a_fact_without_a_new_target_holds_none() -> None:
    assert Fact("{} is in", **PARIS).new_target is None


def test_a_new_target_that_is_no_text_is_refused(unchecked: None) -> None:
    with pytest.raises(FactError, match="The new target is 3"):
        Fact("{} is in", subject="Paris", target="France", new_target=3)


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


@pytest.mark.parametrize("subject", ["ann", "Bob", "", " "])
def test_from_text_refuses_a_subject_that_is_not_there_letter_by_letter(subject: str) -> None:
    with pytest.raises(
        FactError, match=re.escape(f"The subject {subject!r} is not in the prompt 'Ann lives in'")
    ):
        Fact.from_text("Ann lives in", subject=subject, target="Paris")


def test_from_text_refuses_a_template() -> None:
    with pytest.raises(FactError, match="holds a slot already"):
        Fact.from_text("Ann says that {} lives in", subject="Ann", target="Paris")


def test_about_asks_the_same_question_of_another_subject() -> None:
    fact = Fact("I hear that {} is in", subject="The Louvre", target="Paris", new_target="Rome")
    other = fact.about("Big Ben")
    assert other.text == "I hear that Big Ben is in"
    assert (other.prompt, other.target, other.new_target) == (fact.prompt, "Paris", "Rome")
    assert other.about("The Louvre") == fact
