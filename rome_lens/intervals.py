"""Averages with 95 % intervals, and rank correlations.

Facts of one relation resemble each other, so they are not as many independent values as there are
facts. Every average takes the relation of each value as its cluster. Without clusters each value is
independent of the others. Two things that are measured on the same facts are compared by the
average of their differences.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.errors import ArgumentError

FEWEST = 5
"""Below this number of clusters there is no interval, and below this number of values there is no
correlation."""
Clusters: TypeAlias = Sequence[Hashable] | None
"""The cluster of each value. An empty text or None stands for a cluster of the value's own."""

_LEVEL = 0.975
_NORMAL = float(scipy.special.ndtri(_LEVEL))
# The factor of the squared skewness in the Edgeworth expansion of t's quantile (Hall 1992, section
# 3.4). Three times as much, because few values show less than their distribution's skewness.
_SKEWNESS = 3.0 * _NORMAL * (_NORMAL**4 + 2.0 * _NORMAL**2 - 3.0) / 18.0
_INFLATED = 1 / 3
_FEWEST_SEEN = 3
_SAME = 1e-12
_ALL_EQUAL, _NEARLY_EQUAL, _TOO_FEW = "all equal", "nearly all equal", "too few for an interval"


@dataclass(frozen=True, kw_only=True)
class Average:
    """A mean with its 95 % interval."""

    mean: float
    """The mean of the values."""
    low: float | None
    """Lower end of the interval; None if there is none."""
    high: float | None
    """Upper end of the interval; None if there is none."""
    count: int
    """The number of values."""
    clusters: int | None = None
    """The number of clusters that the values are in; None if each is a cluster of its own."""
    lacks: str = _TOO_FEW
    """Why there is no interval, in words. It says nothing where there is one."""

    def __str__(self) -> str:
        if self.low is None:
            of = f"n = {self.count}"
            if self.clusters is not None:
                of += f" in {self.clusters} cluster" + ("s" if self.clusters != 1 else "")
            return f"{self.mean:.3f} ({of}, {self.lacks})"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def average(values: Sequence[float], clusters: Clusters = None) -> Average:
    """The mean of values with its 95 % interval, robust to the dependence within clusters.

    The interval is that of :func:`half_width`. There is none

    * for fewer than five clusters, which cannot tell how much clusters differ;
    * if all values are equal;
    * if a third of the values or more, in at least three clusters, are one and the same number such
      as zero, and fewer than five clusters have another value ("nearly all equal"). The variance is
      then mostly unseen.

    Args:
        values: the values.
        clusters: the cluster of each value, such as the relation of each fact.

    Raises:
        ArgumentError: ``values`` is empty, or there is not one cluster for each value.
    """
    numbers = _numbers(clusters, len(values))
    mean = math.fsum(values) / len(values)
    plain = _without_interval(mean, numbers)
    if lacks := _why_no_interval(values, numbers):
        return replace(plain, lacks=lacks)
    samples = torch.tensor(values, dtype=torch.float64, device="cpu")
    half = float(half_width(samples, clusters))
    return replace(plain, low=mean - half, high=mean + half)


