"""Averages with their 95 % intervals."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

FEWEST = 5


@dataclass(frozen=True, kw_only=True)
class Average:
    """A mean over ``count`` values with its 95 % interval; ``low`` and ``high`` are None below five values."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.3f} (n = {self.count}, too few for an interval)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def average(values: list[float]) -> Average:
    """Mean and Student-t 95 % interval of independent values.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("There is no value to average.")
    mean = math.fsum(values) / len(values)
    if len(values) < FEWEST:
        return Average(mean=mean, low=None, high=None, count=len(values))
    half = float(half_width(torch.tensor(values, dtype=torch.float64)))
    return Average(mean=mean, low=mean - half, high=mean + half, count=len(values))


def half_width(samples: Float[Tensor, "sample *shape"]) -> Float[Tensor, "*shape"]:
    """Half the width of the 95 % interval of the mean over the first axis: ``t_{0.975, n-1} s / sqrt(n)``; NaN for n = 1."""
    count = samples.shape[0]
    if count == 1:
        return torch.full(samples.shape[1:], math.nan, dtype=samples.dtype)
    return float(stats.t.ppf(0.975, count - 1)) * samples.std(0) / math.sqrt(count)
