"""The numbers of :func:`rome_lens.compare_limits` as a table with one row for each fact.

Such a table is small, so it can be published beside a claim and averaged again by its readers.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from rome_lens.checks.average import LimitsAverage
from rome_lens.checks.claims.fidelity import OTHER_EDITS
from rome_lens.checks.result import CheckResult
from rome_lens.errors import ArgumentError
from rome_lens.intervals import Average, average, share

_KEYS = ("editor", "check", "number")
COLUMNS = ("editor", "record", "relation", "check", "number", "value", "share")


def by_fact(averages: Mapping[str, LimitsAverage]) -> pd.DataFrame:
    """One row for each editor, fact, check and number, from the limits of each editor's edits."""
    rows = [
        (editor, limits.record_id, limits.relation, result.name, *number)
        for editor, its in averages.items()
        for limits in its.limits
        for result in limits.results
        if result.asked
        for number in _numbers(result)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _numbers(result: CheckResult) -> Iterator[tuple[str, float, bool]]:
    """The name and the value of each number, and whether it is a share."""
    for name, value in (
        ("effect", result.effect),
        ("effect where known", result.effect_where_known),
        ("control", result.control),
    ):
        if value is not None:
            yield name, value.mean, False
    for measure in result.further:
        if not measure.name.endswith(OTHER_EDITS):
            yield measure.name, measure.average.mean, measure.share


def average_by_fact(frame: pd.DataFrame, *, minus: str | None = None) -> pd.DataFrame:
    """The mean over facts of each editor's numbers, with 95 % intervals clustered by relation.

    Args:
        frame: what :meth:`LimitsComparison.by_fact` returns, or a file of it.
        minus: an editor. The means are then of paired differences: each fact's number minus this
            editor's number for the same fact. None gives the means themselves.

    Returns:
        One row for each editor, check and number, with the columns ``mean``, ``low``, ``high``,
        ``facts``, ``relations`` and ``text``. ``low`` and ``high`` are NaN where there is no
        interval, and ``text`` then says why.

    Raises:
        ArgumentError: a column is missing, or there is no editor of this name.

    Example:
        >>> import pandas as pd
        >>> import rome_lens as rl
        >>> frame = pd.DataFrame(
        ...     [("ROME", f"fact {i}", f"relation {i % 6}", "overfit", "effect", i / 10, False)
        ...      for i in range(12)],
        ...     columns=["editor", "record", "relation", "check", "number", "value", "share"],
        ... )
        >>> rl.checks.average_by_fact(frame)["text"].tolist()
        ['0.550 [0.354, 0.746]']
    """
    lines = [
        {
            **dict(zip(_KEYS, key, strict=True)),
            "mean": mean.mean,
            "low": mean.low,
            "high": mean.high,
            "facts": mean.count,
            "relations": mean.clusters,
            "text": str(mean),
        }
        for key, mean in averages(frame, minus=minus).items()
    ]
    return pd.DataFrame(lines)


def averages(
    frame: pd.DataFrame, *, minus: str | None = None
) -> dict[tuple[str, str, str], Average]:
    """What :func:`average_by_fact` returns, by editor, check and number.

    Raises:
        ArgumentError: as for :func:`average_by_fact`.
    """
    if missing := [name for name in COLUMNS if name not in frame]:
        raise ArgumentError(
            f"The table has no column {missing[0]!r}, expected {', '.join(COLUMNS)}, as "
            "LimitsComparison.by_fact() returns them."
        )
    if minus is not None:
        frame = _differences(frame, minus)
    found: dict[tuple[str, str, str], Average] = {}
    for (editor, check, number), rows in frame.groupby(list(_KEYS), sort=False):
        mean = share if minus is None and rows["share"].all() else average
        its = mean(rows["value"].tolist(), rows["relation"].tolist())
        found[str(editor), str(check), str(number)] = its
    return found


def _differences(frame: pd.DataFrame, minus: str) -> pd.DataFrame:
    """The rows of the other editors, with this editor's value for the same fact subtracted."""
    if minus not in set(frame["editor"]):
        raise ArgumentError(
            f"There is no editor {minus!r}, there are {', '.join(dict.fromkeys(frame['editor']))}."
        )
    own = frame[frame["editor"] == minus]
    others = frame[frame["editor"] != minus]
    pairs = others.merge(
        own[["record", "check", "number", "value"]],
        on=["record", "check", "number"],
        suffixes=("", " of the first"),
    )
    return pairs.assign(value=pairs["value"] - pairs["value of the first"])
