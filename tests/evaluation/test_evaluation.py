"""Scores of edits, against plain loops and hand calculation."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from models_for_tests import CLASSES, tiny

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.evaluation.evaluating import EvaluationError
from rome_lens.evaluation.fluency import ngram_entropy, tfidf_similarity
from rome_lens.evaluation.scores import PromptScore, harmonic_mean, markdown, score_table
from rome_lens.forward.sampling import sample_continuations, sample_tokens
from rome_lens.forward.tokens import continuation
from rome_lens.intervals import share
from rome_lens.models.hook_names import EMBED
from rome_lens.models.lens import ModelError, w_out

ANSWERS = {
    "one token each": ("Pralec", "Ondavel"),
    "several and one": ("Rome", "Ondavel"),
    "first token shared": ("Wanda Brandt", "Wanda Calloway"),
    "one begins the other": ("Pralec", "Pralec Marche"),
}


def a_record(
    target: str = "Pralec", new_target: str = "Ondavel", name: str = "Wanda Brandt"
) -> rl.CounterFactRecord:
    return rl.CounterFactRecord(
        case_id=name,
        fact=rl.Fact(
            "Then {} lives in the city of", subject=name, target=target, new_target=new_target
        ),
        paraphrases=(
            f"The home of {name} is in the city of",
            f"{name} owns a house in the city of",
        ),
        neighborhood=(
            ("Greta Marchetti lives in the city of", target),
            ("The city of Oskar is", "Castilia"),
        ),
        generation_prompts=(f"Yesterday {name} told me a", f"{name} is"),
        reference_texts=("Ondavel is a city.",),
    )


def rank_one(model: Any, seed: int = 0, layer: int = 1) -> rl.RankOneEdit:
    generator = torch.Generator().manual_seed(seed)
    d_mlp, d_model = w_out(model, layer).shape
    u, v = torch.randn(d_mlp, generator=generator), torch.randn(d_model, generator=generator)
    return rl.RankOneEdit(layer=layer, u=u, v=v)


def dense(model: Any, seed: int = 0, layer: int = 2) -> rl.WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    return rl.WeightEdit(
        layer=layer, delta=0.1 * torch.randn(w_out(model, layer).shape, generator=generator)
    )


class Foreign:
    """Somebody else's editor: hooks and nothing more."""

    def fwd_hooks(self, model: Any) -> list[Any]:
        return [("blocks.1.hook_attn_out", lambda value, hook: 0.5 * value)]


class Prefixed(Foreign):
    """Hooks and a text before every prompt."""

    prefix = "It was raining."


def plain(model: Any, prompt: str, answer: str, hooks: Any = ()) -> float:
    """Geometric mean of the probabilities of the answer's tokens: one forward of TransformerLens for each."""
    start = len(model.to_tokens(prompt)[0])
    ids = model.to_tokens(f"{prompt} {answer}")[0].tolist()
    product = 1.0
    for i in range(start, len(ids)):
        with torch.no_grad():
            logits = model.run_with_hooks(torch.tensor([ids[:i]]), fwd_hooks=list(hooks))
        product *= float(logits[0, -1].double().softmax(-1)[ids[i]])
    return product ** (1 / (len(ids) - start))


def assert_plain(model: Any, found: rl.Evaluation, edit: Any) -> None:
    hooks, prefix = (
        ([], "") if edit is None else (edit.fwd_hooks(model), getattr(edit, "prefix", ""))
    )
    for row in found.rows:
        asked = f"{prefix} {row.prompt}".strip()
        expected = [
            plain(model, row.prompt, row.target),
            plain(model, row.prompt, row.new_target),
            plain(model, asked, row.target, hooks),
            plain(model, asked, row.new_target, hooks),
        ]
        values = [row.target_before, row.new_before, row.target_after, row.new_after]
        assert values == pytest.approx(expected, rel=2e-4, abs=1e-7)


@pytest.mark.parametrize("answers", ANSWERS, ids=lambda name: name.replace(" ", "-"))
def test_probabilities_are_those_of_a_plain_loop(
    tiny_model: Any, untouched: Any, answers: str
) -> None:
    untouched(tiny_model)
    edit = rank_one(tiny_model)
    found = rl.evaluate(tiny_model, edit, a_record(*ANSWERS[answers]))
    assert [row.kind for row in found.rows] == [
        "rewrite",
        "paraphrase",
        "paraphrase",
        "neighborhood",
        "neighborhood",
    ]
    assert_plain(tiny_model, found, edit)
    assert max(abs(row.new_after - row.new_before) for row in found.rows) > 1e-4


