"""The figure of a sweep."""

import textwrap

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST
from rome_lens.sweeps.results import Sweep, relations
from rome_lens.viz.axes import (
    LINES,
    band,
    caption,
    layer_label,
    layer_ticks,
    legend_below,
    named_model,
    picture,
)

_MAGNITUDES = ("EM", "PM", "NM")
_SHARES = ("ES", "PS", "NS", "S")
_SHOWN = ("effect", *_MAGNITUDES)


def sweep(result: Sweep, *measures: str) -> Figure:
    """Draw measures of a sweep by layer, a panel for each measure and a line for each editor.

    Lines are means over the facts that have a number at every layer, with 95 % intervals if
    they are of five relations or more.

    Args:
        measures: columns of the sweep's rows, such as ``"ES"`` or ``"direction effect"``. Without
            any, the effect of restoring, the magnitudes of success and the effects of the checks.

    Raises:
        ArgumentError: a measure is unknown, or there is none.
    """
    known = result.measures
    if unknown := [name for name in measures if name not in known]:
        raise ArgumentError(f"The sweep has no {unknown[0]!r}, it has {', '.join(known)}.")
    names = measures or tuple(name for name in known if name in _SHOWN or name.endswith(" effect"))
    if not names:
        raise ArgumentError("There is nothing to draw: the rows hold no measure.")
    columns = 2 if len(names) == 4 else min(len(names), 3)
    lines = -(-len(names) // columns)
    figure = picture(max(5.6, 3.2 * columns), 0.2 + 2.3 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    words = {**result.effects_in_words, "effect": layer_label(result.settings["window"])}
    for axes, name in zip(panels, names, strict=False):
        _draw(axes, result, name)
        axes.set_title(_title(name, words.get(name, "")), fontsize=7)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    facts, source = result.rows.id.nunique(), str(result.rows.model.iloc[0])
    caption(
        figure,
        f"Sweep over {len(result.layers)} layers, means over {facts} facts",
        f"Model: {named_model(source)}",
    )
    if result.editors != [""]:
        edited = [axes for axes, name in zip(panels, names, strict=False) if name != "effect"]
        legend_below(figure, *edited, title="editor")
    return figure


def _title(name: str, words: str) -> str:
    if name == "effect":
        return f"indirect effect\n{words}"
    return "\n".join([name, *textwrap.wrap(words, 44)])


def _draw(axes: Axes, result: Sweep, name: str) -> None:
    x = list(range(len(result.layers)))
    # What a trace finds is the same for all editors.
    editors = result.editors[:1] if name == "effect" else result.editors
    for i, editor in enumerate(editors):
        values, clusters = _by_layer(result, name, editor)
        band(
            axes,
            x,
            values,
            label=editor,
            line=LINES[2] if name == "effect" else LINES[i % len(LINES)],
            fewest=FEWEST,
            clusters=clusters,
        )
    axes.axhline(0.0, color="grey", linewidth=0.5)
    if name in _MAGNITUDES:
        axes.set_ylim(-1.05, 1.05)
    elif name in _SHARES:
        axes.set_ylim(-0.05, 1.05)
    layer_ticks(axes, result.layers, offset=0.0)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("restored layer" if name == "effect" else "edited layer", fontsize=8)


def _by_layer(result: Sweep, name: str, editor: str) -> tuple[Tensor, list[str]]:
    """A measure of one editor, ``[fact, layer]``, and the facts' relations.

    It is of the facts that have the measure at every layer.
    """
    rows = result.rows[result.rows.editor == editor]
    table = rows.pivot(index="id", columns="layer", values=name).dropna()
    values = torch.tensor(table.to_numpy(dtype="float64"), dtype=torch.float64, device="cpu")
    return values, relations(rows.drop_duplicates("id").set_index("id").loc[table.index])
