"""Figures of layer sweeps."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST
from rome_lens.localisation.results import LayerSweep, asked
from rome_lens.localisation.variance import SuccessMeasure, regression
from rome_lens.viz.axes import NAMES, band, layer_label


def layer_sweep(result: LayerSweep, measure: SuccessMeasure = "EM") -> Figure:
    """Draw the success of edits and the effect of restoring by layer, and against each other.

    The panels on the left show means over the facts, with 95 % intervals if there are five
    relations or more. The panel on the right shows a point for each fact and layer. Its title gives
    the R² of the measure; :meth:`LayerSweep.variance_explained` has the intervals and the control.

    Raises:
        ArgumentError: the measure is unknown, or no record has prompts for it.
    """
    success = result.success(measure)
    if not len(asked(success)):
        raise ArgumentError(f"No record has prompts for {measure}: choose another measure.")
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    panels = figure.subplot_mosaic([["above", "right"], ["below", "right"]])
    above, below, right = panels["above"], panels["below"], panels["right"]
    x = list(range(len(result.layers)))
    colours: dict[SuccessMeasure, str] = {"EM": "tab:blue", "NM": "tab:orange"}
    for name, colour in {**colours, measure: colours.get(measure, "tab:red")}.items():
        band(
            above,
            x,
            asked(result.success(name)),
            label=name,
            colour=colour,
            fewest=FEWEST,
            clusters=result.clusters(result.success(name)),
        )
    above.set_ylabel("success of the edit")
    above.legend(fontsize=7)
    band(
        below,
        x,
        result.effects,
        label="effect",
        colour="tab:green",
        fewest=FEWEST,
        clusters=result.clusters(),
    )
    below.set_ylabel("indirect effect")
    for axes in (above, below):
        axes.axhline(0.0, color="grey", linewidth=0.5)
        axes.set_xticks(x, [str(layer) for layer in result.layers], fontsize=8)
    below.set_xlabel("edited layer, and " + layer_label(result.window))
    for j, colour in enumerate(colormaps["viridis"](np.linspace(0.0, 0.95, len(x)))):
        right.scatter(
            result.effects[:, j], success[:, j], s=9, color=colour, label=str(result.layers[j])
        )
    right.legend(title="layer", fontsize=6, title_fontsize=7, ncols=1 + len(x) // 10)
    right.set_xlabel(
        f"indirect effect of the {NAMES[result.component]}, at {str(result.at).replace('_', ' ')}",
        parse_math=False,
    )
    right.set_ylabel(measure)
    right.set_title(_r_squared(result, measure), fontsize=9)
    return figure


def _r_squared(result: LayerSweep, measure: SuccessMeasure) -> str:
    """R² of the measure, explained by layer, by effect, and by effect in addition to layer."""
    success = result.success(measure)
    rows = ~success.isnan().any(1)
    fit = regression(result.effects[rows].numpy(), success[rows].numpy())
    what = f"{measure} of {int(rows.sum())} facts"
    if fit is None:
        return f"{what}: all equal"
    return (
        f"{what}: R² of layer {fit.layer:.2f}, of effect {fit.effect:.2f}, "
        f"added by effect {fit.added:.3f}"
    )
