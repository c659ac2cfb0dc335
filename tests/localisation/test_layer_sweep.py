"""Sweeps over layers: facts traced and edited at every layer, their picture and their check."""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from test_variance import a_sweep

import rome_lens as rl
from rome_lens import viz
from rome_lens.data.facts import FactError
from rome_lens.errors import ArgumentError
from rome_lens.evaluation import settings_sweep
from rome_lens.intervals import average
from rome_lens.keys.collecting import StatisticsError
from rome_lens.localisation import sweep_over_layers, variance
from rome_lens.localisation.results import MEASURES
from rome_lens.models.lens import ModelError
from rome_lens.tracing import many_facts

LAYERS = (1, 4)
CONFIG = rl.RomeConfig(steps=3)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are checked at every call here, which costs more than the call."""
    monkeypatch.setattr(variance, "_RESAMPLES", 200)


@pytest.fixture(scope="module")
def identity(one_toy: Any) -> dict[int, rl.KeyStatistics]:
    return {layer: rl.KeyStatistics.identity(one_toy, layer=layer) for layer in LAYERS}


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
        "at": "subject_last",
        "progress": False,
    }


@pytest.fixture(scope="module")
def sweep(
    one_toy: Any, brief_records: list[rl.data.Record], options: dict[str, Any]
) -> rl.LayerSweep:
    """Of a record, of a fact that the toy does not know, and of a bare fact."""
    first, second, third = brief_records[:3]
    fact = second.fact
    unknown = rl.Fact(
        fact.prompt, subject=fact.subject, target=str(fact.new_target), new_target=fact.target
    )
    return rl.layer_sweep(one_toy, [first, unknown, third.fact], **options)


def test_a_cell_is_the_trace_and_the_edit_done_by_hand(
    toy: Any,
    brief_records: list[rl.data.Record],
    sweep: rl.LayerSweep,
    identity: dict[int, rl.KeyStatistics],
) -> None:
    """On either model class, although the sweep is of one."""
    fact = brief_records[0].fact
    trace = rl.causal_trace(
        toy, fact, component="mlp", window=3, noise=rl.GaussianNoise(scale=2.0), samples=2
    )
    edit = rl.rome(toy, fact, layer=4, statistics=identity[4], config=CONFIG, contexts=["{}"])
    expected = rl.evaluate(toy, edit, brief_records[0])
    effect = float(trace.indirect_effects[4, trace.subject[1] - 1])
    assert float(sweep.effects[0, 1]) == pytest.approx(effect, abs=1e-4)
    assert float(sweep.total_effects[0]) == pytest.approx(trace.total_effect, abs=1e-4)
    for measure in MEASURES:
        assert float(sweep.success(measure)[0, 1]) == pytest.approx(
            getattr(expected, measure), abs=1e-4
        ), measure
    assert abs(effect) > 1e-3
    assert sweep.noise == trace.noise
    assert sweep.model_fingerprint == trace.model_fingerprint


def test_facts_that_are_not_known_are_named_and_bare_ones_asked_their_prompt_only(
    brief_records: list[rl.data.Record], sweep: rl.LayerSweep
) -> None:
    assert sweep.names == (str(brief_records[0].id), brief_records[2].fact.text)
    assert sweep.unknown == (brief_records[1].fact.text,)
    assert sweep.layers == LAYERS
    assert sweep.EM.isfinite().all()
    assert sweep.PM[0].isfinite().all()
    assert sweep.PM[1].isnan().all()
    assert sweep.S[1].isnan().all()


def test_statistics_that_are_not_given_are_collected_for_all_layers_at_once_and_kept(
    one_toy: Any,
    brief_records: list[rl.data.Record],
    options: dict[str, Any],
    identity: dict[int, rl.KeyStatistics],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def collect(model: Any, **options: Any) -> dict[int, rl.KeyStatistics]:
        asked.append(options)
        return identity

    monkeypatch.setattr(sweep_over_layers, "collect_key_statistics", collect)
    found = rl.layer_sweep(
        one_toy, brief_records[:1], **{**options, "statistics": None}, directory=tmp_path
    )
    given = rl.layer_sweep(one_toy, brief_records[:1], **options)
    assert asked == [{"layer": LAYERS, "cache": tmp_path / "keys", "progress": False}]
    assert torch.equal(found.EM, given.EM)
    assert found.edits == given.edits


def test_a_sweep_needs_no_more_than_a_model_and_a_fact(
    one_toy: Any, brief_records: list[rl.data.Record], capsys: pytest.CaptureFixture[str]
) -> None:
    fact = brief_records[0].fact
    found = rl.layer_sweep(one_toy, fact, config=CONFIG, contexts=["{}"], samples=2)
    assert found.layers == tuple(range(one_toy.cfg.n_layers))
    assert found.window == max(1, one_toy.cfg.n_layers // 3)
    assert "statistics: identity" in found.edits
    assert "C = I" in viz.layer_sweep(found).get_suptitle()
    assert "trace mlp" in capsys.readouterr().err
    trace = rl.causal_trace(one_toy, fact, component="mlp", window=found.window, samples=2)
    inside = trace.indirect_effects[:, slice(*trace.subject)]
    column = int(inside.amax(0).argmax())
    assert torch.allclose(found.effects[0].float(), inside[:, column], atol=1e-5)
    assert found.tokens == (trace.labels[trace.subject[0] + column],)


def test_one_fact_and_the_statistics_of_one_layer_need_no_list(
    one_toy: Any,
    brief_records: list[rl.data.Record],
    options: dict[str, Any],
    identity: dict[int, rl.KeyStatistics],
) -> None:
    one = {**options, "layers": [4]}
    found = rl.layer_sweep(one_toy, brief_records[0].fact, **{**one, "statistics": identity[4]})
    assert torch.equal(found.EM, rl.layer_sweep(one_toy, [brief_records[0].fact], **one).EM)


def test_a_sweep_leaves_the_model_as_it_was(
    one_toy: Any, brief_records: list[rl.data.Record], options: dict[str, Any], untouched: Any
) -> None:
    untouched(one_toy)
    rl.layer_sweep(one_toy, [brief_records[0].fact], **{**options, "layers": [1], "at": "last"})


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


def test_an_interrupted_sweep_resumes_where_it_was(
    one_toy: Any,
    brief_records: list[rl.data.Record],
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edited, traced = [], []
    edits, traces = settings_sweep.rank_one_edits, many_facts.trace_together

    def counted(model: Any, facts: list[rl.Fact], *, layer: int, **rest: Any) -> Any:
        if len(edited) == 1:
            edited.append("interrupted")
            raise KeyboardInterrupt
        edited.append(layer)
        return edits(model, facts, layer=layer, **rest)

    def counted_trace(model: Any, facts: list[rl.Fact], *arguments: Any, **rest: Any) -> Any:
        traced.extend(fact.subject for fact in facts)
        return traces(model, facts, *arguments, **rest)

    monkeypatch.setattr(settings_sweep, "rank_one_edits", counted)
    monkeypatch.setattr(many_facts, "trace_together", counted_trace)
    facts = [record.fact for record in brief_records[:2]]
    with pytest.raises(KeyboardInterrupt):
        rl.layer_sweep(one_toy, facts, directory=tmp_path, **options)
    found = rl.layer_sweep(one_toy, facts, directory=tmp_path, **options)
    assert edited == [1, "interrupted", 4]
    assert sorted(traced) == sorted(fact.subject for fact in facts)
    again = rl.layer_sweep(one_toy, facts, directory=tmp_path, **options)
    assert len(edited) == 3
    assert again.to_frame().equals(found.to_frame())


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_fails_before_anything_is_traced_or_edited(
    one_toy: Any,
    brief_records: list[rl.data.Record],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fact = brief_records[0].fact
    no_new_target = rl.Fact(fact.prompt, subject=fact.subject, target=fact.target)
    moments = options["statistics"]
    swapped = {1: moments[4], 4: moments[1]}
    zeros = rl.KeyStatistics(layer=1, moment=torch.zeros_like(moments[1].moment), count=10**6)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"facts": []}, FactError, "empty"),
        ({"facts": [fact, fact]}, FactError, "Given twice"),
        ({"facts": [no_new_target]}, FactError, "no new target"),
        ({"layers": []}, ArgumentError, "layers is empty"),
        ({"layers": [1, 99]}, ModelError, "99 is out of range"),
        ({"layers": [0, 1, 2, 4]}, StatisticsError, "no statistics of the layers [0, 2]"),
        ({"statistics": swapped}, StatisticsError, "of layer 4, the edit is at layer 1"),
        ({"statistics": {**moments, 1: zeros}}, StatisticsError, "not positive definite"),
        ({"variant": "emmet"}, ArgumentError, "variant is 'emmet'"),
        ({"contexts": ["no slot"]}, FactError, "0 slots"),
        ({"component": "mlps"}, ArgumentError, "component is 'mlps'"),
        ({"at": "middle"}, ArgumentError, "at is 'middle'"),
        ({"at": 99}, ArgumentError, "outside the prompt"),
    ]
    monkeypatch.setattr(settings_sweep, "rank_one_edits", None)
    monkeypatch.setattr(many_facts, "trace_together", None)
    wrong = []
    for change, error, message in cases:
        try:
            rl.layer_sweep(one_toy, **{"facts": [fact], **options, **change})
        except error as raised:
            if message not in str(raised):
                wrong.append(f"{message}: {raised}")
        else:
            wrong.append(f"{message}: nothing was raised")
    assert not wrong


def test_facts_that_are_all_unknown_are_refused_before_an_edit(
    one_toy: Any,
    brief_records: list[rl.data.Record],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fact = brief_records[0].fact
    unknown = rl.Fact(
        fact.prompt, subject=fact.subject, target=str(fact.new_target), new_target=fact.target
    )
    monkeypatch.setattr(settings_sweep, "rank_one_edits", None)
    with pytest.raises(FactError, match="knows none of the 1 facts"):
        rl.layer_sweep(one_toy, unknown, **options)


def test_the_picture_holds_every_cell_and_the_means() -> None:
    sweep = a_sweep(8)
    figure = viz.layer_sweep(sweep, "PM")
    assert isinstance(figure, Figure)
    right = next(axes for axes in figure.axes if axes.get_ylabel().startswith("PM"))
    below = next(axes for axes in figure.axes if axes.get_ylabel() == "effect on p(answer)")
    above = next(axes for axes in figure.axes if axes.get_ylabel() == "success of the edit")
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["2", "5", "9"]
    for j, points in enumerate(right.collections):
        expected = np.stack([sweep.effects[:, j], sweep.PM[:, j]], axis=1)
        np.testing.assert_array_equal(points.get_offsets()[:7], expected[:7])
    assert "PM of 7 facts" in right.get_title()
    np.testing.assert_allclose(below.lines[0].get_ydata(), sweep.effects.mean(0))
    assert [line.get_label()[:2] for line in above.lines[:3]] == ["PM", "EM", "NM"]
    np.testing.assert_allclose(above.lines[0].get_ydata(), sweep.PM[:7].mean(0))
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


@pytest.mark.usefixtures("unchecked")
def test_localisation_compares_each_fact_s_traced_layer_with_the_one_that_is_best_on_average() -> (
    None
):
    """By hand: fact 0 is better where its trace points, 1 and 2 are worse, 3 was not asked."""
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
    assert [measure.average for measure in result.further[1:]] == expected
    assert result["R^2 of both"] == explained.both
    assert str(explained.added) in list(result.table()["mean"])
    loaded = rl.CheckResult.load(result.save(tmp_path / "localisation.safetensors"))
    assert loaded == result
    few = rl.checks.localisation(a_sweep(4), shuffles=5)["R^2 of the layer"]
    assert (few.low, few.count) == (None, 4)
    same = a_sweep(8, EM=torch.full((8, 3), 0.5, dtype=torch.float64))
    [difference] = rl.checks.localisation(same, shuffles=5).further
    assert difference.average.mean == 0.0


@pytest.mark.usefixtures("unchecked")
def test_localisation_of_one_edit_is_refused_with_what_it_takes() -> None:
    """As users run it, without the tests' checks of types, which would come first."""
    ask = inspect.unwrap(rl.checks.localisation)
    for arguments in (("model", "edit", "record"), ("model",), (a_sweep(8), "edit"), (None,)):
        with pytest.raises(
            ValueError,
            match=r"rl\.layer_sweep\(model, records",
        ):
            ask(*arguments)


