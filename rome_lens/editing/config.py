"""The options of an edit: the hyperparameters of ROME, and the ``Literal`` types of its choices."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import one_of, real_number, whole_number
from rome_lens.errors import ArgumentError

Variant = Literal["rome", "r-rome"]
Norms = Literal["plain", "centred"]
Stop = Literal["matched"]
Site = Literal["mlp", "block"]
Stopped = Literal["loss", "probability", "matched", "steps"]


@dataclass(frozen=True, kw_only=True)
class RomeConfig:
    """Hyperparameters of a ROME edit. The defaults are the original's.

    In the fields below, ``delta = v* - v_0`` is the change of the value that the optimisation
    searches for, and ``v_0`` is the value before the edit.

    Raises:
        ArgumentError: a hyperparameter is not a number, or is out of range.

    Source: Meng et al. 2022, appendix E.5.
    """

    steps: int = 20
    """Maximum number of Adam steps. The last step only computes the loss and moves nothing."""
    lr: float = 0.5
    """Learning rate of Adam."""
    weight_decay: float = 0.5
    """Factor of ``||delta|| / ||v_0||^2`` in the loss."""
    clamp: float = 4.0
    """Upper bound on ``||delta|| / ||v_0||``. It may be infinite."""
    kl_factor: float = 0.0625
    """Factor of the KL divergence at the subject of ``"{subject} is a"``."""
    stop_loss: float = 0.05
    """Stop when the whole loss is below this number."""
    stop_probability: float | None = None
    """Stop when the new target's probability (see :class:`RankOneEdit`) is above this number.

    None never stops for this reason, as in the original. An optimisation that continues to a
    probability of 0.99 and more makes the edited model more confident in the new target than it
    ever was in any answer (over-optimisation).
    """
    stop: Stop | None = None
    """``"matched"`` stops at the first step at which the new target is as likely as the true one
    was in the unedited model.

    Both are probabilities of whole answers, averaged over the contexts. Such an edit is a reference
    for over-optimisation (:func:`rome_lens.checks.overfit`): at the fact's own prompt it is as
    confident as the model was, so what it is over by elsewhere is no matter of a late stop. A step
    of Adam is large, so the first one that reaches the probability may exceed it: a lower ``lr``
    with more ``steps`` comes closer. ``stop_loss`` still applies. This cannot be combined with
    ``stop_probability``, which is the same for every fact.
    """
    ridge: float = 0.0
    """Add ``ridge * mean(diag C) * I`` to ``C``. With 0, ``C`` itself is inverted."""
    norms: Norms = "plain"
    """Which norm the clamp and the weight decay use.

    ``"plain"`` is the original's ``||x||``. A constant shift of ``W_out``'s output changes it, even
    where that shift changes no answer of the model. ``"centred"`` is ``||x - mean(x)||``, which
    such a shift does not change. With it, a model with LayerNorm gets the same edit before and
    after TransformerLens' weight processing.
    """
    lookup: int = -1
    """Which of the subject's tokens is the lookup position, counted back from the last, -1.

    The key is read there and the value is written there. The original looks up the last token. The
    position that a trace finds is another one for some facts, such as " Eiffel" (-2) of "The Eiffel
    Tower".
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole_number("steps", self.steps, least=1))
        object.__setattr__(self, "lookup", whole_number("lookup", self.lookup, most=-1))
        for name in ("lr", "weight_decay", "clamp", "kl_factor", "stop_loss", "ridge"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        if self.stop_probability is not None:
            probability = real_number("stop_probability", self.stop_probability)
            object.__setattr__(self, "stop_probability", probability)
            if not 0.0 < probability < 1.0:
                raise ArgumentError(
                    f"stop_probability is {probability}, expected a number between 0 and 1, or "
                    "None."
                )
        for name in ("weight_decay", "kl_factor", "ridge"):
            real_number(name, getattr(self, name), least=0.0, finite=True)
        if not 0.0 < self.lr < math.inf:
            raise ArgumentError(f"lr is {self.lr}, expected a finite number above 0.")
        if not self.clamp > 0.0:
            raise ArgumentError(f"clamp is {self.clamp}, expected a number above 0.")
        one_of("norms", self.norms, Norms)
        if self.stop is not None:
            one_of("stop", self.stop, Stop)
            if self.stop_probability is not None:
                raise ArgumentError(
                    f"stop is {self.stop!r} and stop_probability is {self.stop_probability}. Give "
                    "one of the two: the probability at which each optimisation stops is either "
                    "that of the fact's true target or a fixed number."
                )

    def norm(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """``||x||`` of each vector, or ``||x - mean(x)||`` with centred norms."""
        if self.norms == "centred":
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors.norm(dim=-1)
