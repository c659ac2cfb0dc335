"""Laws of a batch with an edit in each row: each row is as if its edit were alone."""

from typing import Any

import pytest
import torch
from models_for_tests import last_logits

import rome_lens as rl
from rome_lens.models.lens import ModelError, w_out

WORDS = "Wanda Brandt lives in the city of"


def random_edit(model: Any, *, layer: int = 1, seed: int = 0) -> rl.RankOneEdit:
    generator = torch.Generator().manual_seed(seed)
    d_mlp, d_model = w_out(model, layer).shape
    u, v = torch.randn(d_mlp, generator=generator), torch.randn(d_model, generator=generator)
    return rl.RankOneEdit(layer=layer, u=u, v=v)


def dense_edit(model: Any, *, layer: int = 1, seed: int = 0) -> rl.WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    return rl.WeightEdit(
        layer=layer, delta=0.3 * torch.randn(w_out(model, layer).shape, generator=generator)
    )


def some_edits(model: Any) -> list[Any]:
    """For each row: edits at different layers, of both kinds, one twice, and none."""
    dense = dense_edit(model, layer=2)
    rank_one = [random_edit(model, layer=layer, seed=i) for i, layer in enumerate((1, 3, 1))]
    return [
        rank_one[0],
        None,
        dense,
        rank_one[1],
        None,
        dense,
        dense_edit(model, layer=1, seed=5),
        rank_one[2],
    ]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_each_row_is_as_if_its_edit_were_alone(few_tiny_models: Any, untouched: Any) -> None:
    untouched(few_tiny_models)
    edits = some_edits(few_tiny_models)
    # Each row has other tokens and another edit, so that no row can stand in for another.
    tokens = few_tiny_models.to_tokens(WORDS).repeat(len(edits), 1)
    tokens[:, 1] += torch.arange(len(edits))
    plain = last_logits(few_tiny_models, tokens)
    found = last_logits(few_tiny_models, tokens, fwd_hooks=rl.row_hooks(few_tiny_models, edits))
    for row, edit in enumerate(edits):
        if edit is None:
            assert torch.equal(found[row], plain[row])
        else:
            assert_close(
                found[row],
                last_logits(
                    few_tiny_models,
                    tokens[row : row + 1],
                    fwd_hooks=edit.fwd_hooks(few_tiny_models),
                )[0],
            )
            with edit.applied(few_tiny_models):
                assert_close(found[row], last_logits(few_tiny_models, tokens[row : row + 1])[0])
            assert (found[row] - plain[row]).abs().max() > 0.05


def test_rows_compose_with_rows_and_with_other_edits(few_tiny_models: Any) -> None:
    model = few_tiny_models
    first, second, everywhere = (
        random_edit(model, layer=layer, seed=i) for i, layer in enumerate((1, 1, 2))
    )
    tokens = model.to_tokens(WORDS).repeat(3, 1)
    rows = rl.row_hooks(model, [first, None, first]) + rl.row_hooks(model, [None, None, second])
    found = last_logits(model, tokens, fwd_hooks=rows + everywhere.fwd_hooks(model))
    expected = [(first, everywhere), (everywhere,), (first, second, everywhere)]
    for row, edits in zip(found, expected, strict=True):
        hooks = [hook for edit in edits for hook in edit.fwd_hooks(model)]
        assert_close(row, last_logits(model, tokens[:1], fwd_hooks=hooks)[0])


def test_a_batch_of_another_size_is_refused(few_tiny_models: Any) -> None:
    model = few_tiny_models
    hooks = rl.row_hooks(model, [None, random_edit(model)])
    with pytest.raises(ValueError, match="The batch has 3 rows, row_hooks was given 2 edits"):
        last_logits(model, model.to_tokens(WORDS).repeat(3, 1), fwd_hooks=hooks)
    model.reset_hooks()


def test_no_rows_and_edits_of_another_model_are_refused(one_toy: Any) -> None:
    with pytest.raises(ValueError, match="edits is empty"):
        rl.row_hooks(one_toy, [])
    edit = random_edit(one_toy)
    alien = rl.RankOneEdit(layer=1, u=edit.u, v=edit.v, model_fingerprint="0" * 16)
    with pytest.raises(ModelError, match="other weights"):
        rl.row_hooks(one_toy, [edit, alien])


def test_rows_without_edits_need_no_hooks(one_toy: Any) -> None:
    assert rl.row_hooks(one_toy, [None, None]) == []