def test_a_batch_of_records_and_edits_of_every_kind_is_each_alone(
    tiny_model: Any, untouched: Any
) -> None:
    untouched(tiny_model)
    records = [
        a_record(*pair, name=name)
        for pair, name in zip(ANSWERS.values(), ("Oskar", "Greta", "Hugo", "Yusuf"), strict=True)
    ]
    edits = [rank_one(tiny_model), None, Foreign(), dense(tiny_model)]
    edits, records = (
        [*edits, Prefixed(), rl.InContext()(tiny_model, records[0].fact)],
        [*records, records[1], records[0]],
    )
    found = rl.evaluate_all(tiny_model, edits, records, generate=4)
    for each, edit, record in zip(found, edits, records, strict=True):
        assert_plain(tiny_model, each, edit)
        alone = rl.evaluate(tiny_model, edit, record, generate=4)
        pairs = [
            (getattr(a, name), getattr(b, name))
            for a, b in zip(each.rows, alone.rows, strict=True)
            for name in ("target_before", "new_before", "target_after", "new_after")
        ]
        assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-4, abs=1e-7)
        assert (each.texts, each.GE, each.RS, each.edited) == (
            alone.texts,
            alone.GE,
            alone.RS,
            edit is not None,
        )


def test_the_scores_are_shares_and_means_of_the_rows(toy: Any) -> None:
    found = rl.evaluate(toy, rank_one(toy), a_record("Rome", "Ondavel"))
    rows = {
        kind: [row for row in found.rows if row.kind == kind]
        for kind in ("rewrite", "paraphrase", "neighborhood")
    }
    for kind, success, magnitude in (
        ("rewrite", found.ES, found.EM),
        ("paraphrase", found.PS, found.PM),
        ("neighborhood", found.NS, found.NM),
    ):
        sign = -1 if kind == "neighborhood" else 1
        gaps = [sign * (row.new_after - row.target_after) for row in rows[kind]]
        assert success == sum(gap > 0 for gap in gaps) / len(gaps)
        assert magnitude == pytest.approx(sum(gaps) / len(gaps), abs=1e-12)


def test_unedited_the_toy_knows_its_facts_and_edited_the_new_ones(
    toy: Any, toy_record: rl.data.Record
) -> None:
    before = rl.evaluate(toy, None, toy_record)
    assert (before.ES, before.PS, before.NS, before.S) == (0.0, 0.0, 1.0, 0.0)
    assert all(
        (row.target_before, row.new_before) == (row.target_after, row.new_after)
        for row in before.rows
    )
    assert not before.already
    assert not before.edited
    statistics = rl.collect_key_statistics(toy, layer=1, sample_count=64)
    edit = rl.rome(
        toy, toy_record.fact, layer=1, statistics=statistics, contexts=["{}", "Then. {}"]
    )
    after = rl.evaluate(toy, edit, toy_record)
    assert (after.ES, after.PS) == (1.0, 1.0)
    assert after.S is not None
    assert after.S > 0.8
    assert [row.target for row in after.rows if row.kind == "neighborhood"] == [
        q.target for q in toy_record.neighborhood
    ]
    with edit.applied(toy), pytest.raises(ModelError, match="carry the edit already"):
        rl.evaluate(toy, edit, toy_record)
    with edit.applied(toy):
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
    """Two answers to one prompt, of one token or more, share a row; before and after, a forward; editors, the before."""
    sizes: list[int] = []

    def count(value: torch.Tensor, hook: Any) -> None:
        sizes.append(len(value))

    record = a_record()
    one_neighbour = dataclasses.replace(record, neighborhood=record.neighborhood[:1])
    with toy.hooks(fwd_hooks=[(EMBED, count)]):
        rl.evaluate(toy, None, one_neighbour)
        rl.evaluate(toy, rank_one(toy), one_neighbour)
        rl.evaluate_all(toy, [rank_one(toy), rank_one(toy, 1), None], [one_neighbour] * 3)
    assert sizes == [4, 8, 12]


