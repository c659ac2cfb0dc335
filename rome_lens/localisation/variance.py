"""How much of the success of edits the layer explains, and how much tracing adds to it.

Source: Hase et al. 2023, "Does Localization Inform Editing?"
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Bool, Float, Int

from rome_lens.arguments import whole_number
from rome_lens.errors import ArgumentError
from rome_lens.intervals import (
    FEWEST,
    Average,
    Clusters,
    average,
    average_correlation,
    cluster_rows,
    share,
)
from rome_lens.results import Result

SuccessMeasure = Literal["EM", "PM", "NM", "ES", "PS", "NS", "S"]
"""A measure of an edit's success on one record, as :class:`Evaluation` has it."""

NEAR = 0.05
_RESAMPLES = 2000
_EQUAL = 1e-6  # float32 probabilities differ by this much from rounding alone
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, repr=False)
class VarianceExplained(Result):
    """R^2 of edits' success over facts and layers, and how well tracing finds the best layers.

    Each R^2 has a 95 % interval from a bootstrap over relations, because neither the cells of a
    fact nor the facts of a relation are independent. Other intervals are clustered by relation, too
    (:func:`rome_lens.intervals.average`). All R^2 are None where all successes are equal, because
    there is nothing to explain then.
    """

    measure: SuccessMeasure
    """The measure of success."""
    facts: int
    """The number of facts for which the measure is known."""
    layers: int
    """The number of layers."""
    layer: Average | None
    """R^2 of one mean for each layer."""
    effect: Average | None
    """R^2 of one line over the effects."""
    both: Average | None
    """R^2 of one mean for each layer and one slope over the effects."""
    added: Average | None
    """``both - layer``.

    It and its interval are never below zero, whatever the effects. Compare it with ``shuffled``.
    """
    slope: Average | None
    """The slope of the effect in the fit of ``both``. ``added`` does not tell its sign."""
    shuffled: Average | None
    """``added`` with each row of effects given to another fact: mean and 95 % range of shuffles."""
    p_value: float | None
    """``(1 + n) / (1 + shuffles)``, with ``n`` shuffles that add at least as much as ``added``."""
    rank_correlation: Average | None
    """Spearman's correlation over the layers of each fact, averaged over facts.

    Facts whose effects or successes are all equal are left out. It is None if no fact is left.
    """
    traced_near: Average
    """The share of facts whose layer of largest effect succeeds within 0.05 of the best layer."""
    layer_near: Average
    """The same share for the layer with the best mean over all other facts."""
    random_near: Average
    """The same share for a layer drawn at random."""
    traced_minus_layer: Average
    """``traced_near - layer_near``, paired by fact: what a fact's own trace gains."""

    @property
    def reading(self) -> str:
        """The numbers in one sentence."""
        where = f"{self.measure} of {self.facts} facts at {self.layers} layers"
        near = (
            f"the layer with the largest effect comes within {NEAR} of the best one for "
            f"{self.traced_near.mean:.0%} of the facts, the layer that is best on average for "
            f"{self.layer_near.mean:.0%}, and a random one for {self.random_near.mean:.0%}."
        )
        if self.layer is None or self.effect is None or self.added is None or self.shuffled is None:
            return f"{where}: all equal, so there is nothing to explain; {near}"
        return (
            f"{where}: the layer alone explains R^2 = {self.layer}, and the effect alone "
            f"{self.effect}; to the layer, the effect adds {self.added} with slope {self.slope}, "
            f"while effects of other facts add {self.shuffled.mean:.3f} (p = {self.p_value:.3f}); "
            "within a fact, effect and success have a rank correlation of "
            f"{self.rank_correlation or 'none (not defined)'}; {near}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per number: value, 95 % interval, and the number of facts or shuffles.

        A number that is None has empty cells.
        """
        rows = []
        names = [field.name for field in fields(self)]
        for name in [name for name in names if name not in ("measure", "facts", "layers")]:
            value = getattr(self, name)
            cells = (
                (value.mean, value.low, value.high, value.count)
                if isinstance(value, Average)
                else (value,)
            )
            rows.append([self.measure, name, *cells, *[None] * (4 - len(cells))])
        frame = pd.DataFrame(rows, columns=["measure", "number", "value", "low", "high", "count"])
        return frame.astype({"value": float, "low": float, "high": float, "count": "Int64"})


def explain_variance(
    effects: Float[np.ndarray, "fact layer"],
    success: Float[np.ndarray, "fact layer"],
    *,
    measure: SuccessMeasure,
    relations: Clusters = None,
    shuffles: int = 200,
    seed: int = 0,
) -> VarianceExplained:
    """The result of :meth:`LayerSweep.variance_explained`, from arrays.

    Facts whose success has a NaN are left out. ``relations`` holds the relation of each fact.

    Raises:
        ArgumentError: fewer than two facts or layers are left, or ``shuffles`` is below 1.
    """
    known = ~np.isnan(success).any(1)
    effects, success = effects[known].astype(np.float64), success[known].astype(np.float64)
    if relations is not None:
        relations = [each for each, kept in zip(relations, known, strict=True) if kept]
    facts, layers = success.shape
    if facts < 2 or layers < 2:
        raise ArgumentError(
            f"{measure} is known for {facts} facts at {layers} layers, expected at least two of "
            "both: otherwise there is nothing to compare."
        )
    shuffles = whole_number("shuffles", shuffles, least=1)
    seed = whole_number("seed", seed, least=0)
    near = success >= success.max(1, keepdims=True) - NEAR
    others = (success.sum(0) - success) / (facts - 1)
    traced, best = _at(near, effects.argmax(1)), _at(near, others.argmax(1))
    return VarianceExplained(
        measure=measure,
        facts=facts,
        layers=layers,
        rank_correlation=_rank_correlation(effects, success, relations),
        traced_near=share(traced, relations),
        layer_near=share(best, relations),
        random_near=share(near.mean(1).tolist(), relations),
        traced_minus_layer=average([a - b for a, b in zip(traced, best, strict=True)], relations),
        **_regressed(effects, success, relations, shuffles, np.random.default_rng(seed)),
    )


class Regression(NamedTuple):
    """R^2 of success on the layer, the effect and both; what the effect adds, and its slope."""

    layer: float
    effect: float
    both: float
    added: float
    slope: float


def regression(
    effects: Float[np.ndarray, "fact layer"], success: Float[np.ndarray, "fact layer"]
) -> Regression | None:
    """Fit success ``y`` by least squares on the layer and on the effect ``x``.

    The result is None if ``y`` is constant.

    With ``T = sum (y - mean y)^2``, the mean ``mean_l`` over the facts at one layer, and all sums
    over all cells:

        layer   y = a_l          1 - sum (y - mean_l y)^2 / T
        effect  y = a + b x      (sum (x - mean x) (y - mean y))^2 / (sum (x - mean x)^2 T)
        both    y = a_l + b x    layer + added
        added                    (sum (x - mean_l x) (y - mean_l y))^2 / (sum (x - mean_l x)^2 T)

    The last line holds because the best ``a_l`` for a given ``b`` is ``mean_l y - b mean_l x``. An
    effect that varies nowhere has R^2 0. One that does not vary within any layer has slope 0 and
    adds 0.
    """
    if np.ptp(success) <= _EQUAL:
        return None
    total = ((success - success.mean()) ** 2).sum()
    within = success - success.mean(0)
    layer = float(1.0 - (within**2).sum() / total)
    _, alone = _line(effects - effects.mean(), success - success.mean())
    slope, gained = _line(effects - effects.mean(0), within)
    added = gained / total
    return Regression(
        layer=layer, effect=alone / total, both=layer + added, added=added, slope=slope
    )


def _line(
    x: Float[np.ndarray, "fact layer"], y: Float[np.ndarray, "fact layer"]
) -> tuple[float, float]:
    """Fit ``y = b x`` to centred values: ``b``, and the explained sum of squares, ``b sum x y``."""
    if np.ptp(x) <= _EQUAL:
        return 0.0, 0.0
    slope = float((x * y).sum() / (x**2).sum())
    return slope, float(slope * (x * y).sum())


def _regressed(
    effects: Float[np.ndarray, "fact layer"],
    success: Float[np.ndarray, "fact layer"],
    relations: Clusters,
    shuffles: int,
    random: np.random.Generator,
) -> dict[str, Any]:
    """The regression's numbers with intervals, and the control; all None for constant success."""
    fit = regression(effects, success)
    if fit is None:
        return dict.fromkeys((*Regression._fields, "shuffled", "p_value"))
    facts = len(success)
    shuffled = [regression(effects[random.permutation(facts)], success) for _ in range(shuffles)]
    control = np.array([each.added for each in shuffled if each is not None])
    draws = []
    clusters = [np.array(rows) for rows in cluster_rows(relations, facts)]
    count = len(clusters)
    for _ in range(_RESAMPLES if count >= FEWEST else 0):
        some = np.concatenate([clusters[i] for i in random.integers(count, size=count)])
        draws.append(regression(effects[some], success[some]))
    resampled = np.array([each for each in draws if each is not None]).reshape(-1, len(fit))
    return {
        **{
            name: replace(
                _with_range(fit[i], resampled[:, i], facts),
                clusters=None if count == facts else count,
            )
            for i, name in enumerate(Regression._fields)
        },
        "shuffled": _with_range(float(control.mean()), control, shuffles),
        "p_value": float(1 + (control >= fit.added - _ROUNDING).sum()) / (1 + shuffles),
    }


def _with_range(value: float, draws: Float[np.ndarray, " draw"], count: int) -> Average:
    """The value with the 2.5th and the 97.5th percentile of the draws, if there are any."""
    if not len(draws):
        return Average(mean=value, low=None, high=None, count=count)
    low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    return Average(mean=value, low=min(value, low), high=max(value, high), count=count)


def _rank_correlation(
    effects: Float[np.ndarray, "fact layer"],
    success: Float[np.ndarray, "fact layer"],
    relations: Clusters,
) -> Average | None:
    """Spearman's correlation over layers, averaged over facts. The interval is cut to [-1, 1]."""
    correlations = [
        (float(scipy.stats.spearmanr(x, y).statistic), relation)
        for x, y, relation in zip(
            effects, success, [None] * len(effects) if relations is None else relations, strict=True
        )
        if np.ptp(x) > _EQUAL and np.ptp(y) > _EQUAL
    ]
    return average_correlation([each for each, _ in correlations], [of for _, of in correlations])


def _at(near: Bool[np.ndarray, "fact layer"], layers: Int[np.ndarray, " fact"]) -> list[float]:
    """For each fact, 1 if its chosen layer is near the best one."""
    return [float(each) for each in near[np.arange(len(near)), layers]]


def variance_table(rows: Sequence[VarianceExplained]) -> pd.DataFrame:
    """One row per measure of success; the columns say what explains it."""
    return pd.DataFrame(
        {
            "layer": _cell(each.layer),
            "effect": _cell(each.effect),
            "both": _cell(each.both),
            "added": _cell(each.added),
            "slope": _cell(each.slope),
            "added, shuffled": _cell(each.shuffled),
            "p": "none" if each.p_value is None else f"{each.p_value:.3f}",
            "rank correlation": "not defined"
            if each.rank_correlation is None
            else str(each.rank_correlation),
            "near the best: traced": str(each.traced_near),
            "best on average": str(each.layer_near),
            "random": str(each.random_near),
            "traced - best on average": str(each.traced_minus_layer),
            "facts": each.facts,
        }
        for each in rows
    ).set_index(pd.Index([each.measure for each in rows], name="R^2 of"))


def _cell(value: Average | None) -> str:
    return "nothing to explain" if value is None else str(value)
