"""Hyperparameters of the editors that write many facts at once. The defaults are the originals'.

Each config holds a :class:`RomeConfig` for the optimisation of the values, which is the same for
all of them. ``value.ridge`` is added to ``C`` where a method inverts it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rome_lens.arguments import one_of, real_number
from rome_lens.editing.config import RomeConfig
from rome_lens.errors import ArgumentError

KeyMean = Literal["grouped", "plain"]
Relaxed = Literal["several", "always", "never"]
Method = Literal["MEMIT", "EMMET", "AlphaEdit"]

_VALUE = RomeConfig(clamp=0.75)


@dataclass(frozen=True, kw_only=True)
class MassConfig:
    """What MEMIT, EMMET and AlphaEdit have in common.

    Raises:
        ArgumentError: a hyperparameter is of another kind, or is out of range.
    """

    value: RomeConfig = _VALUE
    """Hyperparameters of the optimisation of each fact's value, with the originals' clamp of 0.75.

    Norms are those of the block's output, not of the MLP's output as in ROME.
    """
    key_mean: KeyMean = "grouped"
    """How a fact's key is averaged over its contexts.

    ``"grouped"`` is the originals' code: the mean over the contexts with a prefix, and then the
    mean of that and the bare prompt. So the bare prompt has the weight 1/2. ``"plain"`` is the mean
    over all contexts, as the papers describe it.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.value, RomeConfig):
            raise ArgumentError(
                f"value is {self.value!r}, expected a RomeConfig, such as RomeConfig(clamp=0.75)."
            )
        one_of("key_mean", self.key_mean, KeyMean)

    def _check_numbers(self, *names: str, above_zero: bool = False) -> None:
        for name in names:
            number = real_number(name, getattr(self, name), least=0.0, finite=True)
            object.__setattr__(self, name, number)
            if above_zero and not number > 0.0:
                raise ArgumentError(f"{name} is {number}, expected a finite number above 0.")


@dataclass(frozen=True, kw_only=True)
class MemitConfig(MassConfig):
    """Hyperparameters of :func:`rome_lens.memit`."""

    statistics_weight: float = 20000.0
    """``w``, the weight of ``C`` compared with one edited key. The default is that for GPT-2 XL.

    It is ``lambda`` in the paper, and ``mom2_update_weight`` in its code. A narrower model needs a
    smaller one, because its keys are shorter.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers("statistics_weight", above_zero=True)


@dataclass(frozen=True, kw_only=True)
class EmmetConfig(MassConfig):
    """Hyperparameters of :func:`rome_lens.emmet`."""

    statistics_weight: float = 1000.0
    """``w``, the weight of ``C``. It matters only together with one of the two below."""
    relaxation: float = 0.1
    """``mu``: how far the equality ``k_i dW = r_i`` is relaxed. ``emmet_lambda`` in the code."""
    relaxed: Relaxed = "several"
    """When the equality is relaxed.

    ``"several"`` is the original's code: only for more than one fact, so a batch of one differs in
    kind from a batch of two. ``"never"`` is the paper's form, where the equality is exact. It needs
    keys that do not depend on each other. ``"always"`` treats one fact like several.
    """
    identity_weight: float = 0.0
    """Weight of ``||dW||^2`` in the objective. ``update_norm_lambda`` in the code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers("statistics_weight", above_zero=True)
        self._check_numbers("relaxation", "identity_weight")
        one_of("relaxed", self.relaxed, Relaxed)

    def relaxation_of(self, facts: int) -> float:
        """``mu`` for a batch of this many facts."""
        applies = self.relaxed == "always" or (self.relaxed == "several" and facts > 1)
        return self.relaxation if applies else 0.0


@dataclass(frozen=True, kw_only=True)
class AlphaEditConfig(MassConfig):
    """Hyperparameters of :func:`rome_lens.alphaedit`."""

    threshold: float = 2e-2
    """Eigenvalues of ``C`` below this number count as zero. ``C`` is a mean over tokens."""
    l2: float = 10.0
    """Weight of ``||dW||^2``. The default is that of the code for GPT-2 XL, Llama and GPT-J.

    The paper's closed form has the identity in its place, which is ``l2=1.0``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers("threshold", "l2", above_zero=True)


CONFIGS: Mapping[Method, type[MassConfig]] = {
    "MEMIT": MemitConfig,
    "EMMET": EmmetConfig,
    "AlphaEdit": AlphaEditConfig,
}
"""The class of each method's config."""