def test_the_whole_target_decides_where_the_first_token_is_shared(toy: Any) -> None:
    record = a_record(*ANSWERS["first token shared"])
    prompt = record.fact.text
    first, second = (continuation(toy, prompt, answer) for answer in ANSWERS["first token shared"])
    assert first[0] == second[0]
    row = rl.evaluate(toy, None, record).rows[0]
    assert row.target_after != row.new_after


def test_what_a_record_lacks_is_not_asked_and_never_counts() -> None:
    toy = tiny("gpt2", CLASSES[0])
    whole = a_record()
    bare = rl.CounterFactRecord(case_id="bare", fact=whole.fact)
    found = rl.evaluate(toy, rank_one(toy), bare, generate=3)
    assert (found.PS, found.PM, found.NS, found.NM, found.S, found.RS) == (None,) * 6
    assert found.ES is not None
    assert (found.continued, len(found.texts)) == ("rewrite prompt", 1)
    scores = rl.Scores.of([found])
    assert (scores.PS, scores.NS, scores.S) == (None, None, None)
    assert list(scores.to_frame()["score"]) == ["ES", "EM", "GE"]
    both = rl.Scores.of([found, rl.evaluate(toy, rank_one(toy), whole)])
    assert both.ES is not None
    assert both.NS is not None
    assert (both.ES.count, both.NS.count, both.records) == (2, 1, 2)


def made(es: float, ps: list[bool], ns: list[bool], **options: Any) -> rl.Evaluation:
    """An evaluation with these successes."""

    def row(kind: str, success: bool) -> PromptScore:
        high, low = (0.7, 0.2) if success == (kind == "neighborhood") else (0.2, 0.7)
        return PromptScore(
            kind=kind, prompt="p", target="o", new_target="n", target_before=0.9, new_before=0.1,
            target_after=high, new_after=low,
        )  # fmt: skip

    kinds = [
        ("rewrite", bool(es)),
        *(("paraphrase", x) for x in ps),
        *(("neighborhood", x) for x in ns),
    ]
    return rl.Evaluation(
        case_id=0, edited=True, rows=tuple(row(kind, x) for kind, x in kinds), **options
    )


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
def test_probabilities_that_are_no_numbers_are_not_scored(
    tiny_model: Any, untouched: Any, factor: float
) -> None:
    untouched(tiny_model)
    edit = rank_one(tiny_model)
    edit = dataclasses.replace(edit, v=factor * edit.v)
    with pytest.raises(
        EvaluationError,
        match=r"'Wanda Brandt'.*behind 'Then Wanda Brandt.*' the edited model gives 'Pralec'",
    ):
        rl.evaluate(tiny_model, edit, a_record(name="Wanda Brandt"))


def test_averages_by_hand() -> None:
    some = [
        made(1, [True, False], [True] * 4),
        made(1, [True, True], [False, True]),
        made(0, [True], [True]),
    ]
    scores = rl.Scores.of(some, editor="mine")
    means = {name: getattr(scores, name).mean for name in ("ES", "PS", "NS", "EM", "PM", "NM", "S")}
    es, ps, ns = 2 / 3, (0.5 + 1 + 1) / 3, (1 + 0.5 + 1) / 3
    expected = {
        "ES": es,
        "PS": ps,
        "NS": ns,
        "EM": 0.5 / 3,
        "PM": 1.0 / 3,
        "NM": (0.5 + 0 + 0.5) / 3,
    }
    assert means == pytest.approx({**expected, "S": 3 / (1 / es + 1 / ps + 1 / ns)}, abs=1e-12)
    assert scores.S is not None
    assert (scores.S.low, scores.S.high, scores.S.count) == (None, None, 3)
    assert scores.GE is None


def test_harmonic_mean_by_hand() -> None:
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0
    assert harmonic_mean([1.0, None, 1.0]) is None
    assert harmonic_mean([]) is None


