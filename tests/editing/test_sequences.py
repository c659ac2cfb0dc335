"""Laws of edits made one after the other."""

import inspect
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from models_for_tests import last_logits

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.models.lens import ModelError, b_out, w_out

CONTEXTS = ["{}", "It was raining. {}"]
NAMES = [("Wanda Brandt", "Ondavel"), ("Tomas Reil", "Pralec"), ("Wanda Reil", "Ondavel")]


@pytest.fixture
def facts() -> list[rl.Fact]:
    return [
        rl.Fact("Then {} lives in the city of", subject=s, target="Kesten", new_target=new)
        for s, new in NAMES
    ]


def options(model: Any) -> dict[str, Any]:
    return {
        "layer": 1,
        "statistics": rl.KeyStatistics.identity(model, layer=1),
        "contexts": CONTEXTS,
    }


def test_each_edit_is_romes_on_the_model_as_already_edited(
    tiny_model: Any, facts: Any, untouched: Any
) -> None:
    untouched(tiny_model)
    made = rl.rome_sequence(tiny_model, facts, **options(tiny_model))
    assert [edit.fact for edit in made.edits] == facts
    for i, fact in enumerate(facts):
        with ExitStack() as stack:
            for before in made.edits[:i]:
                stack.enter_context(before.applied(tiny_model))
            by_hand = rl.rome(tiny_model, fact, **options(tiny_model))
        assert torch.equal(made.edits[i].u, by_hand.u)
        assert torch.equal(made.edits[i].v, by_hand.v)
    assert not torch.allclose(
        made.edits[1].v, rl.rome(tiny_model, facts[1], **options(tiny_model)).v, rtol=1e-3
    )


def test_the_last_key_is_mapped_to_its_value_and_the_earlier_ones_miss_by_what_came_after(
    tiny_model: Any, facts: Any, untouched: Any
) -> None:
    untouched(tiny_model)
    made = rl.rome_sequence(tiny_model, facts, **options(tiny_model))
    bias = b_out(tiny_model, 1)
    weight = w_out(tiny_model, 1) + sum(edit.delta for edit in made.edits)
    kept = made.kept(tiny_model)
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
    with made.applied(tiny_model):
        assert torch.equal(made.kept(tiny_model), kept)


def test_what_is_kept_is_the_same_with_some_of_the_edits_applied_already(
    tiny_model: Any, facts: Any, untouched: Any
) -> None:
    untouched(tiny_model)
    made = rl.rome_sequence(tiny_model, facts, **options(tiny_model))
    kept = made.kept(tiny_model)
    for edit in made.edits:
        with edit.applied(tiny_model):
            torch.testing.assert_close(made.kept(tiny_model), kept, atol=1e-5, rtol=1e-4)
            assert rl.applied_edits(tiny_model) == (edit,)


def test_a_sequence_behaves_as_one_edit(
    tiny_model: Any, facts: Any, untouched: Any, tmp_path: Any
) -> None:
    untouched(tiny_model)
    made = rl.rome_sequence(tiny_model, facts, **options(tiny_model))
    tokens = tiny_model.to_tokens(facts[0].text)
    plain = last_logits(tiny_model, tokens)
    with made.applied(tiny_model):
        expected = last_logits(tiny_model, tokens)
        assert made.is_applied(tiny_model)
        assert rl.applied_edits(tiny_model) == made.edits
    hooked = last_logits(tiny_model, tokens, fwd_hooks=made.fwd_hooks(tiny_model))
    rows = rl.row_hooks(tiny_model, [None, made, made.edits[0]])
    by_row = last_logits(tiny_model, tokens.repeat(3, 1), fwd_hooks=rows)
    for found in (hooked, by_row[1:2]):
        torch.testing.assert_close(
            found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3
        )
    assert torch.equal(by_row[0], last_logits(tiny_model, tokens.repeat(3, 1))[0])
    assert (expected - plain).abs().max() > 1e-2

    loaded = rl.Edits.load(made.save(tmp_path / "edits"))
    assert [edit.fact for edit in loaded.edits] == facts
    made.apply(tiny_model)
    made.edits[1].revert(tiny_model)
    with pytest.raises(ModelError, match="is not applied"):
        loaded.revert(tiny_model)
    made.edits[1].apply(tiny_model)
    loaded.revert(tiny_model)


