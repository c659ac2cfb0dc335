"""Editors side by side: each gives what it gives alone, and a failed edit stops nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_for_tests import a_record, plain, turned
from fixtures_for_tests import with_few_prompts

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.evaluation.scores import markdown
from rome_lens.forward.identity import model_identity
from rome_lens.keys.collecting import StatisticsError
from rome_lens.stores import Store

CONFIG = rl.RomeConfig(steps=7)


@dataclasses.dataclass(frozen=True)
class Kept:
    """An editor that gives edits made before, by subject, or raises what stands in an edit's
    place."""

    edits: Any
    name: str = "kept"

    def __call__(self, model: Any, fact: rl.Fact) -> Any:
        edit = self.edits[fact.subject]
        if isinstance(edit, Exception):
            raise edit
        return edit

    def __repr__(self) -> str:
        return f"Kept({self.name!r})"


@pytest.fixture(scope="module")
def kept(toy_records: list[rl.data.Record], toy_edits: list[rl.RankOneEdit]) -> Kept:
    """An editor with the first four toy records' edits."""
    return Kept({r.fact.subject: e for r, e in zip(toy_records, toy_edits, strict=False)})


def test_in_context_is_the_prompts_with_the_statement_written_out(one_toy: Any) -> None:
    record = a_record()
    statement = "Then Wanda Brandt lives in the city of Ondavel."
    found = rl.evaluate(one_toy, rl.InContext()(one_toy, record.fact), record)
    for row in found.rows:
        told = f"{statement} {row.prompt}"
        expected = [plain(one_toy, told, answer) for answer in (row.new_target, row.target)]
        assert [row.new_after, row.target_after] == pytest.approx(expected, rel=2e-4)
        assert row.new_before == pytest.approx(plain(one_toy, row.prompt, "Ondavel"), rel=2e-4)


def test_editors_side_by_side_are_each_alone(
    one_toy: Any,
    toy_records: list[rl.data.Record],
    toy_statistics: rl.KeyStatistics,
    untouched: Any,
) -> None:
    untouched(one_toy)
    records = [with_few_prompts(record, 4) for record in toy_records[:2]]
    identity = rl.KeyStatistics.identity(one_toy, layer=2)
    rome = {"contexts": ("{}",), "config": CONFIG}
    editors = [
        rl.Unedited(),
        rl.InContext(),
        rl.FineTuning(layer=1, norm_constraint=0.05, lr=0.02),
        rl.RomeEditor(statistics=toy_statistics, **rome),
        rl.RomeEditor(statistics=identity, name="C = I", **rome),
    ]
    found = rl.compare_editors(one_toy, records, editors)
    assert list(found.evaluations) == ["unedited", "in context", "FT+L", "ROME", "C = I"]
    for editor in editors:
        for evaluation, record in zip(found.evaluations[editor.name], records, strict=True):
            alone = rl.evaluate(one_toy, editor(one_toy, record.fact), record)
            assert evaluation.case_id == alone.case_id
            assert [row.new_after for row in evaluation.rows] == pytest.approx(
                [row.new_after for row in alone.rows], rel=1e-4, abs=1e-7
            )
    scores = {each.editor: each for each in found.scores}
    assert scores["unedited"].ES.mean == 0.0
    assert scores["unedited"].NS.mean == 1.0
    assert scores["ROME"].ES.mean == scores["FT+L"].ES.mean == 1.0
    assert scores["ROME"].S.mean > scores["FT+L"].S.mean
    assert scores["ROME"].NS.mean >= scores["C = I"].NS.mean


def test_a_comparison_shows_tables_and_prompts(one_toy: Any, toy_record: rl.data.Record) -> None:
    editors = [rl.Unedited(), rl.InContext(name="told")]
    found = rl.compare_editors(one_toy, [toy_record], editors, generate=3)
    assert list(found.table().index) == ["unedited", "told"]
    assert found.to_markdown() == markdown(found.table())
    assert found.to_markdown().splitlines()[3].startswith("| told |")
    assert "told" in found._repr_html_()
    assert list(found.to_frame()["editor"].unique()) == ["unedited", "told"]
    prompts = found.prompts()
    assert len(prompts) == 2 * (1 + len(toy_record.paraphrases) + len(toy_record.neighborhood))
    assert list(prompts["editor"].unique()) == ["unedited", "told"]


