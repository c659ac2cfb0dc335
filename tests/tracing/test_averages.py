"""Averages over facts: roles, effects, intervals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_causal import not_refused

import rome_lens as rl
from rome_lens.errors import ArgumentError
from rome_lens.intervals import half_width
from rome_lens.tracing.averages import ROLES, roles_of
from rome_lens.tracing.many_facts import TracedFacts


def trace(
    subject: str,
    scores: torch.Tensor,
    span: tuple[int, int],
    corrupted: float = 0.1,
    **changes: Any,
) -> Any:
    """A trace of one sample with these scores ``[layer, pos]``."""
    fields: dict[str, Any] = {
        "fact": rl.Fact("{} is in", subject=subject, target="Paris"),
        "component": "mlp",
        "window": 3,
        "layers": tuple(range(scores.shape[0])),
        "positions": tuple(range(scores.shape[1])),
        "labels": tuple("abcdefghij"[: scores.shape[1]]),
        "subject": span,
        "answer": " Paris",
        "clean": 0.9,
        "corrupted_samples": torch.tensor([corrupted]),
        "sample_scores": scores[None],
        "noise": "GaussianNoise()",
        "model_fingerprint": "0",
    }
    return rl.CausalTrace(**{**fields, **changes})


def test_each_position_has_one_role() -> None:
    for subject, length, expected in (
        ((1, 5), 9, [[1], [2, 3], [4], [5], [6, 7], [8]]),
        ((1, 2), 5, [[], [], [1], [2], [3], [4]]),
        ((0, 2), 4, [[0], [], [1], [2], [], [3]]),
        ((0, 2), 3, [[0], [], [1], [], [], [2]]),
        ((1, 4), 4, [[1], [2], [], [], [], [3]]),
        ((3, 4), 4, [[], [], [], [], [], [3]]),
    ):
        assert list(roles_of(subject, length).values()) == expected, (subject, length)
        positions = sorted(pos for positions in expected for pos in positions)
        assert positions == list(range(subject[0], length))


@pytest.mark.parametrize("clustered", [False, True])
def test_averages_are_those_of_a_plain_loop(clustered: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    spans = [(0, 3), (1, 2), (1, 5), (0, 2), (2, 4), (1, 4), (1, 3), (0, 4), (0, 3), (1, 4)]
    traces = [
        trace(
            f"S{i}",
            torch.rand((4, 8), generator=generator),
            span,
            corrupted=0.05 * i,
            fact=rl.Fact(f"{{}} {i // 2 if clustered else i}", subject=f"S{i}", target="Paris"),
        )
        for i, span in enumerate(spans)
    ]
    average = rl.average_traces(traces)
    for column, role in enumerate(ROLES):
        rows, relations = [], []
        for each in traces:
            positions = roles_of(each.subject, 8)[role]
            if positions:
                relations.append(each.fact.prompt)
                rows.append(
                    sum(each.scores[:, pos] for pos in positions) / len(positions) - each.corrupted
                )
        assert average.counts[column] == len(rows)
        mean = sum(rows) / len(rows)
        torch.testing.assert_close(
            average.indirect_effects[:, column].float(), mean, atol=1e-6, rtol=0.0
        )
        half = average.half_widths[:, column]
        if len(set(relations)) < 5:
            assert half.isnan().all()
        else:
            expected = half_width(torch.stack(rows).double(), relations)
            torch.testing.assert_close(half, expected, atol=1e-6, rtol=1e-5)
    assert average.total_effect.mean == pytest.approx(0.9 - 0.05 * 4.5)
    assert average.total_effect.clusters == (5 if clustered else None)
    assert average.total_effect.low < average.total_effect.mean
    assert average.peak("last") == int(average.indirect_effects[:, -1].argmax())


def test_a_role_that_no_fact_has_is_not_zero() -> None:
    average = rl.average_traces([trace(f"S{i}", torch.rand(3, 4), (1, 3)) for i in range(5)])
    assert average.counts == (5, 0, 5, 0, 0, 5)
    assert average.indirect_effects[:, 1].isnan().all()
    with pytest.raises(ValueError, match="No fact has a token of the role 'middle subject'"):
        average.peak("middle subject")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_role_is_refused() -> None:
    average = rl.average_traces([trace("S", torch.rand(3, 4), (1, 3))])
    with pytest.raises(ArgumentError, match="role is 'subject', expected one of 'first subject'"):
        average.peak("subject")  # type: ignore[arg-type]


def test_the_frame_the_file_and_the_picture(tmp_path: Any) -> None:
    average = rl.average_traces([trace(f"S{i}", torch.rand(3, 6), (1, 4)) for i in range(6)])
    frame = average.to_frame()
    row = frame[(frame.layer == 2) & (frame.role == "last")].iloc[0]
    assert row.indirect_effect == pytest.approx(float(average.indirect_effects[2, -1]))
    assert row.facts == 6
    loaded = rl.TraceAverage.load(average.save(tmp_path / "average.safetensors"))
    torch.testing.assert_close(loaded.fact_effects, average.fact_effects, equal_nan=True)
    assert loaded.subjects == average.subjects
    assert "img" in average._repr_html_()
    figure = rl.viz.averages([average, average])
    assert len(figure.axes) == 6


def test_unknown_facts_are_counted() -> None:
    fact = rl.Fact("{} is in", subject="Nowhere", target="Paris")
    traced = TracedFacts(
        traces=(trace("S", torch.rand(2, 4), (1, 3)),), unknown=((fact, "it says Rome"),)
    )
    average = rl.average_traces(traced)
    assert average.unknown == ("Nowhere is in",)
    with pytest.raises(ValueError, match=r"there is no trace.*not know 1 of the facts"):
        rl.average_traces(TracedFacts(traces=(), unknown=traced.unknown))


def test_traces_made_with_other_options_are_refused() -> None:
    first = trace("S", torch.rand(3, 6), (1, 4))
    two = {"corrupted_samples": torch.rand(2), "sample_scores": torch.rand(2, 3, 6)}
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"window": 1}, ArgumentError, "has window 1, but that of 'S is in' has 3"),
        ({"noise": "UniformNoise()"}, ArgumentError, "has noise 'UniformNoise()'"),
        ({"model_fingerprint": "1"}, ArgumentError, "model_fingerprint '1'"),
        (two, ArgumentError, "has 2 samples, but that of 'S is in' has 1"),
        (
            {"positions": (0, 1), "sample_scores": torch.rand(1, 3, 2)},
            ArgumentError,
            "expected all positions",
        ),
        ({"fact": rl.Fact("{} is in", subject="S", target="Paris")}, ArgumentError, "given twice"),
        ({"sample_scores": torch.full((1, 3, 6), float("nan"))}, ArgumentError, "contain NaN"),
        ({"answer_tokens": 2}, ArgumentError, "answer_tokens 2"),
        (
            {"heads": (0,), "sample_scores": torch.rand(1, 3, 6, 1)},
            ArgumentError,
            "Traces of single heads have no average",
        ),
    ]

    def average(**changes: Any) -> None:
        rl.average_traces([first, trace("T", torch.rand(3, 6), (1, 4), **changes)])

    assert not not_refused(average, cases)


def test_the_toy_s_sites_show_on_average(one_toy: Any, toy_records: list[rl.data.Record]) -> None:
    """The paper's early site at the subject, its late site at the last token, nothing between."""
    average = rl.average_traces(rl.trace_facts(one_toy, toy_records, samples=4))
    effects = {role: average.indirect_effects[:, i] for i, role in enumerate(ROLES)}
    assert float(effects["last subject"][:3].min()) > 0.5
    assert float(effects["last"][:3].max()) < 0.2
    assert float(effects["last"][-1]) > 0.7
    between = max(float(effects[role][:3].max()) for role in ("first subsequent", "further"))
    assert float(effects["last subject"][:3].max()) > 5 * between
    assert average.total_effect.mean > 0.5
    # All of the toy's facts are of a few relations, which cannot tell how much relations differ.
    assert average.total_effect.low is None
    assert replace(average, relations=()).total_effect.low > 0.5


def test_a_single_trace_is_not_several(
    one_toy: Any, toy_record: rl.data.Record, unchecked: None
) -> None:
    trace = rl.causal_trace(one_toy, toy_record, samples=1)
    with pytest.raises(rl.RomeLensError, match="expected several traces"):
        rl.average_traces(trace)
