"""The figure of a check along the optimisation of an edit."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rome_lens.checks.result import CheckResult
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError

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
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.0, color="black", linewidth=0.5)
    for way in ways:
        values = [result[f"{way}{_DIFFERENCE}"].mean for result in results]
        axes.plot(steps, values, "o-", label=way, markersize=3, linewidth=1.2)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel("steps of the optimisation", fontsize=8)
    axes.set_ylabel("new target after minus true target before", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7)
    return figure


def _steps(edit: RankOneEdit) -> int:
    if edit.losses is None:
        raise ArgumentError(f"{edit!r} was not optimised, expected edits of rl.rome_path.")
    return len(edit.losses)
