"""Sweeps of edits: what shares an optimisation equals what does not; runs go on; presets are what they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing import value_optimisation
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.presets import PRESETS
from rome_lens.editing.rome_method import Choice, rank_one_edits
from rome_lens.editing.value_optimisation import descent
from rome_lens.evaluation.scores import Evaluation
from rome_lens.forward.identity import model_identity
from rome_lens.storage import StorageError
from rome_lens.stores import Store

CONTEXTS = ("{}", "It was raining. {}")
CONFIG = rl.RomeConfig(steps=6)


@pytest.fixture(scope="module")
def records() -> list[rl.CounterFactRecord]:
    return [
        rl.CounterFactRecord.of(record) for record in rl.data.limits() if "toy" in record.known_by
    ][:3]


@pytest.fixture(scope="module")
def statistics(toy: Any) -> dict[int, rl.KeyStatistics]:
    return rl.collect_key_statistics(toy, layer=(0, 1), sample_count=64)


def test_edits_that_share_an_optimisation_are_those_that_do_not(
    toy: Any, records: list[rl.CounterFactRecord], statistics: dict[int, rl.KeyStatistics]
) -> None:
    fact, identity = records[0].fact, rl.KeyStatistics.identity(toy, layer=1)
    options = [
        (statistics[1], "rome", 0.3),
        (identity, "r-rome", 0.3),
        (statistics[1], "r-rome", None),
    ]
    shared = rank_one_edits(
        toy,
        fact,
        layer=1,
        choices=[
            Choice(statistics=each, variant=variant, stop_probability=stop)
            for each, variant, stop in options
        ],
        contexts=CONTEXTS,
        config=CONFIG,
    )
    assert len(shared[0].losses) < len(shared[2].losses)
    for found, (each, variant, stop) in zip(shared, options, strict=True):
        config = replace(CONFIG, stop_probability=stop)
        alone = rl.rome(
            toy, fact, layer=1, statistics=each, contexts=CONTEXTS, config=config, variant=variant
        )
        for name in ("u", "v", "key", "value", "losses"):
            assert torch.equal(getattr(found, name), getattr(alone, name)), name
        assert (found.stopped, found.config, found.variant, found.statistics) == (
            alone.stopped,
            alone.config,
            alone.variant,
            alone.statistics,
        )


def test_a_sweep_gives_what_one_edit_after_the_other_gives(
    toy: Any,
    records: list[rl.CounterFactRecord],
    statistics: dict[int, rl.KeyStatistics],
    untouched: Any,
) -> None:
    untouched(toy)
    named = {"samples": statistics, "none": {1: rl.KeyStatistics.identity(toy, layer=1)}}
    sweep = rl.sweep_edits(
        toy,
        records,
        statistics=named,
        stop_probabilities=(0.3, None),
        config=CONFIG,
        contexts=CONTEXTS,
    )
    assert len(sweep.evaluations) == 6
    for setting, evaluations in sweep.evaluations.items():
        config = replace(CONFIG, stop_probability=setting.stop_probability)
        for record, found in zip(records, evaluations, strict=True):
            moment = named[setting.statistics][setting.layer]
            edit = rl.rome(
                toy,
                record.fact,
                layer=setting.layer,
                statistics=moment,
                contexts=CONTEXTS,
                config=config,
            )
            expected = rl.evaluate(toy, edit, record)
            for row, other in zip(found.rows, expected.rows, strict=True):
                assert row.new_after == pytest.approx(other.new_after, abs=1e-5)
                assert row.target_after == pytest.approx(other.target_after, abs=1e-5)
    best = sweep.best(least_efficacy=0.5)
    assert sweep.scores[best].S.mean == max(
        each.S.mean for each in sweep.scores.values() if each.ES.mean >= 0.5
    )
    assert sweep.table().index[0] in {
        str(each) for each, score in sweep.scores.items() if score.S == sweep.scores[best].S
    }
    with pytest.raises(ValueError, match=r"ES of at least 1\.1"):
        sweep.best(least_efficacy=1.1)


def test_a_sweep_broken_off_goes_on_where_it_was(
    toy: Any,
    records: list[rl.CounterFactRecord],
    statistics: dict[int, rl.KeyStatistics],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: Any = {
        "statistics": {"samples": {1: statistics[1]}},
        "config": CONFIG,
        "contexts": CONTEXTS,
    }
    whole = rl.sweep_edits(toy, records, **options)
    made: list[str] = []

    def counted(model: Any, fact: rl.Fact, **rest: Any) -> Any:
        made.append(fact.subject)
        if len(made) == 2:
            raise OptimisationError("broken off")
        return rank_one_edits(model, fact, **rest)

    monkeypatch.setattr("rome_lens.evaluation.settings_sweep.rank_one_edits", counted)
    with pytest.raises(OptimisationError, match="broken off"):
        rl.sweep_edits(toy, records, directory=tmp_path, **options)
    again = rl.sweep_edits(toy, records, directory=tmp_path, **options)
    assert made == [records[i].fact.subject for i in (0, 1, 1, 2)]
    assert again == whole
    other = {**options, "config": replace(CONFIG, steps=5)}
    rl.sweep_edits(toy, records[:1], directory=tmp_path, **other)
    assert len(made) == 5
    for path in tmp_path.iterdir():
        path.write_text("{}", encoding="utf-8")
    with pytest.raises(StorageError, match="remove it"):
        rl.sweep_edits(toy, records, directory=tmp_path, **options)


def test_a_comparison_broken_off_goes_on_with_more_editors(
    toy: Any, records: list[rl.CounterFactRecord], tmp_path: Path
) -> None:
    first = rl.compare_editors(toy, records, [rl.Unedited()], directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(records)
    both = rl.compare_editors(toy, records, [rl.Unedited(), rl.InContext()], directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(records)
    assert both.evaluations["unedited"] == first.evaluations["unedited"]
    at_once = rl.compare_editors(toy, records, [rl.Unedited(), rl.InContext()])
    assert both.table().equals(at_once.table())


def test_an_editor_that_does_not_name_its_settings_is_refused_a_directory(
    toy: Any, records: list[rl.CounterFactRecord], tmp_path: Path
) -> None:
    class Nameless:
        name = "nameless"

        def __call__(self, model: Any, fact: rl.Fact) -> None:
            return None

    with pytest.raises(ValueError, match="__repr__"):
        rl.compare_editors(toy, records, [Nameless()], directory=tmp_path)
    assert not list(tmp_path.iterdir())
    rl.compare_editors(toy, records[:1], [Nameless()])


def test_stored_evaluations_come_back_as_they_were(
    toy: Any, records: list[rl.CounterFactRecord], tmp_path: Path
) -> None:
    evaluation = rl.evaluate(toy, None, records[0], generate=3)
    store = Store(tmp_path, identity=model_identity(toy))
    name = store.name("none", records[0])
    assert store.get(Evaluation, name) is None
    store.add(name, evaluation)
    assert Store(tmp_path, identity=model_identity(toy)).get(Evaluation, name) == evaluation
    assert name != store.name("none", records[1])
    assert name != store.name("some", records[0])
    assert Evaluation.load(next(tmp_path.glob("evaluation-*.safetensors"))).case_id == records[0].id


def test_a_store_tells_apart_what_changes_a_result(
    toy: Any, records: list[rl.CounterFactRecord], tmp_path: Path
) -> None:
    moments = [
        torch.eye(rl.models.w_out(toy, 1).shape[0], dtype=torch.float64) * factor
        for factor in (1.0, 2.0)
    ]
    same_name = [rl.KeyStatistics(layer=1, moment=moment, count=10**6) for moment in moments]
    store = Store(tmp_path, identity=model_identity(toy))
    names = {store.name(rl.RomeEditor(statistics=each), records[0]) for each in same_name}
    assert len(names) == 2
    with toy.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: value)]):
        with pytest.raises(ValueError, match="has hooks"):
            Store(tmp_path, identity=model_identity(toy))
    before = toy.cfg.default_prepend_bos
    try:
        toy.cfg.default_prepend_bos = not before
        names.add(
            Store(tmp_path, identity=model_identity(toy)).name(
                rl.RomeEditor(statistics=same_name[0]), records[0]
            )
        )
    finally:
        toy.cfg.default_prepend_bos = before
    assert len(names) == 3


def diverging_after(steps: int, subject: str) -> Any:
    """``descent`` that leaves the finite numbers after some steps on one subject's fact."""

    def diverging(state: Any, rows: Any, config: rl.RomeConfig) -> Any:
        for number, step in enumerate(descent(state, rows, config)):
            if subject in state.forward.model.to_string(rows.tokens[0]) and number == steps:
                raise OptimisationError(f"The loss is nan at step {number}")
            yield step

    return diverging


