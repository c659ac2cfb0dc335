"""Averages of scores over records, with 95 % intervals, and tables of them.

Source: Meng et al. 2022, section 3.3 and its appendix on metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from rome_lens.errors import ArgumentError
from rome_lens.evaluation.results import Evaluation, harmonic_mean
from rome_lens.intervals import FEWEST, Average, average, share
from rome_lens.results import Result

NAMES = ("S", "ES", "PS", "NS", "EM", "PM", "NM", "GE", "RS")
SHARES = ("ES", "PS", "NS")
_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores(Result):
    """Averages over records, each with a 95 % interval and the number of records that it covers.

    A score that no record has prompts for is None.

    Every score but S is the mean of the records' scores (:class:`Evaluation`), with a Student-t
    interval. The shares ES, PS and NS have the interval of :func:`rome_lens.intervals.share`.

    S is the harmonic mean of the means ES, PS and NS. It is not a mean over records, so its
    interval comes from a Bayesian bootstrap: S of the means weighted by ``w ~ Dirichlet(1, ...,
    1)``. The lower end is the 2.5th percentile with one complete failure added to the records. The
    upper end is the 97.5th percentile with one complete success added. If S were a single share of
    successes, these would be the ends of Clopper and Pearson's exact interval. Records that all
    agree also have an interval of some width (Gaffke 2005).
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
        cls, evaluations: Sequence[Evaluation], *, editor: str = "", seed: int = 0, failed: int = 0
    ) -> "Scores":
        """Average some evaluations.

        Args:
            evaluations: one for each record.
            editor: the editor's name.
            seed: the seed of the bootstrap of S.
            failed: the number of further records whose edit failed.

        Raises:
            ArgumentError: there is no evaluation, and no edit failed.
        """
        if not evaluations and not failed:
            raise ArgumentError("There is no evaluation to average: give at least one.")
        means = {}
        for name in NAMES[1:]:
            values = [value for each in evaluations if (value := getattr(each, name)) is not None]
            means[name] = (share if name in SHARES else average)(values) if values else None
        return cls(
            editor=editor,
            records=len(evaluations),
            failed=failed,
            already=sum(each.already for each in evaluations),
            S=_s_with_interval(evaluations, seed),
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


def _s_with_interval(evaluations: Sequence[Evaluation], seed: int) -> Average | None:
    """S with its interval; see :class:`Scores`."""
    if not evaluations:
        return None
    values = np.array([[each.ES, each.PS, each.NS] for each in evaluations], dtype=np.float64)
    asked = ~np.isnan(values)
    if not asked.any(0).all():
        return None
    values = np.where(asked, values, 0.0)
    mean = harmonic_mean((values.sum(0) / asked.sum(0)).tolist())
    assert mean is not None
    fewest = int(asked.sum(0).min())
    if fewest < FEWEST:
        return Average(mean=mean, low=None, high=None, count=fewest)
    generator = np.random.default_rng(seed)
    low = np.percentile(_bootstrap_of_s(values, asked, 0.0, generator), 2.5)
    high = np.percentile(_bootstrap_of_s(values, asked, 1.0, generator), 97.5)
    return Average(mean=mean, low=min(mean, float(low)), high=max(mean, float(high)), count=fewest)


def _bootstrap_of_s(
    values: Float[np.ndarray, "record 3"],
    asked: Bool[np.ndarray, "record 3"],
    added: float,
    generator: np.random.Generator,
) -> Float[np.ndarray, " draw"]:
    """Draws of S with random weights on the records and on one more, whose scores are ``added``."""
    weights = generator.standard_exponential((_DRAWS, len(values) + 1))
    sums = weights @ np.concatenate([values, np.full((1, 3), added)])
    means = sums / (weights @ np.concatenate([asked, np.ones((1, 3))]))
    with np.errstate(divide="ignore"):
        return np.asarray(3.0 / (1.0 / means).sum(1))
