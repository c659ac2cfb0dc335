"""One step of Adam, and the error for an optimisation that diverges."""

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import RomeLensError


class OptimisationError(RomeLensError):
    """The optimisation of an edit diverged: a loss or a vector is no longer finite."""


def adam_step(
    optimiser: torch.optim.Adam, delta: Tensor, loss: Float[Tensor, ""], step: int
) -> None:
    """Move ``delta`` along the gradient of ``loss``, to where the given step reads it.

    Raises:
        OptimisationError: ``delta`` overflows its type. A clamp afterwards would hide that, because
            it divides by an infinite norm and leaves zero.
    """
    (delta.grad,) = torch.autograd.grad(loss, [delta])
    overflow = f"||delta|| is not finite at step {step}: lower lr."
    try:
        optimiser.step()
    except RuntimeError as error:  # raised by torch for a step size that the type cannot hold
        if "overflow" not in str(error):
            raise
        raise OptimisationError(overflow) from error
    if not torch.isfinite(delta.detach().norm()):
        raise OptimisationError(overflow)
