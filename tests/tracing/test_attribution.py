"""Attribution patching: a derivative, checked as one."""

import math
from typing import Any

import pytest
import torch
from models_for_tests import FEW_TINY, reference_model, tiny

import rome_lens as rl
from rome_lens.forward.tokens import encode
from rome_lens.models.hook_names import component_hook


def noise_of(model: Any, fact: rl.Fact, scale: float) -> torch.Tensor:
    start, end = encode(model, fact).subject
    generator = torch.Generator().manual_seed(5)
    return scale * torch.randn((2, end - start, model.cfg.d_model), generator=generator)


def error_of_the_estimate(model: Any, fact: rl.Fact, component: str, scale: float) -> float:
    """The largest error of an estimated effect, as a share of the largest effect."""
    options: dict[str, Any] = {
        "component": component,
        "noise": noise_of(model, fact, scale),
        "positions": [encode(model, fact).subject_last, -1],
        "require_correct": False,
    }
    exact = rl.causal_trace(model, fact, **options).indirect_effects
    estimate = rl.attribution_trace(model, fact, **options).indirect_effects
    return float((estimate - exact).abs().max() / exact.abs().max())


def test_small_noise_makes_the_estimate_exact(few_tiny_models: Any, fact: rl.Fact) -> None:
    assert error_of_the_estimate(few_tiny_models, fact, "resid", 1e-3) < 0.05


def test_less_noise_makes_the_estimate_better(fact: rl.Fact) -> None:
    """The estimate is the first term of a series in the noise."""
    model = tiny(*FEW_TINY[0])
    for component in ("resid", "z"):
        more, less = (
            error_of_the_estimate(model, fact, component, scale) for scale in (1e-2, 1e-3)
        )
        # Rounding leaves some of the smaller error.
        assert less < min(0.05, max(0.01, 0.5 * more)), component


def test_it_is_the_derivative_by_finite_differences() -> None:
    """In double precision, along the line from a corrupted state to the clean one."""
    model = reference_model("TransformerBridge", torch.float64)
    fact = rl.Fact("{} is a", subject="Hugo del Lindqvist", target="man")
    noise = noise_of(model, fact, 0.3)[:1]
    layer, step = 2, 1e-5
    estimate = rl.attribution_trace(
        model,
        fact,
        component="mlp",
        noise=noise,
        layers=[layer],
        prepend_bos=False,
        require_correct=False,
    )
    encoded = encode(model, fact, prepend_bos=False)
    start, end = encoded.subject
    pos = encoded.subject_last
    rows = encoded.tokens[None].expand(2, -1)

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat(
            [
                value[:1],
                torch.cat([value[1:, :start], value[1:, start:end] + noise, value[1:, end:]], 1),
            ]
        )

    def probability(amount: float) -> float:
        def move(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[1, pos] += amount * (value[0, pos] - value[1, pos])
            return value

        with torch.no_grad():
            hooks = [("hook_embed", corrupt), (component_hook("mlp", layer), move)]
            logits = model.run_with_hooks(rows, fwd_hooks=hooks)[1, -1]
        return float(logits.softmax(-1)[encoded.answer[0]])

    slope = (probability(step) - probability(-step)) / (2 * step)
    assert float(estimate.indirect_effects[0, pos]) == pytest.approx(slope, rel=1e-5)


def test_heads_add_up_to_the_attention(one_toy: Any, toy_record: rl.data.Record) -> None:
    """W_O is linear, so first-order effects of a layer's heads sum to that of its attention."""
    heads = rl.attribution_trace(
        one_toy, toy_record.fact, samples=4, component="z"
    ).indirect_effects.sum(2)
    whole = rl.attribution_trace(
        one_toy, toy_record.fact, samples=4, component="attn"
    ).indirect_effects
    torch.testing.assert_close(heads, whole, atol=2e-5, rtol=1e-4)


def test_a_window_adds_up_its_layers(one_toy: Any, toy_record: rl.data.Record) -> None:
    single = rl.attribution_trace(
        one_toy, toy_record.fact, samples=4, component="mlp"
    ).indirect_effects
    window = rl.attribution_trace(
        one_toy, toy_record.fact, samples=4, component="mlp", window=3
    ).indirect_effects
    torch.testing.assert_close(window[2], single[1:4].sum(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(window[0], single[:2].sum(0), atol=1e-5, rtol=1e-4)


def test_a_whole_answer_and_chosen_cells(one_toy: Any, toy_record: rl.data.Record) -> None:
    whole = rl.attribution_trace(
        one_toy, toy_record.fact, samples=4, component="mlp", window=2, answer="whole"
    )
    part = rl.attribution_trace(
        one_toy,
        toy_record.fact,
        samples=4,
        component="mlp",
        window=2,
        answer="whole",
        layers=[3, 1],
        positions=[-1, 2],
        batch_size=3,
    )
    last = len(whole.labels) - 1
    torch.testing.assert_close(
        part.scores, whole.scores[[3, 1]][:, [last, 2]], atol=1e-6, rtol=1e-4
    )


def test_the_rank_correlation_compares_the_same_cells(
    one_toy: Any, toy_record: rl.data.Record, tmp_path: Any
) -> None:
    exact = rl.causal_trace(one_toy, toy_record.fact, samples=4, component="attn")
    estimate = rl.attribution_trace(one_toy, toy_record.fact, samples=4, component="attn")
    assert estimate.rank_correlation(exact) > 0.5
    assert estimate.rank_correlation(estimate) == pytest.approx(1.0)
    loaded = rl.AttributionTrace.load(estimate.save(tmp_path / "estimate.safetensors"))
    assert loaded.rank_correlation(exact) == estimate.rank_correlation(exact)
    one = rl.causal_trace(
        one_toy, toy_record.fact, samples=4, component="attn", layers=[2], positions=[-1]
    )
    assert math.isnan(estimate.rank_correlation(one))
    with pytest.raises(ValueError, match="component 'mlp'"):
        estimate.rank_correlation(
            rl.causal_trace(one_toy, toy_record.fact, samples=4, component="mlp", layers=[0])
        )
    other = rl.attribution_trace(one_toy, toy_record.fact, samples=4, component="attn", layers=[1])
    with pytest.raises(ValueError, match="no cell in common"):
        other.rank_correlation(one)


def test_a_window_of_the_stream_is_refused(one_toy: Any, toy_record: rl.data.Record) -> None:
    with pytest.raises(ValueError, match="do not add up"):
        rl.attribution_trace(one_toy, toy_record.fact, window=3)
