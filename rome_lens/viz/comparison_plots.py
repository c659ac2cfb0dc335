"""The figure of editors side by side."""

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rome_lens.checks.limits_comparison import EFFECT, LimitsComparison
from rome_lens.errors import ArgumentError
from rome_lens.viz.axes import GREY, LINES, bars_in_words, caption, named_model, picture

_COLUMNS = 3
_NOTE: Any = {
    "fontsize": 6,
    "color": GREY,
    "ha": "right",
    "va": "center",
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},
}


def limits_by_editor(result: LimitsComparison) -> Figure:
    """Draw a panel for each number of each check, with a line for each editor.

    Marks are means over facts and bars are their 95 % intervals, from five relations on. The
    caption says where there is none. Stars mark editors whose paired difference from the first has
    an interval without zero. The grey line is the first editor's mean. A row
    without a mark says whether the editor was not asked or has no number.

    Raises:
        ArgumentError: no check was asked.
    """
    numbers = result.numbers
    if not numbers:
        raise ArgumentError(
            "No check was asked, so there is nothing to draw: use records with more prompts."
        )
    columns = min(_COLUMNS, len(numbers))
    lines = -(-len(numbers) // columns)
    height = 0.7 + 0.2 * len(result.editors)
    figure = picture(max(5.6, 3.6 * columns), 0.2 + height * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for i, (axes, (check, number)) in enumerate(zip(panels, numbers, strict=False)):
        _draw(axes, result, check, number, named=i % columns == 0)
    for axes in panels[len(numbers) :]:
        axes.set_axis_off()
    first = result.averages[0].limits
    pairs = [(editor, *number) for editor in result.editors for number in numbers]
    bars = bars_in_words([result.mean(*each) for each in pairs], "relations")
    compared = [result.difference(*each) for each in pairs if each[0] != result.editors[0]]
    tested = any(each is not None and each.low is not None for each in compared)
    caption(
        figure,
        f"What the edits of {len(result.editors)} editors do on the same {len(first)} facts",
        f"{named_model(first[0].model_name)}; marks are means; {bars}",
        f"grey line: {result.editors[0]}; "
        + ("a star differs from it" if tested else "no difference from it has an interval"),
    )
    return figure


def _draw(axes: Axes, result: LimitsComparison, check: str, number: str, *, named: bool) -> None:
    axes.axvline(0.0, color="black", linewidth=0.5)
    for y, editor in enumerate(result.editors):
        mean = result.mean(editor, check, number)
        if mean is None:
            words = "no number" if _was_asked(result, editor, check) else "not asked"
            axes.text(0.98, y, words, transform=axes.get_yaxis_transform(), **_NOTE)
            continue
        if y == 0:
            axes.axvline(mean.mean, color="grey", linewidth=0.8, alpha=0.7)
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [y, y], color=LINES[0].colour, linewidth=2, alpha=0.5)
        difference = result.difference(editor, check, number)
        differs = (
            difference is not None
            and difference.low is not None
            and difference.high is not None
            and not difference.low <= 0.0 <= difference.high
        )
        mark, size = ("*", 9) if y and differs else ("o", 5)
        axes.plot([mean.mean], [y], mark, color=LINES[0].colour, markersize=size)
    names = result.editors if named else [""] * len(result.editors)
    axes.set_yticks(range(len(result.editors)), names, fontsize=7)
    axes.set_ylim(len(result.editors) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=7)
    title = check if number == EFFECT else f"{check}, {number}"
    axes.set_title(textwrap.fill(title, 40), fontsize=8, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    words = result.words(check, number)
    axes.set_xlabel("" if words == number else textwrap.fill(words, 52), fontsize=6)


def _was_asked(result: LimitsComparison, editor: str, check: str) -> bool:
    """Whether there are prompts of the check, with or without a number."""
    if editor not in result.edited:
        return False
    every = [each for limits in result[editor].limits for each in limits.results]
    return any(each.rows for each in every if each.name == check)
