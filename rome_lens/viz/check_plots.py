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
from rome_lens.viz.axes import LINES, bars_in_words, caption, legend_below, named_model, picture
from rome_lens.viz.overview import FAILS, HOLDS, OVER, Reading, not_drawn, readings

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
_CONTROLS = {
    "generalisation": "the true answer, unedited",
    "direction": "the same for the true answer, unedited",
    "association": "the true answer, unedited",
    "description": "the true answer, unedited",
    "overfit": "the true answer, unedited",
    "bleed-over": "unedited",
    "consequence": "subjects of whom it is true, unedited",
    "specificity": "unedited",
    "essence": "a random edit of equal norm",
    "fidelity": "unedited",
}


def limits(result: Limits | LimitsAverage) -> Figure:
    """Draw every check as a row on one scale: what happens with the edit, and what could happen.

    The scale is a share from 0 to 1. The diamond is the mean with the edit, and small dots are the
    facts or prompts that it is of. The grey mark is the mean of the control, which each row names.
    In most rows it is what the unedited model can do; for essence it is a random edit of equal
    norm. Lines and grey bands are 95 % intervals, over facts or over the prompts of a single edit,
    cut where no value is possible. There is no interval below five values or relations; the diamond
    is then hollow. "3 of 6 facts" means that the row is of the three with prompts that the unedited
    model knows.

    The word on the right compares the two: a mean of at least 80 % of the control holds, and one of
    at most 20 % does not. Overfit and essence are about the difference from the control. A verdict
    is unsure if the interval reaches into another one. Where the control is below 0.1 the model
    could not have done it, and nothing follows.
    :mod:`rome_lens.viz.overview` says how each check is read on this scale, and
    :func:`limits_detail` draws the checks in their own units.

    Raises:
        ArgumentError: no check was asked.
    """
    found = readings(result)
    if not found:
        raise ArgumentError(
            "No check was asked, so there is nothing to draw: use records with more prompts."
        )
    figure = picture(8.0, 0.7 + 0.5 * len(found))
    axes = figure.add_subplot()
    unit = "fact" if isinstance(result, LimitsAverage) else "prompt"
    for y, reading in enumerate(found):
        _draw_reading(axes, y, reading, unit)
    _scale(axes, found, unit)
    caption(figure, *_captions(result), _of_fewer(found, unit))
    legend_below(figure, axes)
    return figure


def _draw_reading(axes: Axes, y: int, reading: Reading, unit: str) -> None:
    def once(label: str) -> str:  # "_" keeps it out of the legend
        return "_" if label in axes.get_legend_handles_labels()[1] else label

    if reading.reference_ends:
        axes.fill_between(
            reading.reference_ends,
            y - _HALF,
            y + _HALF,
            color="#cccccc",
            linewidth=0,
            label=once("95 % interval of the control"),
        )
    axes.vlines(
        reading.reference.mean,
        y - _HALF,
        y + _HALF,
        color="#777777",
        linewidth=2.5,
        label=once("control (named in each row), mean"),
    )
    if reading.ends:
        axes.plot(
            reading.ends, [y, y], color=LINES[0].colour, linewidth=2, label=once("95 % interval")
        )
    colour = LINES[0].colour
    axes.plot(
        [reading.value.mean],
        [y],
        "D",
        color=colour,
        markerfacecolor=colour if reading.ends else "white",
        markersize=7,
        label=once("with the edit, mean (hollow: no interval)"),
    )
    if len(reading.values) > 1:
        axes.plot(
            reading.values,
            [y] * len(reading.values),
            "o",
            color="black",
            alpha=0.5,
            markersize=2.5,
            label=once(f"with the edit, one {unit}"),
        )


def _scale(axes: Axes, found: Sequence[Reading], unit: str) -> None:
    """The common scale, the checks' questions on its left and the verdicts on its right."""
    drawn = [x for each in found for x in (*each.values, each.value.mean, *(each.ends or ()))]
    axes.set_xlim(min(-0.05, min(drawn) - 0.05), max(1.05, max(drawn) + 0.05))
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    below = "; below 0: less probable than without the edit" if min(drawn) < -0.01 else ""
    axes.set_xlabel(f"share (probability, or share of it that stays{below})", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_yticks(range(len(found)), [_row_name(each, unit) for each in found], fontsize=7)
    axes.set_ylim(len(found) - 0.5, -0.5)
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks(range(len(found)), [each.verdict for each in found], fontsize=8)
    right.tick_params(length=0)


def _row_name(reading: Reading, unit: str) -> str:
    """The check, of how many it is, what it asks, and its control."""
    count = len(reading.values)
    of = f"{count} of {reading.asked}" if count != reading.asked else str(count)
    name = f"{reading.name}, {of} {unit}{'s' * (reading.asked != 1)}"
    return f"{name}\n{_QUESTIONS[reading.name]}\ncontrol: {_CONTROLS[reading.name]}"


def _of_fewer(found: Sequence[Reading], unit: str) -> str:
    if all(len(each.values) == each.asked for each in found):
        return ""
    return f"“n of m {unit}s”: the others have nothing that the unedited model knows, or no number."


def _captions(result: Limits | LimitsAverage) -> tuple[str, ...]:
    first = result.limits[0] if isinstance(result, LimitsAverage) else result
    rule = (
        f"A mean of at least {HOLDS:.0%} of the control holds, of at most {FAILS:.0%} does not; "
        "below 0.1 the model could not do it. Overfit and essence: a difference of more "
        f"than {OVER} from the control."
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
    values or relations, and the caption says so.

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
        count, unit = (
            (len(asked), "fact") if isinstance(result, LimitsAverage) else (prompts, "prompt")
        )
        left.set_title(f"{name} ({count} {unit}{'s' * (count != 1)})", fontsize=9, loc="left")
        right.set_visible(_mean(result, name, "control") is not None)
    what, of, *_ = _captions(result)
    kinds = ("effect", "effect_where_known", "control")
    means = [_mean(result, name, kind) for name in checks for kind in kinds]
    of_many = isinstance(result, LimitsAverage)
    dots, over = ("fact", "relations") if of_many else ("prompt", "prompts")
    bars = bars_in_words(means, over)
    caption(figure, what, f"{of}; a dot is a {dots}, the upright mark is the mean; {bars}")
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
    counted = [f"{names[kind]} ({mean.count})" for kind, mean in means.items()]
    axes.set_yticks(range(len(means)), counted, fontsize=7)
    axes.set_ylim(max(len(means), 1) - 0.5, -0.5)
