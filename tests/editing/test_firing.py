"""Where an edit fires: against the plain product of keys and ``u``, as a frame and as a file."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import rome_lens as rl

TEXT = "Then Wanda Brandt lives in the city of"


def an_edit(model: Any, layer: int = 1) -> rl.RankOneEdit:
    """A made-up edit that names its key."""
    d_mlp, d_model = rl.models.w_out(model, layer).shape
    draw = torch.Generator().manual_seed(3)
    u, key = torch.randn(2, d_mlp, generator=draw)
    return rl.RankOneEdit(layer=layer, u=u, v=torch.randn(d_model, generator=draw), key=key)


def test_the_firing_is_u_k_as_it_is_and_relative_to_the_edit_s_own_key(
    few_tiny_models: Any,
) -> None:
    edit = an_edit(few_tiny_models)
    found = rl.edit_firing(few_tiny_models, edit, TEXT)
    tokens = few_tiny_models.to_tokens(TEXT)
    with torch.no_grad():
        _, cache = few_tiny_models.run_with_cache(tokens)
    raw = cache[rl.models.key_hook(1)][0] @ edit.u
    assert found.scale == pytest.approx(float(edit.u @ edit.key))
    torch.testing.assert_close(found.raw, raw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.values, raw / (edit.u @ edit.key), rtol=1e-4, atol=1e-5)
    frame = found.to_frame()
    assert list(frame["token"]) == list(found.labels)
    assert len(frame) == tokens.shape[1]
    assert frame["u . k"].tolist() == found.raw.tolist()
    assert frame["firing"].tolist() == found.values.tolist()


def test_a_firing_is_saved_and_loaded(one_toy: Any, tmp_path: Path) -> None:
    found = rl.edit_firing(one_toy, an_edit(one_toy), TEXT)
    loaded = rl.EditFiring.load(found.save(tmp_path / "firing.safetensors"))
    assert (loaded.text, loaded.labels, loaded.scale) == (found.text, found.labels, found.scale)
    assert torch.equal(loaded.values, found.values)


def test_what_is_not_a_rank_one_edit_or_a_text_is_refused_with_what_was_expected(
    one_toy: Any,
) -> None:
    """As users run it, without the tests' checks of types, which would refuse it first."""
    edit, ask = an_edit(one_toy), inspect.unwrap(rl.edit_firings)
    dense = rl.WeightEdit(layer=1, delta=edit.delta)
    for wrong in (None, dense, rl.Edits(edits=(edit,)), one_toy, TEXT):
        with pytest.raises(
            ValueError, match=f"The edit is of type {type(wrong).__name__}, expected a RankOneEdit"
        ):
            ask(one_toy, wrong, [TEXT])
    for texts in (TEXT, [], [""], [None], None):
        with pytest.raises(
            ValueError, match="expected a list of at least one text, and no empty text"
        ):
            ask(one_toy, edit, texts)
