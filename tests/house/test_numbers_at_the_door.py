"""Every public function takes whole numbers of any library, and refuses what is not one."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

import rome_lens as rl
from rome_lens.checks.average import Averaged
from rome_lens.localisation.variance import SuccessMeasure

pytestmark = pytest.mark.usefixtures("unchecked")

Call = Callable[[Any], Any]


@pytest.fixture(scope="module")
def calls(
    one_toy: Any, brief_records: list[rl.data.Record], toy_edit: rl.RankOneEdit
) -> dict[str, Call]:
    """Calls with one whole number left open, for which 2 is a good value."""
    model, record, edit = one_toy, brief_records[0], toy_edit
    checks = rl.checks
    one: dict[str, Any] = {"samples": 2, "layers": [1]}
    attribution: dict[str, Any] = {"component": "mlp", "samples": 2, "layers": [1]}
    quick: dict[str, Any] = {"samples": 0, "new_tokens": 0}
    limits = rl.check_limits(model, edit, record, **quick)
    few: dict[str, Any] = {"layer": 2, "sample_count": 2, "sample_length": 8}

    def editor(_model: Any, _fact: rl.Fact) -> rl.RankOneEdit:
        return edit

    return {
        "trace window": lambda n: rl.causal_trace(model, record, **one, window=n),
        "trace batch": lambda n: rl.causal_trace(model, record, **one, batch_size=n),
        "severed batch": lambda n: rl.severed_trace(
            model, record, severed="mlp", **one, batch_size=n
        ),
        "attribution window": lambda n: rl.attribution_trace(
            model, record, **attribution, window=n
        ),
        "attribution batch": lambda n: rl.attribution_trace(
            model, record, **attribution, batch_size=n
        ),
        "facts at": lambda n: rl.trace_facts(model, record, **one, at=n),
        "peak at": lambda n: rl.causal_trace(model, record, **one).peak(at=n),
        "samples seed": lambda n: rl.collect_key_statistics(model, **few, seed=n),
        "evaluate seed": lambda n: rl.evaluate(model, edit, record, generate=1, seed=n),
        "compare seed": lambda n: rl.compare_editors(model, record, [rl.Unedited()], seed=n),
        "limits seed": lambda n: rl.check_limits(model, edit, record, **quick, seed=n),
        "dominance seed": lambda n: checks.dominance(model, edit, record, samples=1, seed=n),
        "essence seed": lambda n: checks.essence(model, edit, record, seed=n),
        "specificity seed": lambda n: checks.specificity(model, edit, record, seed=n),
        "fidelity seed": lambda n: checks.fidelity(model, edit, record, new_tokens=1, seed=n),
        "records seed": lambda n: rl.check_records(model, record, editor, **quick, seed=n),
        "average seed": lambda n: rl.average_limits(limits).firing(seed=n),
        "names seed": lambda n: rl.data.name_texts(seed=n),
        "edit layer": lambda n: rl.RankOneEdit(layer=n, u=edit.u, v=edit.v),
        "dense layer": lambda n: rl.WeightEdit(layer=n, delta=edit.delta),
    }


def test_whole_numbers_of_every_library_are_taken(calls: dict[str, Call]) -> None:
    wrong = []
    for name, call in calls.items():
        for number in (np.int64(2), torch.tensor(2)):
            try:
                call(number)
            except Exception as error:
                wrong.append((name, number, error))
    assert wrong == []


def test_truth_values_and_fractions_are_refused_everywhere(calls: dict[str, Call]) -> None:
    wrong = []
    for name, call in calls.items():
        for value in (True, 2.0, "3"):
            try:
                wrong.append((name, value, call(value)))
            except rl.RomeLensError:
                continue
            except Exception as error:
                wrong.append((name, value, error))
    assert wrong == []


def test_results_made_with_numbers_of_numpy_can_be_saved(
    one_toy: Any, toy_record: rl.data.Record, toy_edit: rl.RankOneEdit, tmp_path: Path
) -> None:
    two: Any = np.int64(2)
    identity = {layer: rl.KeyStatistics.identity(one_toy, layer=layer) for layer in (1, 2)}
    options: dict[str, Any] = {"window": two, "samples": two, "layers": [1, 2]}
    results = [
        rl.causal_trace(one_toy, toy_record, **options),
        rl.attribution_trace(one_toy, toy_record, component="mlp", **options),
        rl.layer_sweep(
            one_toy,
            toy_record,
            at=two,
            statistics=identity,
            contexts=["{}"],
            config=rl.RomeConfig(steps=1),
            **options,
        ),
        rl.RankOneEdit(layer=two, u=toy_edit.u, v=toy_edit.v),
    ]
    for result in results:
        assert repr(type(result).load(result.save(tmp_path / "result"))) == repr(result)


def test_a_stored_run_takes_numbers_of_numpy_for_its_settings(
    one_toy: Any, toy_record: rl.data.Record, tmp_path: Path
) -> None:
    numbers: list[Any] = [np.int64(2), 2, torch.tensor(2)]
    for two in numbers:
        rl.trace_facts(one_toy, toy_record, samples=two, window=two, at=two, directory=tmp_path)
    assert len(list(tmp_path.glob("causaltrace-*"))) == 1


@pytest.mark.parametrize(
    "options", [{"samples": 0}, {"samples": True}, {"noise": 3}, {"at": 1.0}], ids=repr
)
def test_a_refused_trace_of_many_facts_leaves_the_directory_free(
    one_toy: Any, toy_record: rl.data.Record, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(rl.RomeLensError):
        rl.trace_facts(one_toy, toy_record, directory=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options", [{"samples": -1}, {"new_tokens": 2.0}, {"texts": ["one"]}, {"seed": "1"}], ids=repr
)
def test_check_records_refuses_its_options_before_the_first_edit(
    one_toy: Any, toy_record: rl.data.Record, tmp_path: Path, options: dict[str, Any]
) -> None:
    def editor(_model: Any, _fact: rl.Fact) -> Any:
        raise AssertionError("an edit was made")

    with pytest.raises(rl.RomeLensError):
        rl.check_records(one_toy, toy_record, editor, **options)
    with pytest.raises(rl.RomeLensError):
        rl.check_records(
            one_toy, toy_record, rl.FineTuning(layer=2), directory=tmp_path / "new", **options
        )
    assert not (tmp_path / "new").exists()


def test_knows_takes_records_and_a_single_fact(one_toy: Any, toy_record: rl.data.Record) -> None:
    assert rl.knows(one_toy, [toy_record, toy_record.fact]) == [True, True]
    assert rl.knows(one_toy, toy_record) == [True]
    for wrong in ("text", ["text"], [], [3]):
        with pytest.raises(rl.RomeLensError):
            rl.knows(one_toy, wrong)  # type: ignore[arg-type]


def test_options_of_summaries_are_literal_types() -> None:
    for function in (
        rl.LayerSweep.success,
        rl.LayerSweep.variance_explained,
        rl.checks.localisation,
        rl.viz.layer_sweep,
    ):
        assert inspect.signature(function).parameters["measure"].annotation is SuccessMeasure
    which = inspect.signature(rl.LimitsAverage.effect).parameters["which"].annotation
    assert which is Averaged
    assert get_args(which) == ("effect", "effect_where_known", "control", "before", "after")


def test_the_applied_edits_are_typed_as_edits() -> None:
    for function in (rl.applied_edits, rl.keep_edits):
        assert "LayerEdit" in str(inspect.signature(function).return_annotation)
