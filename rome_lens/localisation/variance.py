"""How much of the success of edits the layer explains, how much tracing, and what tracing adds to the layer.

Source: Hase et al. 2023, "Does Localization Inform Editing?"
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats

from rome_lens.arguments import whole_number
from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST, Average, average_correlation, share
from rome_lens.results import Result

NEAR = 0.05
_RESAMPLES = 2000
_EQUAL = 1e-6  # what float32 probabilities differ by from rounding alone
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, repr=False)
class VarianceExplained(Result):
    """R^2 of the success of edits over the cells (fact, layer), and how well tracing finds a fact's best layers.

    Each R^2 carries a 95 % interval from a bootstrap over facts, whose cells are not independent. ``added`` is never
    below zero, whatever the effects are, and neither is its interval: ``shuffled`` tells what an effect that belongs to
    another fact adds.

    Attributes:
        measure: of success. ``facts`` and ``layers`` count those that it was asked of.
        layer: R^2 of one mean for each layer.
        effect: R^2 of one line over the effects.
        both: R^2 of one mean for each layer and one slope over the effects.
        added: ``both - layer``. ``slope`` is that of the effect beside the layer, whose sign ``added`` does not tell. All of
            them are None where all successes are equal, so that there is nothing to explain.
        shuffled: ``added`` with whole rows of effects given to other facts: mean and 95 % range over the shuffles.
        p_value: ``(1 + n) / (1 + shuffles)`` with ``n`` shuffles that add at least as much.
        rank_correlation: Spearman's over the layers of each fact, averaged over the facts; facts whose effects or successes
            are all equal have none, and where no fact has one it is None.
        traced_near: share of the facts whose layer of the largest effect succeeds within 0.05 of the fact's best layer;
            ``layer_near`` the same of the layer with the best mean over all other facts, ``random_near`` of a layer drawn
            at random.
    """

    measure: str
    facts: int
    layers: int
    layer: Average | None
    effect: Average | None
    both: Average | None
    added: Average | None
    slope: Average | None
    shuffled: Average | None
    p_value: float | None
    rank_correlation: Average | None
    traced_near: Average
    layer_near: Average
    random_near: Average

    @property
    def reading(self) -> str:
        """The numbers in a sentence."""
        where = f"{self.measure} of {self.facts} facts at {self.layers} layers"
        near = (
            f"the layer of the largest effect comes within {NEAR} of the best one for {self.traced_near.mean:.0%} of the "
            f"facts, the layer that is best on average for {self.layer_near.mean:.0%}, a random one for "
            f"{self.random_near.mean:.0%}."
        )
        if self.layer is None or self.effect is None or self.added is None or self.shuffled is None:
            return f"{where}: all equal, so that there is nothing to explain; {near}"
        return (
            f"{where}: the layer alone explains R^2 = {self.layer}, the effect alone {self.effect}, and beside the layer "
            f"the effect adds {self.added} with slope {self.slope}, where effects of other facts add {self.shuffled.mean:.3f} "
            f"(p = {self.p_value:.3f}); within a fact their rank correlation is {self.rank_correlation or 'not defined'}; "
            f"{near}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each number: its value, its 95 % interval, and of how many facts or shuffles; empty where there is none."""
        rows = []
        for name in [
            field.name for field in fields(self) if field.name not in ("measure", "facts", "layers")
        ]:
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
    measure: str,
    shuffles: int = 200,
    seed: int = 0,
) -> VarianceExplained:
    """What :meth:`LayerSweep.variance_explained` gives, from numbers; facts whose success has a NaN are left out.

    Raises:
        ValueError: fewer than two facts or layers are left, or there is no shuffle.
    """
    asked = ~np.isnan(success).any(1)
    effects, success = effects[asked].astype(np.float64), success[asked].astype(np.float64)
    facts, layers = success.shape
    if facts < 2 or layers < 2:
        raise ArgumentError(
            f"{measure} was asked of {facts} facts at {layers} layers; expected at least two of both, or there is nothing "
            "to compare."
        )
    shuffles = whole_number("shuffles", shuffles, least=1)
    near = success >= success.max(1, keepdims=True) - NEAR
    others = (success.sum(0) - success) / (facts - 1)
    return VarianceExplained(
        measure=measure,
        facts=facts,
        layers=layers,
        rank_correlation=_rank_correlation(effects, success),
        traced_near=_share_at(near, effects.argmax(1)),
        layer_near=_share_at(near, others.argmax(1)),
        random_near=share(near.mean(1).tolist()),
        **_regressed(effects, success, shuffles, np.random.default_rng(seed)),
    )


