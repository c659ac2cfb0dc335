"""What a run keeps for later positions: the keys and values of its attention.

Attention's keys and values are called ``attn_k`` and ``attn_v``, because key and value are ROME's
words.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerPast:
    """What one layer's attention reads of the positions that precede those being run."""

    attn_k: Float[Tensor, "row pos head d_head"]
    """Attention's keys at those positions."""
    attn_v: Float[Tensor, "row pos head d_head"]
    """Attention's values at those positions."""


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

    def at(self, layer: int, *, before: int, rows: Int[Tensor, " row"]) -> LayerPast:
        """One layer's past at positions before ``before``, for chosen rows, which may repeat."""
        return LayerPast(
            attn_k=self.attn_k[layer][rows, :before], attn_v=self.attn_v[layer][rows, :before]
        )