def test_a_fact_that_an_editor_refuses_does_not_stop_the_comparison(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    rome = rl.RomeEditor(
        statistics=rl.KeyStatistics.identity(one_toy, layer=1),
        contexts=("{}",),
        config=rl.RomeConfig(steps=2),
    )
    records = (each for each in (turned(toy_record), toy_record))
    found = rl.compare_editors(one_toy, records, iter([rl.Unedited(), rome]))
    ((fact, why),) = found.failures["ROME"]
    assert fact == turned(toy_record).fact
    assert "already" in why
    cases = {name: [each.case_id for each in every] for name, every in found.evaluations.items()}
    assert cases == {"unedited": ["turned", toy_record.id], "ROME": [toy_record.id]}


def test_a_failed_edit_is_named_and_counted_and_in_no_average(
    one_toy: Any, brief_records: list[rl.data.Record], kept: Kept, tmp_path: Path
) -> None:
    records = brief_records[:3]
    bad = records[1].fact
    broken = Kept({**kept.edits, bad.subject: OptimisationError("The loss is nan at step 2")})
    whole = rl.compare_editors(one_toy, records, [rl.Unedited(), kept])
    assert "failed" not in whole.table().columns
    failed = rl.compare_editors(one_toy, records, [rl.Unedited(), broken], directory=tmp_path)
    assert failed.failures == {"kept": ((bad, "The loss is nan at step 2"),)}
    assert [e.case_id for e in failed.evaluations["kept"]] == [records[i].id for i in (0, 2)]
    assert list(failed.table()["records"]) == [3, 2]
    assert list(failed.table()["failed"]) == [0, 1]
    alone = rl.compare_editors(one_toy, records[1:2], [rl.Unedited(), broken])
    assert alone.table().loc["kept", ["ES", "records", "failed"]].tolist() == ["no edit", 0, 1]
    assert set(alone.to_frame()["editor"]) == set(alone.prompts()["editor"]) == {"unedited"}
    # A failed edit is not stored, so the resumed run tries it again.
    again = rl.compare_editors(one_toy, records, [rl.Unedited(), kept], directory=tmp_path)
    assert not again.failures
    assert again.table().equals(whole.table())


def test_an_interrupted_comparison_resumes_with_more_editors(
    one_toy: Any, brief_records: list[rl.data.Record], kept: Kept, tmp_path: Path
) -> None:
    records = brief_records[:3]
    first = rl.compare_editors(one_toy, records, [kept], directory=tmp_path)
    assert len(list(tmp_path.glob("evaluation-*"))) == len(records)
    # The editor with this name and settings must not be called again: it has no edits.
    editors = [Kept({}), rl.InContext()]
    both = rl.compare_editors(one_toy, records, editors, directory=tmp_path)
    assert len(list(tmp_path.glob("evaluation-*"))) == 2 * len(records)
    assert both.evaluations["kept"] == first.evaluations["kept"]
    other = rl.compare_editors(one_toy, records[:1], [kept], generate=2, directory=tmp_path)
    assert other.evaluations["kept"][0].GE is not None
    at_once = rl.compare_editors(one_toy, records, [kept, rl.InContext()])
    assert both.table().equals(at_once.table())


def test_an_editor_that_does_not_name_its_settings_is_refused_a_directory(
    one_toy: Any, toy_record: rl.data.Record, tmp_path: Path
) -> None:
    class Nameless:
        name = "nameless"

        def __call__(self, model: Any, fact: rl.Fact) -> None:
            return None

    with pytest.raises(ValueError, match="__repr__"):
        rl.compare_editors(one_toy, [toy_record], [Nameless()], directory=tmp_path)
    assert not list(tmp_path.glob("evaluation-*"))
    rl.compare_editors(one_toy, [toy_record], [Nameless()])


def test_stored_evaluations_come_back_as_they_were(
    one_toy: Any, toy_records: list[rl.data.Record], tmp_path: Path
) -> None:
    evaluation = rl.evaluate(one_toy, None, toy_records[0], generate=3)
    store = Store(tmp_path, identity=model_identity(one_toy))
    name = store.name("none", toy_records[0])
    assert store.get(rl.Evaluation, name) is None
    store.add(name, evaluation)
    assert Store(tmp_path, identity=model_identity(one_toy)).get(rl.Evaluation, name) == evaluation
    assert name != store.name("none", toy_records[1])
    assert name != store.name("some", toy_records[0])
    (path,) = tmp_path.glob("evaluation-*.safetensors")
    assert rl.Evaluation.load(path).case_id == toy_records[0].id


def test_a_store_tells_apart_what_changes_a_result(
    one_toy: Any, toy_record: rl.data.Record, tmp_path: Path
) -> None:
    eye = torch.eye(rl.models.w_out(one_toy, 1).shape[0], dtype=torch.float64)
    same_name = [rl.KeyStatistics(layer=1, moment=f * eye, count=10**6) for f in (1.0, 2.0)]

    def name(statistics: rl.KeyStatistics) -> str:
        store = Store(tmp_path, identity=model_identity(one_toy))
        return store.name(rl.RomeEditor(statistics=statistics), toy_record)

    names = set(map(name, same_name))
    assert len(names) == 2
    with one_toy.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: value)]):
        with pytest.raises(ValueError, match="has hooks"):
            name(same_name[0])
    before = one_toy.cfg.default_prepend_bos
    try:
        one_toy.cfg.default_prepend_bos = not before
        names.add(name(same_name[0]))
    finally:
        one_toy.cfg.default_prepend_bos = before
    assert len(names) == 3


