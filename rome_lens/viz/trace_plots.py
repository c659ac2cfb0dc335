"""Figures of traces."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rome_lens.arguments import one_of
from rome_lens.errors import ArgumentError
from rome_lens.localisation.edit_trace_result import EditTrace
from rome_lens.tracing.positions import Position
from rome_lens.tracing.results import AttributionTrace, CausalTrace, SeveredTrace, Trace
from rome_lens.viz.axes import (
    COLOURS,
    GREY,
    LINES,
    NAMES,
    Picture,
    caption,
    drawable,
    interval_line,
    layer_label,
    layer_ticks,
    legend_below,
    named_model,
    picture,
    visible,
    wrap,
)

Scale = Literal["runs", "own"]
"""Where the colours of a trace end: at the corrupted and the clean run's score, which maps of the
same fact and noise share, or at the map's own lowest and highest score."""
_WIDTH = 5.2
_SAME = 1e-6
_BAR_CHARACTERS_PER_INCH = 8.0
_BEYOND = 0.01  # of the scale, from where its bar has an arrow


def trace(result: CausalTrace, *, scale: Scale = "runs") -> Figure:
    """Draw a trace as a heatmap with a row for each token and a column for each layer.

    The colour is the score, such as the answer's probability, with that state restored. By default,
    it runs from the corrupted run's score to the clean run's. So a map in which nothing happens is
    pale, and maps of the same fact can be compared. In noising, dark cells are those that take most
    away from the clean run's score. The corrupted tokens, i.e. the subject's, carry a star. In a
    trace of single heads, each cell shows its best head; see :func:`heads`.

    Args:
        result: the trace.
        scale: ``"own"`` ends the colours at the map's own lowest and highest score, and says so.

    Raises:
        ArgumentError: the scale is unknown.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> result = rl.causal_trace(model, rl.data.record("wanda-brandt"), samples=2)
        >>> figure = rl.viz.trace(result)
        >>> figure.axes[0].get_xlabel()
        'restored layer'
    """
    best = result.scores.amin if result.direction == "noising" else result.scores.amax
    scores = (best(2) if result.heads else result.scores).T
    figure = picture(
        max(_WIDTH, 2.2 + 0.32 * len(result.layers)), 1.0 + 0.24 * len(result.positions)
    )
    axes = figure.add_subplot()
    _heatmap(figure, axes, result, scores, scale)
    labels = [visible(result.labels[pos]) + star_of(result, pos) for pos in result.positions]
    axes.set_yticks([i + 0.5 for i in range(len(labels))], labels, parse_math=False)
    axes.set_xlabel(_layers_of(result))
    best_heads = ("Each cell shows its best head.",) if result.heads else ()
    notes = (*star_words(result), *best_heads, *_scale_words(scale))
    caption(figure, *trace_caption(result), *notes)
    return figure


def heads(result: CausalTrace, at: Position | None = None, *, scale: Scale = "runs") -> Figure:
    """Draw a trace of ``"z"`` at one position as a heatmap of heads and layers.

    Args:
        result: a trace of single heads.
        at: the position, as :meth:`CausalTrace.peak` takes it. None takes that of the highest
            score.
        scale: as for :func:`trace`.

    Raises:
        ArgumentError: the trace is not of single heads, or does not cover the position.
    """
    if not result.heads:
        raise ArgumentError(
            f"The trace is of {result.component!r}, expected one made with component='z'."
        )
    pos = result.peak(at)[1]
    scores = result.scores[:, result.positions.index(pos)].T
    figure = picture(max(_WIDTH, 2.2 + 0.32 * len(result.layers)), 1.0 + 0.24 * len(result.heads))
    axes = figure.add_subplot()
    _heatmap(figure, axes, result, scores, scale)
    axes.set_yticks(
        [i + 0.5 for i in range(len(result.heads))], [str(head) for head in result.heads]
    )
    axes.set_ylabel("head")
    axes.set_xlabel(_layers_of(result))
    first, *rest = trace_caption(result)
    caption(figure, f"{first} at {visible(result.labels[pos])!r}", *rest, *_scale_words(scale))
    return figure


def _heatmap(
    figure: Picture,
    axes: Axes,
    result: CausalTrace,
    scores: Float[Tensor, "row layer"],
    scale: Scale,
) -> None:
    """Draw scores as colours, with a bar that names the ends of the scale."""
    one_of("scale", scale, Scale)
    low, high = scale_ends(result, scale)
    colours = COLOURS[result.component] + ("" if result.direction == "denoising" else "_r")
    image = axes.pcolormesh(scores.numpy(), cmap=colours, vmin=low, vmax=high)
    axes.invert_yaxis()
    layer_ticks(axes, result.layers)
    beyond = _BEYOND * (high - low)
    below, above = float(scores.min()) < low - beyond, float(scores.max()) > high + beyond
    extend: Any = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    bar = figure.colorbar(image, ax=axes, extend=extend.get((below, above), "both"))
    label = wrap(
        drawable(score_label(result)), int(_BAR_CHARACTERS_PER_INCH * figure.get_figheight())
    )
    bar.set_label("\n".join(label), parse_math=False, fontsize=8)
    full, empty = run_names(result)
    ends = (empty, full) if scale == "runs" and result.clean > result.corrupted else ("", "")
    middle = (low + high) / 2
    names = [f"{low:.3f} {ends[0]}", f"{middle:.3f}", f"{high:.3f} {ends[1]}"]
    bar.set_ticks([low, middle, high], labels=[name.strip() for name in names])
    bar.ax.tick_params(labelsize=7)


def scale_ends(result: CausalTrace, scale: Scale) -> tuple[float, float]:
    """The scores at which the colours of a trace begin and end."""
    if scale == "own":
        low, high = float(result.scores.min()), float(result.scores.max())
    else:
        low, high = sorted((result.corrupted, result.clean))
    return low, max(high, low + _SAME)


