"""What several figures share: a figure that shows itself, captions, colours, names and ticks."""

import io
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image
from torch import Tensor

from rome_lens.intervals import Average, Clusters, cluster_rows, half_width

COLOURS = {"resid": "Purples", "mlp": "Greens", "attn": "Reds", "z": "Oranges"}
NAMES = {
    "resid": "residual stream",
    "mlp": "MLP output",
    "attn": "attention output",
    "z": "attention head's z",
}
GREY = "#555555"
_DPI = 96
_CHARACTERS_PER_INCH = 14.5  # of a caption
_LEGEND_CHARACTERS_PER_INCH = 13.0


class Line(NamedTuple):
    """How one of several lines is drawn. Lines differ by style and mark, not by colour alone."""

    colour: str
    style: Any
    mark: str


# Okabe and Ito's colours, which people with colour blindness tell apart.
LINES = (
    Line("#0072B2", "-", "o"),
    Line("#D55E00", "--", "s"),
    Line("#000000", ":", "^"),
    Line("#009E73", "-.", "D"),
    Line("#CC79A7", (0, (5, 1)), "v"),
    Line("#E69F00", (0, (3, 1, 1, 1)), "x"),
    Line("#56B4E9", (0, (1, 2)), "P"),
)


class Picture(Figure):
    """A matplotlib figure that shows itself in a notebook, without ``%matplotlib inline``."""

    def _repr_png_(self) -> bytes:
        return small_png(self, dpi=_DPI)


def small_png(figure: Figure, *, dpi: int) -> bytes:
    """A figure as PNG with 256 colours, a third of the size of one with all colours."""
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    with Image.open(buffer) as full:
        # Without dithering, so that cells of equal score have equal colours.
        few = full.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(small, format="png", optimize=True)
    return small.getvalue()


def picture(width: float, height: float) -> Picture:
    """A new figure of this size in inches, whose layout keeps everything inside."""
    return Picture(figsize=(width, height), layout="constrained")


def caption(figure: Figure, title: str, *lines: str) -> None:
    """Write above a figure what it is of, wrapped to its width. Empty lines are left out."""
    width = int(figure.get_figwidth() * _CHARACTERS_PER_INCH)
    wrapped = [part for line in (title, *lines) if line for part in wrap(drawable(line), width)]
    # A figure grows by its caption, which would otherwise take the room of what is drawn.
    figure.set_figheight(figure.get_figheight() + 0.16 * len(wrapped))
    figure.suptitle("\n".join(wrapped), fontsize=9, parse_math=False)


def wrap(text: str, width: int) -> list[str]:
    """The text in lines of at most this width, where a wide character counts as two."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return textwrap.wrap(text, max(12, int(width * len(text) / (len(text) + wide)))) or [""]


def legend_below(figure: Figure, *panels: Axes, title: str = "") -> None:
    """One legend for the panels, below them, where it covers no data."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    longest = max(len(label) for label in entries) + 6
    columns = max(1, int(figure.get_figwidth() * _LEGEND_CHARACTERS_PER_INCH / longest))
    columns = min(columns, len(entries))
    rows = -(-len(entries) // columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.17 * rows)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        fontsize=7,
        title=title or None,
        title_fontsize=7,
        handlelength=3.0,
    )


def layer_ticks(axes: Axes, layers: Sequence[int], *, offset: float = 0.5) -> None:
    """Label the columns with layers; with many layers, only with every n-th."""
    step = max(1, len(layers) // 18)
    axes.set_xticks(
        [i + offset for i in range(0, len(layers), step)],
        [str(i) for i in layers[::step]],
        fontsize=8,
    )


def layer_label(window: int, *, state: Literal["restored", "corrupted"] = "restored") -> str:
    """The label of an axis of layers."""
    return f"{state} layer" if window == 1 else f"centre of {window} {state} layers"


def band(
    axes: Axes,
    x: Sequence[int],
    samples: Float[Tensor, "sample layer"],
    *,
    label: str,
    line: Line,
    fewest: int = 2,
    clusters: Clusters = None,
) -> None:
    """Draw the mean over samples as a line, with its 95 % interval if there are enough clusters."""
    if not len(samples):
        return
    enough = len(cluster_rows(clusters, len(samples))) >= fewest
    half = half_width(samples, clusters) if enough else None
    interval_line(axes, x, samples.mean(0), half, label=label, line=line)


def interval_line(
    axes: Axes,
    x: Sequence[int],
    mean: Float[Tensor, " layer"],
    half: Float[Tensor, " layer"] | None,
    *,
    label: str,
    line: Line,
    possible: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    """Draw a line of means, with an interval of half this width around it.

    The interval is cut where no value is possible. Later lines of the palette are thinner, so that
    two lines of the same values are both seen.
    """
    later = LINES.index(line)
    axes.plot(
        x,
        mean,
        linestyle=line.style,
        color=line.colour,
        marker=line.mark,
        markersize=max(2.5, 6.0 - 1.2 * later),
        label=label,
        linewidth=max(0.9, 2.2 - 0.5 * later),
    )
    if half is not None:
        low, high = ((mean + sign * half).clamp(*possible) for sign in (-1, 1))
        axes.fill_between(x, low, high, color=line.colour, alpha=0.15, linewidth=0)


def bars_in_words(means: Iterable[Average | None], values: str) -> str:
    """What the bars around these means are, or that there are none, for a caption.

    Args:
        means: the means that are drawn.
        values: what the intervals are over, such as ``"relations"``.
    """
    drawn = [mean for mean in means if mean is not None]
    without = [mean.lacks for mean in drawn if mean.low is None]
    if not without:
        return "bars are 95 % intervals"
    few = f"fewer than five {values}"
    why = few if set(without) == {Average.lacks} else f"{few}, or (nearly) equal numbers"
    if len(without) == len(drawn):
        return f"no interval: {why}"
    return f"bars are 95 % intervals; without a bar: {why}"


def named_model(name: str) -> str:
    """A model's name for a caption; a result of an older version does not have it."""
    return name or "model not named"


def visible(label: str) -> str:
    """A token as a label that can be seen.

    Line breaks and blanks get a sign, and a character that the font lacks becomes its code.
    """
    return drawable(label.replace("\n", "↵").strip() or "␣")


def drawable(text: str) -> str:
    """The text, with the code of each character that the font lacks, and signs for line breaks."""
    font = get_font(findfont(FontProperties()))
    return "".join(
        c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode()
        for c in text.replace("\n", "↵")
    )