def test_a_single_context_is_not_several(
    one_toy: Any, brief_records: list[rl.data.Record], toy_statistics: Any, unchecked: None
) -> None:
    with pytest.raises(rl.RomeLensError, match="contexts is the text"):
        rl.layer_sweep(
            one_toy,
            brief_records[:2],
            layers=[2],
            statistics=toy_statistics,
            contexts="It rained. {}",
        )


def test_the_numbers_of_localisation_are_clustered_by_relation(tmp_path: Path) -> None:
    """Facts of a relation that are copies of each other say no more than one of them."""
    some = a_sweep(6)
    copies = {name: getattr(some, name).repeat_interleave(3, 0) for name in ("EM", "effects")}
    relations = tuple(f"relation {i}" for i in range(6) for _ in range(3))
    sweep = a_sweep(18, **copies, relations=relations)
    result = rl.checks.localisation(sweep, shuffles=5)
    effects, controls = zip(*((row.effect, row.control) for row in result.rows), strict=True)
    gained = [own - theirs for own, theirs in zip(effects, controls, strict=True)]
    difference = result["own trace minus other facts' traces"]
    assert result.effect == average(effects, relations)
    assert result.control == average(controls, relations)
    assert difference == average(gained, relations)
    assert (difference.count, difference.clusters) == (18, 6)
    assert f"own trace gains {difference} more" in result.reading
    alone = rl.checks.localisation(dataclasses.replace(sweep, relations=()), shuffles=5)
    assert alone.effect == average(effects)
    assert wide(result.effect) > 1.3 * wide(alone.effect)
    assert rl.CheckResult.load(result.save(tmp_path / "localisation.safetensors")) == result


def wide(number: Any) -> float:
    return float(number.high - number.low)
