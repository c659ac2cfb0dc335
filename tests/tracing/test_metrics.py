"""Metrics and directions of a trace, against a plain loop over the cells."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from models_for_tests import FEW_TINY, tiny

import rome_lens as rl
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import encode
from rome_lens.models.hook_names import EMBED, component_hook

METRICS: list[Any] = ["probability", "log_prob", "logit_difference", "kl"]


def second_logit(logits: torch.Tensor) -> torch.Tensor:
    """A metric of the caller's own, as TransformerLens' patching takes it."""
    return logits[:, 2] - logits.mean(-1)


def noise_of(model: Any, fact: rl.Fact) -> torch.Tensor:
    start, end = encode(model, fact).subject
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, end - start, model.cfg.d_model), generator=generator)


def plain_metric(metric: Any, encoded: Any, clean: torch.Tensor, logits: torch.Tensor) -> float:
    """A metric of one row of logits, written out."""
    log_p, log_clean = logits.double().log_softmax(-1), clean.double().log_softmax(-1)
    target, new_target = encoded.answer[0], encoded.new_answer[0]
    if metric == "logit_difference":
        return float(logits[target] - logits[new_target])
    if metric == "kl":
        return -float((log_clean.exp() * (log_clean - log_p)).sum())
    if metric == "probability":
        return float(log_p[target].exp())
    return float(log_p[target] if metric == "log_prob" else metric(logits[None])[0])


def plain_loop(
    model: Any, fact: rl.Fact, component: str, noise: torch.Tensor, direction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[sample, layer, pos, d_vocab]`` of whole runs with a row per cell; clean ones."""
    encoded = encode(model, fact)
    tokens, (start, end) = encoded.tokens[None], encoded.subject
    names = [component_hook(component, layer) for layer in range(model.cfg.n_layers)]  # type: ignore[arg-type]

    length, samples = tokens.shape[1], len(noise)

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, start:end] += noise.repeat_interleave(len(value) // samples, 0)
        return value

    def keeping(into: dict[str, torch.Tensor]) -> list[Any]:
        def keep(value: torch.Tensor, hook: Any, *, name: str) -> None:
            into[name] = value.detach().clone()

        return [(name, partial(keep, name=name)) for name in names]

    def put(value: torch.Tensor, hook: Any, *, state: torch.Tensor) -> torch.Tensor:
        value = value.clone().view(samples, length, *value.shape[1:])
        for pos in range(length):
            value[:, pos, pos] = state[:, pos]
        return value.flatten(0, 1)

    def run(rows: int, hooks: list[Any]) -> torch.Tensor:
        with torch.no_grad():
            return model.run_with_hooks(tokens.expand(rows, -1), fwd_hooks=hooks)[:, -1]

    states: dict[str, torch.Tensor] = {}
    other: dict[str, torch.Tensor] = {}
    clean = run(1, keeping(states))[0]
    run(samples, [(EMBED, corrupt), *keeping(other)])
    base, source = ([(EMBED, corrupt)], states) if direction == "denoising" else ([], other)
    each = [
        run(samples * length, [*base, (name, partial(put, state=source[name]))]) for name in names
    ]
    return torch.stack(each).view(len(names), samples, length, -1).transpose(0, 1), clean


@pytest.mark.parametrize("family", FEW_TINY, ids=lambda pair: "-".join(pair))
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("component", ["resid", "mlp"])
def test_every_metric_in_both_directions_equals_the_plain_loop(
    component: Any, direction: Any, family: tuple[str, str], fact: rl.Fact
) -> None:
    model = tiny(*family)
    encoded, noise = encode(model, fact), noise_of(model, fact)
    logits, clean = plain_loop(model, fact, component, noise, direction)
    metrics = ["probability", "kl"] if component == "resid" else [*METRICS[1:3], second_logit]
    for metric in metrics:
        trace = rl.causal_trace(
            model,
            fact,
            component=component,
            noise=noise,
            metric=metric,
            direction=direction,
            require_correct=False,
        )
        expected = torch.tensor(
            [plain_metric(metric, encoded, clean, row) for row in logits.flatten(0, 2)]
        ).view(logits.shape[:3])
        assert expected.std(unbiased=False) > 1e-6
        torch.testing.assert_close(trace.sample_scores, expected, atol=2e-5, rtol=2e-4)
        ends = (trace.clean, trace.corrupted)
        unchanged = ends[1] if direction == "denoising" else ends[0]
        assert float(trace.scores[-1, 1]) == pytest.approx(unchanged, abs=2e-5)
        assert trace.metric.endswith(metric if isinstance(metric, str) else "second_logit")
        if component == "resid":
            # The state of the last layer at the last token is all that the answer is read from.
            replaced = ends[0] if direction == "denoising" else ends[1]
            assert float(trace.scores[-1, -1]) == pytest.approx(replaced, abs=2e-5)
            effect = float(trace.indirect_effects[-1, -1])
            assert effect == pytest.approx(trace.total_effect, abs=2e-5)


def test_the_clean_run_has_no_divergence_from_itself(one_toy: Any, toy_record: Any) -> None:
    trace = rl.causal_trace(one_toy, toy_record, metric="kl", samples=2)
    assert trace.clean == pytest.approx(0.0, abs=1e-5)
    assert float(trace.scores.max()) < 1e-5
    assert trace.total_effect > 0.5
    assert trace.peak() == (one_toy.cfg.n_layers - 1, len(trace.labels) - 1)


def test_log_prob_of_a_whole_answer_is_the_sum_over_its_tokens(few_tiny_models: Any) -> None:
    fact = rl.Fact("Then {} lives in", subject="Wanda Brandt", target="Pralec Ondavel Karsun")
    options: dict[str, Any] = {
        "noise": noise_of(few_tiny_models, fact),
        "answer": "whole",
        "layers": [1],
        "require_correct": False,
    }
    log_p = rl.causal_trace(few_tiny_models, fact, metric="log_prob", **options)
    p = rl.causal_trace(few_tiny_models, fact, **options)
    assert log_p.answer_tokens > 1
    torch.testing.assert_close(log_p.sample_scores.exp(), p.sample_scores, atol=0.0, rtol=1e-4)
    kl = rl.causal_trace(few_tiny_models, fact, metric="kl", **options)
    assert float(kl.scores.max()) < 0.0


def test_noising_takes_away_what_a_cell_is_necessary_for(one_toy: Any, toy_record: Any) -> None:
    """In the toy, the last subject token's early states are necessary as well as sufficient."""
    trace = rl.causal_trace(one_toy, toy_record, direction="noising", samples=4)
    layer, pos = trace.peak(at="subject_last")
    effects = trace.indirect_effects
    assert float(effects[trace.layers.index(layer), pos]) == float(effects[:, pos].max())
    assert float(effects[:2, pos].min()) > 0.5
    assert effects[:, : trace.subject[0]].abs().max() == 0.0
    low, high = trace.intervals
    torch.testing.assert_close((low + high) / 2, effects)
    torch.testing.assert_close((high - low) / 2, trace.half_widths)


def test_attribution_is_the_slope_in_both_directions_and_for_every_metric(
    fact: rl.Fact,
) -> None:
    model = tiny(*FEW_TINY[0])
    noise = 1e-3 * noise_of(model, fact)
    for metric in ("log_prob", "logit_difference", second_logit):
        for direction in ("denoising", "noising"):
            options: dict[str, Any] = {
                "noise": noise,
                "metric": metric,
                "direction": direction,
                "layers": [1, 2],
                "require_correct": False,
            }
            exact = rl.causal_trace(model, fact, **options)
            estimate = rl.attribution_trace(model, fact, **options)
            error = (estimate.indirect_effects - exact.indirect_effects).abs().max()
            assert float(error) < 0.05 * float(exact.indirect_effects.abs().max())
            assert estimate.total_effect == pytest.approx(exact.total_effect, abs=1e-5)
            assert estimate.rank_correlation(exact) > 0.9


def test_a_severed_trace_has_the_metric_too(one_toy: Any, toy_record: Any) -> None:
    options: dict[str, Any] = {"layers": [0, 5], "samples": 2}
    severed = rl.severed_trace(one_toy, toy_record, metric="log_prob", **options)
    plain = rl.severed_trace(one_toy, toy_record, **options)
    torch.testing.assert_close(severed.sample_scores.exp(), plain.sample_scores)
    assert severed.metric == "log_prob"


def test_facts_together_are_scored_as_each_alone(
    one_toy: Any, toy_records: list[rl.data.Record], tmp_path: Any
) -> None:
    some = toy_records[:2]
    for metric in ("logit_difference", "kl", second_logit):
        options: dict[str, Any] = {"metric": metric, "direction": "noising", "samples": 2}
        traced = rl.trace_facts(one_toy, some, directory=tmp_path / str(metric)[:8], **options)
        for record, trace in zip(some, traced, strict=True):
            alone = rl.causal_trace(one_toy, record, **options)
            torch.testing.assert_close(
                trace.sample_scores, alone.sample_scores, atol=1e-4, rtol=1e-4
            )
        average = rl.average_traces(traced)
        assert (average.metric, average.direction) == (traced.traces[0].metric, "noising")
        mixed = [replace(traced.traces[0], direction="denoising"), *traced.traces[1:]]
        with pytest.raises(ArgumentError, match="has direction"):
            rl.average_traces(mixed)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_measured_is_refused(one_toy: Any, toy_record: Any, tmp_path: Any) -> None:
    trace = partial(rl.causal_trace, one_toy, toy_record, samples=1)
    for options, message in (
        ({"metric": "odds"}, "metric is 'odds', expected one of 'probability'"),
        ({"direction": "sideways"}, "direction is 'sideways'"),
        ({"metric": lambda logits: logits}, r"returned \[1, \d+\] for logits .*expected a tensor"),
        ({"metric": lambda logits: 1.0}, "returned float for logits"),
        ({"metric": lambda logits: logits[:, 0] * torch.nan}, "NaN or infinity"),
    ):
        with pytest.raises(ArgumentError, match=message):
            trace(**options)
    plain = rl.Fact(
        toy_record.fact.prompt, subject=toy_record.fact.subject, target=toy_record.fact.target
    )
    with pytest.raises(ArgumentError, match="no new target: give one"):
        rl.causal_trace(one_toy, plain, metric="logit_difference", samples=1)
    with pytest.raises(ArgumentError, match="Define the function in a module"):
        rl.trace_facts(one_toy, [plain], metric=lambda logits: logits[:, 0], directory=tmp_path)
