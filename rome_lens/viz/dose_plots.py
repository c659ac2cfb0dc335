"""The figure of a check along the optimisation of an edit."""

import itertools
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from rome_lens.checks.result import CheckResult
from rome_lens.data.joining import joined
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.viz.axes import LINES, caption, interval_line, legend_below, picture

_DIFFERENCE = ": difference"


def doses(path: Sequence[RankOneEdit], results: Sequence[CheckResult]) -> Figure:
    """Draw how far each edit of a path is over or under, by its number of optimisation steps.

    There is a line for each way of asking: the mean over prompts of the new target after the edit
    minus the true one before it. Where the line *asked* crosses zero, the edit is matched.

    Args:
        path: the edits that :func:`rome_lens.rome_path` returned.
        results: the result of :func:`rome_lens.checks.overfit` for each of them.

    Raises:
        ArgumentError: there is no edit, there are not as many results as edits, or a result is
            another check's.
    """
    if not path or len(path) != len(results):
        raise ArgumentError(
            f"There are {len(path)} edits and {len(results)} results, expected a result for each "
            "edit, and at least one."
        )
    ways = [
        measure.name.removesuffix(_DIFFERENCE)
        for measure in results[0].further
        if measure.name.endswith(_DIFFERENCE)
    ]
    if not ways:
        raise ArgumentError(
            f"The results are of the check {results[0].name!r}, expected those of overfit."
        )
    steps = [_steps(edit) for edit in path]
    figure = picture(5.6, 2.8)
    axes = figure.subplots()
    axes.axhline(0.0, color="black", linewidth=0.5)
    for line, way in zip(itertools.cycle(LINES), ways, strict=False):
        values = torch.tensor(
            [result[f"{way}{_DIFFERENCE}"].mean for result in results],
            dtype=torch.float64,
            device="cpu",
        )
        interval_line(axes, steps, values, None, label=way, line=line)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel("steps of the optimisation", fontsize=8)
    axes.set_ylabel("p(new) after minus\np(true) before", fontsize=8)
    axes.tick_params(labelsize=8)
    fact = path[0].fact
    of = "" if fact is None else f"“{joined(fact.text, fact.target)} → {fact.new_target}”; "
    caption(
        figure,
        "How far an edit is over (above 0) or under, by its number of steps",
        f"{of}edits of layer {path[0].layer}, by way of asking",
    )
    legend_below(figure, axes)
    return figure


def _steps(edit: RankOneEdit) -> int:
    if edit.losses is None:
        raise ArgumentError(f"{edit!r} was not optimised, expected edits of rl.rome_path.")
    return len(edit.losses)