@pytest.mark.parametrize(("successes", "count"), [(12, 12), (0, 12), (30, 40)])
def test_the_interval_of_s_over_whole_successes_and_failures_is_clopper_and_pearsons(
    successes: int, count: int
) -> None:
    some = [made(1, [True], [True])] * successes + [made(0, [False], [False])] * (count - successes)
    found = rl.Scores.of(some).S
    exact = scipy.stats.binomtest(successes, count).proportion_ci(method="exact")
    assert found is not None
    assert found.mean == pytest.approx(successes / count)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_the_interval_of_s_misses_at_neither_end_more_often_than_it_says() -> None:
    """Records like those of a good editor: many of them agree, and S is near 1."""
    generator = np.random.default_rng(1)

    def records(count: int) -> list[rl.Evaluation]:
        return [
            made(
                1,
                list(generator.random(2) < 0.97),
                list(generator.random(4) < (0.98 if generator.random() < 0.9 else 0.3)),
            )
            for _ in range(count)
        ]

    truth = 3 / (1 / 1 + 1 / 0.97 + 1 / (0.9 * 0.98 + 0.1 * 0.3))
    found = [rl.Scores.of(records(30)).S for _ in range(100)]
    assert sum(each.high < truth for each in found) <= 5  # type: ignore[union-attr, operator]
    assert sum(each.low > truth for each in found) <= 5  # type: ignore[union-attr, operator]


def test_the_interval_of_s_comes_from_its_seed_and_holds_s_where_some_records_were_not_asked() -> (
    None
):
    some = (
        [made(1, [True, False], [True] * 4)] * 4
        + [made(1, [True], [])] * 3
        + [made(0, [True], [True, False])] * 5
    )
    found = rl.Scores.of(some, seed=3).S
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.count == 9
    assert found.low < found.mean < found.high
    assert found == rl.Scores.of(some, seed=3).S
    assert found != rl.Scores.of(some, seed=4).S


def test_tables_show_means_intervals_and_what_was_not_asked() -> None:
    table = score_table(
        [
            rl.Scores.of([made(1, [True], [True])] * 6, editor="one|two"),
            rl.Scores.of([made(0, [True], [])], editor="other"),
        ]
    )
    assert table.loc["one|two", "ES"] == str(share([1.0] * 6))
    assert table.loc["other", "NS"] == "not asked"
    assert "GE" not in table.columns
    lines = markdown(table).splitlines()
    assert lines[0].startswith("| editor | S | ES | PS | NS |")
    assert lines[2].startswith(r"| one\|two | 1.000 [")
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_a_user_s_hook_on_a_position_by_its_number_acts_on_it_alone_while_sampling(
    toy: Any,
) -> None:
    start = toy.to_tokens("Wanda Brandt lives in the city of")[0].tolist()

    def push(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, 3] = -3.0 * value[:, 3]
        return value

    point = "blocks.1.hook_resid_post"
    plain = sample_tokens(toy, [start], new_tokens=2, seed=0, top_k=1)[0].tolist()
    expected = list(start)
    with toy.hooks(fwd_hooks=[(point, push)]), torch.no_grad():
        found = sample_tokens(toy, [start], new_tokens=2, seed=0, top_k=1)[0].tolist()
        for _ in range(2):
            expected.append(int(toy(torch.tensor([expected]))[0, -1].argmax()))
        text = sample_continuations(
            toy, ["Wanda Brandt lives in the city of"], new_tokens=2, seeds=[1], top_k=1
        )
    assert found == expected != plain
    assert text == [toy.tokenizer.decode(expected)[len(toy.tokenizer.decode(start)) :]]


def test_texts_are_those_of_a_plain_sampling_loop(tiny_model: Any, untouched: Any) -> None:
    """Prompts of unlike length in one batch, each under another edit, against one forward for each token."""
    untouched(tiny_model)
    prompts = ["Wanda Brandt lives in", "Yesterday Wanda Brandt from the city of Pralec said", "It"]
    edits = [rank_one(tiny_model), None, dense(tiny_model)]
    found = sample_continuations(
        tiny_model,
        prompts,
        new_tokens=8,
        seeds=[1, 2, 3],
        marks=[0, 1, 2],
        hooks_of_rows=lambda marks: rl.row_hooks(tiny_model, [edits[mark] for mark in marks]),
    )
    for text, prompt, seed, edit in zip(found, prompts, [1, 2, 3], edits, strict=True):
        ids = tiny_model.to_tokens(prompt)[0].tolist()
        start = len(ids)
        drawn = torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for u in drawn:
            with torch.no_grad():
                hooks = [] if edit is None else edit.fwd_hooks(tiny_model)
                logits = tiny_model.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0, -1]
            best = logits.topk(5)
            below = best.values.double().softmax(-1).cumsum(-1)
            ids.append(int(best.indices[int((below[:-1] <= u).sum())]))
        assert (
            text.strip()
            == tiny_model.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        )


