"""Tracing beside editing: what a sweep over layers holds, and how much of the edits' success the layer or the trace explains."""

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

import rome_lens as rl
from rome_lens import viz
from rome_lens.data.facts import FactError
from rome_lens.evaluation import settings_sweep as edit_sweeps
from rome_lens.keys.collecting import StatisticsError
from rome_lens.localisation import sweeping as layer_sweeping
from rome_lens.localisation import variance
from rome_lens.localisation.results import MEASURES
from rome_lens.localisation.variance import explain_variance, regression, variance_table
from rome_lens.models.lens import ModelError
from rome_lens.tracing import many_facts as sweeps

LAYERS = (1, 4)
CONFIG = rl.RomeConfig(steps=3)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        variance, "_RESAMPLES", 200
    )  # types are checked at every call here, which costs more than the call


@pytest.fixture(scope="module")
def records() -> list[rl.CounterFactRecord]:
    return [
        rl.CounterFactRecord.of(record) for record in rl.data.limits() if "toy" in record.known_by
    ][:3]


@pytest.fixture(scope="module")
def identity(toy: Any) -> dict[int, rl.KeyStatistics]:
    return {layer: rl.KeyStatistics.identity(toy, layer=layer) for layer in LAYERS}


@pytest.fixture(scope="module")
def options(identity: dict[int, rl.KeyStatistics]) -> dict[str, Any]:
    return {
        "layers": LAYERS,
        "statistics": identity,
        "config": CONFIG,
        "contexts": ["{}"],
        "window": 3,
        "noise": rl.GaussianNoise(scale=2.0),
        "samples": 2,
    }


@pytest.fixture(scope="module")
def sweep(toy: Any, records: list[rl.CounterFactRecord], options: dict[str, Any]) -> rl.LayerSweep:
    first, second, third = records
    fact = second.fact
    unknown = rl.Fact(
        fact.prompt, subject=fact.subject, target=str(fact.new_target), new_target=fact.target
    )
    return rl.layer_sweep(toy, [first, unknown, third.fact], **options)


def test_a_cell_is_the_trace_and_the_edit_done_by_hand(
    toy: Any,
    records: list[rl.CounterFactRecord],
    sweep: rl.LayerSweep,
    identity: dict[int, rl.KeyStatistics],
) -> None:
    trace = rl.causal_trace(
        toy,
        records[0].fact,
        component="mlp",
        window=3,
        noise=rl.GaussianNoise(scale=2.0),
        samples=2,
    )
    edit = rl.rome(
        toy, records[0].fact, layer=4, statistics=identity[4], config=CONFIG, contexts=["{}"]
    )
    expected = rl.evaluate(toy, edit, records[0])
    effect = float(trace.indirect_effects[4, trace.subject[1] - 1])
    assert float(sweep.effects[0, 1]) == pytest.approx(effect, abs=1e-5)
    assert float(sweep.total_effects[0]) == pytest.approx(trace.total_effect, abs=1e-5)
    for measure in MEASURES:
        assert float(sweep.success(measure)[0, 1]) == pytest.approx(
            getattr(expected, measure), abs=1e-5
        ), measure
    assert abs(effect) > 1e-4
    assert sweep.noise == trace.noise
    assert sweep.model_fingerprint == trace.model_fingerprint


def test_facts_that_are_not_known_are_named_and_bare_ones_asked_their_prompt_only(
    records: list[rl.CounterFactRecord], sweep: rl.LayerSweep
) -> None:
    assert sweep.names == (str(records[0].case_id), records[2].fact.text)
    assert sweep.unknown == (records[1].fact.text,)
    assert sweep.layers == LAYERS
    assert sweep.EM.isfinite().all()
    assert sweep.PM[0].isfinite().all()
    assert sweep.PM[1].isnan().all()
    assert sweep.S[1].isnan().all()


