"""How much of the edits' success the layer and the trace explain."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import rome_lens as rl
from rome_lens.errors import ArgumentError
from rome_lens.localisation import variance
from rome_lens.localisation.variance import explain_variance, regression, variance_table


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are checked at every call here, which costs more than the call."""
    monkeypatch.setattr(variance, "_RESAMPLES", 200)


def lstsq(columns: np.ndarray, success: np.ndarray) -> tuple[float, np.ndarray]:
    """R^2 and coefficients of least squares on the columns."""
    y = success.flatten()
    found, *_ = np.linalg.lstsq(columns, y, rcond=None)
    return 1.0 - float(((y - columns @ found) ** 2).sum() / ((y - y.mean()) ** 2).sum()), found


def noise(facts: int, layers: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(facts, layers))


def test_r_squared_is_that_of_least_squares_on_dummy_columns() -> None:
    effects = noise(7, 4)
    success = 0.3 * effects + noise(7, 4, 1) + np.arange(4)
    dummies = np.tile(np.eye(4), (7, 1))
    slopes = effects.reshape(-1, 1)
    found = regression(effects, success)
    assert found is not None
    both, coefficients = lstsq(np.hstack([dummies, slopes]), success)
    assert found.layer == pytest.approx(lstsq(dummies, success)[0], abs=1e-12)
    assert found.effect == pytest.approx(
        lstsq(np.hstack([np.ones((28, 1)), slopes]), success)[0], abs=1e-12
    )
    assert found.both == pytest.approx(both, abs=1e-12)
    assert found.added == pytest.approx(found.both - found.layer, abs=1e-12)
    assert found.slope == pytest.approx(coefficients[-1], abs=1e-12)


def test_effects_that_are_a_function_of_the_layer_add_nothing() -> None:
    found = explain_variance(np.tile([0.1, 0.7, 0.2], (6, 1)), noise(6, 3), measure="EM")
    assert (found.added.mean, found.slope.mean, found.p_value) == (0.0, 0.0, 1.0)
    assert (found.shuffled.low, found.shuffled.high) == (0.0, 0.0)
    assert found.effect.mean > 0.0


def test_success_that_is_the_effect_is_explained_by_it_alone() -> None:
    effects = noise(8, 5)
    found = explain_variance(effects, effects, measure="EM")
    assert found.effect.mean == pytest.approx(1.0)
    assert found.both.mean == pytest.approx(1.0)
    assert found.slope.mean == pytest.approx(1.0)
    assert found.rank_correlation.mean == pytest.approx(1.0)
    assert found.traced_near.mean == 1.0
    assert found.p_value == pytest.approx(1 / 201)


def test_success_without_variance_leaves_nothing_to_explain() -> None:
    found = explain_variance(noise(6, 3), np.full((6, 3), 0.9), measure="ES")
    for name in (
        "layer",
        "effect",
        "both",
        "added",
        "slope",
        "shuffled",
        "p_value",
        "rank_correlation",
    ):
        assert getattr(found, name) is None, name
    assert (found.traced_near.mean, found.random_near.mean) == (1.0, 1.0)
    assert "nothing to explain" in found.reading
    assert variance_table([found]).loc["ES", "layer"] == "nothing to explain"


def test_the_control_tells_a_relation_within_layers_from_none() -> None:
    effects = noise(30, 5)
    related = explain_variance(
        effects, np.arange(5) + 0.5 * effects + noise(30, 5, 1), measure="EM"
    )
    assert related.p_value < 0.01
    assert related.added.mean > related.shuffled.high
    values = [
        explain_variance(
            noise(30, 5, seed), np.arange(5) + noise(30, 5, 100 + seed), measure="EM"
        ).p_value
        for seed in range(3)
    ]
    assert min(values) > 0.02
    assert max(values) > 0.4


def test_intervals_are_of_facts_and_none_below_five() -> None:
    effects, success = noise(5, 3), noise(5, 3, 1)
    found = explain_variance(effects, success, measure="EM")
    assert found == explain_variance(effects, success, measure="EM")
    for name in ("layer", "effect", "both", "added", "slope"):
        value = getattr(found, name)
        assert value.low <= value.mean <= value.high
        assert value.low < value.high
        assert value.count == 5
    few = explain_variance(effects[:4], success[:4], measure="EM")
    assert (few.layer.low, few.added.high, few.traced_near.low, few.rank_correlation.low) == (
        None,
    ) * 4
    # Ten copies of a fact are ten facts to the bootstrap, so the interval gets shorter.
    many = explain_variance(np.tile(effects, (10, 1)), np.tile(success, (10, 1)), measure="EM")
    assert many.layer.mean == pytest.approx(found.layer.mean)
    assert many.layer.high - many.layer.low < 0.6 * (found.layer.high - found.layer.low)


def test_layers_near_the_best_and_ranks_are_counted_by_fact() -> None:
    effects = np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3], [0.2, 0.2, 0.2]])
    success = np.array([[0.90, 0.88, 0.1], [0.1, 0.9, 0.2], [0.0, 0.3, 0.9]])
    found = explain_variance(effects, success, measure="EM")
    # traced: 0 (0.90, the best), 2 (0.2 of 0.9), 0 by the tie (0.0 of 0.9)
    assert found.traced_near.mean == pytest.approx(1 / 3)
    # the others' best: fact 0 layer 1 (0.88, near), fact 1 layer 1 (0.59 against 0.5, best),
    # fact 2 layer 1 (0.3)
    assert found.layer_near.mean == pytest.approx(2 / 3)
    assert found.random_near.mean == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    ranks = [stats.spearmanr(x, y).statistic for x, y in zip(effects[:2], success[:2], strict=True)]
    assert found.rank_correlation.mean == pytest.approx(sum(ranks) / 2)
    assert found.rank_correlation.count == 2


