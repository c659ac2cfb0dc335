"""Scores of an edit on one record, their averages over records with 95 % intervals, and editors side by side.

Source: Meng et al. 2022, section 3.3 and its appendix on metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST, Average, average, share
from rome_lens.results import Result, Stored

NAMES = ("S", "ES", "PS", "NS", "EM", "PM", "NM", "GE", "RS")
SHARES = ("ES", "PS", "NS")
_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptScore(Stored):
    """One prompt under an edit: probabilities of the true answer ``o`` and of the new one ``o*``, before and after.

    The probability of an answer is ``exp(mean_i log p(o_i | prompt, o_1 ... o_i-1))``, the geometric mean over its tokens,
    so that longer answers are not put behind; of a single token it is its probability.

    Attributes:
        kind: ``"rewrite"``, ``"paraphrase"`` or ``"neighborhood"``.
        target: the true answer to this prompt; ``new_target`` that after the edit.
    """

    kind: str
    prompt: str
    target: str
    new_target: str
    target_before: float
    new_before: float
    target_after: float
    new_after: float

    @property
    def margin(self) -> float:
        """``p(o*) - p(o)`` after the edit; of a neighbour, where ``o`` should stay, ``p(o) - p(o*)``."""
        gap = self.new_after - self.target_after
        return -gap if self.kind == "neighborhood" else gap

    @property
    def success(self) -> bool:
        """Whether the answer that should be the likelier of the two is."""
        return self.margin > 0


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Stored):
    """One record's scores under an edit; a score that the record has no prompts for is None, "not asked".

    Attributes:
        case_id: of the record.
        rows: one for each prompt; ``edited`` tells whether there was an edit.
        GE: generation entropy in bits, mean over the generated texts (:func:`rome_lens.fluency.ngram_entropy`).
        RS: their consistency with the reference texts (:func:`rome_lens.fluency.tfidf_similarity`).
        texts: the generated texts with the prompts that they continue.
        continued: which prompts those are: the record's ``"generation prompts"``, or where it has none its
            ``"paraphrases"``, or its ``"rewrite prompt"``; None where no text was generated.
    """

    case_id: int | str
    edited: bool
    rows: tuple[PromptScore, ...]
    GE: float | None = None
    RS: float | None = None
    texts: tuple[str, ...] = ()
    continued: str | None = None

    @property
    def ES(self) -> float | None:
        """Efficacy score: share of the rewrite prompts with ``p(o*) > p(o)``."""
        return self._mean("rewrite", "success")

    @property
    def EM(self) -> float | None:
        """Efficacy magnitude: mean of ``p(o*) - p(o)`` there."""
        return self._mean("rewrite", "margin")

    @property
    def PS(self) -> float | None:
        """Paraphrase score: share of the paraphrases with ``p(o*) > p(o)``."""
        return self._mean("paraphrase", "success")

    @property
    def PM(self) -> float | None:
        """Paraphrase magnitude: mean of ``p(o*) - p(o)`` there."""
        return self._mean("paraphrase", "margin")

    @property
    def NS(self) -> float | None:
        """Neighborhood score: share of the neighbours with ``p(o) > p(o*)``."""
        return self._mean("neighborhood", "success")

    @property
    def NM(self) -> float | None:
        """Neighborhood magnitude: mean of ``p(o) - p(o*)`` there."""
        return self._mean("neighborhood", "margin")

    @property
    def S(self) -> float | None:
        """Harmonic mean of ES, PS and NS."""
        return harmonic_mean([self.ES, self.PS, self.NS])

    @property
    def already(self) -> bool:
        """Whether the model preferred the new target before the edit, so that ES says nothing about the edit."""
        return any(
            row.kind == "rewrite" and row.new_before > row.target_before for row in self.rows
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt."""
        names = list(PromptScore.__dataclass_fields__)
        values = [
            [self.case_id, *(getattr(row, name) for name in names), row.margin, row.success]
            for row in self.rows
        ]
        return pd.DataFrame(values, columns=["case_id", *names, "margin", "success"])

    def _mean(self, kind: str, name: str) -> float | None:
        values = [float(getattr(row, name)) for row in self.rows if row.kind == kind]
        return math.fsum(values) / len(values) if values else None


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """``n / sum_i 1 / x_i``: 0 where one of them is 0, None where one is None."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return 0.0 if 0.0 in known else len(known) / math.fsum(1 / value for value in known)


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores(Result):
    """Averages over records; None for what no record asked, and each with the number of records that did.

    ES, PS, NS, EM, PM, NM, GE, RS are means of the records' (:class:`Evaluation`) with Student-t intervals, those of the shares
    ES, PS, NS as :func:`rome_lens.intervals.share` says. S is the
    harmonic mean of the means ES, PS and NS; it is no mean of records', so that its interval is a Bayesian bootstrap over
    records: S of the means weighted by ``w ~ Dirichlet(1, ..., 1)``, its 2.5th percentile with one whole failure among the
    records, its 97.5th with one whole success. Were S a single score of successes and failures, these would be the ends
    of Clopper and Pearson's exact interval; records that all agree have an interval of some width, too (Gaffke 2005).

    Attributes:
        editor: its name.
        records: how many were evaluated.
        failed: for how many more there was no edit to evaluate, so that they are in no average.
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
    failed: int = 0

    @classmethod
    def of(
        cls, evaluations: Sequence[Evaluation], *, editor: str = "", seed: int = 0, failed: int = 0
    ) -> "Scores":
        """The averages of some evaluations; ``seed`` is the bootstrap's, ``failed`` the number of edits beside them that failed.

        Raises:
            ValueError: there is no evaluation, and nothing failed.
        """
        if not evaluations and not failed:
            raise ArgumentError("There is no evaluation to average.")
        means = {}
        for name in NAMES[1:]:
            values = [value for each in evaluations if (value := getattr(each, name)) is not None]
            means[name] = (share if name in SHARES else average)(values) if values else None
        return cls(
            editor=editor,
            records=len(evaluations),
            failed=failed,
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


def score_table(scores: Sequence[Scores]) -> pd.DataFrame:
    """Editors down, scores across, each cell a mean with its interval; scores that nobody asked are left out.

    Where edits failed, a column says how many; ``records`` counts those that were evaluated.
    """
    names = [name for name in NAMES if any(getattr(each, name) is not None for each in scores)]
    cells = [
        [_missing(each) if (value := getattr(each, name)) is None else str(value) for name in names]
        for each in scores
    ]
    frame = pd.DataFrame(
        cells, columns=names, index=pd.Index([each.editor for each in scores], name="editor")
    )
    frame["records"] = [each.records for each in scores]
    if any(each.failed for each in scores):
        frame["failed"] = [each.failed for each in scores]
    return frame


def _missing(scores: Scores) -> str:
    return "not asked" if scores.records else "no edit"


def markdown(table: pd.DataFrame) -> str:
    """A table with its index as Markdown."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    body = [
        [str(name), *map(str, row)]
        for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)
    ]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _harmonic(evaluations: Sequence[Evaluation], seed: int) -> Average | None:
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
    low = np.percentile(_weighted(values, asked, 0.0, generator), 2.5)
    high = np.percentile(_weighted(values, asked, 1.0, generator), 97.5)
    return Average(mean=mean, low=min(mean, float(low)), high=max(mean, float(high)), count=fewest)


def _weighted(
    values: Float[np.ndarray, "record 3"],
    asked: Bool[np.ndarray, "record 3"],
    further: float,
    generator: np.random.Generator,
) -> Float[np.ndarray, " draw"]:
    """S of weighted means over the records and one further record, of which all three scores are ``further``."""
    weights = generator.standard_exponential((_DRAWS, len(values) + 1))
    sums = weights @ np.concatenate([values, np.full((1, 3), further)])
    means = sums / (weights @ np.concatenate([asked, np.ones((1, 3))]))
    with np.errstate(divide="ignore"):
        return np.asarray(3.0 / (1.0 / means).sum(1))