def test_a_divergence_takes_only_the_choices_that_had_not_stopped(
    toy: Any,
    records: list[rl.CounterFactRecord],
    statistics: dict[int, rl.KeyStatistics],
    monkeypatch: Any,
) -> None:
    fact = records[0].fact
    choices = [Choice(statistics=statistics[1], stop_probability=stop) for stop in (0.3, None)]
    options: Any = {"layer": 1, "contexts": CONTEXTS, "config": CONFIG}
    whole = rank_one_edits(toy, fact, choices=choices, **options)
    reached = len(whole[0].losses)
    assert reached < len(whole[1].losses)
    monkeypatch.setattr(value_optimisation, "descent", diverging_after(reached, fact.subject))
    stopped, diverged = rank_one_edits(toy, fact, choices=choices, **options)
    assert torch.equal(stopped.v, whole[0].v)
    assert isinstance(diverged, OptimisationError)
    with pytest.raises(OptimisationError, match=f"nan at step {reached}"):
        rl.rome(toy, fact, layer=1, statistics=statistics[1], contexts=CONTEXTS, config=CONFIG)


def test_a_failed_edit_is_named_and_counted_and_in_no_average(
    toy: Any,
    records: list[rl.CounterFactRecord],
    statistics: dict[int, rl.KeyStatistics],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    options: Any = {
        "statistics": {"samples": {1: statistics[1]}},
        "config": CONFIG,
        "contexts": CONTEXTS,
    }
    editors = [
        rl.Unedited(),
        rl.RomeEditor(statistics=statistics[1], config=CONFIG, contexts=CONTEXTS),
    ]
    swept, compared = (
        rl.sweep_edits(toy, records, **options),
        rl.compare_editors(toy, records, editors),
    )
    (setting,) = swept.evaluations
    assert "failed" not in swept.table().columns
    assert not swept.failures
    bad = records[1].fact
    with monkeypatch.context() as patch:
        patch.setattr(value_optimisation, "descent", diverging_after(2, bad.subject))
        sweep = rl.sweep_edits(toy, records, directory=tmp_path, **options)
        comparison = rl.compare_editors(toy, records, editors, directory=tmp_path)
        alone = rl.compare_editors(toy, records[1:2], editors)
        nothing = rl.sweep_edits(toy, records[1:2], **options)
    others = (0, 2)
    assert sweep.failures == {setting: ((bad, "The loss is nan at step 2"),)}
    assert comparison.failures == {"ROME": ((bad, "The loss is nan at step 2"),)}
    assert sweep.evaluations[setting] == tuple(swept.evaluations[setting][i] for i in others)
    assert [each.case_id for each in comparison.evaluations["ROME"]] == [
        records[i].case_id for i in others
    ]
    assert (sweep.scores[setting].records, sweep.scores[setting].failed) == (2, 1)
    assert list(comparison.table()["records"]) == [3, 2]
    assert list(comparison.table()["failed"]) == [0, 1]
    with pytest.raises(ValueError, match="no failed edit"):
        sweep.best(least_efficacy=0.0)
    assert alone.table().loc["ROME", ["ES", "records", "failed"]].tolist() == ["no edit", 0, 1]
    assert set(alone.to_frame()["editor"]) == set(alone.prompts()["editor"]) == {"unedited"}
    assert nothing.table()["failed"].tolist() == [1]
    # What failed is not kept: a run that goes on tries it again.
    assert rl.sweep_edits(toy, records, directory=tmp_path, **options) == swept
    again = rl.compare_editors(toy, records, editors, directory=tmp_path)
    assert not again.failures
    assert again.table().equals(compared.table())


def test_a_record_that_cannot_be_edited_ends_a_sweep_before_its_first_edit(
    toy: Any,
    records: list[rl.CounterFactRecord],
    statistics: dict[int, rl.KeyStatistics],
    monkeypatch: Any,
) -> None:
    fact = records[2].fact
    said = rl.Fact(
        fact.prompt, subject=fact.subject, target=str(fact.new_target), new_target=fact.target
    )
    monkeypatch.setattr("rome_lens.evaluation.settings_sweep.rank_one_edits", None)
    with pytest.raises(FactError, match="already answered"):
        rl.sweep_edits(
            toy,
            [*records[:2], rl.CounterFactRecord(case_id=1, fact=said)],
            statistics={"samples": statistics},
            contexts=CONTEXTS,
        )


@pytest.mark.parametrize("missing", ["records", "statistics"])
def test_a_sweep_of_nothing_is_refused(
    toy: Any,
    records: list[rl.CounterFactRecord],
    statistics: dict[int, rl.KeyStatistics],
    missing: str,
) -> None:
    options: Any = {"statistics": {} if missing == "statistics" else {"samples": statistics}}
    with pytest.raises(ValueError, match="expected some of both"):
        rl.sweep_edits(toy, [] if missing == "records" else records, **options)


def test_presets_are_named_and_fit_their_models(toy: Any) -> None:
    assert rl.preset("toy") is PRESETS["toy"]
    with pytest.raises(ValueError, match="gemma-3-270m, smollm2-135m, toy"):
        rl.preset("gpt2")
    editor = rl.preset("toy").editor(toy)
    assert editor.contexts == rl.random_contexts(toy)[:4] + rl.random_contexts(toy)[11:14]
    record = next(record for record in rl.data.limits() if "toy" in record.known_by)
    edit = editor(toy, record.fact)
    assert (edit.layer, edit.variant) == (rl.preset("toy").layer, rl.preset("toy").variant)
    assert rl.evaluate(toy, edit, record).ES == 1.0


def test_names_for_statistics_are_the_same_for_the_same_seed() -> None:
    texts = rl.data.name_texts()
    assert texts == rl.data.name_texts(seed=0) != rl.data.name_texts(seed=1)
    assert all(text.strip() and "{}" not in text and "_" not in text for text in texts)
    assert len(texts) > 4000
    assert len(set(texts)) > 0.9 * len(texts)
