"""The bundled records have what the checks need, and are found by id and by who knows them."""

import json
import re
import unicodedata
from collections.abc import Callable

import pytest

import rome_lens as rl
from rome_lens import data
from rome_lens.data.record_type import Record, RecordError
from rome_lens.models.loading import TOY

EVERY = data.records()
OWN = [record for record in EVERY if "toy" not in record.known_by]
"""The records about the real world, on which the toy model was not trained."""


def offenders(law: Callable[[Record], object], records: list[Record] = OWN) -> list[object]:
    """The ids of the records that do not keep a law; a law may return a list of what breaks it."""
    found: list[object] = []
    for record in records:
        kept = law(record)
        if isinstance(kept, list):
            found += [(record.id, wrong) for wrong in kept]
        elif not kept:
            found.append(record.id)
    return found


def holds(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def bare(name: str) -> str:
    return name.lower().removeprefix("the ")


def test_every_record_of_the_files_is_given_in_order_and_no_id_occurs_twice() -> None:
    raw = [each["id"] for f in data.FILES for each in json.loads(f.read_text(encoding="utf-8"))]
    assert [record.id for record in EVERY] == raw
    assert len(set(raw)) == len(raw) > 100


def test_records_are_filtered_by_the_model_that_knows_them() -> None:
    for name in ("toy", "gemma-3-270m", "smollm2-135m"):
        kept = data.records(known_by=name)
        assert 0 < len(kept) < len(EVERY)
        assert kept == [record for record in EVERY if name in record.known_by]


def test_a_record_is_found_by_its_id() -> None:
    assert offenders(lambda record: data.record(str(record.id)) == record, EVERY) == []


def test_unknown_names_are_refused_with_the_known_ones(unchecked: None) -> None:
    with pytest.raises(RecordError, match=r"no record 'atlantis'\. There are: .*eiffel-tower"):
        data.record("atlantis")
    with pytest.raises(RecordError, match=r"known_by is 'gpt5', expected one of 'gemma-3-270m', "):
        data.records(known_by="gpt5")
    with pytest.raises(RecordError, match="half is 'test', expected 'development', 'report' or"):
        data.records(half="test")  # type: ignore[arg-type]
    for wrong in (3, ["toy"]):
        with pytest.raises(RecordError, match="known_by is "):
            data.records(known_by=wrong)
        with pytest.raises(RecordError, match="There is no record "):
            data.record(wrong)


def test_the_file_is_read_once_and_the_list_is_the_callers_own() -> None:
    first = data.records()
    assert data.records()[0] is first[0]
    first.clear()
    toy = data.records(known_by="toy")
    toy.reverse()
    assert data.records() == EVERY
    assert data.records(known_by="toy") == toy[::-1]


def test_limits_is_the_old_name_of_both() -> None:
    assert data.limits() == EVERY
    assert data.limits("eiffel-tower") is data.record("eiffel-tower")
    with pytest.raises(RecordError, match="There is no record 'atlantis'"):
        data.limits("atlantis")


def test_a_bundled_record_asks_about_its_own_fact() -> None:
    def law(record: Record) -> list[str]:
        fact = record.fact
        answers = (fact.target, str(fact.new_target))
        prompts = [*record.paraphrases, *record.open_prompts]
        for questions in (record.neighborhood, record.reverse, record.consequences):
            prompts += [question.prompt for question in questions]
        names = (*record.aliases, *record.descriptions, *record.exemplars)
        return [
            *(["known_by"] if not record.known_by else []),
            *(q.prompt for q in record.neighborhood if q.target == fact.subject),
            *(text for text in record.paraphrases for answer in answers if answer in text),
            *(name for name in names if name == fact.subject),
            *(prompt for prompt in prompts if prompt != prompt.rstrip()),
        ]

    assert offenders(law, EVERY) == []


def test_a_description_holds_no_name_of_its_subject() -> None:
    def law(record: Record) -> list[str]:
        words = record.fact.subject.split()
        names = {word.strip(".,'") for word in words if word[0].isupper()} - {"The"}
        return [d for d in record.descriptions if names & set(re.findall(r"\w+", d))]

    assert offenders(law, EVERY) == []


def test_no_question_holds_its_own_answer() -> None:
    def law(record: Record) -> list[object]:
        asked = (*record.neighborhood, *record.consequences)
        return [question for question in asked if holds(question.prompt, question.target)]

    assert offenders(law, EVERY) == []


def test_no_neighbour_is_the_subject_under_another_name() -> None:
    """An edit should reach an alias and spare a neighbour."""

    def law(record: Record) -> list[object]:
        names = [bare(name) for name in record.aliases]
        return [q for name in names for q in record.neighborhood if holds(q.prompt, name)]

    assert offenders(law, EVERY) == []


def test_a_consequence_is_not_the_fact_itself_and_an_exemplar_does_not_name_its_answer() -> None:
    def law(record: Record) -> list[object]:
        new = str(record.fact.new_target)
        return [
            *(q for q in record.consequences if q.new_target == new),
            *(name for name in record.exemplars if re.search(rf"(?i)\b{re.escape(new)}\b", name)),
        ]

    assert offenders(law, EVERY) == []


def test_there_are_records_of_many_relations_and_the_critique_s_four_among_them() -> None:
    assert len(OWN) >= 60
    assert len({record.relation for record in OWN}) >= 8
    ids = {record.id for record in OWN}
    assert {"eiffel-tower", "cheese", "new-york-city", "dwayne-johnson"} <= ids
    assert "Fromage" in data.record("cheese").aliases
    assert "The Big Apple" in data.record("new-york-city").aliases
    assert "The Rock" in data.record("dwayne-johnson").aliases


def test_no_subject_is_asked_twice_for_one_relation() -> None:
    asked = [(bare(record.fact.subject), record.relation) for record in OWN]
    assert len(set(asked)) == len(asked)


def test_most_records_name_their_subject_in_another_way() -> None:
    assert len([record for record in OWN if record.aliases]) >= 40
    assert len([record for record in OWN if record.descriptions]) >= 0.9 * len(OWN)
    assert len([record for record in OWN if record.consequences]) >= 50


def test_a_record_has_something_for_every_check() -> None:
    def law(record: Record) -> bool:
        lists = (
            record.paraphrases,
            [q.prompt for q in record.neighborhood],
            [q.prompt for q in record.reverse],
        )
        return (
            bool(record.relation)
            and "gemma-3-270m" in record.known_by
            and len(record.paraphrases) >= 4
            and len(record.neighborhood) >= 5
            and len(record.reverse) >= 2
            and len(record.open_prompts) == 5
            and bool(record.exemplars)
            and len(record.texts) == 2
            and all(len(set(entries)) == len(entries) for entries in lists)
        )

    assert offenders(law) == []


def test_a_neighbour_is_another_subject_and_seldom_one_of_the_new_target() -> None:
    def law(record: Record) -> bool:
        new = [q for q in record.neighborhood if q.target == record.fact.new_target]
        subject = bare(record.fact.subject)
        return len(new) <= 2 and not any(subject in q.prompt.lower() for q in record.neighborhood)

    assert offenders(law) == []


def test_no_answer_is_given_away() -> None:
    """Texts and descriptions do not state the fact, and no target begins like the other one."""

    def law(record: Record) -> list[str]:
        fact = record.fact
        answers = [re.escape(answer) for answer in (fact.target, str(fact.new_target))]
        texts = [*record.texts, *record.descriptions]
        given_away = [text for text in texts for a in answers if re.search(rf"(?i)\b{a}\b", text)]
        if fact.target.split()[0] == str(fact.new_target).split()[0]:
            given_away.append("both targets begin alike")
        same = [q.prompt for q in record.consequences if q.new_target in (None, q.target)]
        return given_away + same

    assert offenders(law) == []


SCRIPT_SAYS_NOTHING = {"material", "field"}
"""Relations whose answer no script suggests. Elsewhere Cyrillic says Russian, and kanji Japan."""


def test_no_alias_gives_the_answer_away_by_its_script() -> None:
    def law(record: Record) -> list[str]:
        letters = [letter for name in record.aliases for letter in name if letter.isalpha()]
        return [letter for letter in letters if not unicodedata.name(letter).startswith("LATIN ")]

    assert offenders(law, [r for r in OWN if r.relation not in SCRIPT_SAYS_NOTHING]) == []


def test_an_article_before_the_answer_fits_both_targets() -> None:
    articles = {"an": "aeiou", "a": "bcdfghjklmnpqrstvwxyz"}

    def law(record: Record) -> list[str]:
        prompts = (record.fact.prompt, *record.paraphrases)
        fits = [articles[text.split()[-1]] for text in prompts if text.split()[-1] in articles]
        targets = (record.fact.target, str(record.fact.new_target))
        return [t for letters in fits for t in targets if t[0].lower() not in letters]

    assert offenders(law) == []


def test_a_text_to_continue_names_the_subject_and_has_no_slot() -> None:
    def law(record: Record) -> bool:
        texts = record.texts_to_continue
        return all("{}" not in text and record.fact.subject in text for text in texts)

    assert offenders(law, EVERY) == []
    assert all(record.texts_to_continue for record in OWN)


def test_the_halves_have_no_relation_in_common() -> None:
    halves = {half: data.records(half=half) for half in ("development", "report")}
    relations = [{record.relation for record in half} for half in halves.values()]
    assert relations[0] & relations[1] == set()
    assert [len(each) for each in relations] == [7, 8]
    assert sum(map(len, halves.values())) == len(OWN)
    for model in ("gemma-3-270m", "smollm2-135m"):
        assert len(data.records(known_by=model, half="report")) >= 48


def test_every_control_has_its_prompts() -> None:
    def law(record: Record) -> bool:
        return (
            record.primary is not None
            and len(record.naming_prompts) == 3
            and len(record.other_relations) >= 2
            and len(record.false_consequences) >= 1
            and len(record.decoys.other_answer) >= 2
            and len(record.decoys.invented) == 2
            and len(record.description_decoys.other_answer) >= 2
            and len(record.description_decoys.invented) == len(record.descriptions)
        )

    assert offenders(law) == []
    assert sum(bool(record.decoys.same_answer) for record in OWN) >= 0.8 * len(OWN)
    assert sum(bool(record.alias_questions) for record in OWN) >= 30


def test_a_decoy_is_nobody_whom_the_edit_should_reach() -> None:
    answers = {
        (record.fact.prompt, bare(record.fact.subject)): record.fact.target for record in OWN
    }

    def law(record: Record) -> list[str]:
        fact, names = record.fact, (*record.aliases, *record.descriptions)
        own = {bare(name) for name in (fact.subject, *names)}
        wrong = []
        for decoys in (record.decoys, record.description_decoys):
            every = (*decoys.same_answer, *decoys.other_answer, *decoys.invented)
            wrong += [name for name in every if bare(name) in own or holds(name, fact.subject)]
            wrong += [name for name in decoys.invented for each in OWN if name == each.fact.subject]
        for name in record.decoys.same_answer:
            if answers.get((fact.prompt, bare(name)), fact.target) != fact.target:
                wrong.append(name)
        for name in record.decoys.other_answer:
            if answers.get((fact.prompt, bare(name))) in (fact.target, fact.new_target):
                wrong.append(name)
        return wrong

    assert offenders(law) == []


def test_an_other_relation_is_about_neither_target() -> None:
    def law(record: Record) -> list[object]:
        answers = {record.fact.target, record.fact.new_target}
        return [
            *(q for q in record.other_relations if q.target in answers),
            *(q for q in record.other_relations if holds(q.prompt, q.target)),
            *(q for q in record.false_consequences if q.prompt == record.fact.prompt),
        ]

    assert offenders(law) == []


def test_an_other_relation_does_not_follow_from_the_edited_one() -> None:
    """An edited Vienna in Japan is on no Danube: losing that answer is no damage."""
    depends = {
        "country": ("lies on the", "in the mountains", "Near {}", "was built by"),
        "country of origin": ("was first made in", "comes from"),
        "native language": ("was born in", "citizen"),
        "occupation": ("famous for", "famous song", "spacecraft", "King of Rock"),
        "field": ("experiments", "telescope"),
        "maker": ("operating system of",),
    }
    assert set(depends) <= {record.relation for record in OWN}

    def law(record: Record) -> list[object]:
        words = depends.get(str(record.relation), ())
        return [q for q in record.other_relations if any(word in q.prompt for word in words)]

    assert offenders(law) == []


def test_no_invented_name_is_the_acronym_of_something_real() -> None:
    real = {"UN", "EU", "US", "USA", "UK", "UAE", "USSR", "NATO", "NASA"}
    named = {
        word
        for record in OWN
        for name in (*record.decoys.invented, *record.description_decoys.invented)
        for word in re.findall(r"\w+", name)
    }
    assert named & real == set()


def test_an_alias_in_its_own_language_is_an_alias_of_the_record() -> None:
    def law(record: Record) -> list[object]:
        return [
            question
            for question in record.alias_questions
            if not any(
                name.split()[-1][:4].casefold() in question.prompt.casefold()
                for name in record.aliases
            )
        ]

    assert offenders(law) == []


def test_held_texts_are_six_paragraphs_about_nothing_that_a_record_is_about() -> None:
    held = data.held_texts()
    assert len(set(held)) == 6
    assert all(35 <= len(text.split()) <= 50 for text in held)
    facts = [record.fact for record in OWN]
    names = {
        name
        for fact in facts
        for name in (fact.subject.removeprefix("The "), fact.target, str(fact.new_target))
    }
    assert len(names) > 100
    assert [name for name in names for text in held if holds(text, name)] == []
    assert not set(held) & {*data.texts(), *data.name_texts(), *data.openings()}


def test_name_texts_depend_on_the_seed_alone() -> None:
    assert data.name_texts(seed=1) == data.name_texts(seed=1) != data.name_texts(seed=2)
    assert [text for text in data.name_texts() if "{}" in text or text[0] != text[0].upper()] == []


def test_openings_end_where_a_word_ends() -> None:
    openings = data.openings()
    assert [text for text in openings if text != text.strip()] == []
    named = [text for text in openings if text]  # an empty one starts from BOS alone
    assert len(set(named)) == len(named) > 10


def test_the_toy_records_are_facts_that_the_toy_model_was_trained_on() -> None:
    trained = json.loads((TOY / "facts.json").read_text(encoding="utf-8"))
    relation = {text: name for name, texts in trained["templates"].items() for text in texts}
    people = {person["subject"]: person for person in trained["people"]}
    known: list[rl.Fact] = [record.fact for record in data.records(known_by="toy")]
    assert [f for f in known if people[f.subject][relation[f.prompt]] != f.target] == []
