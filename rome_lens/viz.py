"""Pictures from results. Nothing here runs a model or shows a window: figures and HTML are returned."""

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from circuitsvis.tokens import colored_tokens
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from rome_lens.averages import TraceAverage
from rome_lens.checks.firing import EditFiring
from rome_lens.checks.many import LimitsAverage
from rome_lens.intervals import FEWEST, half_width
from rome_lens.layer_sweeps import LayerSweep, asked
from rome_lens.traces import CausalTrace, SeveredTrace
from rome_lens.variance import regression

_COLOURS = {"resid": "Purples", "mlp": "Greens", "attn": "Reds", "z": "Oranges"}
_NAMES = {"resid": "residual stream", "mlp": "MLP output", "attn": "attention output", "z": "attention head's z"}


@dataclass(frozen=True, repr=False)
class Html:
    """A picture as HTML that needs no network; notebooks show it."""

    source: str

    def __repr__(self) -> str:
        return f"Html({len(self.source)} characters)"

    def _repr_html_(self) -> str:
        return self.source


def trace(result: CausalTrace) -> Figure:
    """Heatmap of a trace: tokens down, layers across, colour the probability of the answer with the state restored.

    The colour scale starts at the corrupted run's probability. Tokens of the subject carry a star. Of a trace of single
    heads each cell shows its best head; see :func:`heads`.
    """
    scores = (result.scores.amax(2) if result.heads else result.scores).T.numpy()
    figure = Figure(figsize=(1.9 + 0.32 * len(result.layers), 1.5 + 0.27 * len(result.positions)), layout="constrained")
    axes = figure.add_subplot()
    top = max(float(scores.max()), result.corrupted + 1e-6)
    image = axes.pcolormesh(scores, cmap=_COLOURS[result.component], vmin=min(result.corrupted, top), vmax=top)
    axes.invert_yaxis()
    start, end = result.subject
    labels = [_visible(result.labels[pos]) + ("*" if start <= pos < end else "") for pos in result.positions]
    axes.set_yticks([i + 0.5 for i in range(len(labels))], labels, parse_math=False)
    _layer_ticks(axes, result.layers)
    axes.set_xlabel(_layer_label(result.window))
    axes.set_title(
        f"{_NAMES[result.component]}: clean {result.clean:.2f}, corrupted {result.corrupted:.3f}", fontsize=9
    )
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(f"p({result.answer.strip()})", parse_math=False)
    return figure


def heads(result: CausalTrace, at: str | int | None = None) -> Figure:
    """Heatmap of a trace of ``"z"``: heads down, layers across, at one position (None: that of the highest score).

    Raises:
        ValueError: the trace is not of single heads, or ``at`` is no traced position.
    """
    if not result.heads:
        raise ValueError(f"The trace is of {result.component!r}, expected component='z'.")
    pos = result.peak(at)[1]
    scores = result.scores[:, result.positions.index(pos)].T.numpy()
    figure = Figure(figsize=(1.9 + 0.32 * len(result.layers), 1.6 + 0.27 * len(result.heads)), layout="constrained")
    axes = figure.add_subplot()
    top = max(float(scores.max()), result.corrupted + 1e-6)
    image = axes.pcolormesh(scores, cmap=_COLOURS["z"], vmin=min(result.corrupted, top), vmax=top)
    axes.invert_yaxis()
    axes.set_yticks([i + 0.5 for i in range(len(result.heads))], [str(head) for head in result.heads])
    axes.set_ylabel("head")
    _layer_ticks(axes, result.layers)
    axes.set_xlabel(_layer_label(1))
    axes.set_title(f"{_NAMES['z']} at {_visible(result.labels[pos])!r}", fontsize=9, parse_math=False)
    figure.colorbar(image, ax=axes).set_label(f"p({result.answer.strip()})", parse_math=False)
    return figure


