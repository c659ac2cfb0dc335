"""The update of one layer that writes many facts, from their keys and residuals.

MEMIT, EMMET and AlphaEdit choose the ``dW`` that minimises

    sum_i ||k_i dW - r_i||^2   +   what else they want to keep

Written with the keys as the rows of ``K`` and the residuals as those of ``R``, all three updates
have one form,

    dW = S K^T (K S K^T + c I)^-1 R

and differ in ``S`` and ``c`` only:

=========  =========================  ============================================================
method     ``S``                      ``c``
=========  =========================  ============================================================
MEMIT      ``C^-1``                   ``w``
EMMET      ``(w C + m I)^-1``         0, or ``mu`` where the equality ``K dW = R`` is relaxed
AlphaEdit  ``P``, the projection on   ``l2``; the rows of ``K`` then include the keys edited before,
           the null space of ``C``    with residuals of zero
=========  =========================  ============================================================

So MEMIT is EMMET with ``mu = 1``. The matrix in parentheses has a row for each fact, not for each
of ``d_mlp`` entries, and is symmetric. It is solved in float64 in every case.

For MEMIT it follows from ``(w C + K^T K)^-1 K^T = C^-1 K^T (w I + K C^-1 K^T)^-1``.

Sources: Meng et al. 2023, "Mass-Editing Memory in a Transformer", section 4.2; Gupta et al. 2024,
"A Unified Framework for Model Editing"; Fang et al. 2025, "AlphaEdit", section 3.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.optimiser import OptimisationError


@dataclass(frozen=True, kw_only=True)
class Solved:
    """The factor of an update that depends on the keys alone: ``dW = adjusted.T @ R``."""

    adjusted: Float[Tensor, "fact d_mlp"]
    """``(K S K^T + c I)^-1 K S``, in float64."""
    condition: float
    """The condition number of ``K S K^T + c I``."""


def adjusted_keys(
    keys: Float[Tensor, "row d_mlp"],
    spread: Float[Tensor, "row d_mlp"],
    ridge: float,
    *,
    facts: int,
) -> Solved:
    """The first ``facts`` rows of ``(K S K^T + c I)^-1 K S``.

    Args:
        keys: ``K``, in float64.
        spread: ``K S``.
        ridge: ``c``.
        facts: how many of the rows have a residual. The others are kept where they are.

    Raises:
        OptimisationError: the matrix is singular up to rounding.
    """
    gram = keys @ spread.T
    gram = (gram + gram.T) / 2 + ridge * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
    eigenvalues = torch.linalg.eigvalsh(gram)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    condition = largest / smallest if smallest > 0.0 else math.inf
    if not condition < 1.0 / (len(keys) * torch.finfo(keys.dtype).eps):
        raise OptimisationError(
            f"The {len(keys)} keys of the batch depend on each other: the matrix that the update "
            f"inverts has the condition number {condition:.2g}. Several facts of one subject have "
            "nearly one key. Edit them in different batches, or relax the equality (EmmetConfig("
            "relaxed='several', relaxation=0.1))."
        )
    solved = torch.cholesky_solve(spread, torch.linalg.cholesky(gram))
    return Solved(adjusted=solved[:facts], condition=condition)
