"""Averages of scores over records, their intervals and their tables, by hand and without a
model."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

import rome_lens as rl
from rome_lens.evaluation.differences import difference, pairs_of
from rome_lens.evaluation.results import PromptScore, harmonic_mean
from rome_lens.evaluation.scores import markdown, s_influence, score_table
from rome_lens.intervals import share


def made(es: float, ps: list[bool], ns: list[bool]) -> rl.Evaluation:
    """An evaluation with these successes."""

    def row(kind: str, success: bool) -> PromptScore:
        high, low = (0.7, 0.2) if success == (kind == "neighborhood") else (0.2, 0.7)
        return PromptScore(
            kind=kind, prompt="p", target="o", new_target="n", target_before=0.9, new_before=0.1,
            target_after=high, new_after=low,
        )  # fmt: skip

    kinds = [
        ("rewrite", bool(es)),
        *(("paraphrase", x) for x in ps),
        *(("neighborhood", x) for x in ns),
    ]
    return rl.Evaluation(case_id=0, edited=True, rows=tuple(row(kind, x) for kind, x in kinds))


def test_averages_by_hand() -> None:
    some = [
        made(1, [True, False], [True] * 4),
        made(1, [True, True], [False, True]),
        made(0, [True], [True]),
    ]
    scores = rl.Scores.of(some, editor="mine")
    means = {name: getattr(scores, name).mean for name in ("ES", "PS", "NS", "EM", "PM", "NM", "S")}
    es, ps, ns = 2 / 3, (0.5 + 1 + 1) / 3, (1 + 0.5 + 1) / 3
    expected = {
        "ES": es,
        "PS": ps,
        "NS": ns,
        "EM": 0.5 / 3,
        "PM": 1.0 / 3,
        "NM": (0.5 + 0 + 0.5) / 3,
    }
    assert means == pytest.approx({**expected, "S": 3 / (1 / es + 1 / ps + 1 / ns)}, abs=1e-12)
    assert scores.S is not None
    assert (scores.S.low, scores.S.high, scores.S.count) == (None, None, 3)
    assert scores.GE is None


def test_harmonic_mean_by_hand() -> None:
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0
    assert harmonic_mean([1.0, None, 1.0]) is None
    assert harmonic_mean([]) is None


def test_the_interval_of_s_over_complete_successes_and_failures_is_clopper_and_pearsons() -> None:
    success, failure = made(1, [True], [True]), made(0, [False], [False])
    for successes, count in ((12, 12), (0, 12), (30, 40)):
        found = rl.Scores.of([success] * successes + [failure] * (count - successes)).S
        exact = scipy.stats.binomtest(successes, count).proportion_ci(method="exact")
        assert found is not None
        assert found.mean == pytest.approx(successes / count)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_the_interval_of_s_misses_at_neither_end_more_often_than_it_says() -> None:
    """Records like those of a good editor: many of them agree, and S is near 1."""
    generator = np.random.default_rng(1)

    def records(count: int) -> list[rl.Evaluation]:
        return [
            made(
                1,
                list(generator.random(2) < 0.97),
                list(generator.random(4) < (0.98 if generator.random() < 0.9 else 0.3)),
            )
            for _ in range(count)
        ]

    truth = 3 / (1 / 1 + 1 / 0.97 + 1 / (0.9 * 0.98 + 0.1 * 0.3))
    found = [rl.Scores.of(records(30)).S for _ in range(40)]
    assert sum(each.high < truth for each in found) <= 2  # type: ignore[union-attr, operator]
    assert sum(each.low > truth for each in found) <= 2  # type: ignore[union-attr, operator]


def test_the_interval_of_s_holds_s_where_prompts_are_missing() -> None:
    some = (
        [made(1, [True, False], [True] * 4)] * 4
        + [made(1, [True], [])] * 3
        + [made(0, [True], [True, False])] * 5
    )
    found = rl.Scores.of(some).S
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.count == 9
    assert found.low < found.mean < found.high


def test_the_influence_of_a_record_on_s_is_its_derivative() -> None:
    some = [
        made(1, [True, False], [True, True]),
        made(1, [True], []),
        made(0, [True], [True, False]),
        made(1, [False, True], [False]),
    ]
    found = s_influence(some)
    assert found is not None
    s, influence, asked = found
    assert (asked, influence.sum()) == (3, pytest.approx(0.0))
    # A record counts a little more: 1001 times, where the others count 1000 times.
    for i, each in enumerate(some):
        more, _, _ = s_influence(some * 1000 + [each])  # type: ignore[misc]
        assert (more - s) * 4000 == pytest.approx(influence[i], abs=2e-3)


def test_records_of_one_relation_count_as_one_cluster() -> None:
    some = [made(1, [True], [True])] * 20 + [made(0, [False], [False])] * 4
    alone = rl.Scores.of(some)
    together = rl.Scores.of([replace(each, relation=str(i // 4)) for i, each in enumerate(some)])
    for name in ("S", "ES"):
        own, clustered = getattr(alone, name), getattr(together, name)
        assert own.mean == clustered.mean
        assert clustered.high - clustered.low > 1.5 * (own.high - own.low)
        assert (own.clusters, clustered.clusters) == (None, 6)


def test_the_difference_of_two_editors_is_paired_by_record() -> None:
    """Both editors fail on the hard records, so they differ less than their intervals suggest."""
    generator = np.random.default_rng(0)
    hard = generator.random(40) < 0.5
    good = [
        replace(made(1, [not h, True], [True]), case_id=i, relation=str(i % 10))
        for i, h in enumerate(hard)
    ]
    poor = [
        replace(made(1, [not h, i % 4 > 0], [True]), case_id=i, relation=str(i % 10))
        for i, h in enumerate(hard)
    ]
    comparison = rl.Comparison(
        evaluations={"good": tuple(good[::-1]), "poor": tuple(poor), "few": tuple(poor[:30])}
    )
    table = comparison.differences("poor")
    assert list(table.index) == ["good - poor", "few - poor"]
    assert table.records.tolist() == [40, 30]
    assert table.loc["good - poor", "ES"] == "0.000 (n = 40 in 10 clusters, all equal)"
    assert table.loc["few - poor", "PS"] == "0.000 (n = 30 in 10 clusters, all equal)"
    found = difference(pairs_of(good, poor), "PS")
    assert found is not None
    assert found.mean == pytest.approx(0.125)
    low = rl.Scores.of(good).PS.low  # type: ignore[union-attr]
    assert low < rl.Scores.of(poor).PS.high  # type: ignore[operator, union-attr]
    assert found.low > 0.0  # type: ignore[operator]
    of_s = difference(pairs_of(good, poor), "S")
    assert of_s is not None
    assert of_s.mean == pytest.approx(rl.Scores.of(good).S.mean - rl.Scores.of(poor).S.mean)  # type: ignore[union-attr]
    assert comparison.differences().index[0] == "poor - good"
    with pytest.raises(ValueError, match="'best', expected one of several editors"):
        comparison.differences("best")


def test_tables_show_means_intervals_and_what_was_not_asked() -> None:
    table = score_table(
        [
            rl.Scores.of([made(1, [True], [True])] * 6, editor="one|two"),
            rl.Scores.of([made(0, [True], [])], editor="other"),
        ]
    )
    assert table.loc["one|two", "ES"] == str(share([1.0] * 6))
    assert table.loc["other", "NS"] == "not asked"
    assert "GE" not in table.columns
    lines = markdown(table).splitlines()
    assert lines[0].startswith("| editor | S | ES | PS | NS |")
    assert lines[2].startswith(r"| one\|two | 1.000 [")
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_the_interval_of_independent_successes_is_clopper_and_pearsons() -> None:
    for successes, count in ((187, 187), (0, 20), (13, 20)):
        found = share([1.0] * successes + [0.0] * (count - successes))
        exact = scipy.stats.binomtest(successes, count).proportion_ci(method="exact")
        assert found.mean == successes / count
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_a_share_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        share([0.5, 1.5])
    assert share([1.0, 0.0]).low is None


def test_an_average_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no evaluation"):
        rl.Scores.of([])
