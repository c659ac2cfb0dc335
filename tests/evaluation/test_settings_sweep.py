"""A sweep over settings gives what one edit after the other gives, and resumes where it stopped."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_for_tests import turned

import rome_lens as rl
from rome_lens.editing import presets
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.side_by_side import Choice, rank_one_edits
from rome_lens.editing.value_optimisation import descent
from rome_lens.evaluation import settings_sweep
from rome_lens.evaluation.evaluating import evaluate_all
from rome_lens.storage import StorageError

# Every process that runs one of these tests makes this module's fixtures, which take seconds.
pytestmark = pytest.mark.xdist_group("settings_sweep")
RANK_ONE = sys.modules["rome_lens.editing.value_optimisation"]
CONFIG = rl.RomeConfig(steps=6)
CONTEXTS = ("{}", "It was raining. {}")
STOP = 0.3


@pytest.fixture(scope="module")
def records(brief_records: list[rl.data.Record]) -> list[rl.data.Record]:
    return brief_records[:3]


@pytest.fixture(scope="module")
def options(toy_statistics: rl.KeyStatistics) -> dict[str, Any]:
    """A sweep of a single setting."""
    statistics = {"samples": {2: toy_statistics}}
    return {"statistics": statistics, "config": CONFIG, "contexts": ("{}",)}


@pytest.fixture(scope="module")
def whole(one_toy: Any, records: list[rl.data.Record], options: dict[str, Any]) -> rl.EditSweep:
    """The uninterrupted sweep with these options."""
    return rl.sweep_edits(one_toy, records, **options)


def test_edits_that_share_an_optimisation_are_those_that_do_not(
    toy: Any, toy_record: rl.data.Record, toy_statistics: rl.KeyStatistics
) -> None:
    identity = rl.KeyStatistics.identity(toy, layer=2)
    options = [
        (toy_statistics, "rome", STOP),
        (identity, "r-rome", STOP),
        (toy_statistics, "r-rome", None),
    ]
    (shared,) = rank_one_edits(
        toy,
        [toy_record.fact],
        layer=2,
        choices=[
            Choice(statistics=each, variant=variant, stop_probability=stop)
            for each, variant, stop in options
        ],
        contexts=CONTEXTS,
        config=CONFIG,
    )
    assert len(shared[0].losses) < len(shared[2].losses)
    for found, (each, variant, stop) in zip(shared, options, strict=True):
        alone = rl.rome(
            toy,
            toy_record,
            layer=2,
            statistics=each,
            contexts=CONTEXTS,
            config=replace(CONFIG, stop_probability=stop),
            variant=variant,
        )
        for name in ("u", "v", "key", "value", "losses"):
            assert torch.equal(getattr(found, name), getattr(alone, name)), name
        for name in ("stopped", "config", "variant", "statistics"):
            assert getattr(found, name) == getattr(alone, name), name


def test_a_sweep_gives_what_one_edit_after_the_other_gives(
    one_toy: Any,
    records: list[rl.data.Record],
    toy_statistics: rl.KeyStatistics,
    untouched: Any,
) -> None:
    untouched(one_toy)
    records = records[:2]
    named = {
        "samples": {2: toy_statistics},
        "none": {1: rl.KeyStatistics.identity(one_toy, layer=1)},
    }
    sweep = rl.sweep_edits(
        one_toy,
        records,
        statistics=named,
        stop_probabilities=(STOP, None),
        config=CONFIG,
        contexts=("{}",),
    )
    assert len(sweep.evaluations) == 4
    for setting, evaluations in sweep.evaluations.items():
        for record, found in zip(records, evaluations, strict=True):
            edit = rl.rome(
                one_toy,
                record,
                layer=setting.layer,
                statistics=named[setting.statistics][setting.layer],
                contexts=("{}",),
                config=replace(CONFIG, stop_probability=setting.stop_probability),
            )
            expected = rl.evaluate(one_toy, edit, record)
            for name in ("new_after", "target_after"):
                assert [getattr(row, name) for row in found.rows] == pytest.approx(
                    [getattr(row, name) for row in expected.rows], abs=1e-5
                )
    best = sweep.best(least_efficacy=0.5)
    good = [each.S.mean for each in sweep.scores.values() if each.ES.mean >= 0.5]
    assert sweep.scores[best].S.mean == max(good)
    firsts = {str(each) for each, s in sweep.scores.items() if s.S == sweep.scores[best].S}
    assert sweep.table().index[0] in firsts
    with pytest.raises(ValueError, match=r"ES of at least 1\.1"):
        sweep.best(least_efficacy=1.1)


def test_an_interrupted_sweep_resumes_where_it_was(
    one_toy: Any,
    records: list[rl.data.Record],
    options: dict[str, Any],
    whole: rl.EditSweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluated: list[str] = []

    def counted(model: Any, edits: Any, cases: Any, **rest: Any) -> Any:
        evaluated.append(cases[0].fact.subject)
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        return evaluate_all(model, edits, cases, **rest)

    monkeypatch.setattr(settings_sweep, "evaluate_all", counted)
    with pytest.raises(KeyboardInterrupt):
        rl.sweep_edits(one_toy, records, directory=tmp_path, **options)
    again = rl.sweep_edits(one_toy, records, directory=tmp_path, **options)
    assert evaluated == [records[i].fact.subject for i in (0, 1, 1, 2)]
    assert again == whole
    other = {**options, "config": replace(CONFIG, steps=2)}
    rl.sweep_edits(one_toy, records[:1], directory=tmp_path, **other)
    assert len(evaluated) == 5
    for path in tmp_path.glob("evaluation-*"):
        path.write_text("{}", encoding="utf-8")
    with pytest.raises(StorageError, match="Remove"):
        rl.sweep_edits(one_toy, records, directory=tmp_path, **options)


def test_a_sweep_finds_only_what_the_same_weights_and_settings_gave(
    one_toy: Any,
    records: list[rl.data.Record],
    options: dict[str, Any],
    toy_edits: list[rl.RankOneEdit],
    tmp_path: Path,
) -> None:
    quick = {**options, "config": replace(CONFIG, steps=1), "directory": tmp_path}

    def kept(**changes: Any) -> int:
        """The number of results on disk after another sweep."""
        rl.sweep_edits(one_toy, records[:1], **{**quick, **changes})
        return len(list(tmp_path.glob("evaluation-*")))

    assert [kept(), kept()] == [1, 1]
    with toy_edits[1].applied(one_toy):
        assert kept() == 2
    assert [kept(prepend_bos=False), kept(contexts=("It rained. {}",))] == [3, 4]
    with one_toy.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: value)]):
        with pytest.raises(ValueError, match="has hooks"):
            kept()
        assert kept(directory=None) == 4  # what is not kept may be under hooks


def diverging_after(steps: int, subject: str) -> Any:
    """``descent`` that leaves the finite numbers after some steps on one subject's fact."""

    def diverging(state: Any, rows: Any, config: rl.RomeConfig, finished: set[int]) -> Any:
        ended: set[int] = set()
        for number, outcomes in enumerate(descent(state, rows, config, ended)):
            for fact in outcomes:
                named = subject in state.forward.model.to_string(rows[fact].tokens[0])
                if named and number == steps:
                    outcomes[fact] = OptimisationError(f"The loss is nan at step {number}")
                    ended.add(fact)
            yield outcomes
            ended |= finished

    return diverging