def test_statistics_that_are_not_given_are_collected_for_all_layers_at_once_and_kept(
    toy: Any,
    records: list[rl.CounterFactRecord],
    options: dict[str, Any],
    identity: dict[int, rl.KeyStatistics],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def collect(model: Any, **options: Any) -> dict[int, rl.KeyStatistics]:
        asked.append(options)
        return identity

    monkeypatch.setattr(layer_sweeping, "collect_key_statistics", collect)
    found = rl.layer_sweep(toy, records[:1], **{**options, "statistics": None}, directory=tmp_path)
    given = rl.layer_sweep(toy, records[:1], **options)
    assert asked == [{"layer": LAYERS, "cache": tmp_path / "keys", "progress": False}]
    assert torch.equal(found.EM, given.EM)
    assert found.edits == given.edits


def test_one_fact_and_the_statistics_of_one_layer_need_no_list(
    toy: Any,
    records: list[rl.CounterFactRecord],
    options: dict[str, Any],
    identity: dict[int, rl.KeyStatistics],
) -> None:
    one = {**options, "layers": [4]}
    found = rl.layer_sweep(toy, records[0].fact, **{**one, "statistics": identity[4]})
    assert torch.equal(found.EM, rl.layer_sweep(toy, [records[0].fact], **one).EM)


def test_a_sweep_leaves_the_model_as_it_was(
    toy: Any, records: list[rl.CounterFactRecord], options: dict[str, Any], untouched: Any
) -> None:
    untouched(toy)
    rl.layer_sweep(toy, [records[0].fact], **{**options, "layers": [1], "at": "last"})


def test_frame_table_and_file_hold_the_same_numbers(sweep: rl.LayerSweep, tmp_path: Path) -> None:
    frame = sweep.to_frame()
    assert len(frame) == 4
    row = frame[(frame["fact"] == sweep.names[1]) & (frame["layer"] == 4)].iloc[0]
    assert row["effect"] == float(sweep.effects[1, 1])
    assert row["total_effect"] == float(sweep.total_effects[1])
    assert row["EM"] == float(sweep.EM[1, 1])
    assert math.isnan(row["NM"])
    table = sweep.table()
    assert list(table.index) == list(LAYERS)
    assert list(table.columns) == ["effect", *MEASURES]
    assert str(table.loc[1, "effect"]).startswith(f"{float(sweep.effects[:, 0].mean()):.3f}")
    assert "n = 1," in str(table.loc[1, "PM"])
    loaded = rl.LayerSweep.load(sweep.save(tmp_path / "sweep.safetensors"))
    assert (loaded.names, loaded.unknown, loaded.layers, loaded.at) == (
        sweep.names,
        sweep.unknown,
        sweep.layers,
        sweep.at,
    )
    assert loaded.to_frame().equals(frame)


def test_a_sweep_broken_off_goes_on_where_it_was(
    toy: Any,
    records: list[rl.CounterFactRecord],
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edited, traced = [], []
    edits, traces = edit_sweeps.rank_one_edits, sweeps.causal_trace

    def counted(model: Any, fact: rl.Fact, *, layer: int, **rest: Any) -> Any:
        if len(edited) == 3:
            edited.append("broken off")
            raise KeyboardInterrupt
        edited.append((fact.subject, layer))
        return edits(model, fact, layer=layer, **rest)

    def counted_trace(model: Any, fact: rl.Fact, **rest: Any) -> Any:
        traced.append(fact.subject)
        return traces(model, fact, **rest)

    monkeypatch.setattr(edit_sweeps, "rank_one_edits", counted)
    monkeypatch.setattr(sweeps, "causal_trace", counted_trace)
    facts = [record.fact for record in records[:2]]
    with pytest.raises(KeyboardInterrupt):
        rl.layer_sweep(toy, facts, directory=tmp_path, **options)
    found = rl.layer_sweep(toy, facts, directory=tmp_path, **options)
    first, second = (fact.subject for fact in facts)
    assert edited == [(first, 1), (first, 4), (second, 1), "broken off", (second, 4)]
    assert traced == [first, second]
    again = rl.layer_sweep(toy, facts, directory=tmp_path, **options)
    assert len(edited) == 5
    assert again.to_frame().equals(found.to_frame())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"facts": []}, FactError, "empty"),
        ({"facts": "twice"}, FactError, "Given twice"),
        ({"facts": "without a new target"}, FactError, "no new target"),
        ({"facts": "not known"}, FactError, "knows none of the 1 facts"),
        ({"layers": []}, ValueError, "layers is empty"),
        ({"layers": [1, 99]}, ModelError, "99 is out of range"),
        ({"layers": [0, 1, 2, 4]}, StatisticsError, r"no statistics of the layers \[0, 2\]"),
        ({"statistics": "swapped"}, StatisticsError, "of layer 4, the edit is at layer 1"),
        ({"statistics": "singular"}, StatisticsError, "not positive definite"),
        ({"variant": "emmet"}, ValueError, "variant is 'emmet'"),
        ({"contexts": ["no slot"]}, FactError, "0 slots"),
        ({"component": "mlps"}, ValueError, "component is 'mlps'"),
        ({"at": "middle"}, ValueError, "at is 'middle'"),
        ({"at": 99}, ValueError, "outside the prompt"),
    ],
)
def test_wrong_input_fails_before_anything_is_traced_or_edited(
    toy: Any,
    records: list[rl.CounterFactRecord],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    fact = records[0].fact
    facts = {
        "twice": [fact, fact],
        "without a new target": [rl.Fact(fact.prompt, subject=fact.subject, target=fact.target)],
        "not known": [
            rl.Fact(
                fact.prompt,
                subject=fact.subject,
                target=str(fact.new_target),
                new_target=fact.target,
            )
        ],
    }
    given = change.get("facts", [fact])
    moments = options["statistics"]
    zeros = rl.KeyStatistics(layer=1, moment=torch.zeros_like(moments[1].moment), count=10**6)
    statistics = {"swapped": {1: moments[4], 4: moments[1]}, "singular": {**moments, 1: zeros}}
    change = {name: value for name, value in change.items() if name != "facts"}
    if "statistics" in change:
        change["statistics"] = statistics[change["statistics"]]
    monkeypatch.setattr(edit_sweeps, "rank_one_edits", None)
    if given != "not known":
        monkeypatch.setattr(sweeps, "causal_trace", None)
    with pytest.raises(error, match=message):
        rl.layer_sweep(
            toy, facts[given] if isinstance(given, str) else given, **{**options, **change}
        )


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
    # a fact that is there ten times is ten facts to cells, and to the bootstrap; more of them make the interval shorter
    many = explain_variance(np.tile(effects, (10, 1)), np.tile(success, (10, 1)), measure="EM")
    assert many.layer.mean == pytest.approx(found.layer.mean)
    assert many.layer.high - many.layer.low < 0.6 * (found.layer.high - found.layer.low)


def test_layers_near_the_best_and_ranks_are_counted_by_fact() -> None:
    effects = np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3], [0.2, 0.2, 0.2]])
    success = np.array([[0.90, 0.88, 0.1], [0.1, 0.9, 0.2], [0.0, 0.3, 0.9]])
    found = explain_variance(effects, success, measure="EM")
    # traced: 0 (0.90, the best), 2 (0.2 of 0.9), 0 by the tie (0.0 of 0.9)
    assert found.traced_near.mean == pytest.approx(1 / 3)
    # the others' best: of fact 0 layer 1 (0.88, near), of fact 1 layer 1 (0.59 beside 0.5, best), of fact 2 layer 1 (0.3)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "GE"}, "measure is 'GE'"),
        ({"measure": "PS"}, "PS was asked of 0 facts"),
        ({"shuffles": 0}, "shuffles is 0"),
    ],
)
def test_variance_of_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_sweep(8).variance_explained(**options)


