"""The bundled records have the form that the checks need; one that has not is refused by record and field."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from rome_lens import data
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Question, Record, RecordError
from rome_lens.data.records_file import read_records
from rome_lens.models.loading import TOY

FACT = {"prompt": "{} is in", "subject": "The Louvre", "target": "Paris", "new_target": "Rome"}
QUESTION = {"prompt": "It is in", "target": "Paris"}
ABOUT = {"prompt": "In {} stands", "target": "The Louvre"}


@pytest.fixture(autouse=True)
def _types_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users read files without the tests' type checks, which would refuse a wrong type in the package's place."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def write(path: Path, **fields: Any) -> Path:
    """A file with a good record and one that has these fields, None leaving a field out."""
    second = {"id": "second", "fact": FACT, **fields}
    records = [
        {"id": "first", "fact": FACT},
        {name: value for name, value in second.items() if value is not None},
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_every_bundled_record_is_given_and_no_id_twice() -> None:
    raw = [
        item["id"] for file in data.FILES for item in json.loads(file.read_text(encoding="utf-8"))
    ]
    assert [record.id for record in data.limits()] == raw
    assert len(set(raw)) == len(raw) > 1


@pytest.mark.parametrize("record", data.limits(), ids=lambda record: record.id)
def test_a_bundled_record_asks_about_its_own_fact(record: Record) -> None:
    fact = record.fact
    assert record.known_by
    assert all(question.target != fact.subject for question in record.neighborhood)
    assert all(
        fact.target not in text and str(fact.new_target) not in text for text in record.paraphrases
    )
    assert all(
        name != fact.subject for name in (*record.aliases, *record.descriptions, *record.exemplars)
    )
    prompts = [
        *record.paraphrases,
        *(q.prompt for q in (*record.neighborhood, *record.reverse, *record.consequences)),
    ]
    assert [
        prompt for prompt in (*prompts, *record.open_prompts) if prompt != prompt.rstrip()
    ] == []


@pytest.mark.parametrize("record", data.limits(), ids=lambda record: record.id)
def test_a_description_holds_no_name_of_its_subject(record: Record) -> None:
    names = {word.strip(".,'") for word in record.fact.subject.split() if word[0].isupper()} - {
        "The"
    }
    assert [d for d in record.descriptions if names & set(re.findall(r"\w+", d))] == []


def own_records() -> list[Record]:
    """Those about the real world, on which the toy model was not trained."""
    return [record for record in data.limits() if "toy" not in record.known_by]


def test_there_are_records_of_many_relations_and_the_critique_s_four_among_them() -> None:
    records = own_records()
    assert len(records) >= 60
    assert len({record.relation for record in records}) >= 8
    assert {"eiffel-tower", "cheese", "new-york-city", "dwayne-johnson"} <= {
        record.id for record in records
    }
    assert "Fromage" in data.limits("cheese").aliases
    assert "The Big Apple" in data.limits("new-york-city").aliases
    assert "The Rock" in data.limits("dwayne-johnson").aliases


def test_no_subject_is_asked_twice_for_one_relation() -> None:
    asked = [
        (record.fact.subject.lower().removeprefix("the "), record.relation)
        for record in own_records()
    ]
    assert asked
    assert len(set(asked)) == len(asked)


def test_most_records_name_their_subject_in_another_way() -> None:
    records = own_records()
    assert len([record for record in records if record.aliases]) >= 40
    assert len([record for record in records if record.descriptions]) >= 0.9 * len(records)
    assert len([record for record in records if record.consequences]) >= 50


@pytest.mark.parametrize("record", own_records(), ids=lambda record: record.id)
def test_a_record_has_something_for_every_check(record: Record) -> None:
    assert record.relation
    assert "gemma-3-270m" in record.known_by
    assert len(record.paraphrases) >= 4
    assert len(record.neighborhood) >= 5
    assert len(record.reverse) >= 2
    assert len(record.open_prompts) == 5
    assert record.exemplars
    assert len(record.texts) == 2
    for entries in (
        record.paraphrases,
        [q.prompt for q in record.neighborhood],
        [q.prompt for q in record.reverse],
    ):
        assert len(set(entries)) == len(entries)


@pytest.mark.parametrize("record", own_records(), ids=lambda record: record.id)
def test_a_neighbor_is_another_subject_and_seldom_one_of_the_new_target(record: Record) -> None:
    subject = record.fact.subject.lower().removeprefix("the ")
    assert [q.prompt for q in record.neighborhood if subject in q.prompt.lower()] == []
    assert len([q for q in record.neighborhood if q.target == record.fact.new_target]) <= 2


@pytest.mark.parametrize("record", own_records(), ids=lambda record: record.id)
def test_no_answer_is_given_away(record: Record) -> None:
    """Texts and descriptions say nothing of the fact, and the new target does not begin as the true one."""
    fact = record.fact
    answers = [
        re.compile(rf"\b{re.escape(answer)}\b", re.IGNORECASE)
        for answer in (fact.target, str(fact.new_target))
    ]
    said = [*record.texts, *record.descriptions]
    assert [text for text in said for answer in answers if answer.search(text)] == []
    assert fact.target.split()[0] != str(fact.new_target).split()[0]
    for question in record.consequences:
        assert question.new_target is not None
        assert question.new_target != question.target


def holds(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


@pytest.mark.parametrize("record", data.limits(), ids=lambda record: record.id)
def test_no_question_holds_its_own_answer(record: Record) -> None:
    asked = (*record.neighborhood, *record.consequences)
    assert [question for question in asked if holds(question.prompt, question.target)] == []


@pytest.mark.parametrize("record", data.limits(), ids=lambda record: record.id)
def test_no_neighbor_is_the_subject_under_another_name(record: Record) -> None:
    """The edit should reach an alias and spare a neighbour."""
    names = [re.sub("^the ", "", name, flags=re.IGNORECASE) for name in record.aliases]
    assert [
        (name, q.prompt) for name in names for q in record.neighborhood if holds(q.prompt, name)
    ] == []


SCRIPT_SAYS_NOTHING = {"material", "field"}
"""Relations whose answer no writing system suggests; elsewhere Cyrillic says Russian, and kanji Japan, yen or Sony."""


@pytest.mark.parametrize(
    "record",
    [r for r in own_records() if r.relation not in SCRIPT_SAYS_NOTHING],
    ids=lambda record: record.id,
)
def test_no_alias_gives_the_answer_away_by_its_script(record: Record) -> None:
    letters = [letter for name in record.aliases for letter in name if letter.isalpha()]
    assert [letter for letter in letters if not unicodedata.name(letter).startswith("LATIN ")] == []


@pytest.mark.parametrize("record", own_records(), ids=lambda record: record.id)
def test_an_article_before_the_answer_fits_both_targets(record: Record) -> None:
    articles = {"an": "aeiou", "a": "bcdfghjklmnpqrstvwxyz"}
    fits = [articles.get(text.split()[-1]) for text in (record.fact.prompt, *record.paraphrases)]
    targets = (record.fact.target, str(record.fact.new_target))
    assert [
        (first, t) for first in fits if first for t in targets if t[0].lower() not in first
    ] == []


def test_held_texts_are_six_paragraphs_about_nothing_that_a_record_is_about() -> None:
    held = data.held_texts()
    assert len(set(held)) == 6
    assert all(35 <= len(text.split()) <= 50 for text in held)
    facts = [record.fact for record in own_records()]
    names = {
        name
        for fact in facts
        for name in (fact.subject.removeprefix("The "), fact.target, str(fact.new_target))
    }
    assert len(names) > 100
    assert [
        name
        for name in names
        for text in held
        if re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE)
    ] == []
    assert not set(held) & {*data.texts(), *data.name_texts(), *data.openings()}


def test_a_record_is_found_by_its_id() -> None:
    for record in data.limits():
        assert data.limits(record.id) == record


def test_an_unknown_id_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        RecordError, match=r"There is no record 'atlantis'; there are: .*eiffel-tower"
    ):
        data.limits("atlantis")


def test_the_toy_records_are_facts_that_the_toy_model_was_trained_on() -> None:
    trained = json.loads((TOY / "facts.json").read_text(encoding="utf-8"))
    relation = {
        prompt: name for name, prompts in trained["templates"].items() for prompt in prompts
    }
    people = {person["subject"]: person for person in trained["people"]}
    known = [record.fact for record in data.limits() if "toy" in record.known_by]
    assert known
    assert [f for f in known if people[f.subject][relation[f.prompt]] != f.target] == []


def test_openings_end_where_a_word_ends() -> None:
    openings = data.openings()
    assert [text for text in openings if text != text.strip()] == []
    named = [text for text in openings if text]  # an empty one starts from BOS alone
    assert len(set(named)) == len(named) > 10


def test_a_record_is_read_field_by_field(tmp_path: Path) -> None:
    path = write(
        tmp_path / "records.json",
        reverse=[ABOUT],
        aliases=["Musée"],
        neighborhood=[QUESTION],
        one_way=True,
    )
    assert read_records(path) == [
        Record(id="first", fact=Fact(**FACT)),
        Record(
            id="second",
            fact=Fact(**FACT),
            one_way=True,
            reverse=(Question(**ABOUT),),
            aliases=("Musée",),
            neighborhood=(Question(**QUESTION),),
        ),
    ]


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(RecordError) as error:
        read_records(write(path, **fields))
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fact", {**FACT, "new_target": None}, "it has no new_target"),
        ("fact", {k: v for k, v in FACT.items() if k != "new_target"}, "it has no new_target"),
        (
            "fact",
            {k: v for k, v in FACT.items() if k != "prompt"},
            "it has no 'prompt', only ['new_target', ",
        ),
        (
            "fact",
            {k: v for k, v in FACT.items() if k != "target"},
            "it has no 'target', only ['new_target', ",
        ),
        (
            "fact",
            {**FACT, "answer": "Rome"},
            "it holds ['answer']; expected an object with 'prompt', 'subject', ",
        ),
        ("fact", {**FACT, "new_target": "Paris "}, "there is nothing to change"),
        ("fact", {**FACT, "prompt": "It is in"}, "has no {} to put it in"),
        ("fact", {**FACT, "prompt": 5}, "its 'prompt' is 5; expected an object with "),
        ("fact", {**FACT, "new_target": 5}, "its 'new_target' is 5; expected an object with "),
        ("fact", {**FACT, "target": None}, "its 'target' is None; expected an object with "),
        (
            "fact",
            "The Louvre is in Paris",
            "expected an object with 'prompt', 'subject', 'target' and 'new_target'",
        ),
        ("fact", [], "each a text, got []"),
        ("paraphrases", [5], "expected a text, got 5"),
        ("paraphrases", [""], "expected a text, got ''"),
        ("aliases", ["A", " "], "expected a text, got ' '"),
        ("exemplars", [QUESTION], "expected a text, got {'prompt'"),
        ("open_prompts", ["It is"], "expected one {} in 'It is'"),
        ("open_prompts", ["{} and {}"], "expected one {} in '{} and {}'"),
        ("reverse", [{**ABOUT, "prompt": "Here stands"}], "expected one {} in 'Here stands'"),
        (
            "reverse",
            ["In {} stands"],
            "expected an object with 'prompt' and 'target', got 'In {} stands'",
        ),
        ("consequences", [{**ABOUT, "prompt": "{} {}"}], "expected one {} in '{} {}'"),
        ("neighborhood", [{"prompt": "It is in"}], "'target'"),
        ("neighborhood", [{"target": "Paris"}], "expected an object with 'prompt' and 'target'"),
        (
            "neighborhood",
            [{**QUESTION, "true": "Paris"}],
            "holds ['true']; expected an object with 'prompt' and 'target'",
        ),
        (
            "neighborhood",
            [{**QUESTION, "prompt": 5}],
            "expected an object with 'prompt' and 'target'",
        ),
        (
            "neighborhood",
            [{**QUESTION, "prompt": " It is in"}],
            "expected no white space around it, got ' It is in'",
        ),
        (
            "neighborhood",
            [{**QUESTION, "prompt": "{} is in"}],
            "expected the words themselves and no {}, got '{} is in'",
        ),
        (
            "paraphrases",
            ["{} stands in"],
            "expected the words themselves and no {}, got '{} stands in'",
        ),
        ("aliases", ["{}"], "expected the words themselves and no {}, got '{}'"),
        (
            "paraphrases",
            ["It stands in"],
            "'It stands in' does not name the subject, expected a prompt with 'The Louvre'",
        ),
        ("paraphrases", ["The Louvres stand in"], "does not name the subject"),
        (
            "neighborhood",
            [{**QUESTION, "prompt": "Below the Louvre is"}],
            "'Below the Louvre is' names the subject",
        ),
        ("aliases", ["the Louvre"], "'the Louvre' is the subject itself, expected other words"),
        ("descriptions", ["The Louvre"], "'The Louvre' is the subject itself"),
        ("exemplars", ["The Colosseum", "The Louvre"], "'The Louvre' is the subject itself"),
        ("aliases", ["Le Louvre", "le Louvre"], "'Le Louvre' stands there twice"),
        (
            "reverse",
            [{**ABOUT, "target": "Big Ben"}],
            "'In {} stands' has the target 'Big Ben', expected the subject",
        ),
        (
            "consequences",
            [ABOUT],
            "'In {} stands' has no 'new_target', expected what follows from the new fact",
        ),
        (
            "consequences",
            [{**ABOUT, "new_target": "The Louvre "}],
            "has 'The Louvre' as target and as new_target",
        ),
        ("texts", ["Museum"], "expected a sentence, got 'Museum'"),
    ],
)
def test_a_bad_field_is_named_with_its_record(
    field: str, value: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "records.json"
    found = refusal(path, **{field: value})
    assert found.startswith(f"{path}, record 1 (second), field {field!r}: ")
    assert message in found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aliases", "Musée"),  # taken letter by letter
        ("aliases", ["Musée "]),
        ("paraphrases", ["It stands in "]),
        ("known_by", "toy"),
        ("paraphrases", {"It is in": "Paris"}),
        ("aliases", 5),
        ("one_way", "yes"),
        ("fact", {**FACT, "subject": 5}),
        ("neighborhood", [{**QUESTION, "target": 5}]),
        ("neighborhood", [{**QUESTION, "target": " "}]),
        ("neighborhood", [{**QUESTION, "prompt": "It is in "}]),
    ],
)
def test_a_field_of_a_wrong_type_is_named_with_its_record(
    field: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "records.json"
    assert refusal(path, **{field: value}).startswith(
        f"{path}, record 1 (second), field {field!r}: "
    )


@pytest.mark.parametrize("id", ["", " "])
def test_an_empty_id_is_refused_by_the_record_s_place(id: str, tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    found = refusal(path, id=id)
    assert (
        found == f"{path}, record 1 ({id}), field 'id': expected a name for the record, got {id!r}."
    )


def test_space_around_a_target_does_not_count(tmp_path: Path) -> None:
    """As in a fact: a tokenizer would put a second space before the answer, and ask for another one."""
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
    assert record.consequences == (
        Question(prompt="{} lies in", target="France", new_target="Italy"),
    )
    assert Question(prompt="It is in", target=" Paris").target == "Paris"


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
    towers = {
        "paraphrases": ["Every Louvre visitor is in"],
        "reverse": [{**ABOUT, "target": "the Louvre"}],
    }
    assert (
        read_records(write(tmp_path / "records.json", **towers))[1].reverse[0].target
        == "the Louvre"
    )


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "records.json", aliases=["Musée"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_records(path)[1].aliases == ("Musée",)


def test_an_unknown_field_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    found = refusal(path, paraphrase=["It is in"])
    assert found.startswith(
        f"{path}, record 1 (second): unknown fields ['paraphrase']; known are ['aliases', "
    )


@pytest.mark.parametrize("missing", ["id", "fact"])
def test_a_record_without_id_or_fact_is_named_by_its_place(missing: str, tmp_path: Path) -> None:
    path = write(tmp_path / "records.json")
    records = json.loads(path.read_text())
    del records[1][missing]
    path.write_text(json.dumps(records))
    message = f"{path}, record 1: expected an object with at least 'id' and 'fact', got "
    with pytest.raises(RecordError, match=re.escape(message)):
        read_records(path)


def test_two_records_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"several records have the id \['first'\]"):
        read_records(write(tmp_path / "records.json", id="first"))


def test_what_is_not_json_is_refused_by_the_file_s_name(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text("[{")
    with pytest.raises(RecordError, match=re.escape(f"{path} is not JSON")):
        read_records(path)


@pytest.mark.parametrize("record", data.limits(), ids=lambda record: record.id)
def test_a_consequence_is_not_the_fact_itself_and_an_exemplar_does_not_name_its_answer(
    record: Record,
) -> None:
    new = str(record.fact.new_target)
    assert [q for q in record.consequences if q.new_target == new] == []
    named = [
        name
        for name in record.exemplars
        if re.search(rf"\b{re.escape(new)}\b", name, re.IGNORECASE)
    ]
    assert named == []


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text(json.dumps({"id": "first", "fact": FACT}))
    with pytest.raises(
        RecordError, match=re.escape(f"{path} holds dict, expected a list of records")
    ):
        read_records(path)
