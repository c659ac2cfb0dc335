"""One step of Adam, and the error for an optimisation that diverges."""

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import RomeLensError


class OptimisationError(RomeLensError):
    """The optimisation of an edit diverged: a loss or a vector is no longer finite."""


def overflow_error(step: int) -> OptimisationError:
    """The error for a ``delta`` that is not finite at a step."""
    return OptimisationError(f"||delta|| is not finite at step {step}: lower lr.")


def gradient_of(
    loss: Float[Tensor, ""], delta: Float[Tensor, "*shape"], *, scale: float = 1.0
) -> Float[Tensor, "*shape"]:
    """The gradient of ``loss`` with respect to ``delta``.

    Args:
        scale: factor of the loss during the backward pass alone. A large one keeps float16's small
            gradients from becoming zero.
    """
    (gradient,) = torch.autograd.grad(scale * loss, [delta])
    return gradient / scale


def adam_step(
    optimiser: torch.optim.Adam,
    delta: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    step: int,
) -> None:
    """Move ``delta`` along the gradient of its loss, to where the given step reads it.

    Afterwards ``delta`` may overflow its type. The caller checks its norm, before any clamp: a
    clamp divides by an infinite norm and leaves zero.

    Raises:
        OptimisationError: the type cannot hold the size of the step.
    """
    delta.grad = gradient
    try:
        optimiser.step()
    except RuntimeError as error:  # raised by torch for a step size that the type cannot hold
        if "overflow" not in str(error):
            raise
        raise overflow_error(step) from error