def test_one_fact_or_one_layer_has_nothing_to_compare() -> None:
    for shape in ((1, 3), (3, 1)):
        with pytest.raises(ValueError, match="at least two of both"):
            explain_variance(noise(*shape), noise(*shape), measure="EM")


def test_the_picture_holds_every_cell_and_the_means() -> None:
    sweep = a_sweep(8)
    figure = viz.layer_sweep(sweep, "PM")
    assert isinstance(figure, Figure)
    right = next(axes for axes in figure.axes if axes.get_ylabel() == "PM")
    below = next(axes for axes in figure.axes if axes.get_ylabel() == "indirect effect")
    above = next(axes for axes in figure.axes if axes.get_ylabel() == "success of the edit")
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["2", "5", "9"]
    for j, points in enumerate(right.collections):
        expected = np.stack([sweep.effects[:, j], sweep.PM[:, j]], axis=1)
        np.testing.assert_array_equal(points.get_offsets()[:7], expected[:7])
    assert "PM of 7 facts" in right.get_title()
    np.testing.assert_allclose(below.lines[0].get_ydata(), sweep.effects.mean(0))
    assert [line.get_label() for line in above.lines[:3]] == ["EM", "NM", "PM"]
    np.testing.assert_allclose(above.lines[2].get_ydata(), sweep.PM[:7].mean(0))
    assert len(above.collections) == 3
    few = next(
        axes
        for axes in viz.layer_sweep(a_sweep(4)).axes
        if axes.get_ylabel() == "success of the edit"
    )
    assert not few.collections
    with pytest.raises(ValueError, match="No record has prompts for PS"):
        viz.layer_sweep(sweep, "PS")
    assert sweep._repr_html_().startswith("<img")


