"""Averages of scores over records, with 95 % intervals, and tables of them.

Source: Meng et al. 2022, section 3.3 and its appendix on metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from rome_lens.errors import ArgumentError
from rome_lens.evaluation.results import Evaluation, harmonic_mean
from rome_lens.intervals import Average, average, share, share_from_influence
from rome_lens.results import Result

NAMES = ("S", "ES", "PS", "NS", "EM", "PM", "NM", "GE", "RS")
SHARES = ("ES", "PS", "NS")


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores(Result):
    """Averages over records, each with a 95 % interval and the number of records that it covers.

    A score that no record has prompts for is None.

    Every score but S is the mean of the records' scores (:class:`Evaluation`). Intervals are
    clustered by the records' relations: those of :func:`rome_lens.intervals.share` for the shares
    ES, PS and NS, and those of :func:`rome_lens.intervals.average` for the others.

    S is the harmonic mean of the means ES, PS and NS. It is not a mean over records. Its interval
    is that of a share which varies as S does to first order in the records' weights (the delta
    method). Records that all agree also have an interval of some width.
    """

    editor: str
    """The editor's name."""
    records: int
    """How many records were evaluated."""
    already: int
    """How many of them have a new target that the unedited model preferred already.

    A success there says nothing about the edit.
    """
    S: Average | None
    """Harmonic mean of ES, PS and NS."""
    ES: Average | None
    """Efficacy score."""
    PS: Average | None
    """Paraphrase score."""
    NS: Average | None
    """Neighborhood score."""
    EM: Average | None
    """Efficacy magnitude."""
    PM: Average | None
    """Paraphrase magnitude."""
    NM: Average | None
    """Neighborhood magnitude."""
    GE: Average | None
    """Generation entropy, in bits."""
    RS: Average | None
    """Similarity of the generated texts to the reference texts."""
    failed: int = 0
    """For how many more records the edit failed. They are in no average."""

    @classmethod
    def of(
        cls, evaluations: Sequence[Evaluation], *, editor: str = "", failed: int = 0
    ) -> "Scores":
        """Average some evaluations.

        Args:
            evaluations: one for each record.
            editor: the editor's name.
            failed: the number of further records whose edit failed.

        Raises:
            ArgumentError: there is no evaluation, and no edit failed.
        """
        if not evaluations and not failed:
            raise ArgumentError("There is no evaluation to average: give at least one.")
        means = {}
        for name in NAMES[1:]:
            asked = [each for each in evaluations if getattr(each, name) is not None]
            mean = share if name in SHARES else average
            means[name] = (
                mean([getattr(each, name) for each in asked], [each.relation for each in asked])
                if asked
                else None
            )
        return cls(
            editor=editor,
            records=len(evaluations),
            failed=failed,
            already=sum(each.already for each in evaluations),
            S=_s_with_interval(evaluations),
            **means,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each score that is not None: mean, 95 % interval and number of records."""
        return pd.DataFrame(
            [
                [self.editor, name, value.mean, value.low, value.high, value.count]
                for name in NAMES
                if (value := getattr(self, name)) is not None
            ],
            columns=["editor", "score", "mean", "low", "high", "records"],
        )

    def __str__(self) -> str:
        return markdown(score_table([self]))


def score_table(scores: Sequence[Scores]) -> pd.DataFrame:
    """A table of text with a row for each editor and a column for each score.

    A cell holds a mean with its interval. A score that is None for every editor is left out.
    ``records`` counts the records that were evaluated. If edits failed, the column ``failed``
    counts them.
    """
    names = [name for name in NAMES if any(getattr(each, name) is not None for each in scores)]
    cells = [
        [
            _why_missing(each) if (value := getattr(each, name)) is None else str(value)
            for name in names
        ]
        for each in scores
    ]
    frame = pd.DataFrame(
        cells, columns=names, index=pd.Index([each.editor for each in scores], name="editor")
    )
    frame["records"] = [each.records for each in scores]
    if any(each.failed for each in scores):
        frame["failed"] = [each.failed for each in scores]
    return frame


def _why_missing(scores: Scores) -> str:
    return "not asked" if scores.records else "no edit"


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, with its index as the first column."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    body = [
        [str(name), *map(str, row)]
        for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)
    ]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _s_with_interval(evaluations: Sequence[Evaluation]) -> Average | None:
    """S with its interval; see :class:`Scores`."""
    found = s_influence(evaluations)
    if found is None:
        return None
    mean, influence, asked = found
    return replace(
        share_from_influence(mean, influence.tolist(), [each.relation for each in evaluations]),
        count=asked,
    )


def s_influence(
    evaluations: Sequence[Evaluation],
) -> tuple[float, Float[np.ndarray, " record"], int] | None:
    """S, each record's influence on it, and how many records its rarest score is asked of.

    With the means ``m_j`` of the three scores over the ``n_j`` of ``n`` records that they are asked
    of, and ``x_ij`` the scores of record ``i``:

        influence_i = S^2 / 3 sum_j (n / n_j) (x_ij - m_j) / m_j^2.

    The result is None if a score is asked of no record. If a mean is 0, so is S, and only the
    scores with that mean count.
    """
    values = np.array([[each.ES, each.PS, each.NS] for each in evaluations], dtype=np.float64)
    asked = ~np.isnan(values).reshape(-1, 3)
    if not asked.any(0).all():
        return None
    count = asked.sum(0)
    means = np.where(asked, values, 0.0).sum(0) / count
    s = harmonic_mean(means.tolist())
    assert s is not None
    slopes = np.where(means == 0, 1.0, 0.0) if s == 0.0 else (s / means) ** 2
    deviations = np.where(asked, values - means, 0.0) * (len(values) / count)
    return s, (deviations * slopes / 3.0).sum(1), int(count.min())
