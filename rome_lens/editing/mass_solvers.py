"""The update of one layer by each method, prepared from the statistics of the unedited model.

``mass_update.py`` has the equation that the methods share.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.mass_config import AlphaEditConfig, EmmetConfig, MassConfig, MemitConfig
from rome_lens.editing.mass_update import Solved, adjusted_keys
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.keys.statistics import KeyStatistics


class Solver(ABC):
    """The update of one layer."""

    @abstractmethod
    def __call__(
        self, keys: Float[Tensor, "fact d_mlp"], earlier: Float[Tensor, "earlier d_mlp"]
    ) -> Solved:
        """From the keys of the facts, and those that were edited before, both in float64."""

    @abstractmethod
    def check_count(self, facts: int) -> None:
        """Check, before any fact is optimised, that this many can be written in one batch.

        Raises:
            OptimisationError: they cannot, because each is to be mapped exactly.
        """

    @property
    @abstractmethod
    def rank(self) -> int:
        """The dimension of the space of keys in which the update acts."""


@dataclass(frozen=True)
class _Weighted(Solver):
    """MEMIT and EMMET, which weigh other keys by ``C``. Keys edited before do not count."""

    statistics: KeyStatistics
    config: MemitConfig | EmmetConfig

    def __call__(
        self, keys: Float[Tensor, "fact d_mlp"], earlier: Float[Tensor, "earlier d_mlp"]
    ) -> Solved:
        config, facts = self.config, len(keys)
        spread = self.solve(keys)
        if isinstance(config, MemitConfig):
            return adjusted_keys(keys, spread, config.statistics_weight, facts=facts)
        weight = config.statistics_weight
        return adjusted_keys(keys, spread / weight, config.relaxation_of(facts), facts=facts)

    def check_count(self, facts: int) -> None:
        config = self.config
        exact = isinstance(config, EmmetConfig) and not config.relaxation_of(facts)
        if exact and facts > self.rank:
            raise OptimisationError(
                f"The batch has {facts} facts, and keys have {self.rank} entries. So not all of "
                "the facts can be mapped to their targets exactly. Use smaller batches "
                "(batch_size), or relax the equality (EmmetConfig(relaxed='several', "
                "relaxation=0.1))."
            )

    def solve(self, keys: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_mlp"]:
        """``(C + m / w I)^-1 k`` of each key.

        Raises:
            StatisticsError: the matrix is singular.
        """
        ridge = self.config.value.ridge
        if isinstance(self.config, EmmetConfig) and self.config.identity_weight:
            mean = float(self.statistics.moment.diagonal().double().mean())
            ridge += self.config.identity_weight / (self.config.statistics_weight * mean)
        return self.statistics.solve(keys, ridge=ridge)

    @property
    def rank(self) -> int:
        return len(self.statistics.moment)


@dataclass(frozen=True)
class _Projected(Solver):
    """AlphaEdit, which acts only on the keys' part in the null space of ``C``."""

    used: Float[Tensor, "d_mlp used"]
    """Orthonormal directions that other keys use."""
    config: AlphaEditConfig

    def check_count(self, facts: int) -> None:
        """Any number can be written: no key is mapped exactly."""

    def __call__(
        self, keys: Float[Tensor, "fact d_mlp"], earlier: Float[Tensor, "earlier d_mlp"]
    ) -> Solved:
        rows = torch.cat([keys, earlier])
        spread = rows - (rows @ self.used) @ self.used.T
        return adjusted_keys(rows, spread, self.config.l2, facts=len(keys))

    @property
    def rank(self) -> int:
        return self.used.shape[0] - self.used.shape[1]


def solver_of(config: MassConfig, statistics: KeyStatistics) -> Solver:
    """The solver of one layer.

    Raises:
        StatisticsError: ``C`` is singular where it is inverted, or no eigenvalue of ``C`` is below
            AlphaEdit's threshold.
    """
    if isinstance(config, AlphaEditConfig):
        return _Projected(statistics.used_directions(config.threshold), config)
    assert isinstance(config, MemitConfig | EmmetConfig)
    solver = _Weighted(statistics, config)
    # Solved once here, so that a singular C is refused before the long part.
    solver.solve(torch.ones(1, solver.rank, dtype=torch.float64, device="cpu"))
    return solver
