"""The figure of a trace with severed modules."""

from matplotlib.figure import Figure

from rome_lens.tracing.results import SeveredTrace
from rome_lens.viz.axes import LINES, band, caption, layer_ticks, legend_below, picture, visible
from rome_lens.viz.trace_plots import score_label, trace_caption

_WIDTH = 5.2


def severed(result: SeveredTrace) -> Figure:
    """Draw indirect effects by layer, with and without severed modules, for each position."""
    panels = len(result.positions)
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure = picture(max(_WIDTH, 3.4 * columns), 0.4 + 2.1 * lines)
    what = {"mlp": "MLPs", "attn": "attentions", "both": "MLPs and attentions"}[result.severed]
    grid = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    held = f"{'later' if result.held_layers == 'later' else 'all'} {what} severed"
    for j, (axes, pos) in enumerate(zip(grid, result.positions, strict=False)):
        for line, name, effects in (
            (LINES[0], "nothing severed", result.ordinary_sample_scores),
            (LINES[1], held, result.sample_scores),
        ):
            if result.direction == "noising":
                effect = result.clean - effects[:, :, j]
            else:
                effect = effects[:, :, j] - result.corrupted_samples[:, None]
            band(axes, range(len(result.layers)), effect, label=name, line=line)
        axes.axhline(0.0, color="grey", linewidth=0.5)
        layer_ticks(axes, result.layers, offset=0.0)
        axes.set_title(f"at {visible(result.labels[pos])!r}", fontsize=8, parse_math=False)
    for axes in grid[panels:]:
        axes.set_axis_off()
    figure.supxlabel("restored layer", fontsize=8)
    figure.supylabel(f"indirect effect on {score_label(result)}", parse_math=False, fontsize=8)
    caption(figure, *trace_caption(result))
    legend_below(figure, grid[0])
    return figure