def half_width(
    samples: Float[Tensor, "sample *shape"], clusters: Clusters = None
) -> Float[Tensor, "*shape"]:
    """Half the width of the mean's 95 % interval, over samples along the first axis.

    With ``n`` samples in clusters ``g`` of ``n_g`` samples, residuals ``e_i = x_i - mean x`` and
    their sums ``S_g`` over clusters:

        half = (t + s) sqrt(V),
        V    = sum_g S_g^2 / (1 - n_g / n) / n^2                      (CR2)
        s    = 3 z (z^4 + 2 z^2 - 3) / 18 (sum_g S_g^3)^2 / (sum_g S_g^2)^3

    ``t`` is Student's 0.975 quantile with Satterthwaite's degrees of freedom of ``V`` for samples
    that agree within a cluster, the case with fewest degrees. ``z`` is the normal quantile, and
    ``s`` widens the interval where the samples are skewed. For samples without clusters,
    ``sqrt(V)`` is the standard error, ``t`` has ``n - 1`` degrees, and only ``s`` departs from
    Student's interval.

    The result is NaN for a single cluster.

    Source: Bell and McCaffrey 2002 (CR2 and its degrees of freedom); Hall 1992, section 3.4
    (skewness). The factor 3 and the case for the degrees were chosen by simulation
    (``tests/house/test_coverage.py``): 12 to 120 facts in 8 to 15 relations are covered in .93 to
    .98. Where most of the variance is between 8 relations and exponentially distributed, it is .92.
    """
    numbers = _numbers(clusters, len(samples))
    sizes = torch.bincount(numbers).double()
    if len(sizes) == 1:
        return samples.new_full(samples.shape[1:], math.nan)
    variance, sums = _variance(samples.double(), numbers, sizes)
    spread = (sums**2).sum(0)
    skewness = torch.where(spread > 0, (sums**3).sum(0) ** 2 / spread**3, 0.0)
    quantile = _student(_degrees(sizes)) + _SKEWNESS * skewness
    return (quantile * variance.sqrt()).to(samples.dtype)


def share(values: Sequence[float], clusters: Clusters = None) -> Average:
    """The mean of values between 0 and 1, such as successes, with its 95 % interval.

    The interval is Clopper and Pearson's exact one for an effective number of values, which is at
    most ``n``: the number of independent successes whose share would vary as much as this mean
    does (:func:`half_width` has the variance and its degrees of freedom). It holds for few ones
    among zeros, where Student's does not.

    If all values are 0, or all are 1, the effective number is that of the clusters. The interval is
    exact then: a cluster without a success has at most the probability ``1 - p``. If the rarer
    value is in one or two clusters only, nothing tells how much it clusters, and the effective
    number is at most that of the clusters, too. There is no interval for fewer than five clusters,
    or if all values are equal to a number other than 0 and 1.

    Raises:
        ArgumentError: ``values`` is empty, holds a value outside [0, 1], or there is not one
            cluster for each value.

    Source: Korn and Graubard 1998.
    """
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ArgumentError(f"Expected values between 0 and 1, got {min(values)} to {max(values)}.")
    numbers = _numbers(clusters, len(values))
    return share_from_influence(math.fsum(values) / len(values), values, clusters, numbers)


def share_from_influence(
    mean: float,
    influence: Sequence[float],
    clusters: Clusters = None,
    numbers: Int[Tensor, " value"] | None = None,
) -> Average:
    """The interval of :func:`share` for a number between 0 and 1 that is not a plain mean.

    Args:
        mean: the number, such as a harmonic mean of means.
        influence: for each fact, how much the number changes with the fact's weight, up to a
            constant. Its mean varies as the number does (the delta method).
        clusters: as for :func:`average`.
    """
    numbers = _numbers(clusters, len(influence)) if numbers is None else numbers
    sizes = torch.bincount(numbers).double()
    plain = _without_interval(mean, numbers)
    if len(sizes) < FEWEST:
        return plain
    count = float(len(influence))
    samples = torch.tensor(influence, dtype=torch.float64, device="cpu")
    variance = float(_variance(samples, numbers, sizes)[0])
    if samples.max() - samples.min() < _SAME:
        if mean not in (0.0, 1.0):
            return replace(plain, lacks=_ALL_EQUAL)
        effective = float(len(sizes))
    else:
        lost = (_student(count - 1.0) / _student(_degrees(sizes))) ** 2
        # One more, so that independent values count as what they are.
        effective = min(count, mean * (1.0 - mean) / variance * lost + 1.0)
        common = samples.min() if mean < 0.5 else samples.max()
        if len(numbers[(samples - common).abs() > _SAME].unique()) < _FEWEST_SEEN:
            effective = min(effective, float(len(sizes)))
    ones, zeros = effective * mean, effective * (1.0 - mean)
    low = 0.0 if ones <= 0.0 else float(scipy.special.betaincinv(ones, zeros + 1.0, 1.0 - _LEVEL))
    high = 1.0 if zeros <= 0.0 else float(scipy.special.betaincinv(ones + 1.0, zeros, _LEVEL))
    return replace(plain, low=min(mean, low), high=max(mean, high))