def test_a_divergence_takes_only_the_choices_that_had_not_stopped(
    one_toy: Any,
    toy_record: rl.data.Record,
    toy_statistics: rl.KeyStatistics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fact = toy_record.fact
    choices = [Choice(statistics=toy_statistics, stop_probability=stop) for stop in (STOP, None)]
    options: Any = {"layer": 2, "contexts": CONTEXTS, "config": CONFIG}
    (whole,) = rank_one_edits(one_toy, [fact], choices=choices, **options)
    reached = len(whole[0].losses)
    assert reached < len(whole[1].losses)
    monkeypatch.setattr(RANK_ONE, "descent", diverging_after(reached, fact.subject))
    ((stopped, diverged),) = rank_one_edits(one_toy, [fact], choices=choices, **options)
    assert torch.equal(stopped.v, whole[0].v)
    assert isinstance(diverged, OptimisationError)
    with pytest.raises(OptimisationError, match=f"nan at step {reached}"):
        rl.rome(one_toy, fact, statistics=toy_statistics, **options)


def test_a_failed_edit_is_named_and_counted_and_in_no_average(
    one_toy: Any,
    records: list[rl.data.Record],
    options: dict[str, Any],
    whole: rl.EditSweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (setting,) = whole.evaluations
    assert "failed" not in whole.table().columns
    assert not whole.failures
    bad = records[1].fact
    with monkeypatch.context() as patch:
        patch.setattr(RANK_ONE, "descent", diverging_after(2, bad.subject))
        sweep = rl.sweep_edits(one_toy, records, directory=tmp_path, **options)
        nothing = rl.sweep_edits(one_toy, records[1:2], **options)
    assert sweep.failures == {setting: ((bad, "The loss is nan at step 2"),)}
    expected = [whole.evaluations[setting][i] for i in (0, 2)]
    for found, each in zip(sweep.evaluations[setting], expected, strict=True):
        assert found.case_id == each.case_id
        torch.testing.assert_close(found.S, each.S, atol=1e-5, rtol=1e-5)
    assert (sweep.scores[setting].records, sweep.scores[setting].failed) == (2, 1)
    with pytest.raises(ValueError, match="no failed edit"):
        sweep.best(least_efficacy=0.0)
    assert nothing.table()["failed"].tolist() == [1]
    # A failed edit is not stored, so the resumed run tries it again. It is then optimised alone,
    # and not beside the others, which may change the last digit.
    resumed = rl.sweep_edits(one_toy, records, directory=tmp_path, **options)
    assert not resumed.failures
    for found, each in zip(resumed.evaluations[setting], whole.evaluations[setting], strict=True):
        assert found.case_id == each.case_id
        torch.testing.assert_close(found.S, each.S, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_swept_is_refused_before_the_first_edit(
    one_toy: Any,
    records: list[rl.data.Record],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings_sweep, "rank_one_edits", None)
    cases: list[tuple[list[rl.data.Record], dict[str, Any], str]] = [
        ([*records, turned(records[0])], {}, "already answered"),
        ([], {}, "list of records is empty"),
        (records, {"statistics": {}}, "There is no setting"),
        (records, {"variants": ()}, "There is no setting"),
        (records, {"stop_probabilities": ()}, "There is no setting"),
    ]
    wrong = []
    for asked, changes, words in cases:
        try:
            rl.sweep_edits(one_toy, asked, **{**options, **changes})
        except ValueError as raised:
            if words not in str(raised):
                wrong.append((words, str(raised)))
        else:
            wrong.append((words, "nothing was raised"))
    assert wrong == []


def test_presets_are_named_and_fit_their_models(
    one_toy: Any,
    toy_record: rl.data.Record,
    toy_statistics: rl.KeyStatistics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preset = rl.preset("toy")
    assert preset is presets.PRESETS["toy"]
    with pytest.raises(ValueError, match="gemma-3-270m, smollm2-135m, toy"):
        rl.preset("gpt2")

    def collected(model: Any, *, layer: int, texts: Any, **rest: Any) -> rl.KeyStatistics:
        assert (layer, texts) == (preset.layer, None)
        return toy_statistics

    monkeypatch.setattr(presets, "collect_key_statistics", collected)
    editor = preset.editor(one_toy)
    contexts = rl.random_contexts(one_toy)
    assert editor.contexts == contexts[:4] + contexts[11:14]
    edit = editor(one_toy, toy_record.fact)
    assert (edit.layer, edit.variant) == (preset.layer, preset.variant)
    assert rl.evaluate(one_toy, edit, toy_record).ES == 1.0


def test_a_preset_reads_everything_with_or_without_bos(
    one_toy: Any, toy_statistics: rl.KeyStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2's BOS is a chat marker, and its preset leaves it out."""
    assert rl.preset("smollm2-135m").prepend_bos is False
    assert rl.preset("gemma-3-270m").prepend_bos is None
    asked = []

    def collected(model: Any, **options: Any) -> rl.KeyStatistics:
        asked.append(options["prepend_bos"])
        return toy_statistics

    monkeypatch.setattr(presets, "collect_key_statistics", collected)
    preset = replace(rl.preset("toy"), prepend_bos=False, prefixes=20)
    editor = preset.editor(one_toy)
    assert asked == [False]
    assert (editor.prepend_bos, preset.fine_tuning.prepend_bos) == (False, False)
    assert editor.contexts == rl.random_contexts(one_toy, prepend_bos=False)
    assert editor.contexts != rl.random_contexts(one_toy)


def test_names_for_statistics_are_the_same_for_the_same_seed() -> None:
    texts = rl.data.name_texts()
    assert texts == rl.data.name_texts(seed=0) != rl.data.name_texts(seed=1)
    assert all(text.strip() and "{}" not in text and "_" not in text for text in texts)
    assert len(texts) > 4000
    assert len(set(texts)) > 0.9 * len(texts)
