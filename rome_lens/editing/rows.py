"""Edits row by row: a batch in which every row has an edit of its own, or none, in one forward pass."""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.edit import Edit, LayerEdit, RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import raw_output_hooks
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel, w_out


def row_hooks(model: LensModel, edits: Sequence[Edit | None]) -> list[Hook]:
    """Hooks under which row ``i`` of a batch runs as the model with ``edits[i]``, or as the model itself where that is None.

        raw output of W_out, row i  +=  k_i delta_i,   delta_i = u_i v_iT for a rank-one edit

    So that before and after, or many edits, are one forward pass: ``[None, edit]`` on the same tokens twice. Rows without
    an edit are bit for bit those of the same batch run without hooks. The edits may lie at different layers. Lists
    of hooks can be added together; every row then has all its edits.

    Args:
        edits: as many as the batch has rows.

    Raises:
        ValueError: there is no entry; when a hook fires: the batch has another number of rows.
        ModelError: an edit was made on another model.
    """
    if not edits:
        raise ArgumentError(
            "edits is empty, expected one edit, or None, for each row of the batch."
        )
    for edit in {id(edit): edit for edit in edits if edit is not None}.values():
        edit.check(model)
    hooks = []
    for turn in zip_longest(*(() if edit is None else edit.parts for edit in edits)):
        for layer in sorted({part.layer for part in turn if part is not None}):
            here = [part if part is not None and part.layer == layer else None for part in turn]
            hooks += _hooks_at(model, layer, here)
    return hooks


def _hooks_at(model: LensModel, layer: int, edits: Sequence[LayerEdit | None]) -> list[Hook]:
    """The hooks of one layer: rank-one edits stacked, a dense one at once on all the rows that have it."""
    weight = w_out(model, layer)
    d_model = weight.shape[1]
    thin = {row: edit for row, edit in enumerate(edits) if isinstance(edit, RankOneEdit)}
    rows = torch.tensor(list(thin), dtype=torch.long, device=weight.device)
    u = torch.stack([edit.u.to(weight) for edit in thin.values()]) if thin else None
    v = torch.stack([edit.v.to(weight) for edit in thin.values()]) if thin else None
    others = [edit for row, edit in enumerate(edits) if edit is not None and row not in thin]
    dense = [
        (
            torch.tensor(
                [row for row, each in enumerate(edits) if each is edit], device=weight.device
            ),
            edit,
        )
        for edit in {id(edit): edit for edit in others}.values()
    ]

    def addition(keys: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos d_model"]:
        if len(keys) != len(edits):
            raise ArgumentError(
                f"The batch has {len(keys)} rows, row_hooks was given {len(edits)} edits: give one, or None, for each row."
            )
        added = keys.new_zeros(*keys.shape[:2], d_model)
        if u is not None and v is not None:
            firing = einsum(keys[rows], u.to(keys), "row pos d_mlp, row d_mlp -> row pos")
            added = added.index_put((rows,), firing[..., None] * v.to(keys)[:, None])
        for its_rows, edit in dense:
            added = added.index_put((its_rows,), edit.addition(keys[its_rows]))
        return added

    return raw_output_hooks(model, layer, addition)
