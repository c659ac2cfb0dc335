"""Averages with 95 % intervals, and rank correlations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import ArgumentError

FEWEST = 5
"""Below this number of values there is no interval and no correlation."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """A mean with its 95 % interval."""

    mean: float
    """The mean of the values."""
    low: float | None
    """Lower end of the interval; None for fewer than five values."""
    high: float | None
    """Upper end of the interval; None for fewer than five values."""
    count: int
    """The number of values."""

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.3f} (n = {self.count}, too few for an interval)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def average(values: list[float]) -> Average:
    """The mean of independent values with its Student-t 95 % interval.

    Raises:
        ArgumentError: ``values`` is empty.
    """
    if not values:
        raise ArgumentError("There are no values to average: give at least one.")
    mean = math.fsum(values) / len(values)
    if len(values) < FEWEST:
        return Average(mean=mean, low=None, high=None, count=len(values))
    half = float(half_width(torch.tensor(values, dtype=torch.float64, device="cpu")))
    return Average(mean=mean, low=mean - half, high=mean + half, count=len(values))


def half_width(samples: Float[Tensor, "sample *shape"]) -> Float[Tensor, "*shape"]:
    """Half the width of the mean's 95 % interval: ``t_{0.975, n-1} s / sqrt(n)``.

    The samples lie along the first axis. The result is NaN for a single sample.
    """
    count = samples.shape[0]
    if count == 1:
        return samples.new_full(samples.shape[1:], math.nan)
    return float(scipy.stats.t.ppf(0.975, count - 1)) * samples.std(0) / math.sqrt(count)


def share(values: list[float]) -> Average:
    """The mean of independent values between 0 and 1, such as successes, with its 95 % interval.

    Two ones and two zeros are added to the values for the Student-t interval, which is then clipped
    to [0, 1]. Without them the interval of values that all agree would have no width. The mean is
    that of the given values alone.

    Raises:
        ArgumentError: ``values`` is empty, or holds a value outside [0, 1].

    Source: Agresti and Coull 1998, "plus four" (for successes).
    """
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ArgumentError(f"Expected values between 0 and 1, got {min(values)} to {max(values)}.")
    plain = average(values)
    if plain.low is None:
        return plain
    adjusted = average([*values, 0.0, 0.0, 1.0, 1.0])
    assert adjusted.low is not None
    assert adjusted.high is not None
    low, high = min(plain.mean, max(0.0, adjusted.low)), max(plain.mean, min(1.0, adjusted.high))
    return Average(mean=plain.mean, low=low, high=high, count=plain.count)


def average_correlation(values: list[float]) -> Average | None:
    """The mean of correlations, with an interval clipped to [-1, 1]; None for an empty list."""
    if not values:
        return None
    plain = average(values)
    if plain.low is None or plain.high is None:
        return plain
    return replace(plain, low=max(-1.0, plain.low), high=min(1.0, plain.high))


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; None for fewer than five pairs, or if one side is constant."""
    if len(pairs) < FEWEST:
        return None
    first, second = zip(*pairs, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(scipy.stats.spearmanr(first, second).statistic)
