"""Checks: rows against their plain calculation, controls, and what is not asked."""

import dataclasses
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.intervals import average


@pytest.fixture(scope="module")
def edited(toy: Any) -> tuple[Any, rl.data.Record, rl.RankOneEdit]:
    """A two-way record of the toy, whose reverse, alias and description the model knows, and its edit."""
    record = next(r for r in rl.data.limits() if "toy" in r.known_by and r.one_way is False)
    statistics = rl.collect_key_statistics(toy, layer=1)
    return toy, record, rl.rome(toy, record.fact, layer=1, statistics=statistics)


def plain_p(model: Any, prompt: str, answer: str) -> float:
    """Probability of the whole answer, token after token, with nothing batched, padded or skipped."""
    tokens = model.to_tokens(prompt)
    log_p = 0.0
    for token in rl.tokens.continuation(model, prompt, answer):
        with torch.no_grad():
            log_p += float(model(tokens)[0, -1].log_softmax(-1)[token])
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return float(torch.tensor(log_p).exp())


def test_rows_are_the_plain_probabilities(edited: Any) -> None:
    model, record, edit = edited
    limits = rl.check_limits(model, edit, record)
    for result in limits.results:
        row = result.rows[0]
        old, new = (row.answer.split(" -> ") * 2)[:2] if result.name == "dominance" else (row.answer, row.answer)
        assert row.before == pytest.approx(plain_p(model, row.prompt, old), rel=1e-3, abs=1e-7)
        with edit.applied(model):
            assert row.after == pytest.approx(plain_p(model, row.prompt, new), rel=1e-3, abs=1e-7)


def test_controls_are_high_where_the_toy_was_taught_and_low_where_not(toy: Any) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    for one_way in (False, True):
        record = next(r for r in rl.data.limits() if "toy" in r.known_by and r.one_way is one_way)
        edit = rl.rome(toy, record.fact, layer=1, statistics=statistics, contexts=["{}"])
        limits = rl.check_limits(toy, edit, record)
        for name in ("direction", "association", "description"):
            control = limits[name].control.mean
            assert control < 0.1 if one_way else control > 0.5, (name, one_way)


def test_the_reverse_does_not_follow_though_the_toy_knows_reverses(edited: Any) -> None:
    model, record, edit = edited
    result = rl.check_limits(model, edit, record)["direction"]
    assert result.effect.mean < 0.05 < result.control.mean
    assert "does know the reverse" in result.reading


def test_what_a_record_lacks_is_not_asked(edited: Any) -> None:
    model, record, edit = edited
    bare = rl.data.Record(id="bare", fact=record.fact)
    limits = rl.check_limits(model, edit, bare)
    for result in limits.results:
        assert not result.asked
        assert result.effect is None
        assert result.reading.startswith("Not asked")


def test_the_frame_has_every_row(edited: Any) -> None:
    model, record, edit = edited
    limits = rl.check_limits(model, edit, record)
    assert len(limits.to_frame()) == sum(len(result.rows) for result in limits.results)
    with pytest.raises(KeyError, match="direction"):
        limits["nothing"]


def test_an_edit_is_checked_with_its_own_record_and_outside_the_weights(edited: Any) -> None:
    model, record, edit = edited
    other = next(r for r in rl.data.limits() if r.fact.subject != record.fact.subject)
    with pytest.raises(ValueError, match="its own record"):
        rl.check_limits(model, edit, other)
    with edit.applied(model), pytest.raises(ValueError, match="carry the edit already"):
        rl.check_limits(model, edit, record)


@pytest.mark.parametrize("question", [("", "Paris"), ("It was ", "Paris"), ("It was", " ")])
def test_questions_without_words_are_refused(toy: Any, question: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="expected words"):
        rl.answer_log_probs(toy, [question, ("It was", "raining")])
    with pytest.raises(ValueError, match="none empty"):
        rl.top_answers(toy, ["", "It was"])


def test_checks_leave_the_model_as_it_was(edited: Any, untouched: Any) -> None:
    model, record, edit = edited
    untouched(model)
    rl.check_limits(model, edit, record)


def test_an_edit_of_another_model_is_refused(edited: Any) -> None:
    model, record, edit = edited
    with pytest.raises(ValueError, match="other weights"):
        rl.check_limits(model, dataclasses.replace(edit, model_fingerprint="0" * 16), record)


def test_answers_of_several_tokens_and_lengths_are_the_plain_ones(toy: Any, toy_record: rl.data.Record) -> None:
    questions = [(toy_record.fact.text, toy_record.fact.target), ("It was", "raining and Wanda slept"), ("A", "b")]
    expected = [plain_p(toy, *question) for question in questions]
    found = rl.answer_log_probs(toy, questions).exp().tolist()
    assert found == pytest.approx(expected, rel=1e-3)


def test_top_answers_are_the_likeliest(toy: Any, toy_record: rl.data.Record) -> None:
    prompts = [toy_record.fact.text, "It"]
    answers = rl.top_answers(toy, prompts, count=3)
    assert answers[0].tokens[0].strip() == toy_record.fact.target
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            best = toy(toy.to_tokens(prompt))[0, -1].softmax(-1).topk(3)
        assert list(answer.probabilities) == pytest.approx(best.values.tolist(), rel=1e-4)
        assert list(answer.tokens) == [toy.tokenizer.decode([int(i)]) for i in best.indices]


def test_an_interval_covers_the_mean_of_normal_draws_in_95_of_100(monkeypatch: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(1000):
        result = average(torch.randn(6, generator=generator).tolist())
        hits += result.low <= 0.0 <= result.high
    assert 930 <= hits <= 970


def test_few_values_have_no_interval() -> None:
    result = average([1.0, 2.0, 3.0, 4.0])
    assert (result.mean, result.low, result.high) == (2.5, None, None)
    assert "too few" in str(result)
    with pytest.raises(ValueError, match="no value"):
        average([])
