"""The figure of averaged traces."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST
from rome_lens.tracing.averages import TraceAverage
from rome_lens.viz.axes import (
    COLOURS,
    LINES,
    NAMES,
    Picture,
    band,
    caption,
    layer_label,
    layer_ticks,
    legend_below,
    named_model,
    picture,
)

_ROLES = ("first subject", "middle subject", "last subject", "last")


def averages(results: TraceAverage | Sequence[TraceAverage]) -> Figure:
    """Draw indirect effects averaged over facts, in one column for each result.

    The upper panel is a heatmap of roles and layers. All heatmaps share their colours, from zero to
    the largest average total effect. The lower panel shows the first, middle and last subject
    tokens and the prompt's last token by layer, with 95 % intervals over facts if they are of five
    relations or more.

    Raises:
        ArgumentError: there is no result.
    """
    results = [results] if isinstance(results, TraceAverage) else list(results)
    if not results:
        raise ArgumentError("results is empty: give at least one average of traces.")
    figure = picture(max(5.6, 1.2 + 4.4 * len(results)), 4.8)
    grid = figure.subplots(2, len(results), squeeze=False, height_ratios=(1.0, 1.3), sharey="row")
    top = max(1e-6, *(result.total_effect.mean for result in results))
    for (above, below), result in zip(grid.T, results, strict=True):
        _map(figure, above, result, top)
        _lines(below, result)
    grid[1][0].set_ylabel(f"average indirect effect on {_what(results[0])}", fontsize=8)
    first = results[0]
    same = len({len(result.subjects) for result in results}) == 1
    caption(
        figure,
        "Causal traces averaged over " + (f"{len(first.subjects)} facts" if same else "facts"),
        f"{named_model(first.model_name)}; {first.samples} noise samples for each fact",
    )
    legend_below(figure, grid[1][0])
    return figure


def _map(figure: Picture, axes: Axes, result: TraceAverage, top: float) -> None:
    image = axes.pcolormesh(
        result.indirect_effects.T.numpy(), cmap=COLOURS[result.component], vmin=0.0, vmax=top
    )
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    names = [f"{role} ({count})" for role, count in zip(result.roles, result.counts, strict=True)]
    axes.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=7)
    layer_ticks(axes, result.layers)
    axes.tick_params(axis="x", labelsize=6)
    over = float(result.indirect_effects.max()) > top
    bar = figure.colorbar(image, ax=axes, extend="max" if over else "neither")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("effect, up to the largest ATE", fontsize=7)
    axes.set_title(
        f"{NAMES[result.component]}, {len(result.subjects)} facts\nATE {result.total_effect}",
        fontsize=8,
    )


def _lines(axes: Axes, result: TraceAverage) -> None:
    x = list(range(len(result.layers)))
    roles = [role for role in _ROLES if role in result.roles]
    for line, role in zip(LINES, roles, strict=False):
        column = result.roles.index(role)
        band(
            axes,
            x,
            result.of_role(column),
            label=role,
            line=line,
            fewest=FEWEST,
            clusters=result.clusters_of_role(column),
        )
    axes.axhline(0.0, color="grey", linewidth=0.5)
    layer_ticks(axes, result.layers, offset=0.0)
    axes.set_xlabel(layer_label(result.window))


def _what(result: TraceAverage) -> str:
    return "p(answer)" if result.metric == "probability" else result.metric