def test_localisation_compares_each_fact_s_traced_layer_with_the_one_that_is_best_on_average() -> (
    None
):
    """By hand: fact 0 is better where its trace points, facts 1 and 2 are worse, and the last was not asked."""
    nothing = [math.nan, math.nan, math.nan]
    sweep = a_sweep(
        4,
        EM=torch.tensor(
            [[0.1, 0.5, 0.9], [0.2, 0.8, 0.3], [0.4, 0.6, 0.1], nothing], dtype=torch.float64
        ),
        effects=torch.tensor(
            [[0.0, 0.1, 0.2], [0.3, 0.1, 0.2], [0.0, 0.1, 0.2], [0.5, 0.1, 0.2]],
            dtype=torch.float64,
        ),
    )
    result = rl.checks.localisation(sweep, shuffles=5)
    assert [row.effect for row in result.rows] == pytest.approx([0.9 - 0.5, 0.2 - 0.8, 0.1 - 0.6])
    assert [row.answer for row in result.rows] == ["layer 5 -> 9", "layer 5 -> 2", "layer 5 -> 9"]
    first = (0.1 + 0.9) / 2 - 0.5  # fact 0 at the layers that facts 1 and 2 are traced to
    assert result.rows[0].control == pytest.approx(first)
    assert result.effect.mean == pytest.approx((0.4 - 0.6 - 0.5) / 3)
    assert f"gains {result.effect} of EM" in result.reading
    assert result.reading.endswith(sweep.variance_explained("EM", shuffles=5).reading)
    with pytest.raises(ValueError, match="measure is 'XM'"):
        rl.checks.localisation(sweep, measure="XM")


def test_localisation_holds_each_r_squared_as_a_number_with_the_interval_of_the_bootstrap(
    tmp_path: Path,
) -> None:
    sweep = a_sweep(8)
    explained = sweep.variance_explained(shuffles=20)
    result = rl.checks.localisation(sweep, shuffles=20)
    expected = [
        explained.layer,
        explained.effect,
        explained.both,
        explained.added,
        explained.shuffled,
    ]
    assert [measure.average for measure in result.further] == expected
    assert result["R^2 of both"] == explained.both
    assert str(explained.added) in list(result.table()["mean"])
    loaded = rl.CheckResult.load(result.save(tmp_path / "localisation.safetensors"))
    assert loaded == result
    few = rl.checks.localisation(a_sweep(4), shuffles=5)["R^2 of the layer"]
    assert (few.low, few.count) == (None, 4)
    same = a_sweep(8, EM=torch.full((8, 3), 0.5, dtype=torch.float64))
    assert rl.checks.localisation(same, shuffles=5).further == ()


def test_localisation_of_one_edit_is_refused_with_what_it_takes() -> None:
    """As users run it, without the tests' checks of types, which would come first."""
    ask = inspect.unwrap(rl.checks.localisation)
    for arguments in (("model", "edit", "record"), ("model",), (a_sweep(8), "edit"), (None,)):
        with pytest.raises(
            ValueError,
            match=r"expected what rl\.layer_sweep\(model, records, \.\.\.\) gives, alone",
        ):
            ask(*arguments)
