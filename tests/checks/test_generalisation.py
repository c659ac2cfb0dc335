"""The model writes the new target by itself, or the check says that it does not."""

import dataclasses
from typing import Any

import pytest

import rome_lens as rl


@pytest.fixture(scope="module")
def record(toy_record: rl.data.Record) -> rl.data.Record:
    subject = toy_record.fact.subject
    return dataclasses.replace(toy_record, texts=(f"{subject} works as a nurse.",))


def begins(model: Any, prompt: str, answer: str) -> bool:
    """Whether TransformerLens' own greedy generation begins with the answer."""
    text = model.generate(
        prompt, max_new_tokens=8, do_sample=False, verbose=False, stop_at_eos=False
    )
    return str(text[len(prompt) :]).strip().startswith(answer)


def test_exact_matches_are_those_of_greedy_generation(
    one_toy: Any, record: rl.data.Record, toy_edits: list[rl.RankOneEdit]
) -> None:
    """Of the record's edit, and of half of it, which the prompts follow in part."""
    new, true = str(record.fact.new_target), record.fact.target
    prompts = [record.fact.text, *record.paraphrases, f"{record.texts[0]} {record.fact.text}"]
    seen = set()
    for strength in (1.0, 0.5, 0.35):
        edit = dataclasses.replace(toy_edits[0], v=strength * toy_edits[0].v, value=None)
        result = rl.checks.generalisation(one_toy, edit, record)
        assert [row.prompt for row in result.rows] == prompts
        for row in result.rows:
            before = begins(one_toy, row.prompt, new)
            assert row.control == begins(one_toy, row.prompt, true)
            with edit.applied(one_toy):
                after = begins(one_toy, row.prompt, new)
            seen.add(after)
            if row.kind != "fact's own prompt":
                assert row.effect == float(after) - float(before)
            else:
                assert row.effect is None
                assert result["exact match, fact's own prompt"].mean == float(after)
        assert result.control.mean > 0.5
    assert seen == {True, False}


def test_an_edit_that_does_nothing_generalises_to_nothing(
    one_toy: Any, record: rl.data.Record, toy_edit: rl.RankOneEdit
) -> None:
    nothing = dataclasses.replace(toy_edit, v=0 * toy_edit.v, value=None)
    result = rl.checks.generalisation(one_toy, nothing, record)
    assert result.effect.mean == 0.0
    assert result["exact match, paraphrase"].mean == 0.0
    assert result["PS, paraphrase, edited"].mean == result["PS, paraphrase, unedited"].mean == 0.0


def test_a_first_word_alone_is_no_exact_match(
    one_toy: Any, record: rl.data.Record, toy_edit: rl.RankOneEdit
) -> None:
    """The edited model says the city, but never the word that should come after it."""
    fact = record.fact
    longer = rl.Fact(
        fact.prompt, subject=fact.subject, target=fact.target, new_target=f"{fact.new_target} Zorin"
    )
    result = rl.checks.generalisation(
        one_toy,
        dataclasses.replace(toy_edit, fact=longer),
        dataclasses.replace(record, fact=longer),
    )
    assert result["exact match, fact's own prompt"].mean == 0.0
    assert result.effect.mean == 0.0
    assert rl.checks.generalisation(one_toy, toy_edit, record).effect.mean > 0.5


def test_without_other_words_and_texts_it_is_not_asked(
    one_toy: Any, record: rl.data.Record, toy_edit: rl.RankOneEdit
) -> None:
    bare = rl.checks.generalisation(one_toy, toy_edit, record.fact)
    assert not bare.rows
    assert "no paraphrases and no texts" in bare.reading
