"""Severed traces: the reference values, and what must hold of any model."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import CLASSES, REFERENCE, tiny

import rome_lens as rl
from rome_lens.forward.tokens import encode
from rome_lens.models.hook_names import EMBED, component_hook
from rome_lens.models.lens import ModelError
from rome_lens.tracing.corruption import NoiseError

KNOWN = json.loads((REFERENCE / "reference.json").read_text())["traces"]["facts"]["fact0"]
ARRAYS = np.load(REFERENCE / "severed.npz")
NAMES = {"all": "all_layers", "later": "later_only"}


def reference_fact() -> rl.Fact:
    return rl.Fact.from_text(KNOWN["prompt"], subject=KNOWN["subject"], target=KNOWN["attribute"])


def severed(model: Any, noise: str, held: str | None, **options: Any) -> rl.SeveredTrace:
    return rl.severed_trace(
        model,
        reference_fact(),
        noise=torch.tensor(ARRAYS[f"fact0.{noise}"]),
        held_noise=None if held is None else torch.tensor(ARRAYS[f"fact0.{held}"]),
        prepend_bos=False,
        **options,
    )


def check(found: torch.Tensor, name: str, precision: str) -> None:
    expected = torch.tensor(ARRAYS[f"fact0.{name}.{precision}"])
    tolerance = {"f64": 1e-10, "f32": 5e-6}[precision]
    torch.testing.assert_close(found.to(expected), expected, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("held_layers", ["all", "later"])
@pytest.mark.parametrize("what", ["mlp", "attn", "both"])
def test_one_draw_gives_the_original_values(
    reference64: Any, reference32: Any, what: str, held_layers: str
) -> None:
    for model, precision in ((reference64, "f64"), (reference32, "f32")):
        trace = severed(model, "noise_pass1", None, severed=what, held_layers=held_layers)
        check(trace.scores[:, 0], f"{what}_severed.{NAMES[held_layers]}.same_noise", precision)
        check(trace.ordinary_scores[:, 0], "ordinary", precision)


@pytest.mark.parametrize("what", ["mlp", "attn", "both"])
def test_two_draws_give_the_original_values(reference64: Any, what: str) -> None:
    trace = severed(reference64, "noise_pass2", "noise_pass1", severed=what, held_layers="all")
    check(trace.scores[:, 0], f"{what}_severed.all_layers", "f64")
    later = severed(
        reference64, "noise_pass2", "noise_pass1", severed=what, held_layers="later"
    ).scores[:, 0]
    expected = torch.tensor(ARRAYS[f"fact0.{what}_severed.later_only.f64"])
    torch.testing.assert_close(later[:-1], expected[:-1], atol=1e-10, rtol=0.0)
    # After the last layer nothing is held: there the original scores its first draw, ordinarily.
    torch.testing.assert_close(
        expected[-1], torch.tensor(ARRAYS["fact0.ordinary.f64"][-1]), atol=1e-10, rtol=0.0
    )
    torch.testing.assert_close(
        later[-1],
        severed(reference64, "noise_pass2", None).ordinary_scores[-1, 0],
        atol=1e-10,
        rtol=0.0,
    )


@pytest.mark.parametrize("what", ["mlp", "attn"])
def test_it_equals_the_plain_loop(tiny_model: Any, fact: rl.Fact, what: str) -> None:
    """One run of the whole model for each layer, with hooks written out."""
    encoded = encode(tiny_model, fact)
    (start, end), pos = encoded.subject, encoded.subject_last
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn((3, end - start, tiny_model.cfg.d_model), generator=generator)
    rows = encoded.tokens[None].expand(4, -1)
    n_layers = tiny_model.cfg.n_layers
    kept: dict[str, torch.Tensor] = {}

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, start:end] = value[:1, start:end] + noise
        return value

    def keep(name: str) -> Any:
        return name, lambda value, hook: kept.update({name: value.clone()})

    names = [component_hook(what, layer) for layer in range(n_layers)]
    with torch.no_grad():
        tiny_model.run_with_hooks(rows, fwd_hooks=[(EMBED, corrupt), *map(keep, names)])
    expected = torch.zeros(n_layers)
    for layer in range(n_layers):

        def restore(value: torch.Tensor, hook: Any) -> torch.Tensor:
            return torch.cat(
                [value[:, :pos], value[:1, pos : pos + 1].expand(4, -1, -1), value[:, pos + 1 :]],
                dim=1,
            )

        def hold(name: str) -> Any:
            def hook_fn(value: torch.Tensor, hook: Any) -> torch.Tensor:
                value = value.clone()
                value[1:, pos] = kept[name][1:, pos]
                return value

            return name, hook_fn

        hooks = [
            (EMBED, corrupt),
            (component_hook("resid", layer), restore),
            *map(hold, names[layer + 1 :]),
        ]
        with torch.no_grad():
            logits = tiny_model.run_with_hooks(rows, fwd_hooks=hooks)
        expected[layer] = logits[1:, -1].softmax(-1)[:, encoded.answer[0]].mean()
    trace = rl.severed_trace(
        tiny_model, fact, severed=what, noise=noise, require_correct=False, batch_size=5
    )
    torch.testing.assert_close(trace.scores[:, 0], expected, atol=0.0, rtol=5e-4)
    assert (trace.lost[:-1, 0].abs() > 1e-5 * trace.clean).any(), "severing changes nothing"


def test_nothing_is_lost_where_nothing_follows(toy: Any, toy_record: rl.data.Record) -> None:
    trace = rl.severed_trace(toy, toy_record.fact, positions=[-1, 2], samples=3)
    torch.testing.assert_close(trace.scores[-1], trace.ordinary_scores[-1], atol=1e-6, rtol=0.0)
    assert trace.positions == (len(trace.labels) - 1, 2)


def test_the_ordinary_side_is_the_causal_trace(toy: Any, toy_record: rl.data.Record) -> None:
    trace = rl.severed_trace(toy, toy_record.fact, samples=4)
    plain = rl.causal_trace(toy, toy_record.fact, samples=4, positions=trace.positions)
    torch.testing.assert_close(
        trace.ordinary_sample_scores, plain.sample_scores, atol=1e-6, rtol=0.0
    )
    assert torch.equal(trace.corrupted_samples, plain.corrupted_samples)


def test_batch_size_changes_nothing(toy: Any, toy_record: rl.data.Record) -> None:
    one, many = (
        rl.severed_trace(toy, toy_record.fact, samples=5, batch_size=size) for size in (1, 100)
    )
    torch.testing.assert_close(one.sample_scores, many.sample_scores, atol=1e-5, rtol=0.0)


@pytest.mark.skipif(len(CLASSES) < 2, reason="this TransformerLens has one model class")
def test_both_model_classes_agree(fact: rl.Fact) -> None:
    ours, theirs = (
        rl.severed_trace(tiny("gemma3", name), fact, require_correct=False, severed="both")
        for name in CLASSES
    )
    torch.testing.assert_close(ours.scores, theirs.scores, atol=0.0, rtol=5e-4)


def test_it_is_saved_shown_and_leaves_nothing(
    toy: Any, toy_record: rl.data.Record, tmp_path: Any, untouched: Any
) -> None:
    untouched(toy)
    trace = rl.severed_trace(toy, toy_record.fact, severed="both", samples=3)
    loaded = rl.SeveredTrace.load(trace.save(tmp_path / "severed.safetensors"))
    assert torch.equal(loaded.sample_scores, trace.sample_scores)
    assert (loaded.severed, loaded.held_layers, loaded.positions) == (
        "both",
        "later",
        trace.positions,
    )
    frame = trace.to_frame()
    row = frame[frame.layer == 1].iloc[0]
    assert row.lost == pytest.approx(row.ordinary_score - row.score, abs=1e-6)
    assert "img" in trace._repr_html_()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"severed": "heads"}, ValueError, "'mlp', 'attn', 'both'"),
        ({"held_layers": "none"}, ValueError, "'later' or 'all'"),
        ({"held_noise": torch.zeros(3, 3, 5)}, NoiseError, "expected \\[samples, "),
        ({"layers": [99]}, ModelError, "layers 0 to"),
        ({"positions": []}, ValueError, "positions is empty"),
    ],
)
def test_wrong_options_are_refused(
    toy: Any,
    toy_record: rl.data.Record,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        rl.severed_trace(toy, toy_record.fact, **options)


def test_draws_of_different_size_are_refused(toy: Any, toy_record: rl.data.Record) -> None:
    start, end = encode(toy, toy_record.fact).subject
    with pytest.raises(NoiseError, match="held_noise has 2 samples, noise 10"):
        rl.severed_trace(
            toy, toy_record.fact, held_noise=torch.zeros(2, end - start, toy.cfg.d_model)
        )
