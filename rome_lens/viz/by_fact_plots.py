"""The figure of editors side by side from a table of their numbers by fact."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rome_lens.checks.numbers_by_fact import averages
from rome_lens.errors import ArgumentError
from rome_lens.intervals import Average
from rome_lens.viz.axes import GREY, LINES, bars_in_words, caption, picture

_COLUMNS = 3


def means_by_editor(
    frame: pd.DataFrame,
    numbers: Mapping[str, tuple[str, str]],
    *,
    editors: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw a panel for each number, with a line for each editor, from a table of facts.

    Marks are means over facts. Bars are their 95 % intervals, clustered by relation, and are
    missing where there is none. A row without a mark says that the editor has no number.

    Args:
        frame: such as ``rl.data.published_limits("gemma-3-270m")`` or the result of
            ``LimitsComparison.by_fact()``.
        numbers: the panels: a title, and the check and the number that it shows.
        editors: the editors from top to bottom. None takes all.
        title: what stands above the picture.

    Raises:
        ArgumentError: a number or an editor is not in the table.

    Example:
        >>> import rome_lens as rl
        >>> frame = rl.data.published_limits("gemma-3-270m")
        >>> numbers = {"asked": ("overfit", "effect"), "bleed-over": ("bleed-over", "effect")}
        >>> figure = rl.viz.means_by_editor(frame, numbers, editors=["preset", "original"])
        >>> [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
        ['asked', 'bleed-over']
    """
    known = list(dict.fromkeys(frame["editor"]))
    chosen = known if editors is None else list(editors)
    if unknown := [each for each in chosen if each not in known]:
        raise ArgumentError(f"No editor is called {unknown[0]!r}: there are {', '.join(known)}.")
    there = set(zip(frame["check"], frame["number"], strict=True))
    if absent := [each for each in numbers.values() if tuple(each) not in there]:
        raise ArgumentError(f"The table has no number {absent[0]}: see its columns check, number.")
    if not numbers or not chosen:
        raise ArgumentError("There is nothing to draw: give at least one number and one editor.")
    found = averages(frame)
    columns = min(_COLUMNS, len(numbers))
    lines = -(-len(numbers) // columns)
    figure = picture(max(5.6, 3.4 * columns), 0.2 + (0.6 + 0.19 * len(chosen)) * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    drawn: list[Average | None] = []
    for i, (axes, (name, number)) in enumerate(zip(panels, numbers.items(), strict=False)):
        means = [found.get((editor, *number)) for editor in chosen]
        _draw(axes, means)
        drawn += means
        names = chosen if i % columns == 0 else [""] * len(chosen)
        axes.set_yticks(range(len(chosen)), names, fontsize=7)
        axes.set_title(textwrap.fill(name, 42), fontsize=8, loc="left")
    for axes in panels[len(numbers) :]:
        axes.set_axis_off()
    facts = [set(frame.loc[frame["editor"] == each, "record"]) for each in chosen]
    same = f" on the same {len(facts[0])} facts" if all(each == facts[0] for each in facts) else ""
    caption(
        figure,
        title or f"{len(chosen)} editors{same}",
        f"marks are means over facts; {bars_in_words(drawn, 'relations')}",
    )
    return figure


def _draw(axes: Axes, means: Sequence[Average | None]) -> None:
    """One number: a line for each editor."""
    axes.axvline(0.0, color=GREY, linewidth=0.6)
    for y, mean in enumerate(means):
        if mean is None:
            place = axes.get_yaxis_transform()
            axes.text(
                0.98,
                y,
                "no number",
                transform=place,
                fontsize=6,
                color=GREY,
                ha="right",
                va="center",
            )
            continue
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [y, y], color=LINES[0].colour, linewidth=2, alpha=0.5)
        axes.plot([mean.mean], [y], "o", color=LINES[0].colour, markersize=4.5)
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(4))
