"""One step of Adam, and what happens when an optimisation leaves the finite numbers."""

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import RomeLensError


class OptimisationError(RomeLensError):
    """The optimisation of the value left the finite numbers."""


def adam_step(
    optimiser: torch.optim.Adam, delta: Tensor, loss: Float[Tensor, ""], step: int
) -> None:
    """Move ``delta`` to where the given step is to find it.

    Raises:
        OptimisationError: it went past the numbers that its type holds, where a clamp would make it nothing.
    """
    (delta.grad,) = torch.autograd.grad(loss, [delta])
    overflow = f"||delta|| is not finite at step {step}: lower lr."
    try:
        optimiser.step()
    except RuntimeError as error:  # torch's own, for a step size that the type cannot hold
        if "overflow" not in str(error):
            raise
        raise OptimisationError(overflow) from error
    if not torch.isfinite(delta.detach().norm()):
        raise OptimisationError(overflow)
