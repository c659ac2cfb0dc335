"""Simulated coverage of the intervals, on data of the shapes that averages over facts have.

The facts are in relations of different sizes. Facts of a relation resemble each other: a part
``rho`` of their variance is the relation's.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy
import torch

from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST, average, half_width, share

Draw = Callable[[np.random.Generator, np.ndarray, int], np.ndarray]

AT_LEAST = 0.93
FACTS_AND_RELATIONS = [(12, 8), (12, 12), (30, 8), (30, 15), (120, 8), (120, 15)]
# For intervals that are computed one draw at a time.
FEWER = [(12, 8), (30, 15), (120, 8)]


def relations(facts: int, count: int) -> np.ndarray:
    """The relation of each fact. Some relations have several times as many facts as others."""
    generator = np.random.default_rng(facts + count)
    sizes = 1 + generator.multinomial(facts - count, generator.dirichlet(np.full(count, 2.0)))
    return np.repeat(np.arange(count), sizes)


def mixed(draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray], rho: float) -> Draw:
    """A draw for each relation plus a draw for each fact, with means of zero."""

    def drawn(generator: np.random.Generator, of: np.ndarray, times: int) -> np.ndarray:
        own = draw(generator, (times, len(of)))
        shared = draw(generator, (times, of.max() + 1))[:, of]
        return math.sqrt(rho) * shared + math.sqrt(1.0 - rho) * own

    return drawn


def normal(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return generator.standard_normal(shape)


def skewed(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return generator.standard_exponential(shape) - 1.0


def mostly_zero(generator: np.random.Generator, of: np.ndarray, times: int) -> np.ndarray:
    """The share that is kept of an effect: zero for two facts of three, and skewed otherwise."""
    kept = generator.beta(1.5, 3.0, (times, of.max() + 1))[:, of] > generator.random(
        (times, len(of))
    )
    return np.where(kept, generator.beta(1.0, 1.5, kept.shape), 0.0) - (1.5 / 4.5) / 2.5


def ones(p: float, rho: float) -> Draw:
    """Successes with a probability of each relation's own, ``p`` on average."""

    def drawn(generator: np.random.Generator, of: np.ndarray, times: int) -> np.ndarray:
        weight = 1.0 / rho - 1.0
        own = generator.beta(p * weight, (1.0 - p) * weight, (times, of.max() + 1))[:, of]
        return (generator.random(own.shape) < own).astype(np.float64)

    return drawn


def coverage_of_means(draw: Draw, of: np.ndarray, times: int = 4000) -> float:
    """How often the interval of the mean holds zero."""
    samples = torch.from_numpy(draw(np.random.default_rng(0), of, times).T.copy())
    half = half_width(samples, of.tolist())
    return float((samples.mean(0).abs() <= half).double().mean())


@pytest.mark.parametrize(("facts", "count"), FACTS_AND_RELATIONS)
@pytest.mark.parametrize(
    "draw",
    [mixed(normal, 0.0), mixed(normal, 0.3), mixed(normal, 0.7), mixed(skewed, 0.3)],
    ids=["independent", "clustered", "much clustered", "skewed"],
)
def test_intervals_of_means_hold(draw: Draw, facts: int, count: int) -> None:
    assert coverage_of_means(draw, relations(facts, count)) >= AT_LEAST


@pytest.mark.parametrize(("facts", "count"), FEWER)
def test_where_most_values_are_zero_an_interval_holds_or_is_not_given(
    facts: int, count: int
) -> None:
    of = relations(facts, count)
    draws = mostly_zero(np.random.default_rng(1), of, 1000)
    found = [average(values, of.tolist()) for values in draws.tolist()]
    given = [each.low <= 0.0 <= each.high for each in found if each.low is not None]
    assert len(given) >= 200
    assert np.mean(given) >= AT_LEAST
    for each, values in zip(found, draws, strict=True):
        if each.low is None:
            assert len(set(of[values != draws.min()])) < FEWEST


@pytest.mark.parametrize(("facts", "count"), FEWER)
@pytest.mark.parametrize("p", [0.03, 0.1, 0.9])
@pytest.mark.parametrize("rho", [1e-6, 0.3])
def test_intervals_of_shares_hold_for_few_ones_among_zeros(
    rho: float, p: float, facts: int, count: int
) -> None:
    of = relations(facts, count)
    draws = ones(p, rho)(np.random.default_rng(2), of, 400)
    found = [share(values, of.tolist()) for values in draws.tolist()]
    held = np.array([each.low <= p <= each.high for each in found])
    varied = np.ptp(draws, axis=1) > 0
    assert held.mean() >= AT_LEAST
    # The intervals of shares of 0 and 1, which are wide, must not make up for the others.
    assert held[varied].mean() >= AT_LEAST


def test_intervals_that_know_no_clusters_do_not_hold() -> None:
    """Student's interval is what the simulation must find wanting, or it would show nothing."""
    of = relations(120, 8)
    samples = torch.from_numpy(mixed(normal, 0.3)(np.random.default_rng(0), of, 4000).T.copy())
    student = scipy.stats.t.ppf(0.975, 119) * samples.std(0) / math.sqrt(120)
    assert float((samples.mean(0).abs() <= student).double().mean()) < 0.6
    few = ones(0.1, 0.3)(np.random.default_rng(2), of, 400)
    student = scipy.stats.t.ppf(0.975, 119) * few.std(1, ddof=1) / math.sqrt(120)
    assert (np.abs(few.mean(1) - 0.1) <= student).mean() < 0.75


def test_without_clusters_the_variance_is_the_plain_one() -> None:
    symmetric = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    expected = scipy.stats.t.ppf(0.975, 4) * float(symmetric.std()) / math.sqrt(5)
    assert float(half_width(symmetric)) == pytest.approx(expected)
    assert float(half_width(symmetric, ["a", "", "b", None, ""])) == pytest.approx(expected)
    # Copies of a value within its cluster say nothing new.
    copied = half_width(symmetric.repeat_interleave(7), [i // 7 for i in range(35)])
    assert float(copied) == pytest.approx(expected)
    skew = half_width(torch.tensor([0.0, 0.0, 0.0, 1.0, 4.0], dtype=torch.float64))
    even = scipy.stats.t.ppf(0.975, 4) * np.std([0, 0, 0, 1, 4], ddof=1) / math.sqrt(5)
    assert float(skew) > 1.1 * even


def test_an_average_says_why_it_has_no_interval() -> None:
    assert str(average([0.0] * 8)) == "0.000 (n = 8, all equal)"
    assert str(share([0.5] * 8)) == "0.500 (n = 8, all equal)"
    few = average([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], ["a", "a", "b", "c", "d", "d"])
    assert str(few) == "3.500 (n = 6 in 4 clusters, too few for an interval)"
    assert str(average([0.0] * 7 + [0.1, 0.2, 0.3])) == "0.060 (n = 10, nearly all equal)"
    assert share([1.0] * 6, list("aabcde")).low == pytest.approx(0.025 ** (1 / 5))
    assert share([1.0] * 6, list("aabbcd")).low is None


def test_there_is_one_cluster_for_each_value() -> None:
    with pytest.raises(ArgumentError, match="clusters has 2 entries, expected one for each of 3"):
        average([1.0, 2.0, 3.0], ["a", "b"])