def test_a_comparison_finds_only_what_the_same_weights_and_settings_gave(
    one_toy: Any,
    toy_record: rl.data.Record,
    toy_edit: rl.RankOneEdit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compare(directory: Path | None = tmp_path) -> tuple[int, float]:
        """The number of results on disk, and one of the probabilities."""
        unedited = [rl.Unedited()]
        found = rl.compare_editors(one_toy, [toy_record], unedited, directory=directory)
        kept = list(tmp_path.glob("evaluation-*"))
        return len(kept), found.evaluations["unedited"][0].rows[0].target_after

    first = compare()
    assert compare() == first
    with toy_edit.applied(one_toy):
        count, target = compare()
    assert (first[0], count) == (1, 2)
    assert target < first[1] - 0.1
    with monkeypatch.context() as patch:
        patch.setattr(one_toy.cfg, "default_prepend_bos", not one_toy.cfg.default_prepend_bos)
        assert compare()[0] == 3
    with one_toy.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: 0 * value)]):
        with pytest.raises(ValueError, match="has hooks"):
            compare()
        assert abs(compare(None)[1] - first[1]) > 1e-3  # what is not kept may be under hooks


def test_what_cannot_be_compared_is_refused_before_anything_is_edited(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    long = dataclasses.replace(toy_record, paraphrases=("It was raining. " * 99 + "Wanda",))
    wrong_layer = rl.RomeEditor(statistics=rl.KeyStatistics.identity(one_toy, layer=1), layer=2)
    never = Kept({})  # it has no edits, so it fails when it is called
    cases: list[tuple[list[rl.data.Record], list[Any], type[Exception], str]] = [
        ([toy_record, long], [never], FactError, "context"),
        ([], [never], FactError, "list of records is empty"),
        ([toy_record], [], ValueError, "at least one editor"),
        ([toy_record], [never, never], ValueError, "expected different names"),
        ([toy_record], [rl.Unedited(name="")], ValueError, "a name for each"),
        ([toy_record], [lambda model, fact: None], ValueError, "a name for each"),
        ([toy_record], [wrong_layer], StatisticsError, "layer 1"),
    ]
    wrong = []
    for records, editors, error, words in cases:
        try:
            rl.compare_editors(one_toy, records, editors)
        except error as raised:
            if words not in str(raised):
                wrong.append((words, str(raised)))
        else:
            wrong.append((words, "nothing was raised"))
    assert wrong == []
