"""Parts that several figures share: colours, names, ticks and bands."""

from collections.abc import Sequence

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from rome_lens.intervals import Clusters, cluster_rows, half_width

COLOURS = {"resid": "Purples", "mlp": "Greens", "attn": "Reds", "z": "Oranges"}
NAMES = {
    "resid": "residual stream",
    "mlp": "MLP output",
    "attn": "attention output",
    "z": "attention head's z",
}


def layer_ticks(axes: Axes, layers: Sequence[int]) -> None:
    """Label the columns of a heatmap with layers; with many layers, only with every n-th."""
    step = max(1, len(layers) // 18)
    axes.set_xticks(
        [i + 0.5 for i in range(0, len(layers), step)], [str(i) for i in layers[::step]], fontsize=8
    )


def layer_label(window: int) -> str:
    """The label of an axis of layers."""
    return "restored layer" if window == 1 else f"centre of {window} restored layers"


def band(
    axes: Axes,
    x: Sequence[int],
    samples: Float[Tensor, "sample layer"],
    *,
    label: str,
    colour: str,
    fewest: int = 2,
    style: str = "-",
    clusters: Clusters = None,
) -> None:
    """Draw the mean over samples as a line, with its 95 % interval if there are enough clusters."""
    if not len(samples):
        return
    mean, half = samples.mean(0), half_width(samples, clusters)
    axes.plot(x, mean, style, color=colour, label=label, linewidth=1.2)
    if len(cluster_rows(clusters, len(samples))) >= fewest:
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)


def visible(label: str) -> str:
    """A token as a label that can be seen.

    Line breaks and blanks get a sign, and a character that the font lacks becomes its code.
    """
    font = get_font(findfont(FontProperties()))
    text = label.replace("\n", "↵").strip() or "␣"
    return "".join(
        c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text
    )