def test_sampling_takes_the_models_probabilities(toy: Any) -> None:
    """Many draws of one token come as often as its probability among the five likeliest says."""
    prompt, count = "Yesterday", 512
    ids = toy.to_tokens(prompt)
    with torch.no_grad():
        best = toy(ids)[0, -1].topk(5)
    drawn = sample_continuations(toy, [prompt] * count, new_tokens=1, seeds=range(count))
    shares = [
        sum(text.strip() == toy.tokenizer.decode([i]).strip() for text in drawn) / count
        for i in best.indices.tolist()
    ]
    assert shares == pytest.approx(best.values.softmax(-1).tolist(), abs=0.08)


def test_generation_is_seeded_and_scored(toy: Any, toy_record: rl.data.Record) -> None:
    record = dataclasses.replace(
        rl.CounterFactRecord.of(toy_record), reference_texts=("Ondavel is a city.",)
    )
    first, again = (rl.evaluate(toy, None, record, generate=12) for _ in range(2))
    other = rl.evaluate(toy, None, record, generate=12, seed=1)
    assert first == again
    assert first.texts != other.texts
    assert (first.continued, len(first.texts)) == (
        "generation prompts",
        len(record.generation_prompts),
    )
    assert all(
        text.startswith(prompt)
        for text, prompt in zip(first.texts, record.generation_prompts, strict=True)
    )
    entropies = [ngram_entropy(text) for text in first.texts]
    assert sum(entropies) / len(entropies) == pytest.approx(first.GE, abs=1e-12)
    assert tfidf_similarity(first.texts, record.reference_texts) == first.RS
    without = rl.evaluate(toy, None, dataclasses.replace(record, generation_prompts=()), generate=4)
    assert without.continued == "paraphrases"


def test_the_frame_has_a_row_for_each_prompt(toy: Any) -> None:
    record = a_record()
    found = rl.evaluate(toy, None, record)
    frame = found.to_frame()
    assert list(frame["prompt"]) == [
        record.fact.text, *record.paraphrases, *(prompt for prompt, _ in record.neighborhood)
    ]  # fmt: skip
    assert list(frame["success"]) == [row.success for row in found.rows]
    assert set(frame["case_id"]) == {"Wanda Brandt"}
    assert record.paraphrases[0] in found._repr_html_()


def test_an_edit_of_another_fact_or_model_or_of_no_form_is_refused(
    toy: Any, untouched: Any
) -> None:
    untouched(toy)
    record = a_record()
    other = dataclasses.replace(rank_one(toy), fact=record.fact.about("Hugo"))
    with pytest.raises(ValueError, match="'Wanda Brandt' is about"):
        rl.evaluate(toy, other, record)
    with pytest.raises(ModelError, match="other weights"):
        rl.evaluate(toy, dataclasses.replace(rank_one(toy), model_fingerprint="0" * 16), record)
    with pytest.raises(ValueError, match=r"expected None .* or an object with fwd_hooks"):
        rl.evaluate(toy, "rome", record)
    with pytest.raises(ValueError, match="1 edits for 2 records"):
        rl.evaluate_all(toy, [None], [record, record])
    with pytest.raises(ValueError, match="0 edits for 0 records"):
        rl.evaluate_all(toy, [], [])
    with pytest.raises(ValueError, match="no evaluation"):
        rl.Scores.of([])


def test_wrong_options_and_texts_beyond_the_context_are_refused(toy: Any, untouched: Any) -> None:
    untouched(toy)
    record = a_record()
    with pytest.raises(ValueError, match="generate is -1"):
        rl.evaluate(toy, None, record, generate=-1)
    with pytest.raises(FactError, match="must fit the model's context"):
        rl.evaluate(toy, None, record, generate=toy.cfg.n_ctx)
    long = dataclasses.replace(record, paraphrases=("very " * toy.cfg.n_ctx + "long",))
    with pytest.raises(FactError, match="context only"):
        rl.evaluate(toy, None, long)


