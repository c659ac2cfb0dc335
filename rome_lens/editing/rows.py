"""Another edit, or none, in each row of a batch, all in one forward pass."""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import several
from rome_lens.editing.edit import Edit, LayerEdit, as_edits
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import raw_output_hooks
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel, w_out


@visits_model
def row_hooks(model: LensModel, edits: Sequence[Edit | None]) -> list[Hook]:
    """Hooks that run row ``i`` of a batch with ``edits[i]``, or without an edit where it is None.

        raw output of W_out, row i  +=  k_i delta_i,   delta_i = u_i v_i^T for a rank-one edit

    One forward pass can therefore compare before and after, with ``[None, edit]`` on the same
    tokens twice, or many edits. Rows without an edit equal those of the same batch run without
    hooks, bit for bit. The edits may be at different layers. Lists of hooks can be added together,
    and each row then has all its edits.

    Args:
        model: the model on which the edits were made.
        edits: an edit or None for each row of the batch.

    Raises:
        ArgumentError: there is no entry. The hooks raise it too, if the batch has another number of
            rows.
        ModelError, ArgumentError: see :meth:`Edit.check_addition`.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.data.records(known_by="toy")[0].fact
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, fact, layer=2, statistics=identity, contexts=["{}"])
        >>> hooks = rl.row_hooks(model, [None, edit])
        >>> tokens = model.to_tokens(fact.text).repeat(2, 1)
        >>> logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        >>> [model.to_string(row[-1].argmax()) for row in logits]
        [' Pralec', ' Ondavel']
    """
    if not (edits := several("edits", edits, "a list with an edit, or None, for each row")):
        raise ArgumentError(
            "edits is empty, expected one edit, or None, for each row of the batch."
        )
    distinct = {id(edit): edit for edit in edits if edit is not None}
    for edit in as_edits(list(distinct.values())) if distinct else ():
        edit.check_addition(model)
    hooks = []
    for turn in zip_longest(*(() if edit is None else edit.parts for edit in edits)):
        for layer in sorted({part.layer for part in turn if part is not None}):
            here = [part if part is not None and part.layer == layer else None for part in turn]
            hooks += _hooks_at(model, layer, here)
    return hooks


def _hooks_at(model: LensModel, layer: int, edits: Sequence[LayerEdit | None]) -> list[Hook]:
    """The hooks of one layer: rank-one edits stacked, each dense edit on all its rows at once."""
    weight = w_out(model, layer)
    d_model = weight.shape[1]
    rank_one = {row: edit for row, edit in enumerate(edits) if isinstance(edit, RankOneEdit)}
    rows = torch.tensor(list(rank_one), dtype=torch.long, device=weight.device)
    u = torch.stack([edit.u.to(weight) for edit in rank_one.values()]) if rank_one else None
    v = torch.stack([edit.v.to(weight) for edit in rank_one.values()]) if rank_one else None
    others = [edit for row, edit in enumerate(edits) if edit is not None and row not in rank_one]
    dense = [
        (
            torch.tensor(
                [row for row, each in enumerate(edits) if each is edit],
                dtype=torch.long,
                device=weight.device,
            ),
            edit,
        )
        for edit in {id(edit): edit for edit in others}.values()
    ]

    def addition(keys: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos d_model"]:
        if len(keys) != len(edits):
            raise ArgumentError(
                f"The batch has {len(keys)} rows, row_hooks was given {len(edits)} edits: give an "
                "edit or None for each row."
            )
        added = keys.new_zeros(*keys.shape[:2], d_model)
        if u is not None and v is not None:
            firing = einsum(keys[rows], u.to(keys), "row pos d_mlp, row d_mlp -> row pos")
            added = added.index_put((rows,), firing[..., None] * v.to(keys)[:, None])
        for its_rows, edit in dense:
            added = added.index_put((its_rows,), edit.addition(keys[its_rows]))
        return added

    return raw_output_hooks(model, layer, addition)
