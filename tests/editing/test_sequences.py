"""Laws of edits that are made one after the other."""

import copy
import inspect
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from models_for_tests import last_logits

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing import sequences
from rome_lens.models.lens import ModelError, b_out, w_out

CONTEXTS = ["{}", "It was raining. {}"]
FACTS = [
    rl.Fact("Then {} lives in the city of", subject=subject, target="Kesten", new_target=new)
    for subject, new in (
        ("Wanda Brandt", "Ondavel"),
        ("Tomas Reil", "Pralec"),
        ("Wanda Reil", "Ondavel"),
    )
]


def options(model: Any) -> dict[str, Any]:
    return {
        "layer": 1,
        "statistics": rl.KeyStatistics.identity(model, layer=1),
        "contexts": CONTEXTS,
        "config": rl.RomeConfig(steps=3),
    }


@pytest.fixture(scope="module")
def made(few_tiny_models: Any) -> rl.Edits:
    """One sequence for each of the three models."""
    return rl.rome_sequence(few_tiny_models, FACTS, **options(few_tiny_models))


def test_each_edit_is_romes_on_the_model_as_already_edited(
    few_tiny_models: Any, made: rl.Edits, untouched: Any
) -> None:
    model = few_tiny_models
    untouched(model)
    assert [edit.fact for edit in made.edits] == FACTS
    for i, fact in enumerate(FACTS):
        with ExitStack() as stack:
            for before in made.edits[:i]:
                stack.enter_context(before.applied(model))
            by_hand = rl.rome(model, fact, **options(model))
        assert torch.equal(made.edits[i].u, by_hand.u)
        assert torch.equal(made.edits[i].v, by_hand.v)
    alone = rl.rome(model, FACTS[1], **options(model))
    assert not torch.allclose(made.edits[1].v, alone.v, rtol=1e-3)


def test_the_last_key_is_mapped_to_its_value_and_the_earlier_ones_miss_by_what_came_after(
    few_tiny_models: Any, made: rl.Edits, untouched: Any
) -> None:
    model = few_tiny_models
    untouched(model)
    bias = b_out(model, 1)
    weight = w_out(model, 1) + sum(edit.delta for edit in made.edits)
    kept = made.kept(model)
    for i, edit in enumerate(made.edits):
        mapped = edit.key @ weight + (0.0 if bias is None else bias)
        disturbance = sum(
            ((later.u @ edit.key) * later.v for later in made.edits[i + 1 :]),
            torch.zeros_like(mapped),
        )
        torch.testing.assert_close(mapped, edit.value + disturbance, atol=1e-4, rtol=1e-4)
        expected = float(disturbance.norm() / ((edit.u @ edit.key) * edit.v).norm())
        assert float(kept[i]) == pytest.approx(expected, abs=1e-4)
    assert float(kept[0]) > 1e-2
    with made.applied(model):
        assert torch.equal(made.kept(model), kept)
    for edit in made.edits:  # the same with some of the edits applied already
        with edit.applied(model):
            torch.testing.assert_close(made.kept(model), kept, atol=1e-5, rtol=1e-4)
            assert rl.applied_edits(model) == (edit,)


def test_a_sequence_behaves_as_one_edit(
    few_tiny_models: Any, made: rl.Edits, untouched: Any, tmp_path: Any
) -> None:
    model = few_tiny_models
    untouched(model)
    tokens = model.to_tokens(FACTS[0].text)
    plain = last_logits(model, tokens)
    with made.applied(model):
        expected = last_logits(model, tokens)
        assert made.is_applied(model)
        assert rl.applied_edits(model) == made.edits
    hooked = last_logits(model, tokens, fwd_hooks=made.fwd_hooks(model))
    rows = rl.row_hooks(model, [None, made, made.edits[0]])
    by_row = last_logits(model, tokens.repeat(3, 1), fwd_hooks=rows)
    for found in (hooked, by_row[1:2]):
        atol = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-3)
    assert torch.equal(by_row[0], last_logits(model, tokens.repeat(3, 1))[0])
    assert (expected - plain).abs().max() > 1e-2

    loaded = rl.Edits.load(made.save(tmp_path / "edits"))
    assert [edit.fact for edit in loaded.edits] == FACTS
    made.apply(model)
    made.edits[1].revert(model)
    with pytest.raises(ModelError, match="is not applied"):
        loaded.revert(model)
    made.edits[1].apply(model)
    loaded.revert(model)


