"""Averages of the checks over the edits of many facts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd

from rome_lens.arguments import one_of, whole_number
from rome_lens.checks.claims.fidelity import OTHER_EDITS, Fidelity
from rome_lens.checks.limits import Limits
from rome_lens.checks.result import (
    CheckResult,
    CheckRow,
    average_cells,
    firing_correlation,
    matching_name,
)
from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST, Average, average, average_correlation, share
from rome_lens.models.fingerprints import exact
from rome_lens.results import Stored

Averaged = Literal["effect", "effect_where_known", "control"]
"""The numbers of a check that are averaged over facts."""
_AVERAGED: tuple[Averaged, ...] = get_args(Averaged)
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True, repr=False)
class LimitsAverage(Stored):
    """The limits of many facts, and their averages over facts. All intervals are over facts."""

    limits: tuple[Limits, ...]
    """The limits of each fact's edit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.limits:
            raise ArgumentError(
                "limits is empty, expected what check_limits returned for at least one edit."
            )
        models = {exact(each.model_fingerprint) for each in self.limits} - {None}
        if len(models) > 1:
            raise ArgumentError(
                f"The edits were made on {len(models)} models ({sorted(map(str, models))}). "
                "Average those of each model on their own."
            )

    @property
    def checks(self) -> list[str]:
        """The names of the checks, in their order."""
        return list(dict.fromkeys(result.name for each in self.limits for result in each.results))

    def of(self, check: str) -> list[CheckResult]:
        """The results of one check for the facts that it was asked of.

        Raises:
            UnknownNameError: there is no check of this name.
        """
        return [result for result in self._results(check) if result.asked]

    def effect(self, check: str, which: Averaged = "effect") -> Average | None:
        """The mean over facts of a check's effect, of its effect where known, or of its control.

        None if no fact has it. It is also None for fidelity's control: each fact's control is the
        effect of the other facts' edits, so its mean would be the effect itself.

        Raises:
            UnknownNameError: there is no check of this name.
            ArgumentError: ``which`` is none of the three.
        """
        one_of("which", which, Averaged)
        asked = self.of(check)
        if which == "control" and check == Fidelity.name:
            return None
        values = [value.mean for result in asked if (value := getattr(result, which)) is not None]
        return average(values) if values else None

    def measure(self, check: str, name: str) -> Average | None:
        """The mean over facts of one of a check's further numbers.

        None if no fact has it, or if it is about the edits of the other facts.

        Raises:
            UnknownNameError: there is no check of this name.
        """
        found = [m for result in self._results(check) for m in result.further if m.name == name]
        if not found or name.endswith(OTHER_EDITS):
            return None
        means = [measure.average.mean for measure in found]
        return (share if all(measure.share for measure in found) else average)(means)

    @property
    def firing_correlation(self) -> Average | None:
        """The mean over facts of :attr:`Limits.firing_correlation`."""
        return average_correlation(
            [value for each in self.limits if (value := each.firing_correlation) is not None]
        )

    def firing(self, *, seed: int = 0) -> pd.DataFrame:
        """Spearman's correlation of ``|firing|`` with KL, one line for each kind of prompt.

        :attr:`firing_correlation` is over a fact's prompts of all kinds. It is high even if all
        that matters is which kinds contain the subject. Within one kind, this does not matter. The
        correlation of a kind is over its prompts of all facts. A kind whose prompts all fire alike,
        because all of them or none of them contain the subject, has no correlation. The 95 %
        interval is a bootstrap over facts.

        Args:
            seed: seed of the bootstrap.
        """
        seed = whole_number("seed", seed, least=0)
        kinds: dict[tuple[str, str], list[list[CheckRow]]] = {}
        for result in (result for each in self.limits for result in each.results):
            for kind in dict.fromkeys(
                row.kind for row in result.rows if row.firing is not None and row.kl is not None
            ):
                rows = [row for row in result.rows if row.kind == kind]
                kinds.setdefault((result.name, kind), []).append(rows)
        lines = []
        for (check, kind), by_fact in kinds.items():
            found = _resampled_correlation(by_fact, np.random.default_rng(seed))
            prompts = sum(len(rows) for rows in by_fact)
            lines.append([check, kind, prompts, str(found or "all fire alike"), len(by_fact)])
        return pd.DataFrame(
            lines, columns=["check", "prompts of kind", "prompts", "firing and KL", "facts"]
        ).set_index("check")

    def table(self) -> pd.DataFrame:
        """One line for each check: facts, prompts, effect, effect where known, and control."""
        return pd.DataFrame([self._line(name) for name in self.checks]).set_index("check")

    def _line(self, name: str) -> dict[str, object]:
        asked = self.of(name)
        effect, where_known, control = average_cells(
            [self.effect(name, which) for which in _AVERAGED], asked
        )
        if name == Fidelity.name and asked:
            control = "by fact"
        correlations = [
            value for result in asked if (value := result.firing_correlation) is not None
        ]
        return {
            "check": name,
            "facts": len(asked),
            "prompts": sum(row.effect is not None for result in asked for row in result.rows),
            "effect is": asked[0].effect_is if asked else "",
            "effect": effect,
            "where known": where_known,
            "facts known": sum(r.effect_where_known is not None for r in asked) or "",
            "control is": asked[0].control_is if asked else "",
            "control": control,
            "firing and KL": str(average_correlation(correlations) or ""),
        }

    def further(self) -> pd.DataFrame:
        """One line for each further number: its mean over facts, and how many facts have it."""
        lines = []
        for check in self.checks:
            for name in dict.fromkeys(
                measure.name for result in self._results(check) for measure in result.further
            ):
                value = self.measure(check, name)
                if value is not None:
                    lines.append([check, name, str(value), value.count])
        return pd.DataFrame(lines, columns=["check", "number", "mean", "facts"]).set_index("check")

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt of each check of each fact."""
        frames = []
        for each in self.limits:
            frame = each.to_frame()
            frame.insert(0, "record", each.record_id)
            frame.insert(1, "relation", each.relation)
            frames.append(frame)
        rows = [row for frame in frames for row in frame.to_dict("records")]
        return pd.DataFrame(rows, columns=frames[0].columns)

    def _results(self, check: str) -> list[CheckResult]:
        name = matching_name(check, self.checks)
        return [result for each in self.limits for result in each.results if result.name == name]


def average_limits(limits: Limits | Iterable[Limits]) -> LimitsAverage:
    """Averages over facts, with 95 % intervals from five facts on.

    Args:
        limits: what :func:`rome_lens.check_limits` returned for each edit; one alone is taken too.

    Raises:
        ArgumentError: there is nothing to average, an entry is something else, or the edits were
            made on different models.
    """
    each = (
        (limits,)
        if isinstance(limits, Limits) or not isinstance(limits, Iterable)
        else tuple(limits)
    )
    if wrong := [type(one).__name__ for one in each if not isinstance(one, Limits)]:
        raise ArgumentError(
            f"limits holds {', '.join(wrong)}, expected what check_limits returned for each edit."
        )
    return LimitsAverage(limits=each)


def _resampled_correlation(
    by_fact: Sequence[Sequence[CheckRow]], generator: np.random.Generator
) -> Average | None:
    """The correlation over the rows of all facts, with a bootstrap interval over facts."""
    whole = firing_correlation(_pooled_rows(by_fact))
    if whole is None:
        return None
    count = len(by_fact)
    plain = Average(mean=whole, low=None, high=None, count=count)
    if count < FEWEST:
        return plain
    draws = [
        firing_correlation(
            _pooled_rows([by_fact[i] for i in generator.integers(count, size=count)])
        )
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile([each for each in draws if each is not None], [2.5, 97.5]).tolist()
    return replace(plain, low=min(whole, low), high=max(whole, high))


def _pooled_rows(by_fact: Iterable[Sequence[CheckRow]]) -> list[CheckRow]:
    """All rows; the rows of a fact that was drawn twice count twice."""
    return [
        replace(row, prompt=f"{i} {row.prompt}") for i, rows in enumerate(by_fact) for row in rows
    ]
