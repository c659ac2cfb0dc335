"""Figures of checks."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rome_lens.checks.average import Averaged, LimitsAverage
from rome_lens.checks.limits import Limits
from rome_lens.checks.result import CheckResult
from rome_lens.errors import ArgumentError
from rome_lens.intervals import Average


def limits(result: Limits | LimitsAverage) -> Figure:
    """Draw each check that was asked as a row: its effect on the left, its control on the right.

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
    figure = Figure(figsize=(9.6, 0.4 + 1.15 * len(checks)), layout="constrained")
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
            "o",
            color="tab:blue" if kind != "control" else "grey",
            alpha=0.25,
            markersize=4,
        )
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [y, y], color="black", linewidth=2.5, alpha=0.6)
        axes.plot([mean.mean], [y], "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(means)), [names[kind] for kind in means], fontsize=7)
    axes.set_ylim(max(len(means), 1) - 0.5, -0.5)