def test_an_interrupted_sequence_leaves_the_model(
    toy: Any, facts: Any, untouched: Any, monkeypatch: Any
) -> None:
    untouched(toy)
    real, calls = rl.rome, []

    def interrupted(*args: Any, **given: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **given)

    monkeypatch.setattr("rome_lens.editing.sequences.rome", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rl.rome_sequence(toy, facts, **options(toy))
    assert rl.applied_edits(toy) == ()


def test_what_cannot_be_edited_is_refused_before_anything_is_computed(
    toy: Any, facts: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("rome_lens.editing.sequences.rome", None)
    with pytest.raises(FactError, match="facts is empty"):
        rl.rome_sequence(toy, [], **options(toy))
    with pytest.raises(FactError, match=r"one fact 'A is in', expected a list"):
        inspect.unwrap(rl.rome_sequence)(
            toy, rl.Fact("{} is in", subject="A", target="B"), **options(toy)
        )
    without = rl.Fact("{} is in", subject="A", target="B")
    with pytest.raises(FactError, match="Fact 3, 'A is in', has no new target"):
        rl.rome_sequence(toy, [*facts, without], **options(toy))


def test_edits_without_keys_have_no_mapping_to_keep(toy: Any) -> None:
    edit = rl.WeightEdit(layer=1, delta=torch.zeros(w_out(toy, 1).shape))
    with pytest.raises(ValueError, match="does not name its key"):
        rl.Edits(edits=(edit,)).kept(toy)
    with pytest.raises(ValueError, match="edits is empty"):
        rl.Edits(edits=())


def test_edits_of_edits_are_their_parts_in_one_tuple(
    tiny_model: Any, facts: Any, tmp_path: Any, unchecked: None
) -> None:
    first, *rest = rl.rome_sequence(tiny_model, facts, **options(tiny_model)).edits
    for edits in (
        [first, *rest],
        (rl.Edits(edits=(first, rest[0])), rest[1]),
        (edit for edit in (first, *rest)),
    ):
        made = rl.Edits(edits=edits)
        assert made.edits == (first, *rest)
        loaded = rl.Edits.load(made.save(tmp_path / "edits.safetensors"))
        assert all(a.same_change(b) for a, b in zip(loaded.edits, made.edits, strict=True))
        with made.applied(tiny_model):
            assert made.is_applied(tiny_model)
    with pytest.raises(ValueError, match="edits holds None"):
        rl.Edits(edits=(first, None))
    with pytest.raises(ValueError, match="edits is empty"):
        rl.Edits(edits=())


def test_edits_are_shown_as_a_table_with_a_row_each(tiny_model: Any, facts: Any) -> None:
    made = rl.rome_sequence(tiny_model, facts, **options(tiny_model))
    tuned = rl.fine_tune(tiny_model, facts[0], layer=1, steps=1)
    bare = rl.WeightEdit(layer=2, delta=tuned.delta)
    frame = rl.Edits(edits=(*made.edits, tuned, bare)).to_frame()
    assert list(frame["layer"]) == [1, 1, 1, 1, 2]
    assert list(frame["new_target"][:3]) == [fact.new_target for fact in facts]
    for row, edit in zip(frame.to_dict("records"), (*made.edits, tuned), strict=False):
        assert row["norm"] == pytest.approx(float(edit.delta.norm()), rel=1e-5)
        assert row["loss"] == pytest.approx(float(edit.losses[-1].sum()))
        assert (row["stopped"], row["variant"]) == (edit.stopped, edit.variant)
    (one,) = made.edits[0].to_frame().to_dict("records")
    assert one["probability"] == made.edits[0].probability
    html = made.edits[0]._repr_html_()
    assert facts[0].text in html
    assert f"{one['norm']:.4g}" in html
    assert "None" not in bare._repr_html_()