def a_sweep(facts: int, **changes: Any) -> rl.LayerSweep:
    """Made-up numbers of so many facts at three layers, paraphrases not asked of the last."""
    success = torch.as_tensor(noise(facts, 3)).tanh()
    some = success.clone()
    some[-1] = math.nan
    fields: dict[str, Any] = {
        "names": tuple(f"fact {i}" for i in range(facts)),
        "unknown": ("none of these",),
        "layers": (2, 5, 9),
        "effects": torch.as_tensor(noise(facts, 3, 1)) / 10,
        "total_effects": torch.full((facts,), 0.5, dtype=torch.float64),
        **dict.fromkeys(("EM", "NM"), success),
        **dict.fromkeys(("ES", "NS"), (success > 0).double()),
        **dict.fromkeys(("PM", "S"), some),
        "PS": torch.full_like(success, math.nan),
        "component": "mlp",
        "window": 5,
        "at": "subject_last",
        "samples": 10,
        "noise": "noise",
        "edits": "edits",
        "model_fingerprint": "0123",
    }
    return rl.LayerSweep(**{**fields, **changes})


def test_a_sweeps_variance_leaves_out_facts_that_were_not_asked() -> None:
    sweep = a_sweep(8)
    assert sweep.variance_explained().facts == 8
    found = sweep.variance_explained("PM", shuffles=20, seed=1)
    assert found.facts == 7
    expected = regression(sweep.effects[:7].numpy(), sweep.PM[:7].numpy())
    assert found.both.mean == expected.both
    assert found.shuffled.count == 20
    assert f"R^2 = {found.layer}" in found.reading
    assert f"adds {found.added}" in found.reading
    assert f"p = {found.p_value:.3f}" in found.reading
    assert variance_table([found]).loc["PM", "added"] == str(found.added)
    assert found.reading in found._repr_html_()


def test_a_variance_s_frame_has_every_number_with_its_interval() -> None:
    found = a_sweep(8).variance_explained(shuffles=20)
    frame = found.to_frame().set_index("number")
    assert set(frame["measure"]) == {"EM"}
    for name in (
        "layer",
        "effect",
        "both",
        "added",
        "slope",
        "shuffled",
        "rank_correlation",
        "traced_near",
    ):
        average = getattr(found, name)
        assert tuple(frame.loc[name, ["value", "low", "high"]]) == (
            average.mean,
            average.low,
            average.high,
        ), name
        assert frame.loc[name, "count"] == average.count
    assert frame.loc["p_value", "value"] == found.p_value
    assert frame.loc["p_value", ["low", "count"]].isna().all()
    same = (
        explain_variance(noise(6, 3), np.full((6, 3), 0.9), measure="ES")
        .to_frame()
        .set_index("number")
    )
    assert same.loc[["layer", "both", "p_value"], "value"].isna().all()


@pytest.mark.usefixtures("unchecked")
def test_variance_of_nothing_is_refused() -> None:
    for options, message in (
        ({"measure": "GE"}, "measure is 'GE'"),
        ({"measure": "PS"}, "PS is known for 0 facts"),
        ({"shuffles": 0}, "shuffles is 0, expected a whole number of at least 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            a_sweep(8).variance_explained(**options)


def test_one_fact_or_one_layer_has_nothing_to_compare() -> None:
    for shape in ((1, 3), (3, 1)):
        with pytest.raises(ValueError, match="at least two of both"):
            explain_variance(noise(*shape), noise(*shape), measure="EM")


def test_intervals_are_clustered_by_relation() -> None:
    """Copies of a fact within its relation say nothing new."""
    effects, success = noise(6, 8), noise(6, 8, 1)
    copied = [np.repeat(each, 4, axis=0) for each in (effects, success)]
    relations = [f"relation {i // 4}" for i in range(24)]
    alone = explain_variance(effects, success, measure="EM")
    found = explain_variance(*copied, measure="EM", relations=relations)
    unaware = explain_variance(*copied, measure="EM")
    for name in ("layer", "added", "rank_correlation"):
        own, clustered, narrow = (getattr(each, name) for each in (alone, found, unaware))
        assert clustered.high - clustered.low == pytest.approx(own.high - own.low, rel=0.25)
        assert narrow.high - narrow.low < 0.7 * (clustered.high - clustered.low)
        assert clustered.clusters == 6
    few = explain_variance(*copied, measure="EM", relations=["a", "b", "c", "d"] * 6)
    assert (few.layer.low, few.rank_correlation.low) == (None, None)
    assert found.traced_minus_layer.mean == pytest.approx(
        found.traced_near.mean - found.layer_near.mean
    )


def test_a_sweep_s_intervals_know_the_relations_of_its_facts() -> None:
    plain = a_sweep(12)
    plain = replace(plain, S=plain.S.abs())
    sweep = replace(plain, relations=tuple(f"{i % 6}" for i in range(12)))
    assert sweep.table().effect.iloc[0] != plain.table().effect.iloc[0]
    assert sweep.variance_explained("EM").layer.clusters == 6
    # Some records lack paraphrases, and their relations must fall out with them.
    assert sweep.variance_explained("PM").layer.count == len(sweep.clusters(sweep.PM))
    with pytest.raises(ValueError, match="There are 2 relations, expected one for each of 12"):
        replace(plain, relations=("a", "b"))
