"""What a run keeps for later positions: the keys and values of its attention.

Attention's keys and values are called ``attn_k`` and ``attn_v``, because key and value are ROME's
words.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rome_lens.forward.memory import on_device


@dataclass(frozen=True, kw_only=True)
class LayerPast:
    """What one layer's attention reads of the positions that precede those being run."""

    attn_k: Float[Tensor, "row pos head d_head"]
    """Attention's keys at those positions."""
    attn_v: Float[Tensor, "row pos head d_head"]
    """Attention's values at those positions."""
    lengths: Int[Tensor, " row"] | None = None
    """How many of the positions are a row's own, if rows have different numbers of them.

    These are the last positions of the row. The ones before them are padding. None means that all
    positions are every row's own.
    """

    def rows(self, rows: Int[Tensor, " row"]) -> "LayerPast":
        """The past of some rows."""
        rows = on_device(rows, self.attn_k.device)
        return LayerPast(
            attn_k=self.attn_k[rows],
            attn_v=self.attn_v[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
        )

    def positions(self, later: int) -> Int[Tensor, "row later"]:
        """The position of each token that is run in its own row, for ``later`` tokens per row.

        Only for a past with ``lengths``.
        """
        assert self.lengths is not None
        return self.lengths[:, None] + torch.arange(later, device=self.lengths.device)

    def own(self) -> Bool[Tensor, "row pos"]:
        """Which of the past positions are a row's own, for a past with ``lengths``."""
        assert self.lengths is not None
        width = self.attn_k.shape[1]
        return torch.arange(width, device=self.lengths.device) >= width - self.lengths[:, None]


@dataclass(frozen=True, kw_only=True)
class Past:
    """The attention keys and values of a whole run.

    In a causal model, a change at later positions does not change what those positions read of
    earlier ones.
    """

    attn_k: tuple[Tensor, ...]
    """Attention's keys ``[row, pos, head, d_head]``, one tensor for each layer."""
    attn_v: tuple[Tensor, ...]
    """Attention's values, laid out in the same way."""

    def at(
        self, layer: int, *, before: int | Int[Tensor, " row"], rows: Int[Tensor, " row"]
    ) -> LayerPast:
        """One layer's past at positions before ``before``, for chosen rows, which may repeat.

        ``before`` may be another position for each of the rows.
        """
        attn_k, attn_v = self.attn_k[layer], self.attn_v[layer]
        rows = on_device(rows, attn_k.device)
        if isinstance(before, int):
            return LayerPast(attn_k=attn_k[rows, :before], attn_v=attn_v[rows, :before])
        width = int(before.max())
        lengths = on_device(before, attn_k.device)
        positions = torch.arange(width, device=attn_k.device) - width + lengths[:, None]
        at = (rows[:, None], positions.clamp(min=0))
        return LayerPast(attn_k=attn_k[at], attn_v=attn_v[at], lengths=lengths)
