"""Decoys come from neighbours and other records, and never from the subject or the new target."""

import pytest

from rome_lens import data
from rome_lens.data.completing import with_relation
from rome_lens.data.deriving import words_in_slot
from rome_lens.data.facts import Fact
from rome_lens.data.questions import Decoys
from rome_lens.data.record_type import Question, Record, RecordError

PROMPT = "{} is in the city of"


def city(id: str, subject: str, target: str, **fields: object) -> Record:
    fact = Fact(PROMPT, subject=subject, target=target, new_target="Rome")
    return Record(id=id, fact=fact, relation="place", **fields)  # type: ignore[arg-type]


def neighbour(subject: str, target: str) -> Question:
    return Question(prompt=PROMPT.replace("{}", subject), target=target)


LOUVRE = city(
    "louvre",
    "The Louvre",
    "Paris",
    aliases=("Le Louvre",),
    neighborhood=(
        neighbour("Big Ben", "London"),
        neighbour("The Sorbonne", "Paris"),
        neighbour("Le Louvre", "Paris"),
        neighbour("The Colosseum", "Rome"),
        Question(prompt="The capital of France is", target="Paris"),
    ),
)


def test_neighbours_of_the_same_form_are_decoys_by_their_answer() -> None:
    (found,) = data.with_decoys([LOUVRE])
    assert found.decoys == Decoys(same_answer=("The Sorbonne",), other_answer=("Big Ben",))
    assert found.description_decoys == Decoys()


def test_other_records_of_the_relation_give_names_and_descriptions() -> None:
    towers = [
        city("eiffel", "The Eiffel Tower", "Paris", descriptions=("the iron one", "the tall one")),
        city("needle", "The Space Needle", "Seattle", descriptions=("the one by the sound",)),
    ]
    elsewhere = Record(
        id="fuji",
        fact=Fact("{} lies in", subject="Fuji", target="Paris", new_target="Rome"),
        relation="place",
        descriptions=("the volcano",),
    )
    found = data.with_decoys([LOUVRE, *towers, elsewhere])
    assert found[0].decoys.same_answer == ("The Sorbonne", "The Eiffel Tower")
    assert found[0].description_decoys == Decoys(
        same_answer=("the iron one", "the tall one"), other_answer=("the one by the sound",)
    )
    assert found[2].decoys == Decoys(other_answer=("The Louvre", "The Eiffel Tower"))
    assert found[3].decoys == Decoys()


def test_a_subject_with_one_of_the_targets_among_its_answers_is_no_decoy() -> None:
    towers = [
        city("eiffel", "The Eiffel Tower", "Lyon", other_answers=("Paris",)),
        city("needle", "The Space Needle", "Seattle", other_answers=("Rome",)),
        city("gate", "The Golden Gate", "San Francisco", other_answers=("Oakland",)),
    ]
    found = data.with_decoys([LOUVRE, *towers])[0].decoys
    assert found.other_answer == ("Big Ben", "The Golden Gate")


def test_decoys_that_a_record_has_stay() -> None:
    own = Decoys(same_answer=("The Panthéon",), invented=("The Marlow",))
    (found,) = data.with_decoys([city("b", "Big Ben", "London", decoys=own)])
    assert found.decoys == own


def test_the_words_in_the_slot_are_those_of_a_prompt_of_the_same_form() -> None:
    fact = Fact("In {} they speak", subject="Peru", target="Spanish")
    cases = {"In Chile they speak": "Chile", "In Chile they say": None, "In  they speak": None}
    assert {prompt: words_in_slot(fact, prompt) for prompt in cases} == cases


def test_a_relation_completes_its_records_and_leaves_their_own_fields() -> None:
    fact = Fact(PROMPT, subject="The Louvre", target="Paris", new_target="Rome")
    plain = with_relation(Record(id=1, fact=fact, relation="city"))
    assert (plain.half, plain.primary) == ("report", True)
    pairs = [(each.target, each.new_target) for each in plain.false_consequences]
    assert pairs == [("Paris", "Rome"), ("French", "Romans")]
    own = Record(id=1, fact=fact, relation="city", half="development", naming_prompts=("{}, or",))
    assert with_relation(own).half == "development"
    assert with_relation(own).naming_prompts == ("{}, or",)
    unheard = Record(id=1, fact=fact, relation="unheard of")
    assert with_relation(unheard) is unheard


def test_a_false_consequence_needs_two_answers_that_differ() -> None:
    """Boston's people and Chicago's are both Americans, and nothing is said about Oslo's."""
    for target, new in (("Boston", "Chicago"), ("Boston", "Oslo")):
        fact = Fact(PROMPT, subject="The Park", target=target, new_target=new)
        (question,) = with_relation(Record(id=1, fact=fact, relation="city")).false_consequences
        assert (question.target, question.new_target) == (target, new)


@pytest.mark.usefixtures("unchecked")
def test_decoys_of_another_form_are_refused() -> None:
    for wrong in ("Big Ben", ("Big Ben", 3), (" ",), ("Big Ben ",)):
        with pytest.raises(RecordError, match="Decoys, field 'invented'"):
            Decoys(invented=wrong)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match=r"field 'decoys': expected Decoys\(\.\.\.\)"):
        city("b", "Big Ben", "London", decoys=("The Louvre",))
    with pytest.raises(RecordError, match="'half': expected 'development', 'report' or None"):
        city("b", "Big Ben", "London", half="test")
