"""A sweep's table is the one of its parts, wherever it is computed and however often it stops."""

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from sweeps_for_tests import LAYERS, UNKNOWN, identity, records, small_sweep, toy

import rome_lens as rl
from rome_lens import results
from rome_lens.errors import ArgumentError
from rome_lens.models.lens import ModelError
from rome_lens.models.sources import Loaded
from rome_lens.results import to_html
from rome_lens.storage import InUseError, StorageError, sole_use
from rome_lens.sweeps import stages
from rome_lens.sweeps.results import TABLE

# Every process that runs one of these tests makes this module's fixtures, which take seconds.
pytestmark = pytest.mark.xdist_group("sweeps")


@pytest.fixture(scope="module")
def bridge() -> Any:
    return toy()


class Whole(NamedTuple):
    """An uninterrupted sweep."""

    result: rl.Sweep
    directory: Path
    table: bytes


@pytest.fixture(scope="module")
def whole(bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    directory = tmp_path_factory.mktemp("whole")
    result = small_sweep(bridge, directory)
    return Whole(result, directory, (directory / TABLE).read_bytes())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each function of a stage was called."""
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        function: Callable[..., Any] = getattr(stages, name)

        def counting(*args: Any, **options: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return function(*args, **options)

        monkeypatch.setattr(stages, name, counting)

    for name in ("trace_facts", "edits_or_errors", "evaluate"):
        count(name)
    return calls


def test_rows_hold_what_the_functions_of_the_stages_return(bridge: Any, tmp_path: Path) -> None:
    whole, layer = records()[0], 3
    record = rl.data.Record(
        id="one",
        fact=whole.fact,
        paraphrases=whole.paraphrases[:1],
        neighborhood=whole.neighborhood[:1],
        reverse=whole.reverse[:1],
    )
    statistics = identity(bridge)
    editing: dict[str, Any] = {
        "statistics": statistics,
        "config": rl.RomeConfig(steps=2),
        "contexts": ["{}", "It rained. {}"],
    }
    texts = ["It rained in the city of Pralec."]
    memit = rl.MemitConfig(value=rl.RomeConfig(steps=2), statistics_weight=10.0)
    swept = rl.sweep(
        bridge,
        record,
        layers=[layer],
        directory=tmp_path,
        editors=["r-rome", rl.FineTuning(layer=0, steps=1), rl.MassSetting(config=memit)],
        component="attn",
        window=1,
        samples=2,
        texts=texts,
        continuations=0,
        new_tokens=0,
        **editing,
    )
    assert swept.errors().empty
    row, tuned, mass = (swept.rows.iloc[i] for i in (0, 1, 2))
    trace = rl.causal_trace(bridge, record, component="attn", layers=[layer], samples=2)
    edit = rl.rome(bridge, record, layer=layer, variant="r-rome", **editing)
    scores = rl.evaluate(bridge, edit, record)
    limits = rl.check_limits(bridge, edit, record, texts=texts, samples=0, new_tokens=0)
    effect = trace.indirect_effects[0, trace.subject[1] - 1]
    assert row.effect == pytest.approx(float(effect), abs=1e-6)
    assert row.total_effect == pytest.approx(trace.total_effect, abs=1e-6)
    assert (row.layer, row.steps, row.stopped) == (layer, 2, "steps")
    assert row.norm == pytest.approx(edit.norm, rel=1e-5)
    for name in ("ES", "PS", "NS", "EM", "PM", "NM"):
        assert row[name] == pytest.approx(getattr(scores, name), abs=1e-5)
    for check in limits.results:
        for number in ("effect", "control"):
            average = getattr(check, number)
            expected = float("nan") if average is None else average.mean
            assert row[f"{check.name} {number}"] == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert swept.effects_in_words["direction effect"] == limits["direction"].effect_is
    expected = rl.fine_tune(bridge, record, layer=layer, steps=1).norm
    assert (tuned.editor, tuned.norm) == ("FT+L", pytest.approx(expected, rel=1e-5))
    by_memit = rl.memit(bridge, record, layers=[layer], **{**editing, "config": memit})
    expected = float(by_memit.delta(layer).norm())
    assert (mass.editor, mass.norm) == ("MEMIT", pytest.approx(expected, rel=1e-4))
    assert (mass.layer, mass.steps, mass.stopped) == (layer, 2, "steps")
    assert mass.loss == pytest.approx(float(by_memit.losses[0, -1].sum()), rel=1e-4)


def test_the_sweep_of_one_editor_is_a_layer_sweep_of_the_known_facts(whole: Whole) -> None:
    known = whole.result.rows.iloc[:2]
    found = whole.result.layer_sweep()
    assert (found.names, found.layers) == ((str(records()[0].id),), LAYERS)
    assert found.unknown == (UNKNOWN, records()[2].text)
    for name in ("EM", "PM", "NM", "ES"):
        assert found.success(name).tolist() == [known[name].tolist()]
    assert found.effects.tolist() == [known.effect.tolist()]
    assert found.total_effects.tolist() == [known.total_effect.iloc[0]]
    with pytest.raises(ArgumentError, match="expected one of"):
        whole.result.layer_sweep("FT+L")


def test_a_fact_that_fails_is_a_row_with_its_error(whole: Whole) -> None:
    errors = whole.result.errors()
    assert errors.id.tolist() == [records()[2].text] * 2
    assert errors.error.str.contains("edit: FactError: .* already").all()
    assert errors[["EM", "norm"]].isna().all(axis=None)
    assert repr(whole.result).endswith("2 of 6 rows with an error)")
    assert set(whole.result.rows.model) == {"a loaded TransformerBridge"}


def test_a_fact_that_the_model_does_not_know_is_edited_all_the_same(whole: Whole) -> None:
    rows = whole.result.rows.set_index("id").loc[UNKNOWN]
    assert not rows.known.any()
    assert rows.effect.isna().all()
    assert rows.EM.notna().all()


def test_an_interrupted_sweep_goes_on_and_repeats_nothing(
    bridge: Any,
    whole: Whole,
    counted: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("trace_facts", "edits_or_errors", "evaluate"):
        function = getattr(stages, name)

        def interrupted(
            *args: Any, name: str = name, function: Any = function, **options: Any
        ) -> Any:
            if counted.get(name, 0) == 2:
                raise KeyboardInterrupt
            return function(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(stages, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                small_sweep(bridge, tmp_path)
        assert counted[name] == 2
        assert not (tmp_path / TABLE).exists()
    for _ in range(2):
        small_sweep(bridge, tmp_path)
        # Two layers of two batches: one with two facts, one with the fact that cannot be edited.
        assert counted == {"trace_facts": 3, "edits_or_errors": 4, "evaluate": 4}
        assert (tmp_path / TABLE).read_bytes() == whole.table


def test_a_batch_of_which_a_part_was_kept_gives_the_rest_bit_for_bit(
    bridge: Any, whole: Whole, tmp_path: Path
) -> None:
    shutil.copytree(whole.directory, tmp_path, dirs_exist_ok=True)
    missing = next((tmp_path / "units").glob("rankoneedit-*"))
    missing.unlink()
    small_sweep(bridge, tmp_path)
    assert missing.is_file()
    assert (tmp_path / TABLE).read_bytes() == whole.table


def test_edits_that_do_not_fit_into_memory_together_are_made_alone(
    bridge: Any, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits_or_errors = stages.edits_or_errors

    def one_only(model: Any, editor: Any, facts: Any) -> Any:
        if len(facts) > 1:
            raise MemoryError("not enough")
        return edits_or_errors(model, editor, facts)

    shutil.copytree(whole.directory, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "units").glob("rankoneedit-*"):
        path.unlink()
    monkeypatch.setattr(stages, "edits_or_errors", one_only)
    rows = small_sweep(bridge, tmp_path).rows
    assert rows.error.tolist() == whole.result.rows.error.tolist()
    assert rows.norm.to_numpy() == pytest.approx(
        whole.result.rows.norm.to_numpy(), rel=1e-4, nan_ok=True
    )


def test_an_error_that_may_go_away_is_tried_again(
    bridge: Any, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError("not enough")

    shutil.copytree(whole.directory, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "units").glob("evaluation-*"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "evaluate", lacks_memory)
        swept = small_sweep(bridge, tmp_path)
    assert (swept.rows.error != "").all()
    assert swept.rows.error.iloc[0] == "evaluate: MemoryError: not enough"
    small_sweep(bridge, tmp_path)
    assert (tmp_path / TABLE).read_bytes() == whole.table


def test_a_full_disk_is_no_fault_of_a_fact(
    bridge: Any, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    shutil.copytree(whole.directory, tmp_path, dirs_exist_ok=True)
    next((tmp_path / "units").glob("causaltrace-*")).unlink()
    monkeypatch.setattr(results, "save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        small_sweep(bridge, tmp_path)


def test_threads_of_an_executor_make_the_same_table(
    bridge: Any, whole: Whole, tmp_path: Path
) -> None:
    shutil.copytree(whole.directory, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "units").glob("evaluation-*"):
        path.unlink()
    with ThreadPoolExecutor(2) as executor:
        small_sweep(bridge, tmp_path, executor=executor, facts_at_once=1)
    assert (tmp_path / TABLE).read_bytes() == whole.table


def test_a_second_run_on_a_directory_is_refused(bridge: Any, whole: Whole, tmp_path: Path) -> None:
    with sole_use(whole.directory):
        with pytest.raises(InUseError, match="Another run is writing to"):
            small_sweep(bridge, whole.directory)
    small_sweep(bridge, whole.directory)


def test_a_worker_with_another_model_is_refused(tmp_path: Path) -> None:
    loaded = []

    def changing() -> Any:
        model = toy()
        model.ln_final.weight.data[len(loaded)] += 1.0
        loaded.append(model)
        return model

    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(rl.SweepError, match="A worker has another model"):
            small_sweep(changing, tmp_path, executor=executor, stages=["trace"], statistics={})


def test_a_worker_that_does_not_see_the_directory_says_so(bridge: Any, tmp_path: Path) -> None:
    class Elsewhere(ThreadPoolExecutor):
        def submit(self, function: Any, source: Any, plan: Any, job: Any) -> Any:
            away = dataclasses.replace(plan, directory=tmp_path / "away")
            return super().submit(function, source, away, job)

    with Elsewhere(1) as executor:
        with pytest.raises(rl.SweepError, match="a file system that all workers share"):
            small_sweep(bridge, tmp_path, executor=executor, stages=["trace"])


def test_a_loaded_model_is_not_copied_to_other_processes(bridge: Any) -> None:
    with pytest.raises(ModelError, match="cannot be sent to another process"):
        pickle.dumps(Loaded(bridge))
    again = rl.ModelSource(name="toy")
    assert pickle.loads(pickle.dumps(Loaded(bridge, again=again))) == again


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": ["edits"]}, "A stage is 'edits', expected one of 'trace', 'edit'"),
        ({"stages": []}, "stages is empty"),
        ({"editors": ["memit"]}, "An editor is 'memit', expected one of 'rome', 'r-rome'"),
        ({"editors": ["rome", "rome"]}, "expected at least one editor and different names"),
        ({"workers": 0}, "workers is 0"),
        ({"facts_at_once": 0}, "facts_at_once is 0"),
        ({"workers": 2, "executor": ThreadPoolExecutor(1)}, "Give workers or an executor"),
        ({"at": "middle"}, "at is 'middle'"),
        ({"window": 99}, "window is 99"),
        ({"layers": [99]}, "Layer 99 is out of range"),
        ({"statistics": {}}, "no statistics of the layers"),
    ],
)
def test_a_wrong_setting_is_named_before_any_work(
    options: dict[str, Any],
    words: str,
    bridge: Any,
    tmp_path: Path,
    counted: dict[str, int],
    unchecked: Any,
) -> None:
    with pytest.raises(rl.RomeLensError, match=words):
        small_sweep(bridge, tmp_path, **options)
    assert counted == {}


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_source_of_a_model_is_refused(tmp_path: Path) -> None:
    for source in (3, None, rl.Fact, torch.nn.Linear(1, 1)):
        with pytest.raises(ModelError, match="expected a"):
            rl.sweep(source, records(), layers=[1], directory=tmp_path)


def test_the_table_is_read_back_from_its_file(whole: Whole, tmp_path: Path) -> None:
    for path in (whole.directory, whole.directory / TABLE):
        pd.testing.assert_frame_equal(rl.Sweep.load(path).rows, whole.result.rows)
    (tmp_path / "other.parquet").write_bytes(whole.table[:100])
    with pytest.raises(StorageError, match="not the table of a sweep"):
        rl.Sweep.load(tmp_path / "other.parquet")


def test_means_are_over_the_facts_that_have_a_number(whole: Whole) -> None:
    table, rows = whole.result.table(), whole.result.rows
    assert table.index.tolist() == ["rome"] * 2
    assert table[["layer", "facts", "known", "errors"]].to_numpy().tolist() == [
        [1, 3, 1, 1],
        [3, 3, 1, 1],
    ]
    second = rows[rows.layer == 3]
    assert table.EM.iloc[1].startswith(f"{second.EM.mean():.3f} (n = 2")
    assert table.effect.iloc[1].startswith(f"{second.effect.mean():.3f} (n = 1")


def test_the_figure_shows_the_means(whole: Whole) -> None:
    rows = whole.result.rows
    success, effect = rl.viz.sweep(whole.result, "EM", "effect").axes
    for axes, name in ((success, "EM"), (effect, "effect")):
        means = rows.groupby("layer")[name].mean().to_numpy()
        assert axes.lines[0].get_ydata() == pytest.approx(means)
    assert "<img" in to_html(whole.result)
    with pytest.raises(ArgumentError, match="The sweep has no 'GE'"):
        rl.viz.sweep(whole.result, "GE")