def cluster_rows(clusters: Clusters, count: int) -> list[list[int]]:
    """The indices of the values of each cluster, for a bootstrap over clusters.

    Raises:
        ArgumentError: ``count`` is 0, or there is not one cluster for each value.
    """
    numbers = _numbers(clusters, count).tolist()
    rows: list[list[int]] = [[] for _ in range(max(numbers) + 1)]
    for i, number in enumerate(numbers):
        rows[number].append(i)
    return rows


def _numbers(clusters: Clusters, count: int) -> Int[Tensor, " value"]:
    """The number of each value's cluster."""
    if not count:
        raise ArgumentError("There are no values to average: give at least one.")
    if clusters is None:
        return torch.arange(count, device="cpu")
    if len(clusters) != count:
        raise ArgumentError(
            f"clusters has {len(clusters)} entries, expected one for each of {count} values."
        )
    own = [(i,) if each in ("", None) else each for i, each in enumerate(clusters)]
    places = {each: i for i, each in enumerate(dict.fromkeys(own))}
    return torch.tensor([places[each] for each in own], dtype=torch.long, device="cpu")


def _without_interval(mean: float, numbers: Int[Tensor, " value"]) -> Average:
    count, clusters = len(numbers), int(numbers.max()) + 1
    return Average(
        mean=mean,
        low=None,
        high=None,
        count=count,
        clusters=None if clusters == count else clusters,
    )


def _why_no_interval(values: Sequence[float], numbers: Int[Tensor, " value"]) -> str | None:
    """Why the mean of the values has no interval; None if it has one."""
    if int(numbers.max()) + 1 < FEWEST:
        return _TOO_FEW
    [(common, often)] = Counter(values).most_common(1)
    if often == len(values):
        return _ALL_EQUAL
    places = [
        (value == common, number) for value, number in zip(values, numbers.tolist(), strict=True)
    ]
    holding, others = (
        {number for same, number in places if same == kind} for kind in (True, False)
    )
    if often >= _INFLATED * len(values) and len(holding) > 2 and len(others) < FEWEST:
        return _NEARLY_EQUAL
    return None


def _variance(
    samples: Float[Tensor, "sample *shape"],
    numbers: Int[Tensor, " sample"],
    sizes: Float[Tensor, " cluster"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "cluster *shape"]]:
    """The variance of the mean, and the sums of residuals over each cluster."""
    residuals = samples - samples.mean(0)
    sums = samples.new_zeros((len(sizes), *samples.shape[1:])).index_add_(0, numbers, residuals)
    weights = (1.0 / (1.0 - sizes / len(samples))).view(-1, *(1 for _ in samples.shape[1:]))
    return (weights * sums**2).sum(0) / len(samples) ** 2, sums


def _degrees(sizes: Float[Tensor, " cluster"]) -> float:
    """Satterthwaite's degrees of freedom of the variance, for samples that agree within a cluster.

    ``V = sum_g (row_g . u)^2`` for the clusters' values ``u``, where ``u`` is independent noise.
    """
    count = sizes.sum()
    rows = torch.diag(sizes) - torch.outer(sizes, sizes) / count
    rows = rows / (1.0 - sizes / count).sqrt()[:, None]
    products = rows @ rows.T
    return float(products.trace() ** 2 / (products**2).sum())


def _student(degrees: float) -> float:
    return float(scipy.special.stdtrit(degrees, _LEVEL))


def average_correlation(values: Sequence[float], clusters: Clusters = None) -> Average | None:
    """The mean of correlations, with an interval clipped to [-1, 1]; None for an empty list."""
    if not values:
        return None
    plain = average(values, clusters)
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
