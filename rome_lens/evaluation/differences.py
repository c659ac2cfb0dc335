"""Paired differences between the scores of editors on the same records."""

from collections.abc import Mapping, Sequence

import pandas as pd

from rome_lens.evaluation.results import Evaluation
from rome_lens.evaluation.scores import NAMES, s_influence
from rome_lens.intervals import Average, average

Pair = tuple[Evaluation, Evaluation]
"""The evaluations of two editors on one record."""


def difference(pairs: Sequence[Pair], name: str) -> Average | None:
    """The mean over records of the first editor's score minus the second's, with its interval.

    S is not a mean over records. Its difference is that of the two S, and its interval that of the
    difference of the records' influences on them. None if no record has the score.
    """
    if name == "S":
        return _difference_of_s(pairs)
    both = [
        (a, first - second)
        for a, b in pairs
        if (first := getattr(a, name)) is not None and (second := getattr(b, name)) is not None
    ]
    if not both:
        return None
    return average([value for _, value in both], [each.relation for each, _ in both])


def _difference_of_s(pairs: Sequence[Pair]) -> Average | None:
    found = [s_influence(each) for each in zip(*pairs, strict=True)]
    if not found or found[0] is None or found[1] is None:
        return None
    (s, own, _), (other_s, others, _) = found[0], found[1]
    # An influence has the mean 0.
    values = (own - others + s - other_s).tolist()
    return average(values, [each.relation for each, _ in pairs])


def difference_table(
    evaluations: Mapping[str, Sequence[Evaluation]], baseline: str
) -> pd.DataFrame:
    """The table of :meth:`Comparison.differences`."""
    lines = []
    for name, each in evaluations.items():
        if name != baseline:
            pairs = pairs_of(each, evaluations[baseline])
            found = {score: difference(pairs, score) for score in NAMES} if pairs else {}
            cells = {score: str(value) for score, value in found.items() if value is not None}
            lines.append({"editor": f"{name} - {baseline}", **cells, "records": len(pairs)})
    table = pd.DataFrame(lines).set_index("editor").fillna("not asked")
    return table[[name for name in (*NAMES, "records") if name in table]]


def pairs_of(some: Sequence[Evaluation], others: Sequence[Evaluation]) -> list[Pair]:
    """The evaluations of the records that both editors were scored on."""
    by_record = {_record(each): each for each in others}
    return [(each, by_record[_record(each)]) for each in some if _record(each) in by_record]


def _record(evaluation: Evaluation) -> tuple[object, ...]:
    """What tells a record from others: its name and its prompts with their answers."""
    rows = ((row.kind, row.prompt, row.target, row.new_target) for row in evaluation.rows)
    return (evaluation.case_id, *rows)
