"""Figures of layer sweeps."""

import re
import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST
from rome_lens.localisation.results import LayerSweep, asked
from rome_lens.localisation.variance import SuccessMeasure, regression
from rome_lens.viz.axes import (
    LINES,
    NAMES,
    band,
    caption,
    layer_label,
    layer_ticks,
    named_model,
    picture,
    visible,
)

# What tells two sources of key statistics apart, and nothing to a reader.
_FINGERPRINTS = re.compile(
    r", (openings|W_out|tokenizer) [0-9a-f]{8,}|, bos (True|False)|(?<=texts|ences) [0-9a-f]{8,}"
)
_WORDS = {
    "EM": "EM, p(new) - p(true) at the fact",
    "NM": "NM, p(true) - p(new) at neighbours",
    "PM": "PM, p(new) - p(true) at paraphrases",
}


def layer_sweep(result: LayerSweep, measure: SuccessMeasure = "EM") -> Figure:
    """Draw the success of edits and the effect of restoring by layer, and against each other.

    The panels on the left show means over the facts, with 95 % intervals if there are five
    relations or more. From five facts on, the panel on the right shows a point for each fact and
    layer. Its title says how much of the measure's variance (R²) the layer explains, how much the
    indirect effect does, and how much more both explain than the layer alone.
    :meth:`LayerSweep.variance_explained` has the intervals and the control.

    Raises:
        ArgumentError: the measure is unknown, or no record has prompts for it.
    """
    success = result.success(measure)
    if not len(asked(success)):
        raise ArgumentError(f"No record has prompts for {measure}: choose another measure.")
    scattered = len(asked(success)) >= FEWEST
    figure = picture(9.2 if scattered else 5.6, 4.8)
    panels: dict[str, Axes] = figure.subplot_mosaic("ar;br" if scattered else "a;b")
    _lines(panels["a"], panels["b"], result, measure)
    if scattered:
        _scatter(panels["r"], result, measure)
    count = len(result.names)
    caption(
        figure,
        "Does tracing tell where to edit? Success of edits and effect of restoring, by layer",
        f"{named_model(result.model_name)}; {count} fact{'s' * (count != 1)}"
        + (f": {_only_fact(result)}" if count == 1 else "")
        + f"; restored: {NAMES[result.component]} {_place(result)}",
        _statistics(result),
    )
    return figure


def _lines(above: Axes, below: Axes, result: LayerSweep, measure: SuccessMeasure) -> None:
    x = list(range(len(result.layers)))
    for line, name in zip(LINES, dict.fromkeys((measure, "EM", "NM")), strict=False):
        values = result.success(name)
        band(
            above,
            x,
            asked(values),
            label=_WORDS.get(name, name),
            line=line,
            fewest=FEWEST,
            clusters=result.clusters(values),
        )
    above.set_ylabel("success of the edit", fontsize=8)
    effect = LINES[2]
    band(
        below,
        x,
        result.effects,
        label="indirect effect of restoring",
        line=effect,
        fewest=FEWEST,
        clusters=result.clusters(),
    )
    below.set_ylabel("effect on p(answer)", fontsize=8)
    for axes in (above, below):
        axes.axhline(0.0, color="grey", linewidth=0.5)
        layer_ticks(axes, result.layers, offset=0.0)
        # Each has a scale of its own, so each has its own legend, above it, where no data are.
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.01), fontsize=7, handlelength=3.0)
    below.set_xlabel(f"edited layer, and {layer_label(result.window)}", fontsize=8)


def _scatter(axes: Axes, result: LayerSweep, measure: SuccessMeasure) -> None:
    """A point for each fact and layer, whose colour and mark tell the layer."""
    success = result.success(measure)
    colours = colormaps["viridis"](np.linspace(0.0, 0.95, len(result.layers)))
    for j, colour in enumerate(colours):
        axes.scatter(
            result.effects[:, j],
            success[:, j],
            s=14,
            color=colour,
            marker=LINES[j % len(LINES)].mark,
            label=str(result.layers[j]),
        )
    axes.legend(
        title="layer",
        fontsize=6,
        title_fontsize=7,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        ncols=1 + len(result.layers) // 20,
    )
    axes.set_xlabel(f"indirect effect of the {NAMES[result.component]}", fontsize=8)
    axes.set_ylabel(_WORDS.get(measure, measure), fontsize=8)
    axes.set_title(textwrap.fill(_r_squared(result, measure), 52), fontsize=8)


def _only_fact(result: LayerSweep) -> str:
    """The fact's text; for a record, its id and what is asked of its subject."""
    name = result.names[0]
    if " " in name or not result.relations or "{}" not in result.relations[0]:
        return f"“{name}”"
    return f"{name}, “{result.relations[0].replace('{}', '…')}”"


def _place(result: LayerSweep) -> str:
    """The traced position, in words."""
    tokens = list(dict.fromkeys(result.tokens))
    which = f" ({visible(tokens[0])!r})" if len(tokens) == 1 else ""
    if isinstance(result.at, int):
        return f"at position {result.at}{which}"
    names = {
        "site": "the subject's token with the largest effect",
        "subject_first": "the subject's first token",
        "subject_last": "the subject's last token",
        "last": "the last token",
    }
    return f"at {names[result.at]}{which}"


def _statistics(result: LayerSweep) -> str:
    """Where the edits' key statistics come from; plainly, if there are none."""
    source = result.edits.partition("statistics: ")[2]
    if source.startswith("identity"):
        return "Edited with C = I, i.e. without key statistics."
    return f"Key statistics: {_FINGERPRINTS.sub('', source)}" if source else ""


def _r_squared(result: LayerSweep, measure: SuccessMeasure) -> str:
    """How much of the measure the layer explains, the effect, and both more than the layer."""
    success = result.success(measure)
    rows = ~success.isnan().any(1)
    fit = regression(result.effects[rows].numpy(), success[rows].numpy())
    what = f"{measure} of {int(rows.sum())} facts"
    if fit is None:
        return f"{what}: all equal"
    return (
        f"Share of the variance of {what} (R²) explained by the layer: {fit.layer:.2f}, by the "
        f"indirect effect: {fit.effect:.2f}, by both: {fit.added:.3f} more than by the layer"
    )