class Regression(NamedTuple):
    """R^2 of success on the layer, on the effect, on both, what the effect adds, and its slope beside the layer."""

    layer: float
    effect: float
    both: float
    added: float
    slope: float


def regression(
    effects: Float[np.ndarray, "fact layer"], success: Float[np.ndarray, "fact layer"]
) -> Regression | None:
    """Least squares of success ``y`` on the layer and on the effect ``x``; None where ``y`` is constant.

    With ``T = sum (y - mean y)^2`` over all cells, ``mean_l`` the mean over the facts at one layer, and sums over all cells

        layer   y = a_l          1 - sum (y - mean_l y)^2 / T
        effect  y = a + b x      (sum (x - mean x) (y - mean y))^2 / (sum (x - mean x)^2 T)
        both    y = a_l + b x    layer + added
        added                    (sum (x - mean_l x) (y - mean_l y))^2 / (sum (x - mean_l x)^2 T)

    The last holds since, for a given ``b``, the best ``a_l`` is ``mean_l y - b mean_l x``. An effect that does not vary, or
    not within any layer, has slope 0 and adds 0.
    """
    if np.ptp(success) <= _EQUAL:
        return None
    total = ((success - success.mean()) ** 2).sum()
    within = success - success.mean(0)
    layer = float(1.0 - (within**2).sum() / total)
    _, alone = _line(effects - effects.mean(), success - success.mean())
    slope, beside = _line(effects - effects.mean(0), within)
    added = beside / total
    return Regression(
        layer=layer, effect=alone / total, both=layer + added, added=added, slope=slope
    )


def _line(
    x: Float[np.ndarray, "fact layer"], y: Float[np.ndarray, "fact layer"]
) -> tuple[float, float]:
    """Of ``y = b x`` with both centred: ``b``, and the sum of squares that it takes off ``y``, ``b sum x y``."""
    if np.ptp(x) <= _EQUAL:
        return 0.0, 0.0
    slope = float((x * y).sum() / (x**2).sum())
    return slope, float(slope * (x * y).sum())


def _regressed(
    effects: Float[np.ndarray, "fact layer"],
    success: Float[np.ndarray, "fact layer"],
    shuffles: int,
    random: np.random.Generator,
) -> dict[str, Any]:
    """The regression's numbers with their intervals, and the control; all None where there is nothing to explain."""
    found = regression(effects, success)
    if found is None:
        return dict.fromkeys((*Regression._fields, "shuffled", "p_value"))
    facts = len(success)
    shuffled = [regression(effects[random.permutation(facts)], success) for _ in range(shuffles)]
    control = np.array([each.added for each in shuffled if each is not None])
    draws = []
    for _ in range(_RESAMPLES if facts >= FEWEST else 0):
        some = random.integers(facts, size=facts)
        draws.append(regression(effects[some], success[some]))
    known = np.array([each for each in draws if each is not None]).reshape(-1, len(found))
    return {
        **{
            name: _with_range(found[i], known[:, i], facts)
            for i, name in enumerate(Regression._fields)
        },
        "shuffled": _with_range(float(control.mean()), control, shuffles),
        "p_value": float(1 + (control >= found.added - _ROUNDING).sum()) / (1 + shuffles),
    }


def _with_range(value: float, draws: Float[np.ndarray, " draw"], count: int) -> Average:
    """The value between the 2.5th and the 97.5th percentile of the draws, where there are any."""
    if not len(draws):
        return Average(mean=value, low=None, high=None, count=count)
    low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    return Average(mean=value, low=min(value, low), high=max(value, high), count=count)


def _rank_correlation(
    effects: Float[np.ndarray, "fact layer"], success: Float[np.ndarray, "fact layer"]
) -> Average | None:
    """Mean over the facts of Spearman's correlation over the layers; the interval is cut to [-1, 1]."""
    found = [
        float(stats.spearmanr(x, y).statistic)
        for x, y in zip(effects, success, strict=True)
        if np.ptp(x) > _EQUAL and np.ptp(y) > _EQUAL
    ]
    return average_correlation(found)


def _share_at(near: Bool[np.ndarray, "fact layer"], layers: Int[np.ndarray, " fact"]) -> Average:
    """Of how many facts the chosen layer is near the best."""
    return share(near[np.arange(len(near)), layers].astype(float).tolist())


def variance_table(found: Sequence[VarianceExplained]) -> pd.DataFrame:
    """Measures of success down, what explains them across."""
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
            "facts": each.facts,
        }
        for each in found
    ).set_index(pd.Index([each.measure for each in found], name="R^2 of"))


def _cell(value: Average | None) -> str:
    return "nothing to explain" if value is None else str(value)