def test_an_interrupted_sequence_leaves_the_model(
    toy: Any, untouched: Any, monkeypatch: Any
) -> None:
    untouched(toy)
    real, calls = rl.rome, []

    def interrupted(*args: Any, **given: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **given)

    monkeypatch.setattr(sequences, "rome", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rl.rome_sequence(toy, FACTS, **{**options(toy), "config": rl.RomeConfig(steps=1)})
    assert rl.applied_edits(toy) == ()


def test_what_cannot_be_edited_is_refused_before_anything_is_computed(
    one_toy: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sequences, "rome", None)
    with pytest.raises(FactError, match="facts is empty"):
        rl.rome_sequence(one_toy, [], **options(one_toy))
    without = rl.Fact("{} is in", subject="A", target="B")
    with pytest.raises(FactError, match="Fact 0, 'A is in', has no new target"):
        rl.rome_sequence(one_toy, without, **options(one_toy))
    with pytest.raises(FactError, match="Fact 3, 'A is in', has no new target"):
        rl.rome_sequence(one_toy, [*FACTS, without], **options(one_toy))


def test_edits_without_keys_have_no_mapping_to_keep(one_toy: Any) -> None:
    edit = rl.WeightEdit(layer=1, delta=torch.zeros(w_out(one_toy, 1).shape))
    with pytest.raises(ValueError, match="does not name its key"):
        rl.Edits(edits=(edit,)).kept(one_toy)


def test_edits_of_edits_are_their_parts_in_one_tuple(
    one_toy: Any, toy_edits: list[rl.RankOneEdit], tmp_path: Any, unchecked: None
) -> None:
    first, *rest = toy_edits[:3]
    for edits in (
        [first, *rest],
        (rl.Edits(edits=(first, rest[0])), rest[1]),
        (edit for edit in (first, *rest)),
    ):
        joined = rl.Edits(edits=edits)
        assert joined.edits == (first, *rest)
        loaded = rl.Edits.load(joined.save(tmp_path / "edits.safetensors"))
        assert all(a.same_change(b) for a, b in zip(loaded.edits, joined.edits, strict=True))
        with joined.applied(one_toy):
            assert joined.is_applied(one_toy)
    with pytest.raises(ValueError, match="edits holds None"):
        rl.Edits(edits=(first, None))
    with pytest.raises(ValueError, match="edits is empty"):
        rl.Edits(edits=())


def test_one_fact_is_a_sequence_of_one(one_toy: Any) -> None:
    quick = {**options(one_toy), "config": rl.RomeConfig(steps=2)}
    one = inspect.unwrap(rl.rome_sequence)(one_toy, FACTS[0], **quick)
    (edit,) = one.edits
    assert torch.equal(edit.v, rl.rome(one_toy, FACTS[0], **quick).v)


def test_edits_are_shown_as_a_table_with_a_row_each(
    one_toy: Any, toy_edits: list[rl.RankOneEdit]
) -> None:
    tuned = rl.fine_tune(one_toy, toy_edits[0].fact, layer=1, steps=1)
    bare = rl.WeightEdit(layer=3, delta=tuned.delta)
    edits = (*toy_edits[:3], tuned)
    frame = rl.Edits(edits=(*edits, bare)).to_frame()
    assert list(frame["layer"]) == [2, 2, 2, 1, 3]
    assert list(frame["new_target"][:3]) == [edit.fact.new_target for edit in toy_edits[:3]]
    for row, edit in zip(frame.to_dict("records"), edits, strict=False):
        assert row["norm"] == pytest.approx(float(edit.delta.norm()), rel=1e-5)
        assert row["loss"] == pytest.approx(float(edit.losses[-1].sum()))
        assert (row["stopped"], row["variant"]) == (edit.stopped, edit.variant)
    (one,) = toy_edits[0].to_frame().to_dict("records")
    assert one["probability"] == toy_edits[0].probability
    html = toy_edits[0]._repr_html_()
    assert toy_edits[0].fact.text in html
    assert f"{one['norm']:.4g}" in html
    assert "None" not in bare._repr_html_()


def test_a_sequence_whose_edits_overlap_is_recognised_in_loaded_weights(
    one_toy: Any, toy_records: list[rl.data.Record]
) -> None:
    """Alone, most of its parts are not, because the others hide them."""
    identity = rl.KeyStatistics.identity(one_toy, layer=4)
    sequence = rl.rome_sequence(
        one_toy,
        toy_records[:4],
        layer=4,
        statistics=identity,
        contexts=("{}",),
        config=rl.RomeConfig(steps=10),
    )
    model = copy.deepcopy(one_toy)
    assert not sequence.is_applied(model)
    sequence.apply(model)
    rl.keep_edits(model)
    assert not all(part.is_part_of_weights(model) for part in sequence.parts)
    assert sequence.is_applied(model)
    assert sequence.parts_of_weights(model) == list(sequence.parts)
    with pytest.raises(ModelError, match=r"carry .* already"):
        sequence.apply(model)


def test_an_edit_of_a_namesake_is_not_taken_for_the_edit(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    """Both map nearly the same key towards the same new target."""
    identity = rl.KeyStatistics.identity(one_toy, layer=4)
    first, second = (
        rl.rome(
            one_toy,
            toy_record.fact.about(name),
            layer=4,
            statistics=identity,
            contexts=("{}",),
            config=rl.RomeConfig(steps=15),
        )
        for name in ("Karl Brandt", "Wanda Brandt")
    )
    model = copy.deepcopy(one_toy)
    first.apply(model)
    rl.keep_edits(model)
    assert abs(second.alignment_in(model) - second.alignment - 1.0) < 0.25
    assert not second.is_applied(model)
    second.apply(model)


def test_a_single_edit_is_not_several(toy_edit: Any, unchecked: None) -> None:
    with pytest.raises(rl.RomeLensError, match="expected several edits"):
        rl.Edits(edits=toy_edit)