def test_answers_of_the_same_tokens_are_refused(toy: Any, monkeypatch: Any) -> None:
    normaliser = rl.forward.tokens.continuation

    def folded(model: Any, text: str, answer: str) -> tuple[int, ...]:
        return normaliser(model, text, answer.upper())

    monkeypatch.setattr("rome_lens.evaluation.evaluating.continuation", folded)
    with pytest.raises(
        FactError, match=r"'Wanda Brandt': 'Ondavel' and 'ondavel' are the same tokens"
    ):
        rl.evaluate(toy, None, a_record("Ondavel", "ondavel"))


def test_a_new_target_that_is_already_the_answer_is_told(
    toy: Any, toy_record: rl.data.Record
) -> None:
    known = toy_record.fact
    fact = rl.Fact(
        known.prompt, subject=known.subject, target=str(known.new_target), new_target=known.target
    )
    found = rl.evaluate(toy, None, rl.CounterFactRecord(case_id="turned", fact=fact))
    assert found.already
    assert found.ES == 1.0
    assert rl.Scores.of([found, rl.evaluate(toy, None, toy_record)]).already == 1


@pytest.mark.parametrize(("successes", "count"), [(187, 187), (0, 20), (13, 20)])
def test_the_interval_of_a_share_is_agresti_and_coulls_and_stays_inside(
    successes: int, count: int
) -> None:
    found = share([1.0] * successes + [0.0] * (count - successes))
    n, p = count + 4, (successes + 2) / (count + 4)
    half = float(scipy.stats.t.ppf(0.975, n - 1)) * math.sqrt(p * (1 - p) / (n - 1))
    assert found.mean == successes / count
    assert found.low == pytest.approx(max(0.0, p - half))
    assert found.high == pytest.approx(min(1.0, p + half))
    assert 0.0 <= found.low < found.high <= 1.0


def test_a_share_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        share([0.5, 1.5])
    assert share([1.0, 0.0]).low is None


def test_samples_from_bos_alone_are_the_models_own(toy: Any) -> None:
    """HookedTransformer's generate takes a BOS with the padding token's id for padding, unless it is told otherwise."""
    bos = toy.tokenizer.bos_token_id
    assert bos == toy.tokenizer.pad_token_id
    rows = sample_tokens(toy, [[bos]] * 64, new_tokens=6, seed=0, top_k=1)
    assert (rows == rows[0]).all()
    row = [bos]
    with torch.no_grad():
        for _ in range(6):
            row.append(int(toy(torch.tensor([row]))[0, -1].argmax()))
    assert rows[0].tolist() == row


def test_samples_follow_the_models_distribution(toy: Any) -> None:
    bos = toy.tokenizer.bos_token_id
    count = 4000
    drawn = sample_tokens(toy, [[bos]] * count, new_tokens=1, seed=0)[:, 1]
    with torch.no_grad():
        expected = toy(torch.tensor([[bos]]))[0, -1].softmax(-1)
    found = torch.bincount(drawn, minlength=len(expected)) / count
    assert float((found - expected).abs().max()) < 4 * 0.5 / count**0.5


def test_a_hook_at_one_position_of_the_final_norm_finds_it_in_an_evaluation(toy: Any) -> None:
    record = next(record for record in rl.data.limits() if "toy" in record.known_by)

    def silence(value: torch.Tensor, hook: Any) -> torch.Tensor:
        assert value.shape[1] > 1
        value = value.clone()
        value[:, 0] = 0.0  # a position that no question reads
        return value

    plain = rl.evaluate(toy, None, record)
    point = "unembed.hook_in" if "unembed.hook_in" in toy.hook_dict else "ln_final.hook_normalized"
    with toy.hooks(fwd_hooks=[(point, silence)]):
        hooked = rl.evaluate(toy, None, record)
    for one, other in zip(plain.rows, hooked.rows, strict=True):
        assert one.new_after == pytest.approx(other.new_after, abs=1e-6)


def test_edits_of_which_a_part_is_applied_are_refused(toy: Any) -> None:
    record = next(record for record in rl.data.limits() if "toy" in record.known_by)
    both = rl.Edits(edits=(rank_one(toy, 0), rank_one(toy, 1)))
    rl.evaluate(toy, both, record)
    with both.edits[0].applied(toy), pytest.raises(ModelError, match="a part of it"):
        rl.evaluate(toy, both, record)