def severed(result: SeveredTrace) -> Figure:
    """Indirect effects by layer, with nothing severed and with the modules severed: one panel for each position."""
    panels = len(result.positions)
    figure = Figure(figsize=(0.8 + 4.2 * panels, 3.2), layout="constrained")
    what = {"mlp": "MLPs", "attn": "attentions", "both": "MLPs and attentions"}[result.severed]
    for j, (axes, pos) in enumerate(zip(figure.subplots(1, panels, squeeze=False)[0], result.positions, strict=True)):
        x = list(range(len(result.layers)))
        for name, effects, colour in (
            ("nothing severed", result.ordinary_sample_scores, "tab:purple"),
            (
                f"{'later' if result.held_layers == 'later' else 'all'} {what} severed",
                result.sample_scores,
                "tab:green" if result.severed == "mlp" else "tab:red",
            ),
        ):
            _band(axes, x, effects[:, :, j] - result.corrupted_samples[:, None], label=name, colour=colour)
        axes.axhline(0.0, color="grey", linewidth=0.5)
        axes.set_xticks(x[:: max(1, len(x) // 12)], [str(i) for i in result.layers[:: max(1, len(x) // 12)]])
        axes.set_xlabel("restored layer")
        axes.set_ylabel(f"indirect effect on p({result.answer.strip()})", parse_math=False)
        axes.set_title(f"at {_visible(result.labels[pos])!r}", fontsize=9, parse_math=False)
        axes.legend(fontsize=7)
    return figure


def averages(results: Sequence[TraceAverage]) -> Figure:
    """Average indirect effects over facts, one column for each result.

    Above, a heatmap of roles and layers; below, the last subject token, the subject's other tokens and the prompt's last
    token by layer, with 95 % intervals over facts.

    Raises:
        ValueError: there is no result.
    """
    if not results:
        raise ValueError("There is no average to show.")
    figure = Figure(figsize=(1.2 + 4.4 * len(results), 5.4), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False, height_ratios=(1.0, 1.3))
    for (above, below), result in zip(grid.T, results, strict=True):
        effects = result.indirect_effects.T.numpy()
        image = above.pcolormesh(effects, cmap=_COLOURS[result.component], vmin=0.0)
        above.invert_yaxis()
        names = [f"{role} ({count})" for role, count in zip(result.roles, result.counts, strict=True)]
        above.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=7)
        _layer_ticks(above, result.layers)
        above.tick_params(axis="x", labelsize=6)
        figure.colorbar(image, ax=above).ax.tick_params(labelsize=7)
        above.set_title(
            f"{_NAMES[result.component]}, {len(result.subjects)} facts\nATE {result.total_effect}", fontsize=8
        )
        x = list(range(len(result.layers)))
        for role, colour in (
            ("first subject", "tab:orange"),
            ("middle subject", "tab:olive"),
            ("last subject", "tab:blue"),
            ("last", "tab:red"),
        ):
            column = result.roles.index(role)
            _band(below, x, result.of_role(column), label=role, colour=colour)
        below.axhline(0.0, color="grey", linewidth=0.5)
        step = max(1, len(x) // 9)
        below.set_xticks(x[::step], [str(i) for i in result.layers[::step]])
        below.set_xlabel(_layer_label(result.window))
        below.set_ylabel("average indirect effect")
        below.legend(fontsize=7)
    return figure


def limits(result: LimitsAverage) -> Figure:
    """Every check that was asked in a row: at the left its effect, at the right its control; a dot for each fact.

    "where known" is over the prompts of which the unedited model can do what is asked. Bars are means with 95 % intervals
    over facts.

    Raises:
        ValueError: no check was asked.
    """
    checks = [name for name in result.checks if result.of(name)]
    if not checks:
        raise ValueError("No check was asked of any fact: there is nothing to show.")
    figure = Figure(figsize=(9.6, 0.4 + 1.15 * len(checks)), layout="constrained")
    for (left, right), name in zip(
        figure.subplots(len(checks), 2, squeeze=False, width_ratios=(3, 2)), checks, strict=True
    ):
        first = result.of(name)[0]
        for axes, kinds, label in (
            (left, ("effect", "effect_where_known"), first.effect_is),
            (right, ("control",), first.control_is),
        ):
            _strips(axes, result, name, kinds)
            axes.set_xlabel(textwrap.fill(label, 56), fontsize=7)
            axes.tick_params(axis="x", labelsize=7)
            axes.axvline(0.0, color="grey", linewidth=0.5)
        left.set_title(f"{name} ({len(result.of(name))} facts)", fontsize=9, loc="left")
        right.set_visible(result.effect(name, "control") is not None)
    return figure


def _strips(axes: Axes, result: LimitsAverage, check: str, kinds: Sequence[str]) -> None:
    """One line of dots for each kind of average, with its mean."""
    names = {"effect": "all", "effect_where_known": "where known", "control": "control"}
    shown = [kind for kind in kinds if result.effect(check, kind) is not None]
    for y, kind in enumerate(shown):
        values = [value.mean for each in result.of(check) if (value := getattr(each, kind)) is not None]
        axes.plot(
            values, [y] * len(values), "o", color="tab:blue" if kind != "control" else "grey", alpha=0.25, markersize=4
        )
        mean = result.effect(check, kind)
        assert mean is not None
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
        _band(above, x, asked(result.success(name)), label=name, colour=colour, fewest=FEWEST)
    above.set_ylabel("success of the edit")
    above.legend(fontsize=7)
    _band(below, x, result.effects, label="effect", colour="tab:green", fewest=FEWEST)
    below.set_ylabel("indirect effect")
    for axes in (above, below):
        axes.axhline(0.0, color="grey", linewidth=0.5)
        axes.set_xticks(x, [str(layer) for layer in result.layers], fontsize=8)
    below.set_xlabel("edited layer, and " + _layer_label(result.window))
    for j, colour in enumerate(colormaps["viridis"](np.linspace(0.0, 0.95, len(x)))):
        right.scatter(result.effects[:, j], success[:, j], s=9, color=colour, label=str(result.layers[j]))
    right.legend(title="layer", fontsize=6, title_fontsize=7, ncols=1 + len(x) // 10)
    right.set_xlabel(
        f"indirect effect of the {_NAMES[result.component]}, at {str(result.at).replace('_', ' ')}", parse_math=False
    )
    right.set_ylabel(measure)
    right.set_title(_explained(result, measure), fontsize=9)
    return figure


def tokens(labels: Sequence[str], values: Float[Tensor, " pos"] | Sequence[float]) -> Html:
    """Tokens coloured by a value each (CircuitsVis): blue above zero, red below.

    Raises:
        ValueError: there are not as many values as tokens.
    """
    if len(labels) != len(values):
        raise ValueError(f"There are {len(labels)} tokens and {len(values)} values, expected as many.")
    # CircuitsVis puts labels into the page as HTML, in which "<bos>" would be an element and not be seen.
    rendered = colored_tokens([html.escape(label) for label in labels], [float(value) for value in values])
    return Html(f"<div>{rendered.local_src}</div></div>")  # CircuitsVis leaves its own div open


def trace_tokens(result: CausalTrace) -> Html:
    """The prompt's tokens, coloured by the largest indirect effect that any layer's state has there."""
    effects = result.indirect_effects.amax((0, 2)) if result.heads else result.indirect_effects.amax(0)
    return tokens([result.labels[pos] for pos in result.positions], effects.clamp(min=0.0))


def firing(results: Sequence[EditFiring]) -> Html:
    """Where an edit fires, for one prompt a line: 1 is how it fires on the fact's own key."""
    labels: list[str] = []
    values: list[float] = []
    for result in results:
        labels += [*result.labels, "\n"]
        values += [*result.values.tolist(), 0.0]
    return tokens(labels, values)


def figure_html(figure: Figure, *, alt: str = "") -> str:
    """A figure as an ``img`` element that holds its own data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _explained(result: LayerSweep, measure: str) -> str:
    success = result.success(measure)
    rows = ~success.isnan().any(1)
    found = regression(result.effects[rows].numpy(), success[rows].numpy())
    what = f"{measure} of {int(rows.sum())} facts"
    if found is None:
        return f"{what}: all equal"
    return f"{what}, R² of layer {found.layer:.2f}, of effect {found.effect:.2f}, added {found.added:.3f}"


def _layer_ticks(axes: Axes, layers: Sequence[int]) -> None:
    step = max(1, len(layers) // 18)
    axes.set_xticks([i + 0.5 for i in range(0, len(layers), step)], [str(i) for i in layers[::step]], fontsize=8)


def _layer_label(window: int) -> str:
    return "restored layer" if window == 1 else f"centre of {window} restored layers"


def _band(
    axes: Axes, x: Sequence[int], samples: Float[Tensor, "sample layer"], *, label: str, colour: str, fewest: int = 2
) -> None:
    """The mean over samples as a line, with its 95 % interval where there are enough for one."""
    if not len(samples):
        return
    mean, half = samples.mean(0), half_width(samples)
    axes.plot(x, mean, color=colour, label=label, linewidth=1.2)
    if len(samples) >= fewest:
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)


def _visible(label: str) -> str:
    """A label for an axis; a character that the font lacks shows as its code."""
    font = get_font(findfont(FontProperties()))
    text = label.replace("\n", "↵").strip() or "␣"
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text)
