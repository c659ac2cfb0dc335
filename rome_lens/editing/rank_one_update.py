"""The update ``W_out + u v^T`` that maps a key to a value and disturbs other keys the least.

With ``C = E[k k^T]``, the second moment of the layer's keys, the solution is

    u = C^-1 k / ||C^-1 k||
    v = (v* - (k* W_out + b_out)) / (u . k*)

``u`` points where ``k`` is unlike other keys, and ``v`` closes the gap between what ``W_out`` gives
for ``k*`` and what it should give.

Source: Meng et al. 2022, section 3.1 (equation 2).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.optimiser import OptimisationError


def update_vectors(
    solved: Float[Tensor, " d_mlp"],
    *,
    key: Float[Tensor, " d_mlp"],
    value: Float[Tensor, " d_model"],
    output: Float[Tensor, " d_model"],
) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, " d_model"]]:
    """``u`` and ``v`` of the update.

    Args:
        solved: ``C^-1 k``, on any device and in any precision.
        key: ``k*``, which the edited ``W_out`` maps to the value.
        value: ``v*``.
        output: ``k* W_out + b_out`` before the edit.

    Raises:
        OptimisationError: ``u`` or ``v`` is not finite.
    """
    u = (solved / solved.norm()).to(key)
    v = (value - output) / (key @ u)
    # The norm too: it overflows where v could still be written, but not be computed with.
    if not (torch.isfinite(u).all() and torch.isfinite(v.norm())):
        raise OptimisationError(
            f"u or v is not finite: u . k* is {float(key @ u):.2g} and ||k*|| is "
            f"{float(key.norm()):.2g}. Try another layer, or statistics with a ridge "
            "(RomeConfig(ridge=1e-3))."
        )
    return u, v