def _scale_words(scale: Scale) -> tuple[str, ...]:
    return ("Colours end at this map's own lowest and highest score.",) if scale == "own" else ()


def trace_caption(result: Trace) -> tuple[str, ...]:
    """What a trace is of: kind and component; prompt and answer; model, runs and samples."""
    what = NAMES[result.component] if isinstance(result, CausalTrace) else NAMES["resid"]
    kind = "Causal trace"
    if isinstance(result, EditTrace):
        kind = f"Trace of an edit of layer {', '.join(map(str, result.edited_layers))}"
    elif isinstance(result, AttributionTrace):
        kind = "Estimated trace (attribution patching, to first order)"
    elif isinstance(result, SeveredTrace):
        kind = "Severed trace"
    if result.direction == "noising":
        kind += " by noising"
    full, empty = run_names(result)
    runs = f"{named_model(result.model_name)}; {full} {result.clean:.3f}, {empty} "
    runs += f"{result.corrupted:.3f}"
    if not isinstance(result, EditTrace):
        count = len(result.corrupted_samples)
        runs += f"; {count} noise sample{'s' * (count != 1)}"
    question = f"“{result.fact.text.rstrip()} → {result.fact.target.strip()}”"
    return f"{kind}, {what}", question, runs


def run_names(result: Trace) -> tuple[str, str]:
    """What the two runs of a trace are called."""
    return ("edited", "unedited") if isinstance(result, EditTrace) else ("clean", "corrupted")


def score_label(result: Trace) -> str:
    """What the scores of a trace are."""
    answer = result.answer.strip()
    what = f"p({answer})" if result.metric == "probability" else f"{result.metric} of {answer}"
    if isinstance(result, AttributionTrace):
        return f"linear estimate of {what}, not bounded"
    return what


def _layers_of(result: CausalTrace) -> str:
    """The label of the axis of layers, which says what is put into which run."""
    if isinstance(result, EditTrace):
        state = "edited" if result.direction == "denoising" else "unedited"
        return f"layer with the {state} state"
    noising = result.direction == "noising"
    return layer_label(result.window, state="corrupted" if noising else "restored")


def trace_by_layer(result: CausalTrace, at: Sequence[Position] | None = None) -> Figure:
    """Draw the indirect effect of some positions along the layers, with intervals.

    The bands are 95 % intervals over the noise samples of this one fact. They say how far the
    effect depends on the draw of the noise, not how far it holds for other facts. Those of a
    probability are cut where no probability is possible.

    Args:
        result: a trace of whole components.
        at: the positions, as :meth:`CausalTrace.peak` takes them. None takes the subject's
            strongest token, its last token and the prompt's last token, as far as they were traced.

    Raises:
        ArgumentError: the trace is of single heads, or a position was not traced.
    """
    if result.heads:
        raise ArgumentError("The trace is of single heads: rl.viz.heads draws it.")
    figure = picture(_WIDTH, 2.6)
    axes = figure.add_subplot()
    for line, pos in zip(LINES, _drawn_positions(result, at), strict=False):
        column = result.positions.index(pos)
        interval_line(
            axes,
            range(len(result.layers)),
            result.indirect_effects[:, column],
            result.half_widths[:, column] if len(result.corrupted_samples) > 1 else None,
            label=f"at {visible(result.labels[pos])!r}{star_of(result, pos)}",
            line=line,
            possible=_possible_effects(result),
        )
    axes.axhline(0.0, color="grey", linewidth=0.5)
    axes.axhline(result.total_effect, color="grey", linewidth=0.8, linestyle=":")
    axes.text(0.0, result.total_effect, "total effect", fontsize=7, color=GREY, va="bottom")
    axes.margins(y=0.15)
    layer_ticks(axes, result.layers, offset=0.0)
    axes.set_xlabel(_layers_of(result))
    axes.set_ylabel(f"indirect effect on\n{score_label(result)}", parse_math=False, fontsize=8)
    several = len(result.corrupted_samples) > 1
    bands = ("Bands: 95 % intervals over this fact's noise samples.",) if several else ()
    caption(figure, *trace_caption(result), *star_words(result), *bands)
    legend_below(figure, axes)
    return figure


def star_of(result: Trace, pos: int) -> str:
    """The sign of a corrupted token. In a trace of an edit, none is corrupted."""
    corrupted = result.subject[0] <= pos < result.subject[1] and not isinstance(result, EditTrace)
    return "*" if corrupted else ""


def star_words(result: Trace) -> tuple[str, ...]:
    """What the star is, for a caption, if there is one."""
    return ("* corrupted",) if any(star_of(result, pos) for pos in result.positions) else ()


def _possible_effects(result: CausalTrace) -> tuple[float, float]:
    """The least and the largest indirect effect that the runs leave possible."""
    if result.metric != "probability" or isinstance(result, AttributionTrace):
        return -math.inf, math.inf
    if result.direction == "noising":
        return result.clean - 1.0, result.clean
    return -result.corrupted, 1.0 - result.corrupted


def _drawn_positions(result: CausalTrace, at: Sequence[Position] | None) -> list[int]:
    if at is not None:
        return list(dict.fromkeys(result.peak(each)[1] for each in at))
    inside = [pos for pos in result.positions if result.subject[0] <= pos < result.subject[1]]
    effects = result.indirect_effects
    strongest = sorted(
        inside, key=lambda pos: -float(effects[:, result.positions.index(pos)].max())
    )
    wanted = [*strongest[:1], result.subject[1] - 1, len(result.labels) - 1]
    return [pos for pos in dict.fromkeys(wanted) if pos in result.positions] or [result.peak()[1]]
