"""Pictures of edits: their limits, and their success beside traces."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rome_lens.checks import CheckResult, Limits
from rome_lens.checks.many import LimitsAverage
from rome_lens.intervals import FEWEST, Average
from rome_lens.layer_sweeps import LayerSweep, asked
from rome_lens.variance import regression
from rome_lens.viz.axes import NAMES, band, layer_label


def limits(result: Limits | LimitsAverage) -> Figure:
    """Every check that was asked in a row: at the left its effect, at the right its control; a dot for each fact, or prompt.

    "where known" is over the prompts of which the unedited model can do what is asked. Bars are means with 95 % intervals:
    of many edits over facts, of a single one over its prompts, and none below five.

    Raises:
        ValueError: no check was asked.
    """
    checks = [name for name in _checks(result) if _asked(result, name)]
    if not checks:
        raise ValueError("No check was asked of any fact: there is nothing to show.")
    figure = Figure(figsize=(9.6, 0.4 + 1.15 * len(checks)), layout="constrained")
    for (left, right), name in zip(
        figure.subplots(len(checks), 2, squeeze=False, width_ratios=(3, 2)), checks, strict=True
    ):
        asked = _asked(result, name)
        for axes, kinds, label in (
            (left, ("effect", "effect_where_known"), asked[0].effect_is),
            (right, ("control",), asked[0].control_is),
        ):
            _strips(axes, result, name, kinds)
            axes.set_xlabel(textwrap.fill(label, 56), fontsize=7)
            axes.tick_params(axis="x", labelsize=7)
            axes.axvline(0.0, color="grey", linewidth=0.5)
        prompts = sum(row.effect is not None for row in asked[0].rows)
        many = f"{len(asked)} facts" if isinstance(result, LimitsAverage) else f"{prompts} prompts"
        left.set_title(f"{name} ({many})", fontsize=9, loc="left")
        right.set_visible(_mean(result, name, "control") is not None)
    return figure


def _checks(result: Limits | LimitsAverage) -> list[str]:
    return result.checks if isinstance(result, LimitsAverage) else [check.name for check in result.results]


def _asked(result: Limits | LimitsAverage, check: str) -> list[CheckResult]:
    """The check's results on the facts that it was asked of."""
    if isinstance(result, LimitsAverage):
        return result.of(check)
    return [result[check]] if result[check].asked else []


def _mean(result: Limits | LimitsAverage, check: str, kind: str) -> Average | None:
    if isinstance(result, LimitsAverage):
        return result.effect(check, kind)
    found: Average | None = getattr(result[check], kind)
    return found


def _values(result: Limits | LimitsAverage, check: str, kind: str) -> list[float]:
    """What the mean is over: the facts' own means, or the prompts' numbers."""
    if isinstance(result, LimitsAverage):
        return [value.mean for each in result.of(check) if (value := getattr(each, kind)) is not None]
    rows = [row for row in result[check].rows if row.effect is not None and (row.known or kind != "effect_where_known")]
    values = [row.control if kind == "control" else row.effect for row in rows]
    return [value for value in values if value is not None]


def _strips(axes: Axes, result: Limits | LimitsAverage, check: str, kinds: Sequence[str]) -> None:
    """One line of dots for each kind of average, with its mean."""
    names = {"effect": "all", "effect_where_known": "where known", "control": "control"}
    shown = {kind: mean for kind in kinds if (mean := _mean(result, check, kind)) is not None}
    for y, (kind, mean) in enumerate(shown.items()):
        values = _values(result, check, kind)
        axes.plot(
            values, [y] * len(values), "o", color="tab:blue" if kind != "control" else "grey", alpha=0.25, markersize=4
        )
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [y, y], color="black", linewidth=2.5, alpha=0.6)
        axes.plot([mean.mean], [y], "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(shown)), [names[kind] for kind in shown], fontsize=7)
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)


def layer_sweep(result: LayerSweep, measure: str = "EM") -> Figure:
    """Success of edits and effect of restoring, by layer on the left, against each other on the right.

    On the left means over the facts with 95 % intervals, none below five facts; on the right a point for each fact and
    layer, and above them R^2 of the measure (:meth:`LayerSweep.variance_explained` has the intervals and the control).

    Raises:
        ValueError: an unknown measure, or one that no record asked.
    """
    success = result.success(measure)
    if not len(asked(success)):
        raise ValueError(f"No record asked {measure}.")
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    panels = figure.subplot_mosaic([["above", "right"], ["below", "right"]])
    above, below, right = panels["above"], panels["below"], panels["right"]
    x = list(range(len(result.layers)))
    colours = {"EM": "tab:blue", "NM": "tab:orange"}
    for name, colour in {**colours, measure: colours.get(measure, "tab:red")}.items():
        band(above, x, asked(result.success(name)), label=name, colour=colour, fewest=FEWEST)
    above.set_ylabel("success of the edit")
    above.legend(fontsize=7)
    band(below, x, result.effects, label="effect", colour="tab:green", fewest=FEWEST)
    below.set_ylabel("indirect effect")
    for axes in (above, below):
        axes.axhline(0.0, color="grey", linewidth=0.5)
        axes.set_xticks(x, [str(layer) for layer in result.layers], fontsize=8)
    below.set_xlabel("edited layer, and " + layer_label(result.window))
    for j, colour in enumerate(colormaps["viridis"](np.linspace(0.0, 0.95, len(x)))):
        right.scatter(result.effects[:, j], success[:, j], s=9, color=colour, label=str(result.layers[j]))
    right.legend(title="layer", fontsize=6, title_fontsize=7, ncols=1 + len(x) // 10)
    right.set_xlabel(
        f"indirect effect of the {NAMES[result.component]}, at {str(result.at).replace('_', ' ')}", parse_math=False
    )
    right.set_ylabel(measure)
    right.set_title(_explained(result, measure), fontsize=9)
    return figure


def _explained(result: LayerSweep, measure: str) -> str:
    success = result.success(measure)
    rows = ~success.isnan().any(1)
    found = regression(result.effects[rows].numpy(), success[rows].numpy())
    what = f"{measure} of {int(rows.sum())} facts"
    if found is None:
        return f"{what}: all equal"
    return f"{what}, R² of layer {found.layer:.2f}, of effect {found.effect:.2f}, added {found.added:.3f}"
