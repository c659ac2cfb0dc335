"""Edits of more and more facts at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.checks.mass_curve import _spread
from rome_lens.checks.mass_curve_result import FIDELITY, MEASURES, OWN
from rome_lens.editing.sequences import one_matrix_per_layer
from rome_lens.errors import ArgumentError, UnknownNameError

TEXTS = ["Velgrad is a city in the country of Borovia.", "Helsby is a city in the country of"]
Editors = list[Any]


@pytest.fixture(scope="module")
def people() -> list[rl.data.Record]:
    return [
        replace(each, neighborhood=each.neighborhood[:1], paraphrases=each.paraphrases[:1])
        for each in rl.data.toy_people()[:6]
    ]


@pytest.fixture(scope="module")
def editors(one_toy: Any, toy_statistics: rl.KeyStatistics) -> Editors:
    value = rl.RomeConfig(stop_probability=0.9)
    options: dict[str, Any] = {"contexts": ["{}"]}
    memit = rl.MemitConfig(value=value, statistics_weight=10.0)
    return [
        rl.RomeEditor(statistics=toy_statistics, config=value, **options),
        rl.MassEditor(config=memit, statistics={2: toy_statistics}, **options),
    ]


@pytest.fixture(scope="module")
def curve(one_toy: Any, people: list[rl.data.Record], editors: Editors) -> rl.MassCurve:
    return rl.mass_edit_curve(
        one_toy, people, editors, counts=[1, 3], repeats=2, scored=4, texts=TEXTS
    )


def test_batches_of_a_count_have_no_fact_in_common_and_are_the_same_for_all_editors(
    curve: rl.MassCurve,
) -> None:
    ids = {}
    for editor in curve.editors:
        for count in curve.counts:
            batches = curve.of(editor, count)
            ids[editor, count] = [[each.case_id for each in b.evaluations] for b in batches]
            assert [batch.edited for batch in batches] == [count, count]
    assert [len(each) for each in ids["ROME", 1]] == [1, 1]
    assert [len(each) for each in ids["ROME", 3]] == [2, 2]
    for count in curve.counts:
        assert ids["ROME", count] == ids["MEMIT", count]
        first, second = ids["ROME", count]
        assert set(first).isdisjoint(second)


def test_neighbours_that_are_edited_themselves_are_not_asked(
    one_toy: Any, people: list[rl.data.Record], editors: Editors
) -> None:
    first, another, unedited, second = people[:4]  # the relations: city, job, sport, city
    asked = [
        rl.data.Question(prompt=each.fact.text, target=each.fact.target)
        for each in (another, unedited, second)
    ]
    batch = [replace(first, neighborhood=tuple(asked)), another, second]
    options: dict[str, Any] = {"counts": [1, 3], "repeats": 3, "texts": TEXTS}
    curve = rl.mass_edit_curve(one_toy, batch, editors[1:], **options)
    found = {
        batch.count: [row.prompt for row in each.rows if row.kind == "neighborhood"]
        for batch in curve.batches
        for each in batch.evaluations
        if each.case_id == first.id
    }
    # Another relation of a neighbour may be edited: it should not change this one's answer.
    assert found[3] == [another.fact.text, unedited.fact.text]
    assert found[1] == [each.prompt for each in asked]


def test_a_batch_has_the_scores_of_its_edit(
    one_toy: Any, people: list[rl.data.Record], editors: Editors, curve: rl.MassCurve
) -> None:
    """Of one batch of MEMIT, made again by hand and applied to the weights."""
    batch = curve.of("MEMIT", 3)[1]
    by_id = {record.id: record for record in people}
    scored = [by_id[each.case_id] for each in batch.evaluations]
    first = curve.of("MEMIT", 3)[0]
    shuffled = rl.mass_edit_curve(
        one_toy, people, editors[1:], counts=[6], scored=6, texts=TEXTS
    ).batches[0]
    order = [each.case_id for each in shuffled.evaluations]
    assert order[:2] == [each.case_id for each in first.evaluations]
    edit = editors[1].edit_together(one_toy, [by_id[each] for each in order[3:]])
    expected = rl.evaluate_all(one_toy, [edit] * 2, scored)
    for found, by_hand in zip(batch.evaluations, expected, strict=True):
        assert (found.ES, found.PS, found.NS) == (by_hand.ES, by_hand.PS, by_hand.NS)
        assert pytest.approx(by_hand.EM, abs=1e-4) == found.EM
    pairs = [tuple(text.split(" ", 1)) for text in TEXTS]
    tokens = [len(one_toy.to_tokens(f" {rest}", prepend_bos=False)[0]) for _, rest in pairs]
    before = rl.answer_log_probs(one_toy, pairs)
    with edit.applied(one_toy):
        after = rl.answer_log_probs(one_toy, pairs)
        new = [
            replace(each.fact, target=str(each.fact.new_target), new_target=None) for each in scored
        ]
        says_new = rl.knows(one_toy, new)
    assert batch.exact.tolist() == [float(each) for each in says_new]
    change = (before - after).double() / torch.tensor(tokens)
    torch.testing.assert_close(batch.fidelity, change, atol=1e-4, rtol=1e-3)
    assert (batch.essence > 0).all()


def test_an_edit_of_many_parts_acts_as_one_matrix_per_layer(
    one_toy: Any, toy_edits: list[rl.RankOneEdit], toy_record: rl.data.Record
) -> None:
    edits = rl.Edits(edits=tuple(toy_edits))
    dense = one_matrix_per_layer(edits)
    assert [edit.layer for edit in dense.edits] == [2]
    total = sum(edit.delta for edit in toy_edits)
    torch.testing.assert_close(dense.edits[0].delta, total, atol=1e-6, rtol=1e-5)
    asked = [(toy_record.fact.text, toy_record.fact.target)]
    found = [
        rl.answer_log_probs(one_toy, asked, fwd_hooks=each.fwd_hooks(one_toy))
        for each in (edits, dense)
    ]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_means_and_tables_hold_every_measure(curve: rl.MassCurve) -> None:
    frame = curve.to_frame()
    assert len(frame) == len(curve.editors) * len(curve.counts) * len(MEASURES)
    assert set(frame[frame.measure == "ES"]["mean"]) == {1.0}
    assert curve.mean("MEMIT", 1, OWN).count == 2
    assert curve.mean("MEMIT", 3, FIDELITY).count == 4
    assert curve.mean("MEMIT", 3, FIDELITY).clusters == 2
    assert curve.seconds_per_fact("ROME", 3) > 0.0
    assert "| MEMIT" in curve.to_markdown()
    with pytest.raises(UnknownNameError, match="There is no editor 'FT'"):
        curve.mean("FT", 1, "ES")
    with pytest.raises(UnknownNameError, match="There is no measure 'XS'"):
        curve.mean("MEMIT", 1, "XS")
    with pytest.raises(ArgumentError, match=r"count is 2, expected one of \[1, 3\]"):
        curve.mean("MEMIT", 2, "ES")


def test_two_editors_are_compared_on_the_same_facts_and_texts(curve: rl.MassCurve) -> None:
    for measure in MEASURES:
        found = curve.difference("MEMIT", 3, measure, minus="ROME")
        assert found.count == 4  # two edits, each with two facts that are scored and two texts
        same = curve.difference("MEMIT", 3, measure, minus="MEMIT")
        assert (same.mean, same.count) == (0.0, 4)
    essence = [curve.mean(name, 3, "essence").mean for name in ("MEMIT", "ROME")]
    found = curve.difference("MEMIT", 3, "essence", minus="ROME")
    assert found.mean == pytest.approx(essence[0] - essence[1])
    none = dict.fromkeys(
        ("exact", "paraphrases", "essence", "fidelity"), torch.zeros(0, dtype=torch.float64)
    )
    one: Any = replace(curve.of("ROME", 3)[0], evaluations=(), error="diverged", **none)
    failed = replace(curve, batches=(one, curve.of("ROME", 3)[1], *curve.of("MEMIT", 3)))
    assert failed.difference("MEMIT", 3, "ES", minus="ROME").count == 2
    with pytest.raises(UnknownNameError, match="There is no measure 'XS'"):
        curve.difference("MEMIT", 1, "XS", minus="ROME")


def test_the_scored_facts_are_spread_over_the_order_of_editing(
    people: list[rl.data.Record],
) -> None:
    assert _spread(people, 3) == people[::2]
    assert _spread(people, 50) == people


def test_a_text_that_names_an_edited_subject_is_left_out(
    one_toy: Any, people: list[rl.data.Record], editors: Editors
) -> None:
    named = f"{people[0].fact.subject} is a"
    found = rl.mass_edit_curve(
        one_toy, people[:1], editors[1:], counts=[1], texts=[named, TEXTS[0]]
    )
    assert found.batches[0].fidelity.isnan().tolist() == [True, False]
    assert found.mean("MEMIT", 1, FIDELITY).count == 1


class Fails:
    """Cannot edit two facts."""

    name = "fails"

    def __call__(self, model: Any, fact: Any) -> Any:
        raise AssertionError

    def edit_together(self, model: Any, facts: Any) -> Any:
        raise rl.data.FactError("no edit today")

    def __repr__(self) -> str:
        return "Fails()"


def test_an_edit_that_cannot_be_made_is_counted_and_in_no_mean(
    one_toy: Any, people: list[rl.data.Record]
) -> None:
    found = rl.mass_edit_curve(one_toy, people[:2], [Fails()], counts=[1], texts=TEXTS)
    assert found.failed("fails", 1) == ["FactError: no edit today"] * 2
    assert found.mean("fails", 1, "ES") is None
    assert found.mean("fails", 1, FIDELITY) is None
    assert found.seconds_per_fact("fails", 1) is None
    assert found.table()["failed"].tolist() == [2]


def test_an_interrupted_curve_goes_on_from_its_directory(
    one_toy: Any, people: list[rl.data.Record], editors: Editors, tmp_path: Path, monkeypatch: Any
) -> None:
    options: dict[str, Any] = {"counts": [2], "texts": TEXTS, "directory": tmp_path, "scored": 1}
    first = rl.mass_edit_curve(one_toy, people[:2], editors[1:], **options)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("edited again")

    monkeypatch.setattr(rl.MassEditor, "edit_together", never)
    again = rl.mass_edit_curve(one_toy, people[:2], editors[1:], **options)
    assert again.to_frame().equals(first.to_frame())


def test_wrong_input_is_refused(
    one_toy: Any, people: list[rl.data.Record], editors: Editors, unchecked: None
) -> None:
    for changes, message in (
        ({"counts": [0]}, "numbers from 1 to 6"),
        ({"counts": [7]}, "numbers from 1 to 6"),
        ({"counts": []}, "numbers from 1 to 6"),
        ({"editors": [rl.InContext()]}, "expected one with edit_together"),
        ({"editors": []}, "at least one editor"),
        ({"records": [people[0], people[0]]}, "Several records have the id"),
        ({"repeats": 0}, "repeats is 0"),
        ({"scored": 0}, "scored is 0"),
    ):
        options: dict[str, Any] = {"records": people, "editors": editors, "texts": TEXTS, **changes}
        with pytest.raises(ArgumentError, match=message):
            rl.mass_edit_curve(one_toy, **options)


def test_the_toy_knows_its_people(one_toy: Any) -> None:
    records = rl.data.toy_people()
    assert len({record.id for record in records}) == 360
    assert len({record.fact.text for record in records}) == 360
    assert sum(rl.knows(one_toy, records[::12])) >= 27
    again = rl.data.toy_people()
    assert [each.fact for each in again] == [each.fact for each in records]
    for record in records:
        assert record.fact.new_target != record.fact.target
        assert all(record.fact.subject not in each.prompt for each in record.neighborhood)


def test_the_picture_has_a_line_for_each_editor_and_one_scale_for_shares(
    curve: rl.MassCurve,
) -> None:
    figure = rl.viz.mass_curve(curve, "ES", "fidelity")
    shares, other = figure.axes
    assert [line.get_label() for line in shares.get_lines()] == ["ROME", "MEMIT"]
    assert shares.get_ylim() == (-0.05, 1.05)
    assert other.get_ylim() != (-0.05, 1.05)
    with pytest.raises(ArgumentError, match="There is no measure 'XS'"):
        rl.viz.mass_curve(curve, "XS")
    assert "<table" in curve._repr_html_()
