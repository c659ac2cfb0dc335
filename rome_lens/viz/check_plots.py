"""Figures of checks: all of them on one scale, or each with its own numbers."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rome_lens.checks.average import Averaged, LimitsAverage
from rome_lens.checks.limits import Limits
from rome_lens.checks.result import CheckResult
from rome_lens.errors import ArgumentError
from rome_lens.intervals import Average
from rome_lens.viz.axes import LINES, caption, legend_below, named_model, picture
from rome_lens.viz.overview import FAILS, HOLDS, Reading, not_drawn, readings

_HALF = 0.32  # of a row's height
_QUESTIONS = {
    "generalisation": "in other words?",
    "direction": "asked backwards?",
    "association": "under another name?",
    "description": "for a description?",
    "overfit": "as likely as the truth was?",
    "bleed-over": "neighbours keep theirs?",
    "consequence": "does what follows follow?",
    "specificity": "other relations stay?",
    "essence": "the rest about the subject stays?",
    "fidelity": "other text stays?",
}


def limits(result: Limits | LimitsAverage) -> Figure:
    """Draw every check as a row on one scale: what happens with the edit, and what could happen.

    The scale is a share from 0 to 1. The mark is what happens with the edit. The grey band is the
    control, i.e. what the unedited model could do: its bar is the mean, and its width the 95 %
    interval. The word on the right compares the two: a mean of at least 80 % of the control holds,
    and one of at most 20 % does not. A verdict is unsure if the interval reaches into another one.
    Where the control is below 0.1 the model could not have done it, and nothing follows.
    :mod:`rome_lens.viz.overview` says how each check is read on this scale, and
    :func:`limits_detail` draws the checks in their own units.

    Marks are means and lines are 95 % intervals, over facts or over the prompts of a single edit.
    There is no interval below five values; the mark is then hollow.

    Raises:
        ArgumentError: no check was asked.
    """
    found = readings(result)
    if not found:
        raise ArgumentError(
            "No check was asked, so there is nothing to draw: use records with more prompts."
        )
    figure = picture(7.4, 0.7 + 0.38 * len(found))
    axes = figure.add_subplot()
    for y, reading in enumerate(found):
        _draw_reading(axes, y, reading)
    _scale(axes, found)
    caption(figure, *_captions(result))
    legend_below(figure, axes)
    return figure


def _draw_reading(axes: Axes, y: int, reading: Reading) -> None:
    control, value = reading.reference, reading.value
    low = control.mean if control.low is None else control.low
    high = control.mean if control.high is None else control.high
    label = ("control: what the unedited model can do", "with the edit", "95 % interval")
    first = y == 0
    axes.fill_between(
        [low - 0.004, high + 0.004], y - _HALF, y + _HALF, color="#cccccc", linewidth=0
    )
    axes.plot(
        [control.mean] * 2,
        [y - _HALF, y + _HALF],
        color="#777777",
        linewidth=2.5,
        label=label[0] if first else None,
    )
    few = value.low is None or value.high is None
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [y, y], color=LINES[0].colour, linewidth=2)
    axes.plot(
        [value.mean],
        [y],
        "D",
        color=LINES[0].colour,
        markerfacecolor="white" if few else LINES[0].colour,
        markersize=7,
        label=f"{label[1]} (hollow: no interval)" if first else None,
    )


def _scale(axes: Axes, found: Sequence[Reading]) -> None:
    """The common scale, the checks' questions on its left and the verdicts on its right."""
    lowest = min(each.value.low or each.value.mean for each in found)
    axes.set_xlim(min(-0.05, lowest - 0.05), 1.08)
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel("share (probability, or share of it that stays)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    names = [f"{each.name}\n{_QUESTIONS[each.name]}" for each in found]
    axes.set_yticks(range(len(found)), names, fontsize=7)
    axes.set_ylim(len(found) - 0.5, -0.5)
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks(range(len(found)), [each.verdict for each in found], fontsize=8)
    right.tick_params(length=0)


def _captions(result: Limits | LimitsAverage) -> tuple[str, ...]:
    first = result.limits[0] if isinstance(result, LimitsAverage) else result
    rule = (
        f"A mean of at least {HOLDS:.0%} of the control holds, of at most {FAILS:.0%} does not; "
        "below 0.1 the model could not do it."
    )
    missing = not_drawn(result)
    left_out = f"Not asked: {', '.join(missing)}." if missing else ""
    if isinstance(result, LimitsAverage):
        what = f"What the edits of {len(result.limits)} facts do, and do not do"
        return what, f"{named_model(first.model_name)}; averages over facts", rule, left_out
    fact = f"“{first.fact}”; " if first.fact else ""
    what = "What one edit does, and does not do"
    return what, f"{fact}{named_model(first.model_name)}; averages over prompts", rule, left_out


def limits_detail(result: Limits | LimitsAverage) -> Figure:
    """Draw each check that was asked in its own unit: its effect on the left, its control right.

    A dot is one fact, or one prompt if the result is about a single edit. "where known" covers the
    prompts for which the unedited model can do what is asked. Marks are means and bars are 95 %
    intervals, over facts or over the prompts of the single edit. There is no interval below five
    values.

    Raises:
        ArgumentError: no check was asked.
    """
    checks = [name for name in _checks(result) if _asked(result, name)]
    if not checks:
        raise ArgumentError(
            "No check was asked, so there is nothing to draw: use records with more prompts."
        )
    figure = picture(9.6, 0.2 + 1.15 * len(checks))
    for (left, right), name in zip(
        figure.subplots(len(checks), 2, squeeze=False, width_ratios=(3, 2)), checks, strict=True
    ):
        asked = _asked(result, name)
        sides: tuple[tuple[Axes, tuple[Averaged, ...], str], ...] = (
            (left, ("effect", "effect_where_known"), asked[0].effect_is),
            (right, ("control",), asked[0].control_is),
        )
        for axes, kinds, label in sides:
            _strips(axes, result, name, kinds)
            axes.set_xlabel(textwrap.fill(label, 56), fontsize=7)
            axes.tick_params(axis="x", labelsize=7)
            axes.axvline(0.0, color="grey", linewidth=0.5)
        prompts = sum(row.effect is not None for row in asked[0].rows)
        many = f"{len(asked)} facts" if isinstance(result, LimitsAverage) else f"{prompts} prompts"
        left.set_title(f"{name} ({many})", fontsize=9, loc="left")
        right.set_visible(_mean(result, name, "control") is not None)
    what, of, *_ = _captions(result)
    dots = "a dot is a fact" if isinstance(result, LimitsAverage) else "a dot is a prompt"
    caption(figure, what, f"{of}; {dots}, the mark is the mean, the bar its 95 % interval")
    return figure


def _checks(result: Limits | LimitsAverage) -> list[str]:
    return (
        result.checks
        if isinstance(result, LimitsAverage)
        else [check.name for check in result.results]
    )


def _asked(result: Limits | LimitsAverage, check: str) -> list[CheckResult]:
    """The results of a check for the facts that it was asked about."""
    if isinstance(result, LimitsAverage):
        return result.of(check)
    return [result[check]] if result[check].asked else []


def _mean(result: Limits | LimitsAverage, check: str, kind: Averaged) -> Average | None:
    if isinstance(result, LimitsAverage):
        return result.effect(check, kind)
    mean: Average | None = getattr(result[check], kind)
    return mean


def _values(result: Limits | LimitsAverage, check: str, kind: str) -> list[float]:
    """The values that the mean averages: one for each fact, or for each prompt of a single edit."""
    if isinstance(result, LimitsAverage):
        return [
            value.mean for each in result.of(check) if (value := getattr(each, kind)) is not None
        ]
    rows = [
        row
        for row in result[check].rows
        if row.effect is not None and (row.known or kind != "effect_where_known")
    ]
    values = [row.control if kind == "control" else row.effect for row in rows]
    return [value for value in values if value is not None]


def _strips(
    axes: Axes, result: Limits | LimitsAverage, check: str, kinds: Sequence[Averaged]
) -> None:
    """Draw a line of dots for each kind of average, with its mean and interval."""
    names = {"effect": "all", "effect_where_known": "where known", "control": "control"}
    means = {kind: mean for kind in kinds if (mean := _mean(result, check, kind)) is not None}
    for y, (kind, mean) in enumerate(means.items()):
        values = _values(result, check, kind)
        axes.plot(
            values,
            [y] * len(values),
            "o" if kind != "control" else "s",
            color=LINES[0].colour if kind != "control" else "grey",
            alpha=0.25,
            markersize=4,
        )
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [y, y], color="black", linewidth=2.5, alpha=0.6)
        axes.plot([mean.mean], [y], "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(means)), [names[kind] for kind in means], fontsize=7)
    axes.set_ylim(max(len(means), 1) - 0.5, -0.5)
