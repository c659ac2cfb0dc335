"""The hyperparameters of ROME."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import one_of, real_number, whole_number
from rome_lens.errors import ArgumentError

Variant = Literal["rome", "r-rome"]
Norms = Literal["plain", "centred"]


@dataclass(frozen=True, kw_only=True)
class RomeConfig:
    """Hyperparameters of an edit; the defaults are the original's (Meng et al. 2022, appendix E.5).

    Attributes:
        steps, lr: Adam steps (the last one only scores) and their rate.
        weight_decay: factor of ``||delta|| / ||v_0||^2``.
        clamp: bound on ``||delta|| / ||v_0||``.
        kl_factor: factor of the KL divergence at the subject of ``"{subject} is a"``.
        stop_loss: stop when the whole loss is below it.
        stop_probability: stop when the new target's probability, as in :class:`RankOneEdit`, is above it; None, as the
            original, does not look at it. Going on to 0.99 and more is what makes an edited model say the new target
            louder than it ever said anything (over-optimisation).
        ridge: added to ``C`` as ``ridge * mean(diag C) * I``; 0 inverts ``C`` itself.
        norms: ``"plain"``, the original's ``||x||``, which a shift of ``W_out``'s output by a constant changes though it
            changes nothing that the model says; ``"centred"``, ``||x - mean(x)||``, which does not change, so that
            models with LayerNorm are edited alike before and after TransformerLens' weight processing.
    """

    steps: int = 20
    lr: float = 0.5
    weight_decay: float = 0.5
    clamp: float = 4.0
    kl_factor: float = 0.0625
    stop_loss: float = 0.05
    stop_probability: float | None = None
    ridge: float = 0.0
    norms: Norms = "plain"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole_number("steps", self.steps))
        for name in ("lr", "weight_decay", "clamp", "kl_factor", "stop_loss", "ridge"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        if self.stop_probability is not None:
            object.__setattr__(
                self, "stop_probability", real_number("stop_probability", self.stop_probability)
            )
        if self.stop_probability is not None and not 0.0 < self.stop_probability < 1.0:
            raise ArgumentError(
                f"stop_probability is {self.stop_probability}, expected a number between 0 and 1, or None."
            )
        factors = (self.weight_decay, self.kl_factor, self.ridge)
        finite = all(0 <= factor < math.inf for factor in factors) and 0 < self.lr < math.inf
        if not (self.steps >= 1 and self.clamp > 0 and finite):
            raise ArgumentError(
                f"Expected steps >= 1, lr and clamp > 0, factors >= 0, all but clamp finite; got {self}."
            )
        one_of("norms", self.norms, Norms)

    def norm(self, vector: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
        """``||x||`` or ``||x - mean(x)||``."""
        return vector.norm() if self.norms == "plain" else (vector - vector.mean()).norm()
