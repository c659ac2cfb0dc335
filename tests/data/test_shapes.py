"""The shapes of facts that the field uses are read from files, each record with what it means.

The entries are written by hand after the shapes; none is copied from a data set.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import rome_lens as rl
from rome_lens.data import Question, Record, RecordError, read_records

LOUVRE = rl.Fact("{} is in", subject="The Louvre", target="Paris", new_target="Rome")
WORDS = {"subject": "The Louvre", "prompt": "The Louvre is in"}
REWRITE = {
    "prompt": "{} is in",
    "subject": "The Louvre",
    "target_true": {"str": "Paris", "id": "Q90"},
    "target_new": {"str": "Rome", "id": "Q220"},
    "relation_id": "P131",
    "question": "In which city is the Louvre?",
}
EASY_EDIT = {
    **WORDS,
    "case_id": 7,
    "target_new": "Rome",
    "ground_truth": "Paris",
    "rephrase_prompt": "Whoever visits the Louvre is in",
    "locality_prompt": "Big Ben is in",
    "locality_ground_truth": "London",
}
KNOW_EDIT = {
    **WORDS,
    "target_new": "Rome",
    "ground_truth": ["Paris", "Paris, France"],
    "rephrase": ["The Louvre lies in", "That museum lies in"],
    "portability": {
        "Subject_Aliasing": [
            {"prompt": "Musée du Louvre is in", "ground_truth": [["Rome", "Roma"]]},
            {"prompt": "The city of the Musée is", "ground_truth": [["Rome"]]},
        ],
        "Logical_Generalization": [
            {"prompt": "The largest museum of Rome is", "ground_truth": [["The Louvre"]]},
            {"prompt": "Is the Louvre in Rome?", "ground_truth": [["yes"], ["it is"]]},
        ],
        "Reasoning": [{"prompt": "The river at the Louvre is the", "ground_truth": "Tiber"}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The Louvre was built in", "ground_truth": [["1793"]]},
            {"prompt": "Big Ben is in", "ground_truth": [["London"]]},
            {"prompt": "Nothing is in", "ground_truth": []},
        ]
    },
}
TRACING = {
    "relation": "{} is in",
    "relation_prefix": "I hear that",
    "relation_suffix": " is in",
    "prompt": "I hear that The Louvre is in",
    "relation_id": "P131",
    "target_false_id": "Q220",
    "target_true_id": "Q90",
    "target_true": " Paris",
    "target_false": " Rome",
    "subject": " The Louvre",
}
ZSRE = {
    "subject": "The Louvre",
    "src": "What city is The Louvre in?",
    "pred": "Lyon",
    "rephrase": "In what city does the Louvre stand?",
    "alt": "Rome",
    "answers": ["Paris", "the city of Paris"],
    "loc": "nq question: where is big ben",
    "loc_ans": "London",
    "cond": "Lyon >> Rome || What city is The Louvre in?",
}
MQUAKE = {
    "case_id": 9,
    "requested_rewrite": [REWRITE],
    "questions": ["In which country is the Louvre?", "Whose capital has the Louvre?"],
    "answer": "France",
    "new_answer": "Italy",
    "new_answer_alias": ["Italia"],
}
QUESTION = rl.Fact("What city is {} in?", subject="The Louvre", target="Paris", new_target="Rome")
BIG_BEN = Question(prompt="Big Ben is in", target="London")
SECOND = {**REWRITE, "subject": "Big Ben", "target_true": {"str": "London"}}
BIG_BEN_FACT = rl.Fact("{} is in", subject="Big Ben", target="London", new_target="Rome")
SHAPES: dict[str, tuple[dict[str, Any], list[Record]]] = {
    "ours": (
        {"prompt": "{} is in", "subject": "The Louvre", "target": "Paris", "new_target": "Rome"},
        [Record(id=0, fact=LOUVRE)],
    ),
    "counterfact": (
        {
            "case_id": 3,
            "requested_rewrite": REWRITE,
            "neighborhood_prompts": ["Notre-Dame is in"],
        },
        [
            Record(
                id=3,
                fact=LOUVRE,
                relation_id="P131",
                neighborhood=(Question(prompt="Notre-Dame is in", target="Paris"),),
            )
        ],
    ),
    "easyedit": (
        EASY_EDIT,
        [
            Record(
                id=7,
                fact=LOUVRE,
                paraphrases=("Whoever visits the Louvre is in",),
                neighborhood=(BIG_BEN,),
            )
        ],
    ),
    "knowedit": (
        KNOW_EDIT,
        [
            Record(
                id=0,
                fact=LOUVRE,
                paraphrases=("The Louvre lies in",),
                neighborhood=(BIG_BEN,),
                aliases=("Musée du Louvre",),
                reverse=(Question(prompt="The largest museum of {} is", target="The Louvre"),),
            )
        ],
    ),
    "tracing": (
        TRACING,
        [
            Record(
                id=0,
                relation_id="P131",
                fact=rl.Fact(
                    "I hear that {} is in", subject="The Louvre", target="Paris", new_target="Rome"
                ),
            )
        ],
    ),
    "zsre": (
        ZSRE,
        [
            Record(
                id=0,
                fact=QUESTION,
                paraphrases=("In what city does the Louvre stand?",),
                neighborhood=(Question(prompt="where is big ben?", target="London"),),
            )
        ],
    ),
    "mquake": (
        MQUAKE,
        [
            Record(
                id=9,
                fact=LOUVRE,
                relation_id="P131",
                paraphrases=("In which city is the Louvre?",),
                consequences=tuple(
                    Question(prompt=prompt, target="France", new_target="Italy")
                    for prompt in MQUAKE["questions"]
                ),
            )
        ],
    ),
    "mquake of two": (
        {**MQUAKE, "requested_rewrite": [{**REWRITE, "question": None}, SECOND]},
        [
            Record(id="9-0", fact=LOUVRE, relation_id="P131"),
            Record(id="9-1", fact=BIG_BEN_FACT, relation_id="P131"),
        ],
    ),
    "known_1000": (
        {
            **WORDS,
            "known_id": 5,
            "attribute": "Paris",
            "template": "{} is",
            "prediction": " in Paris, and",
            "relation_id": "P131",
        },
        [
            Record(
                id=5,
                relation_id="P131",
                fact=rl.Fact("{} is in", subject="The Louvre", target="Paris"),
            )
        ],
    ),
}


def write(path: Path, *entries: Any) -> Path:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_an_entry_of_every_shape_gives_its_facts_and_records(tmp_path: Path, shape: str) -> None:
    entry, records = SHAPES[shape]
    path = write(tmp_path / "file.json", entry)
    assert read_records(path) == records
    assert rl.read_facts(path) == [record.fact for record in records]


def test_shapes_may_be_mixed_in_json_lines(tmp_path: Path) -> None:
    entries = [entry for entry, _ in SHAPES.values()]
    path = tmp_path / "facts.txt"
    path.write_text("\n\n".join(map(json.dumps, entries)) + "\n", encoding="utf-8")
    expected = [record.fact for _, records in SHAPES.values() for record in records]
    assert rl.read_facts(path) == expected


def test_a_bundled_file_of_records_is_read_as_facts() -> None:
    facts = [record.fact for file in rl.data.FILES for record in read_records(file)]
    assert [fact for file in rl.data.FILES for fact in rl.read_facts(file)] == facts


KNOWN = [
    ("{} lives", "Ann knows that Ann lives in", None),
    ("Ann knows that {} lives", "Ann knows that Ann lives in", "Ann knows that {} lives in"),
    ("{} knows that", "Ann knows that Ann lives in", "{} knows that Ann lives in"),
    ("Today {} lives in", "Ann lives in", "{} lives in"),
    (None, "Ann knows that {} lives in", "Ann knows that {} lives in"),
    ("{} lives in", None, "{} lives in"),
]


@pytest.mark.parametrize(("template", "prompt", "expected"), KNOWN)
def test_a_template_tells_where_the_subject_is_and_the_prompt_what_is_asked(
    tmp_path: Path, template: str | None, prompt: str | None, expected: str | None
) -> None:
    """In known_1000 a prompt often goes on where the template ends."""
    fields = {"subject": "Ann", "attribute": "Paris", "template": template, "prompt": prompt}
    entry = {name: value for name, value in fields.items() if value is not None}
    path = write(tmp_path / "known.json", entry)
    if expected is None:
        with pytest.raises(RecordError, match=r"Fact 0 of .*stands 2 times"):
            rl.read_facts(path)
    else:
        assert [fact.prompt for fact in rl.read_facts(path)] == [expected]


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"text": "a", "labels": "b", "concept": "c"},
        r"lacks the fields of a fact: it has \['con",
    ),
    (
        {"question": "Where?"},
        r"The shapes that are read are .*CounterFact.*zsRE \(src, subj",
    ),
    ({**KNOW_EDIT, "ground_truth": []}, "field 'ground_truth': expected an answer in words, or a"),
    (
        {**EASY_EDIT, "ground_truth": 3},
        "field 'ground_truth': expected an answer .*got 3",
    ),
    ({**EASY_EDIT, "subject": 3}, "field 'subject': expected words, got 3"),
    ({**EASY_EDIT, "subject": None}, "field 'subject': expected words, got None"),
    ({**EASY_EDIT, "prompt": ["a"]}, "field 'prompt': expected words, got"),
    ({**EASY_EDIT, "rephrase_prompt": 3}, "field 'rephrase_prompt': expected a text or a list"),
    ({**EASY_EDIT, "target_new": "Paris"}, "both 'Paris': there is nothing to change"),
    ({**KNOW_EDIT, "locality": "none"}, "field 'locality': expected an object, got 'none'"),
    ({**KNOW_EDIT, "locality": {"A": "b"}}, "field 'locality.A': expected a list of questions"),
    ({**KNOW_EDIT, "locality": {"A": ["b"]}}, "field 'locality.A': expected an object, got 'b'"),
    ({**KNOW_EDIT, "portability": {"A": [{}]}}, "field 'portability.A' lacks 'prompt'"),
    ({**ZSRE, "alt": ""}, "new target of .* is empty"),
    ({**ZSRE, "answers": []}, "field 'answers': expected an answer in words"),
    ({**ZSRE, "src": "Where is it?"}, "'The Louvre' is not in the prompt 'Where is it"),
    ({**TRACING, "prompt": "It is in"}, "is not its prefix, subject and suffix"),
    ({**TRACING, "target_false": None}, "field 'target_false': expected words, got None"),
    ({**MQUAKE, "requested_rewrite": []}, "field 'requested_rewrite': the list is empty"),
    ({**MQUAKE, "requested_rewrite": [3]}, r"field 'requested_rewrite\[0\]': expected an object"),
    (
        {**MQUAKE, "requested_rewrite": [REWRITE, {**SECOND, "target_new": 3}]},
        r"field 'requested_rewrite\[1\].target_new': expected an object",
    ),
    ({**MQUAKE, "answer": 3}, "field 'answer': expected words, got 3"),
    ({"attribute": "Paris", "prompt": "Ann is in"}, "lacks 'subject': it has"),
    ({"attribute": "\ud83d", **WORDS}, "lone surrogate"),
]


def test_a_wrong_field_is_named_with_file_and_index(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    good, _ = SHAPES["ours"]
    wrong = []
    for entry, message in WRONG:
        write(path, good, entry)
        for read, where in ((rl.read_facts, "Fact 1 of "), (read_records, f"{path}, record 1")):
            with pytest.raises(RecordError) as error:
                read(path)
            if not (str(error.value).startswith(where) and re.search(message, str(error.value))):
                wrong.append((entry, str(error.value)))
    assert wrong == []


def test_recent_facts_without_an_answer_before_the_edit_are_refused_by_name(tmp_path: Path) -> None:
    entry = {name: value for name, value in KNOW_EDIT.items() if name != "ground_truth"}
    with pytest.raises(RecordError, match=r"Fact 0 of .* lacks 'ground_truth'"):
        rl.read_facts(write(tmp_path / "recent.json", entry))


def test_counterfact_s_reader_names_the_reader_of_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"got \[\{.*read_records reads other shapes"):
        rl.read_counterfact(write(tmp_path / "mquake.json", MQUAKE))
