"""The scores of an edit are those of a plain loop, whatever shares its forward pass."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from evaluation_for_tests import (
    ANSWERS,
    Foreign,
    Prefixed,
    a_record,
    dense,
    plain,
    rank_one,
    turned,
)

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.evaluation import evaluating
from rome_lens.evaluation.evaluating import EvaluationError
from rome_lens.evaluation.results import PromptScore
from rome_lens.forward import answers
from rome_lens.forward.tokens import continuation
from rome_lens.models.hook_names import EMBED
from rome_lens.models.lens import ModelError

PROBABILITIES = ("target_before", "new_before", "target_after", "new_after")


def probabilities(evaluation: rl.Evaluation) -> list[float]:
    return [getattr(row, name) for row in evaluation.rows for name in PROBABILITIES]


def plain_probabilities(model: Any, evaluation: rl.Evaluation, edit: Any) -> list[float]:
    """A run of the whole model for each prompt and answer, without and with the edit."""

    def both(row: PromptScore, prompt: str, hooks: Any) -> list[float]:
        return [plain(model, prompt, answer, hooks) for answer in (row.target, row.new_target)]

    hooks = [] if edit is None else edit.fwd_hooks(model)
    prefix = getattr(edit, "prefix", "")
    found = []
    for row in evaluation.rows:
        before = both(row, row.prompt, [])
        asked = f"{prefix} {row.prompt}".strip()
        found += [*before, *(both(row, asked, hooks) if edit is not None else before)]
    return found


def mixed_batch(model: Any) -> tuple[list[Any], list[rl.data.Record]]:
    """Edits of every kind, each on a record with answers of another kind."""
    names = ("Oskar", "Greta", "Hugo", "Yusuf")
    records = [a_record(*pair, name=n) for pair, n in zip(ANSWERS.values(), names, strict=True)]
    records = [
        dataclasses.replace(r, paraphrases=r.paraphrases[:1], neighborhood=r.neighborhood[1:])
        for r in records
    ]
    edits = [rank_one(model), None, Foreign(), dense(model), Prefixed()]
    in_context = rl.InContext()(model, records[0].fact)
    short = [dataclasses.replace(each, neighborhood=()) for each in records[:2]]
    return [*edits, in_context], [*records, short[1], short[0]]


def test_probabilities_are_those_of_a_plain_loop(few_tiny_models: Any, untouched: Any) -> None:
    model = few_tiny_models
    untouched(model)
    edits, records = mixed_batch(model)
    found = rl.evaluate_all(model, edits, records)
    kinds = ["rewrite", "paraphrase", "neighborhood"]
    wrong = []
    for evaluation, edit, record in zip(found, edits, records, strict=True):
        assert [row.kind for row in evaluation.rows] == kinds[: 2 + len(record.neighborhood)]
        assert (evaluation.case_id, evaluation.edited) == (record.id, edit is not None)
        expected = plain_probabilities(model, evaluation, edit)
        if probabilities(evaluation) != pytest.approx(expected, rel=2e-4, abs=1e-7):
            wrong.append((record.id, edit))
        moved = max(abs(row.new_after - row.new_before) for row in evaluation.rows)
        assert moved == 0.0 if edit is None else moved > 1e-5
    assert wrong == []


def test_batches_of_rows_are_each_edit_alone(
    few_tiny_models: Any, untouched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = few_tiny_models
    untouched(model)
    edits, records = mixed_batch(model)
    with monkeypatch.context() as patch:  # four or five rows at once, and ten logits
        patch.setattr(answers, "_TOKENS_PER_BATCH", 64)
        patch.setattr(answers, "logits_per_batch", lambda model: 10)
        found = rl.evaluate_all(model, edits, records, generate=2)
    for each, edit, record in zip(found, edits, records, strict=True):
        alone = rl.evaluate(model, edit, record, generate=2)
        assert probabilities(each) == pytest.approx(probabilities(alone), rel=1e-4, abs=1e-7)
        assert (each.texts, each.GE, each.RS) == (alone.texts, alone.GE, alone.RS)


def test_rows_of_other_lengths_are_padded_only_where_that_saves_a_call(
    one_toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("Hugo Kessler", "Olga Ulbrich")
    short = [(f"{name} lives in the city of", "Pralec") for name in names]
    long = (" ".join(["Wanda Brandt lives in the city of Pralec."] * 5), "Wanda")
    shapes: list[tuple[int, ...]] = []
    run = answers.chosen_logits

    def counting(model: Any, tokens: Any, *arguments: Any, **options: Any) -> Any:
        shapes.append(tuple(tokens.shape))
        return run(model, tokens, *arguments, **options)

    monkeypatch.setattr(answers, "chosen_logits", counting)
    found = {}
    for price in (1, 10_000):
        monkeypatch.setattr(answers, "tokens_per_call", lambda model, price=price: price)
        found[price] = rl.answer_log_probs(one_toy, [*short, long])
    *apart, together = shapes
    assert sum(rows for rows, _ in apart) == together[0] == 3
    assert len(apart) > 1
    assert sum(rows * width for rows, width in apart) < together[0] * together[1]
    torch.testing.assert_close(found[1], found[10_000], atol=1e-5, rtol=1e-5)


def test_the_scores_are_shares_and_means_of_the_rows(one_toy: Any) -> None:
    found = rl.evaluate(one_toy, rank_one(one_toy), a_record("Rome", "Ondavel"))
    for kind, success, magnitude in (
        ("rewrite", found.ES, found.EM),
        ("paraphrase", found.PS, found.PM),
        ("neighborhood", found.NS, found.NM),
    ):
        sign = -1 if kind == "neighborhood" else 1
        gaps = [sign * (r.new_after - r.target_after) for r in found.rows if r.kind == kind]
        assert success == sum(gap > 0 for gap in gaps) / len(gaps)
        assert magnitude == pytest.approx(sum(gaps) / len(gaps), abs=1e-12)


def test_unedited_the_toy_knows_its_facts_and_edited_the_new_ones(
    toy: Any, toy_record: rl.data.Record, toy_edit: rl.RankOneEdit
) -> None:
    before, after = rl.evaluate_all(toy, [None, toy_edit], [toy_record, toy_record])
    assert (before.ES, before.PS, before.NS, before.S) == (0.0, 0.0, 1.0, 0.0)
    assert not before.already
    assert not before.edited
    for row in before.rows:
        assert (row.target_before, row.new_before) == (row.target_after, row.new_after)
    assert (after.ES, after.PS) == (1.0, 1.0)
    assert after.S is not None
    assert after.S > 0.8
    neighbours = [row.target for row in after.rows if row.kind == "neighborhood"]
    assert neighbours == [question.target for question in toy_record.neighborhood]
    with toy_edit.applied(toy):
        with pytest.raises(ModelError, match="carry the edit already"):
            rl.evaluate(toy, toy_edit, toy_record)
        applied = rl.evaluate(toy, None, toy_record)
    assert [row.new_after for row in applied.rows] == pytest.approx(
        [row.new_after for row in after.rows], abs=1e-4
    )
    assert applied.already


def test_the_callers_hooks_stay_on(toy: Any, toy_record: rl.data.Record) -> None:
    edit = rank_one(toy)
    expected = rl.evaluate(toy, edit, toy_record)
    with toy.hooks(fwd_hooks=edit.fwd_hooks(toy)):
        found = rl.evaluate(toy, None, toy_record)
    assert [row.new_before for row in found.rows] == pytest.approx(
        [row.new_after for row in expected.rows], abs=1e-6
    )


def test_each_distinct_row_runs_once(toy: Any) -> None:
    """Two answers to a prompt share a row, before and after share a pass, and edits share
    "before"."""
    sizes: list[int] = []

    def count(value: torch.Tensor, hook: Any) -> None:
        sizes.append(len(value))

    record = a_record()
    record = dataclasses.replace(record, neighborhood=record.neighborhood[:1])
    with toy.hooks(fwd_hooks=[(EMBED, count)]):
        rl.evaluate(toy, None, record)
        rl.evaluate(toy, rank_one(toy), record)
        rl.evaluate_all(toy, [rank_one(toy), rank_one(toy, 1), None], [record] * 3)
    assert sizes == [4, 8, 12]


def test_the_whole_target_decides_where_the_first_token_is_shared(one_toy: Any) -> None:
    answers = ANSWERS["the first token is shared"]
    record = a_record(*answers)
    first, second = (continuation(one_toy, record.fact.text, answer) for answer in answers)
    assert first[0] == second[0]
    row = rl.evaluate(one_toy, None, record).rows[0]
    assert row.target_after != row.new_after


def test_what_a_record_lacks_is_not_asked_and_never_counts(one_toy: Any) -> None:
    whole = a_record()
    bare = rl.data.Record(id="bare", fact=whole.fact)
    found = rl.evaluate(one_toy, rank_one(one_toy), bare, generate=3)
    assert (found.PS, found.PM, found.NS, found.NM, found.S, found.RS) == (None,) * 6
    assert found.ES is not None
    assert (found.continued, len(found.texts)) == ("rewrite prompt", 1)
    scores = rl.Scores.of([found])
    assert (scores.PS, scores.NS, scores.S) == (None, None, None)
    assert list(scores.to_frame()["score"]) == ["ES", "EM", "GE"]
    both = rl.Scores.of([found, rl.evaluate(one_toy, rank_one(one_toy), whole)])
    assert both.ES is not None
    assert both.NS is not None
    assert (both.ES.count, both.NS.count, both.records) == (2, 1, 2)


def test_probabilities_that_are_not_finite_are_not_scored(
    few_tiny_models: Any, untouched: Any
) -> None:
    untouched(few_tiny_models)

    class Broken:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def fwd_hooks(self, model: Any) -> list[Any]:
            return [("blocks.1.hook_mlp_out", lambda value, hook: value * self.factor)]

    for factor in (math.nan, math.inf):
        with pytest.raises(
            EvaluationError,
            match=r"'Wanda Brandt'.*after 'Then Wanda Brandt.*' the edited model gives 'Pralec'",
        ):
            rl.evaluate(few_tiny_models, Broken(factor), a_record())


def test_the_frame_has_a_row_for_each_prompt(one_toy: Any) -> None:
    record = a_record()
    found = rl.evaluate(one_toy, None, record)
    frame = found.to_frame()
    neighbours = [question.prompt for question in record.neighborhood]
    assert list(frame["prompt"]) == [record.fact.text, *record.paraphrases, *neighbours]
    assert list(frame["success"]) == [row.success for row in found.rows]
    assert set(frame["case_id"]) == {"Wanda Brandt"}
    assert record.paraphrases[0] in found._repr_html_()


def test_wrong_edits_records_and_options_are_refused(
    one_toy: Any, untouched: Any, unchecked: Any
) -> None:
    toy, record, edit = one_toy, a_record(), rank_one(one_toy)
    untouched(toy)
    other = dataclasses.replace(edit, fact=record.fact.about("Hugo"))
    foreign = dataclasses.replace(edit, model_fingerprint="0" * 16)
    long = dataclasses.replace(record, paraphrases=("very " * toy.cfg.n_ctx + "long",))
    no_target = rl.Fact("{} is in", subject="Paris", target="France")
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: rl.evaluate(toy, other, record), ValueError, "'Wanda Brandt' is about"),
        (lambda: rl.evaluate(toy, foreign, record), ModelError, "other weights"),
        (lambda: rl.evaluate(toy, "rome", record), ValueError, "or an object with fwd_hooks"),
        (lambda: rl.evaluate_all(toy, [None], [record, record]), ValueError, "1 edits for 2"),
        (lambda: rl.evaluate_all(toy, [], []), ValueError, "list of records is empty"),
        (lambda: rl.evaluate(toy, None, no_target), FactError, "no new target"),
        (lambda: rl.evaluate(toy, None, record, generate=-1), ValueError, "generate is -1"),
        (lambda: rl.evaluate(toy, None, record, generate=True), ValueError, "generate is True"),
        (
            lambda: rl.evaluate(toy, None, record, generate=toy.cfg.n_ctx),
            FactError,
            "fit the model's context",
        ),
        (lambda: rl.evaluate(toy, None, long), FactError, "context"),
    ]
    wrong = []
    for call, error, words in cases:
        try:
            call()
        except error as raised:
            if words not in str(raised):
                wrong.append((words, str(raised)))
        else:
            wrong.append((words, "nothing was raised"))
    assert wrong == []


def test_answers_of_the_same_tokens_are_refused(
    one_toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folded(model: Any, text: str, answer: str) -> tuple[int, ...]:
        return continuation(model, text, answer.upper())

    monkeypatch.setattr(evaluating, "continuation", folded)
    with pytest.raises(
        FactError, match=r"'Wanda Brandt': 'Ondavel' and 'ondavel' are the same tokens"
    ):
        rl.evaluate(one_toy, None, a_record("Ondavel", "ondavel"))


def test_a_new_target_that_is_already_the_answer_is_counted(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    found = rl.evaluate(one_toy, None, turned(toy_record))
    assert found.already
    assert found.ES == 1.0
    assert rl.Scores.of([found, rl.evaluate(one_toy, None, toy_record)]).already == 1


def test_a_hook_at_one_position_of_the_final_norm_finds_it_in_an_evaluation(
    toy: Any, toy_record: rl.data.Record
) -> None:
    def silence(value: torch.Tensor, hook: Any) -> torch.Tensor:
        assert value.shape[1] > 1
        value = value.clone()
        value[:, 0] = 0.0  # a position that no question reads
        return value

    expected = rl.evaluate(toy, None, toy_record)
    point = "unembed.hook_in" if "unembed.hook_in" in toy.hook_dict else "ln_final.hook_normalized"
    with toy.hooks(fwd_hooks=[(point, silence)]):
        hooked = rl.evaluate(toy, None, toy_record)
    assert probabilities(hooked) == pytest.approx(probabilities(expected), abs=1e-6)


def test_edits_of_which_a_part_is_applied_are_refused(toy: Any, toy_record: rl.data.Record) -> None:
    both = rl.Edits(edits=(rank_one(toy, 0), rank_one(toy, 1)))
    rl.evaluate(toy, both, toy_record)
    with both.edits[0].applied(toy), pytest.raises(ModelError, match="a part of it"):
        rl.evaluate(toy, both, toy_record)
