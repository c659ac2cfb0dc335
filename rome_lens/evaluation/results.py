"""The scores of one record under one edit.

Source: Meng et al. 2022, section 3.3 and its appendix on metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from rome_lens.results import Stored


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptScore(Stored):
    """The probabilities of a prompt's true answer ``o`` and of the new one ``o*``.

    The probability of an answer is the geometric mean over its tokens, ``exp(mean_i log p(o_i |
    prompt, o_1 ... o_i-1))``. Long answers can then be compared with short ones. For an answer
    of one token it is that token's probability.
    """

    kind: str
    """``"rewrite"``, ``"paraphrase"`` or ``"neighborhood"``."""
    prompt: str
    """The prompt, without an edit's prefix."""
    target: str
    """The true answer ``o`` to this prompt."""
    new_target: str
    """The edit's new target ``o*``."""
    target_before: float
    """The probability of ``target`` before the edit."""
    new_before: float
    """The probability of ``new_target`` before the edit."""
    target_after: float
    """The probability of ``target`` after the edit."""
    new_after: float
    """The probability of ``new_target`` after the edit."""

    @property
    def margin(self) -> float:
        """``p(o*) - p(o)`` after the edit.

        For a neighbour, whose answer should stay, it is ``p(o) - p(o*)``.
        """
        gap = self.new_after - self.target_after
        return -gap if self.kind == "neighborhood" else gap

    @property
    def success(self) -> bool:
        """Whether the model prefers the answer that it should prefer."""
        return self.margin > 0


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Stored):
    """The scores of one record under one edit.

    A score is None, "not asked", if the record has no prompts for it.
    """

    case_id: int | str
    """The record's name."""
    edited: bool
    """Whether there was an edit; if not, "after" is the unedited model too."""
    rows: tuple[PromptScore, ...]
    """One entry for each prompt."""
    GE: float | None = None
    """Generation entropy in bits, averaged over the generated texts, by
    :func:`~rome_lens.evaluation.fluency.ngram_entropy`."""
    RS: float | None = None
    """Similarity of the generated texts to the reference texts, by
    :func:`~rome_lens.evaluation.fluency.tfidf_similarity`."""
    texts: tuple[str, ...] = ()
    """The generated texts, each with the prompt that it continues."""
    continued: str | None = None
    """Which prompts were continued: ``"generation prompts"`` or else ``"paraphrases"`` or else
    ``"rewrite prompt"``, whichever the record has. None if no text was generated."""
    relation: str = ""
    """The fact's relation, by which averages are clustered. Empty in a file of an older version:
    each such fact is a cluster of its own."""

    @property
    def ES(self) -> float | None:
        """Efficacy score: the share of rewrite prompts with ``p(o*) > p(o)``."""
        return self._mean("rewrite", "success")

    @property
    def EM(self) -> float | None:
        """Efficacy magnitude: the mean of ``p(o*) - p(o)`` over the rewrite prompts."""
        return self._mean("rewrite", "margin")

    @property
    def PS(self) -> float | None:
        """Paraphrase score: the share of paraphrases with ``p(o*) > p(o)``."""
        return self._mean("paraphrase", "success")

    @property
    def PM(self) -> float | None:
        """Paraphrase magnitude: the mean of ``p(o*) - p(o)`` over the paraphrases."""
        return self._mean("paraphrase", "margin")

    @property
    def NS(self) -> float | None:
        """Neighborhood score: the share of neighbours with ``p(o) > p(o*)``."""
        return self._mean("neighborhood", "success")

    @property
    def NM(self) -> float | None:
        """Neighborhood magnitude: the mean of ``p(o) - p(o*)`` over the neighbours."""
        return self._mean("neighborhood", "margin")

    @property
    def S(self) -> float | None:
        """The harmonic mean of ES, PS and NS."""
        return harmonic_mean([self.ES, self.PS, self.NS])

    @property
    def already(self) -> bool:
        """Whether the model preferred the new target before the edit.

        If so, ES says nothing about the edit.
        """
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
    """``n / sum_i 1 / x_i``. It is 0 if any value is 0, and None if any value is None."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return 0.0 if 0.0 in known else len(known) / math.fsum(1 / value for value in known)
