"""Editors side by side: the pairs, what is kept on disk, failures, the picture and the command."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rome_lens as rl
from rome_lens.checks import CheckResult, CheckRow, LimitsComparison, Measure, asking
from rome_lens.data.facts import FactError
from rome_lens.editing import presets
from rome_lens.errors import ArgumentError, UnknownNameError
from rome_lens.results import to_html

TEXTS = ["Simon Calloway lives in the city of Pralec.", "Yusuf Brandt lives in the city of Karsun."]
QUICK: dict[str, Any] = {"texts": TEXTS, "samples": 0, "new_tokens": 0}


def made_up(effects: dict[str, float], *, loud: float | None = None) -> rl.LimitsAverage:
    """The limits of an editor, with these effects by record."""

    def limits(record: str, effect: float) -> rl.Limits:
        row = CheckRow(
            kind="asked", prompt="p", answer="a", before=0.0, after=effect, effect=effect
        )
        further = () if loud is None else (Measure(name="loud: difference", values=(loud,)),)
        result = CheckResult(
            name="overfit",
            asks="?",
            measured="m",
            effect_is="the effect",
            control_is="c",
            rows=(row,),
            further=further,
        )
        return rl.Limits(record_id=record, relation="", results=(result,))

    return rl.average_limits([limits(*pair) for pair in effects.items()])


@pytest.fixture
def rome(toy_statistics: rl.KeyStatistics) -> rl.RomeEditor:
    """ROME in one context and few steps."""
    return rl.RomeEditor(statistics=toy_statistics, contexts=("{}",), config=rl.RomeConfig(steps=8))


@pytest.fixture
def rome_and_r_rome(rome: rl.RomeEditor) -> list[rl.RomeEditor]:
    return [rome, dataclasses.replace(rome, variant="r-rome", name="r-ROME")]


@pytest.fixture(scope="module")
def paired() -> LimitsComparison:
    """The second editor adds .19 or .21 to each fact, and lacks one of them."""
    first = {f"r{i}": 0.1 * i * (-1) ** i for i in range(8)}
    added = {f"r{i}": (0.19, 0.21, 0.21, 0.19)[i % 4] for i in range(7)}
    second = {record: first[record] + more for record, more in added.items()}
    return LimitsComparison(
        editors=("first", "second", "third"),
        edited=("first", "second"),
        averages=(made_up(first, loud=0.1), made_up(second)),
        failures=(("second", "r7", "diverged"),),
    )


def test_differences_are_paired_by_fact(paired: LimitsComparison) -> None:
    """The means differ by less than their intervals are wide, and the pairs hardly vary."""
    first, second = (paired.mean(name, "overfit") for name in ("first", "second"))
    assert second.low < first.mean < second.high
    found = paired.difference("second", "overfit")
    assert found.mean == pytest.approx((4 * 0.21 + 3 * 0.19) / 7)
    assert 0.18 < found.low < found.mean < found.high < 0.23
    assert (first.count, second.count, found.count) == (8, 7, 7)
    back = paired.difference("first", "dominance", minus="second")
    assert back.mean == pytest.approx(-found.mean)


def test_the_table_has_a_line_for_each_number_and_says_what_was_not_asked(
    paired: LimitsComparison,
) -> None:
    table = paired.table()
    assert list(table["number"]) == ["the effect", "loud: difference"]
    found = paired.difference("second", "overfit")
    assert table["second"].iloc[0].endswith(f"; {found}")
    assert ";" not in table["first"].iloc[0]
    assert table["second"].iloc[1] == "not asked"
    assert "third" not in table
    frame = paired.to_frame()
    line = frame[(frame.editor == "second") & (frame.number == "effect")].iloc[0]
    assert (line["minus first: mean"], line["minus first: count"]) == (found.mean, 7)
    assert "| overfit |" in paired.to_markdown()
    for number in ((paired.mean, "third"), (paired.difference, "third")):
        assert number[0](number[1], "overfit") is None
    for wrong in ("fourth", "third"):
        with pytest.raises(UnknownNameError, match=wrong):
            paired[wrong]
    with pytest.raises(UnknownNameError, match="no check"):
        paired.mean("first", "overlook")
    with pytest.raises(ArgumentError, match="expected one for each"):
        LimitsComparison(editors=("a",), edited=("a",), averages=())


def test_the_picture_has_a_panel_for_each_number_and_marks_who_differs(
    paired: LimitsComparison,
) -> None:
    panels = [axes for axes in rl.viz.limits_by_editor(paired).axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "overfit",
        "overfit, loud: difference",
    ]
    marks = [line.get_marker() for line in panels[0].lines if line.get_marker() in ("o", "*")]
    assert marks == ["o", "*"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == list(paired.editors)
    assert "<img" in to_html(paired)
    empty = rl.average_limits(rl.Limits(record_id="r", relation="", results=()))
    with pytest.raises(ArgumentError, match="nothing to draw"):
        rl.viz.limits_by_editor(LimitsComparison(editors=("a",), edited=("a",), averages=(empty,)))


@pytest.fixture(scope="module")
def records(brief_records: list[rl.data.Record]) -> list[rl.data.Record]:
    return [
        dataclasses.replace(record, open_prompts=(), consequences=())
        for record in brief_records[:2]
    ]


@dataclasses.dataclass(frozen=True)
class Refusing:
    """An editor that refuses one fact, and counts what it is asked for."""

    editor: rl.RomeEditor
    refused: str
    name: str = "refusing"
    asked: list[str] = dataclasses.field(default_factory=list, repr=False)

    def __call__(self, model: Any, fact: rl.Fact) -> Any:
        self.asked.append(fact.subject)
        if fact.subject == self.refused:
            raise FactError("no such edit")
        return self.editor(model, fact)


def test_every_editor_is_checked_on_every_record_and_a_failure_stops_no_other_edit(
    one_toy: Any,
    records: list[rl.data.Record],
    rome: rl.RomeEditor,
    tmp_path: Path,
    untouched: Any,
) -> None:
    untouched(one_toy)
    refusing = Refusing(rome, records[1].fact.subject)
    editors = [rome, refusing, rl.InContext(), rl.NullEditor(editor=rome), rl.Unedited()]
    options: dict[str, Any] = {**QUICK, "directory": tmp_path / "kept"}
    found = rl.compare_limits(one_toy, records, editors, **options)
    assert found.editors == ("ROME", "refusing", "in context", "null edit", "unedited")
    assert found.failures == (("refusing", str(records[1].id), "no such edit"),)
    assert [len(found[name].limits) for name in found.editors] == [2, 1, 2, 2, 2]
    # The same edits of the same facts: no difference, over the facts that both have.
    assert found.difference("refusing", "overfit").mean == pytest.approx(0.0, abs=1e-6)
    assert found.difference("refusing", "overfit").count == 1
    alone = rl.check_records(one_toy, records, rome, **QUICK)
    for check in ("direction", "overfit", "bleed-over", "fidelity"):
        assert found.mean("ROME", check).mean == pytest.approx(
            alone.effect(check).mean, rel=1e-4, abs=1e-5
        )
    # Only the null edit does not make the new target likely.
    assert found["ROME"].measure("direction", "change of p(new target), forward").mean > 0.5
    assert found["null edit"].measure("direction", "change of p(new target), forward").mean < 0.01
    assert found.mean("unedited", "direction").mean == 0.0

    # Finished work is not done again; what failed is tried again.
    refusing.asked.clear()
    again = rl.compare_limits(one_toy, records, [*editors[:2]], **options)
    assert refusing.asked == [records[1].fact.subject]
    assert again["ROME"].to_frame().equals(found["ROME"].to_frame())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl.RomeEditor, "edit_many", lambda *_: pytest.fail("an edit was made again"))
        rl.check_records(one_toy, records, rome, **options)
    path = found.save(tmp_path / "compared.safetensors")
    assert LimitsComparison.load(path).table().equals(found.table())


def test_a_table_by_fact_gives_the_same_means_again(
    paired: LimitsComparison, tmp_path: Any
) -> None:
    path = tmp_path / "by-fact.parquet"
    paired.by_fact().to_parquet(path)
    frame = pd.read_parquet(path)
    means = rl.checks.average_by_fact(frame).set_index(["editor", "check", "number"])["text"]
    pairs = rl.checks.average_by_fact(frame, minus="first")
    pairs = pairs.set_index(["editor", "check", "number"])["text"]
    assert means["first", "overfit", "loud: difference"] == str(
        paired.mean("first", "overfit", "loud: difference")
    )
    for editor in paired.edited:
        assert means[editor, "overfit", "effect"] == str(paired.mean(editor, "overfit"))
    assert pairs["second", "overfit", "effect"] == str(paired.difference("second", "overfit"))
    with pytest.raises(rl.RomeLensError, match="no editor 'third'"):
        rl.checks.average_by_fact(frame, minus="third")
    with pytest.raises(rl.RomeLensError, match="no column 'share'"):
        rl.checks.average_by_fact(frame.drop(columns="share"))


def test_the_unedited_model_answers_once_for_all_editors(
    one_toy: Any,
    records: list[rl.data.Record],
    rome_and_r_rome: list[rl.RomeEditor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editors = rome_and_r_rome
    plain = {"together": 0, "alone": 0}
    case = "together"
    read = asking.read_answers

    def counting(model: Any, questions: Any, *arguments: Any, marks: Any, **options: Any) -> Any:
        plain[case] += sum(mark == 0 for mark in marks)
        return read(model, questions, *arguments, marks=marks, **options)

    monkeypatch.setattr(asking, "read_answers", counting)
    together = rl.compare_limits(one_toy, records, editors, **QUICK)
    case = "alone"
    alone = [rl.check_records(one_toy, records, editor, **QUICK) for editor in editors]
    assert 0 < 2 * plain["together"] == plain["alone"]
    for editor, its in zip(editors, alone, strict=True):
        for found, own in zip(together[editor.name].limits, its.limits, strict=True):
            assert list(found.to_frame()["before"]) == list(own.to_frame()["before"])  # to the bit


def test_the_unedited_model_writes_its_texts_once_for_all_editors(
    one_toy: Any,
    toy_record: rl.data.Record,
    rome_and_r_rome: list[rl.RomeEditor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = dataclasses.replace(toy_record, exemplars=toy_record.exemplars[:1])
    editors = rome_and_r_rome
    rows: list[int] = []
    generate = one_toy.generate

    def counting(tokens: Any, **options: Any) -> Any:
        rows.append(len(tokens))
        return generate(tokens, **options)

    monkeypatch.setattr(one_toy, "generate", counting)
    options: dict[str, Any] = {**QUICK, "samples": 1}
    together = rl.compare_limits(one_toy, record, editors, **options)
    prompts = len(record.open_prompts)
    # A greedy and a sampled text of each prompt: about the subject and the exemplar, then edited.
    assert rows == [2 * 3 * prompts, 2 * prompts]
    for editor in editors:
        alone = rl.check_records(one_toy, record, editor, **options)
        found = together[editor.name]
        for kind in ("greedy", "sampled"):
            for name in ("true target, before", "new target, after", "new target, before"):
                number = ("overfit", f"{kind}: {name}")
                assert found.measure(*number).mean == alone.measure(*number).mean


def test_the_texts_of_all_facts_are_written_together_and_are_those_of_each_alone(
    one_toy: Any,
    toy_records: list[rl.data.Record],
    rome: rl.RomeEditor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = [dataclasses.replace(each, exemplars=()) for each in toy_records[:2]]
    options: dict[str, Any] = {**QUICK, "samples": 1}
    alone = [rl.check_records(one_toy, record, rome, **options).limits[0] for record in records]
    calls: list[int] = []
    generate = one_toy.generate

    def counting(tokens: Any, **options: Any) -> Any:
        calls.append(len(tokens))
        return generate(tokens, **options)

    monkeypatch.setattr(one_toy, "generate", counting)
    together = rl.check_records(one_toy, records, rome, **options).limits
    assert len(calls) == 1  # they fit into one batch
    for own, other in zip(alone, together, strict=True):
        texts = [(m.name, m.values) for m in own["overfit"].further if "sampled" in m.name]
        assert texts
        assert texts == [
            (m.name, m.values) for m in other["overfit"].further if "sampled" in m.name
        ]


def test_what_cannot_be_compared_is_refused(
    one_toy: Any, records: list[rl.data.Record], rome: rl.RomeEditor
) -> None:
    cases: list[tuple[Any, Any, str]] = [
        (records, [], "at least one editor"),
        (records, [rome, rome], "different names"),
        ([records[0], records[0]], [rome], "the id wanda-brandt"),
    ]
    for given, editors, message in cases:
        with pytest.raises(ArgumentError, match=message):
            rl.compare_limits(one_toy, given, editors, **QUICK)


def test_the_editors_of_a_preset_differ_in_what_their_names_say(
    one_toy: Any, toy_statistics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "collect_key_statistics", lambda *_, **__: toy_statistics)
    preset = rl.preset("toy")
    own, original, matched, r_rome, identity, tuned, told, null = preset.editors(one_toy)
    assert (own.config, own.variant, own.name) == (preset.config, preset.variant, "preset")
    assert (original.config, original.contexts) == (rl.RomeConfig(), own.contexts)
    assert (matched.config.stop, matched.config.stop_probability) == ("matched", None)
    assert dataclasses.replace(r_rome, variant="rome", name="preset") == own
    assert dataclasses.replace(identity, statistics=own.statistics, name="preset") == own
    assert identity.statistics.count == 0
    assert (tuned, told) == (preset.fine_tuning, rl.InContext())
    assert null == rl.NullEditor(editor=original)
