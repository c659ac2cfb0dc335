"""Scores of an editor: averages of its evaluations over records, with 95 % intervals, and editors side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rome_lens.evaluation import Evaluation, harmonic_mean
from rome_lens.intervals import FEWEST, Average, average

NAMES = ("S", "ES", "PS", "NS", "EM", "PM", "NM", "GE", "RS")
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Averages over records; None for what no record asked, and each with the number of records that did.

    ES, PS, NS, EM, PM, NM, GE, RS are means of the records' (:class:`Evaluation`) with Student-t intervals. S is the
    harmonic mean of the means ES, PS and NS; it is no mean of records', so that its interval is a bootstrap over records:
    the 2.5th and 97.5th percentiles of 2000 resamples.

    Attributes:
        editor: its name.
        records: how many were evaluated.
        already: of how many the unedited model preferred the new target, so that a success there is not the edit's.
    """

    editor: str
    records: int
    already: int
    S: Average | None
    ES: Average | None
    PS: Average | None
    NS: Average | None
    EM: Average | None
    PM: Average | None
    NM: Average | None
    GE: Average | None
    RS: Average | None

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], *, editor: str = "", seed: int = 0) -> "Scores":
        """The averages of some evaluations; ``seed`` is the bootstrap's.

        Raises:
            ValueError: there is no evaluation.
        """
        if not evaluations:
            raise ValueError("There is no evaluation to average.")
        means = {}
        for name in NAMES[1:]:
            values = [value for each in evaluations if (value := getattr(each, name)) is not None]
            means[name] = average(values) if values else None
        return cls(
            editor=editor,
            records=len(evaluations),
            already=sum(each.already for each in evaluations),
            S=_harmonic(evaluations, seed),
            **means,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each score that was asked: mean, 95 % interval, number of records."""
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

    def _repr_html_(self) -> str:
        return str(score_table([self]).to_html())


def score_table(scores: Sequence[Scores]) -> pd.DataFrame:
    """Editors down, scores across, each cell a mean with its interval; scores that nobody asked are left out."""
    names = [name for name in NAMES if any(getattr(each, name) is not None for each in scores)]
    cells = [
        ["not asked" if (value := getattr(each, name)) is None else str(value) for name in names] for each in scores
    ]
    frame = pd.DataFrame(cells, columns=names, index=pd.Index([each.editor for each in scores], name="editor"))
    frame["records"] = [each.records for each in scores]
    return frame


def markdown(table: pd.DataFrame) -> str:
    """A table with its index as Markdown."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    body = [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _harmonic(evaluations: Sequence[Evaluation], seed: int) -> Average | None:
    values = np.array([[each.ES, each.PS, each.NS] for each in evaluations], dtype=np.float64)
    asked = ~np.isnan(values)
    if not asked.any(0).all():
        return None
    values = np.where(asked, values, 0.0)
    mean = _harmonic_of_means(values.sum(0), asked.sum(0))
    fewest = int(asked.sum(0).min())
    if fewest < FEWEST:
        return Average(mean=mean, low=None, high=None, count=fewest)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        some = generator.integers(len(values), size=len(values))
        counts = asked[some].sum(0)
        if counts.all():  # a resample in which nobody asked for one of the three has no S
            found.append(_harmonic_of_means(values[some].sum(0), counts))
    low, high = np.percentile(found, [2.5, 97.5])
    return Average(mean=mean, low=float(low), high=float(high), count=fewest)


def _harmonic_of_means(sums: Float[np.ndarray, "3"], counts: np.ndarray) -> float:
    found = harmonic_mean((sums / counts).tolist())
    assert found is not None
    return found
