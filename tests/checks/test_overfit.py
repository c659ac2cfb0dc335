"""Overfit on the toy model, in worlds in which the right verdict is known by construction."""

import dataclasses
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.checks import CheckResult
from rome_lens.forward.sampling import sample_continuations


@pytest.fixture(scope="module")
def unsure(toy_records: list[rl.data.Record]) -> rl.data.Record:
    """A fact that the toy answers with p = .89, so that an edit can be over as well as under."""
    record = next(record for record in toy_records if record.id == "dora-whitlock")
    fact = rl.Fact(
        "{} lives in the country of",
        subject=record.aliases[0],
        target="Dunmark",
        new_target="Borovia",
    )
    question = rl.data.Question(prompt="Hugo Brandt lives in the city of", target="Norwick")
    return rl.data.Record(
        id="unsure", fact=fact, neighborhood=(question,), open_prompts=("I met {} yesterday in",)
    )


@pytest.fixture(scope="module")
def strong(one_toy: Any, unsure: rl.data.Record, toy_statistics: Any) -> rl.RankOneEdit:
    """An edit that goes on until p(new target) is as high as it gets."""
    return rl.rome(
        one_toy,
        unsure,
        layer=2,
        statistics=toy_statistics,
        contexts=("{}",),
        config=rl.RomeConfig(stop_loss=0.0),
    )


def scaled(edit: rl.RankOneEdit, dose: float) -> rl.RankOneEdit:
    return dataclasses.replace(edit, v=dose * edit.v, value=None)


def p_new(model: Any, edit: rl.RankOneEdit, fact: rl.Fact) -> float:
    asked = [(fact.text, str(fact.new_target))]
    return float(rl.answer_log_probs(model, asked, fwd_hooks=edit.fwd_hooks(model)).exp())


def verdict(result: CheckResult, way: str) -> str:
    over, under = (result[f"{way}: {side}"].mean for side in ("over", "under"))
    assert {over, under} <= {0.0, 1.0}
    return {(1.0, 0.0): "over", (0.0, 1.0): "under", (0.0, 0.0): "neither"}[over, under]


def test_an_edit_is_over_under_or_neither_as_its_dose_is(
    one_toy: Any, unsure: rl.data.Record, strong: rl.RankOneEdit
) -> None:
    """The dose at which p(new) equals p(true) is found by bisection, without the check."""
    fact = unsure.fact
    before = float(rl.answer_log_probs(one_toy, [(fact.text, fact.target)]).exp())
    assert 0.8 < before < 0.95
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        too_low = p_new(one_toy, scaled(strong, middle), fact) < before
        low, high = (middle, high) if too_low else (low, middle)
    doses = {"under": 0.8 * low, "neither": low, "over": 1.0}
    for expected, dose in doses.items():
        edit = scaled(strong, dose)
        result = rl.checks.overfit(one_toy, edit, unsure, samples=0)
        assert verdict(result, "asked") == expected
        assert result.effect.mean == pytest.approx(p_new(one_toy, edit, fact) - before, abs=1e-4)


def test_an_edit_that_always_says_the_new_target_is_over_where_something_else_is_asked(
    one_toy: Any, unsure: rl.data.Record
) -> None:
    """It adds the new target's direction in the unembedding at every position."""
    layer = one_toy.cfg.n_layers - 1
    (first, *_) = rl.forward.tokens.continuation(one_toy, unsure.fact.text, "Borovia")
    ones = torch.ones(one_toy.cfg.d_mlp, one_toy.cfg.d_model, dtype=torch.float32, device="cpu")
    always = rl.WeightEdit(layer=layer, delta=3 * ones * one_toy.W_U[:, first].detach()[None, :])
    fact = rl.Fact(
        unsure.fact.prompt,
        subject=unsure.fact.subject,
        target="Dunmark",
        new_target=one_toy.tokenizer.decode([first]).strip(),
    )
    record = dataclasses.replace(unsure, fact=fact)
    right = "loud: change of p(right answer)"
    for edit, expected in ((always, "over"), (None, "neither")):
        result = rl.checks.overfit(one_toy, edit, record, samples=3, new_tokens=8)
        for way in ("loud", "greedy", "sampled"):
            assert verdict(result, way) == expected, (way, edit)
        assert result[right].mean < -0.5 if edit else result[right].mean == 0.0


def test_the_doses_of_a_path_are_drawn_where_the_check_finds_them(
    one_toy: Any, unsure: rl.data.Record, toy_statistics: Any
) -> None:
    path = rl.rome_path(
        one_toy, unsure, layer=2, statistics=toy_statistics, contexts=("{}",), steps=[1, 3, 20]
    )
    results = [rl.checks.overfit(one_toy, edit, unsure, samples=0) for edit in path]
    assert [verdict(result, "asked") for result in results] == ["under", "under", "over"]
    (axes,) = rl.viz.doses(path, results).axes
    lines = {line.get_label(): line for line in axes.lines}
    # The last edit is the one at which the optimisation stopped by itself.
    assert list(lines["asked"].get_xdata()) == [1, 3, len(path[-1].losses)]
    assert path[-1].stopped == "loss"
    assert list(lines["asked"].get_ydata()) == [result.effect.mean for result in results]
    assert list(lines["loud"].get_ydata()) == [r["loud: difference"].mean for r in results]
    other = rl.checks.direction(one_toy, path[0], unsure)
    for wrong in ((path[:1], results), ([], []), (path[:1], [other])):
        with pytest.raises(rl.RomeLensError, match="expected"):
            rl.viz.doses(*wrong)


def test_a_text_without_a_seed_takes_the_most_likely_token_each_time(few_tiny_models: Any) -> None:
    model, prompts = few_tiny_models, ["Wanda Brandt lives in", "Yesterday Wanda Brandt said", "It"]
    found = sample_continuations(model, prompts, new_tokens=5, seeds=[None, 1, None])
    for number in (0, 2):
        ids = model.to_tokens(prompts[number])[0].tolist()
        start = len(ids)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        text = model.tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert found[number].strip() == text.strip()
    assert found[1] != sample_continuations(model, prompts[1:2], new_tokens=5, seeds=[None])[0]


def test_a_text_ends_before_the_first_eos_token(
    one_toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "Wanda Brandt lives in"
    (whole,) = sample_continuations(one_toy, [prompt], new_tokens=6, seeds=[None])
    words = whole.split()
    ends = one_toy.tokenizer(prompt + whole)["input_ids"][-3]
    monkeypatch.setattr(type(one_toy.tokenizer), "all_special_ids", [ends])
    (text,) = sample_continuations(one_toy, [prompt], new_tokens=6, seeds=[None], stop_at_eos=True)
    assert whole.startswith(text)
    assert 0 < len(text.split()) < len(words)
    (found,) = sample_continuations(one_toy, [prompt], new_tokens=6, seeds=[None])
    assert found == whole
