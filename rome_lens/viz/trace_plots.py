"""Figures of traces."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST
from rome_lens.localisation.edit_trace_result import EditTrace
from rome_lens.tracing.averages import TraceAverage
from rome_lens.tracing.positions import Position
from rome_lens.tracing.results import CausalTrace, SeveredTrace, Trace
from rome_lens.viz.axes import COLOURS, NAMES, band, layer_label, layer_ticks, visible


def trace(result: CausalTrace) -> Figure:
    """Draw a trace as a heatmap with a row for each token and a column for each layer.

    The colour is the score, such as the answer's probability, with that state restored. The scale
    starts at the corrupted run's score. In noising, it ends at the clean run's score, and dark
    cells are those that take most away from it. The subject's tokens carry a star. In a trace of
    single heads, each cell shows its best head; see :func:`heads`.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> result = rl.causal_trace(model, rl.data.record("wanda-brandt"), samples=2)
        >>> figure = rl.viz.trace(result)
        >>> figure.axes[0].get_xlabel()
        'restored layer'
    """
    best = result.scores.amin if result.direction == "noising" else result.scores.amax
    scores = (best(2) if result.heads else result.scores).T.numpy()
    figure = Figure(
        figsize=(1.9 + 0.32 * len(result.layers), 1.5 + 0.27 * len(result.positions)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    low, high = _ends(result)
    colours = COLOURS[result.component] + ("" if result.direction == "denoising" else "_r")
    image = axes.pcolormesh(scores, cmap=colours, vmin=low, vmax=high)
    axes.invert_yaxis()
    start, end = result.subject
    labels = [
        visible(result.labels[pos]) + ("*" if start <= pos < end else "")
        for pos in result.positions
    ]
    axes.set_yticks([i + 0.5 for i in range(len(labels))], labels, parse_math=False)
    layer_ticks(axes, result.layers)
    axes.set_xlabel(layer_label(result.window))
    full, empty = _run_names(result)
    axes.set_title(
        f"{NAMES[result.component]}: {full} {result.clean:.2f}, {empty} {result.corrupted:.3f}",
        fontsize=9,
    )
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(_score_label(result), parse_math=False)
    return figure


def _ends(result: CausalTrace) -> tuple[float, float]:
    """The ends of the colour scale: the unchanged run's score, and the strongest cell's."""
    if result.direction == "noising":
        return min(float(result.scores.min()), result.clean - 1e-6), result.clean
    top = max(float(result.scores.max()), result.corrupted + 1e-6)
    return min(result.corrupted, top), top


def _run_names(result: CausalTrace) -> tuple[str, str]:
    """What the two runs of a trace are called."""
    return ("edited", "unedited") if isinstance(result, EditTrace) else ("clean", "corrupted")


def _score_label(result: Trace) -> str:
    answer = result.answer.strip()
    return f"p({answer})" if result.metric == "probability" else f"{result.metric} of {answer}"


def heads(result: CausalTrace, at: Position | None = None) -> Figure:
    """Draw a trace of ``"z"`` at one position as a heatmap of heads and layers.

    Args:
        result: a trace of single heads.
        at: the position, as :meth:`CausalTrace.peak` takes it. None takes that of the highest
            score.

    Raises:
        ArgumentError: the trace is not of single heads, or does not cover the position.
    """
    if not result.heads:
        raise ArgumentError(
            f"The trace is of {result.component!r}, expected one made with component='z'."
        )
    pos = result.peak(at)[1]
    scores = result.scores[:, result.positions.index(pos)].T.numpy()
    figure = Figure(
        figsize=(1.9 + 0.32 * len(result.layers), 1.6 + 0.27 * len(result.heads)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    low, high = _ends(result)
    colours = COLOURS["z"] + ("" if result.direction == "denoising" else "_r")
    image = axes.pcolormesh(scores, cmap=colours, vmin=low, vmax=high)
    axes.invert_yaxis()
    axes.set_yticks(
        [i + 0.5 for i in range(len(result.heads))], [str(head) for head in result.heads]
    )
    axes.set_ylabel("head")
    layer_ticks(axes, result.layers)
    axes.set_xlabel(layer_label(1))
    axes.set_title(f"{NAMES['z']} at {visible(result.labels[pos])!r}", fontsize=9, parse_math=False)
    figure.colorbar(image, ax=axes).set_label(_score_label(result), parse_math=False)
    return figure


def severed(result: SeveredTrace) -> Figure:
    """Draw indirect effects by layer, with and without severed modules, for each position."""
    panels = len(result.positions)
    figure = Figure(figsize=(0.8 + 4.2 * panels, 3.2), layout="constrained")
    what = {"mlp": "MLPs", "attn": "attentions", "both": "MLPs and attentions"}[result.severed]
    for j, (axes, pos) in enumerate(
        zip(figure.subplots(1, panels, squeeze=False)[0], result.positions, strict=True)
    ):
        x = list(range(len(result.layers)))
        for name, effects, colour in (
            ("nothing severed", result.ordinary_sample_scores, "tab:purple"),
            (
                f"{'later' if result.held_layers == 'later' else 'all'} {what} severed",
                result.sample_scores,
                "tab:green" if result.severed == "mlp" else "tab:red",
            ),
        ):
            band(
                axes,
                x,
                effects[:, :, j] - result.corrupted_samples[:, None],
                label=name,
                colour=colour,
            )
        axes.axhline(0.0, color="grey", linewidth=0.5)
        axes.set_xticks(
            x[:: max(1, len(x) // 12)], [str(i) for i in result.layers[:: max(1, len(x) // 12)]]
        )
        axes.set_xlabel("restored layer")
        axes.set_ylabel(f"indirect effect on {_score_label(result)}", parse_math=False)
        axes.set_title(f"at {visible(result.labels[pos])!r}", fontsize=9, parse_math=False)
        axes.legend(fontsize=7)
    return figure


def averages(results: Sequence[TraceAverage]) -> Figure:
    """Draw indirect effects averaged over facts, in one column for each result.

    The upper panel is a heatmap of roles and layers. The lower panel shows the first, middle and
    last subject tokens and the prompt's last token by layer, with 95 % intervals over facts
    if they are of five relations or more.

    Raises:
        ArgumentError: there is no result.
    """
    if not results:
        raise ArgumentError("results is empty: give at least one average of traces.")
    figure = Figure(figsize=(1.2 + 4.4 * len(results), 5.4), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False, height_ratios=(1.0, 1.3))
    for (above, below), result in zip(grid.T, results, strict=True):
        effects = result.indirect_effects.T.numpy()
        image = above.pcolormesh(effects, cmap=COLOURS[result.component], vmin=0.0)
        above.invert_yaxis()
        names = [
            f"{role} ({count})" for role, count in zip(result.roles, result.counts, strict=True)
        ]
        above.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=7)
        layer_ticks(above, result.layers)
        above.tick_params(axis="x", labelsize=6)
        figure.colorbar(image, ax=above).ax.tick_params(labelsize=7)
        above.set_title(
            f"{NAMES[result.component]}, {len(result.subjects)} facts\nATE {result.total_effect}",
            fontsize=8,
        )
        x = list(range(len(result.layers)))
        for role, colour in (
            ("first subject", "tab:orange"),
            ("middle subject", "tab:olive"),
            ("last subject", "tab:blue"),
            ("last", "tab:red"),
        ):
            column = result.roles.index(role)
            band(
                below,
                x,
                result.of_role(column),
                label=role,
                colour=colour,
                fewest=FEWEST,
                clusters=result.clusters_of_role(column),
            )
        below.axhline(0.0, color="grey", linewidth=0.5)
        step = max(1, len(x) // 9)
        below.set_xticks(x[::step], [str(i) for i in result.layers[::step]])
        below.set_xlabel(layer_label(result.window))
        below.set_ylabel("average indirect effect")
        below.legend(fontsize=7)
    return figure
