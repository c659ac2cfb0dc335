"""Whether an edit acts where its key is: firing and change within one kind of prompt."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from rome_lens.checks.limits import Limits
from rome_lens.checks.result import CheckRow, firing_correlation
from rome_lens.intervals import FEWEST, Average, Clusters, cluster_rows

_RESAMPLES = 200


def firing_by_kind(limits: Sequence[Limits], seed: int) -> pd.DataFrame:
    """The table of :meth:`LimitsAverage.firing`."""
    kinds: dict[tuple[str, str], list[tuple[str, list[CheckRow]]]] = {}
    for relation, result in ((each.relation, result) for each in limits for result in each.results):
        for kind in dict.fromkeys(
            row.kind for row in result.rows if row.firing is not None and row.kl is not None
        ):
            rows = [row for row in result.rows if row.kind == kind]
            kinds.setdefault((result.name, kind), []).append((relation, rows))
    lines = []
    for (check, kind), of_facts in kinds.items():
        relations, by_fact = zip(*of_facts, strict=True)
        found = _resampled_correlation(by_fact, relations, np.random.default_rng(seed))
        prompts = sum(len(rows) for rows in by_fact)
        lines.append([check, kind, prompts, str(found or "all fire alike"), len(by_fact)])
    return pd.DataFrame(
        lines, columns=["check", "prompts of kind", "prompts", "firing and KL", "facts"]
    ).set_index("check")


def _resampled_correlation(
    by_fact: Sequence[Sequence[CheckRow]], relations: Clusters, generator: np.random.Generator
) -> Average | None:
    """The correlation over the rows of all facts, with a bootstrap interval over relations."""
    whole = firing_correlation(_pooled_rows(by_fact))
    if whole is None:
        return None
    clusters = cluster_rows(relations, len(by_fact))
    count = len(clusters)
    plain = Average(
        mean=whole,
        low=None,
        high=None,
        count=len(by_fact),
        clusters=None if count == len(by_fact) else count,
    )
    if count < FEWEST:
        return plain
    draws = [
        firing_correlation(
            _pooled_rows(
                [by_fact[i] for c in generator.integers(count, size=count) for i in clusters[c]]
            )
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
