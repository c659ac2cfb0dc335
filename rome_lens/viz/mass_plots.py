"""The figure of edits of more and more facts."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rome_lens.checks.mass_curve_result import (
    ESSENCE,
    FIDELITY,
    MEASURES,
    OWN,
    PARAPHRASES,
    SCORES,
    MassCurve,
)
from rome_lens.errors import ArgumentError
from rome_lens.viz.axes import LINES, bars_in_words, caption, legend_below, named_model, picture

_SHARES = (*SCORES, OWN, PARAPHRASES)
_WORDS = {
    "ES": "efficacy score",
    "PS": "paraphrase score",
    "NS": "neighbourhood score",
    "S": "harmonic mean of ES, PS, NS",
    OWN: "new target written, own prompt",
    PARAPHRASES: "new target written, paraphrases",
    ESSENCE: "KL of what is said of the subject, nats",
    FIDELITY: "other texts, change in nats per token",
}


def mass_curve(curve: MassCurve, *measures: str) -> Figure:
    """Draw measures by the number of facts that are edited together, a line for each editor.

    Bars are 95 % intervals, clustered by relation, where there is one. Shares have one scale, from
    0 to 1. A point is missing if no edit of that many facts could be made.

    Args:
        measures: the measures to draw. None takes all.

    Raises:
        ArgumentError: a measure is unknown.
    """
    names = measures or MEASURES
    if unknown := [name for name in names if name not in MEASURES]:
        raise ArgumentError(f"There is no measure {unknown[0]!r}, there are {', '.join(MEASURES)}.")
    columns = min(len(names), 4)
    lines = -(-len(names) // columns)
    figure = picture(max(5.6, 2.9 * columns), 0.2 + 2.3 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        _draw(axes, curve, name)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    places = [(editor, count) for editor in curve.editors for count in curve.counts]
    means = [curve.mean(*place, name) for place in places for name in names]
    caption(
        figure,
        "What is lost when more and more facts are edited together, by editor",
        f"{named_model(curve.model_name)}; points are means over facts, clustered by relation, or "
        f"over other texts; {bars_in_words(means, 'relations')}",
    )
    legend_below(figure, panels[0], title="editor")
    return figure


def _draw(axes: Axes, curve: MassCurve, name: str) -> None:
    for i, editor in enumerate(curve.editors):
        means = [curve.mean(editor, count, name) for count in curve.counts]
        # Beside each other, because two editors may agree.
        x = [count * 1.06 ** (i - len(curve.editors) / 2) for count in curve.counts]
        known = [(at, mean) for at, mean in zip(x, means, strict=True) if mean is not None]
        line = LINES[i % len(LINES)]
        axes.plot(
            [at for at, _ in known],
            [mean.mean for _, mean in known],
            linestyle=line.style,
            marker=line.mark,
            color=line.colour,
            label=editor,
            markersize=3.5,
            linewidth=1.2,
        )
        for at, mean in known:
            if mean.low is not None and mean.high is not None:
                axes.vlines(at, mean.low, mean.high, color=line.colour, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(curve.counts, [str(count) for count in curve.counts], fontsize=8)
    axes.minorticks_off()
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(_WORDS[name], fontsize=8)
    axes.set_xlabel("facts edited together", fontsize=8)
    if name in _SHARES:
        axes.set_ylim(-0.05, 1.05)
    else:
        axes.axhline(0.0, color="grey", linewidth=0.5)
