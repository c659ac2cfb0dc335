"""Severed traces: the reference values, and what must hold of any model."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import CLASSES, REFERENCE, reference_model, tiny
from test_causal import not_refused

import rome_lens as rl
from rome_lens.errors import ArgumentError
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


@pytest.mark.parametrize(
    ("what", "held_layers"), [("mlp", "later"), ("attn", "later"), ("both", "all")]
)
def test_one_draw_gives_the_original_values(reference64: Any, what: str, held_layers: str) -> None:
    trace = severed(reference64, "noise_pass1", None, severed=what, held_layers=held_layers)
    check(trace.scores[:, 0], f"{what}_severed.{NAMES[held_layers]}.same_noise", "f64")
    check(trace.ordinary_scores[:, 0], "ordinary", "f64")


def test_one_draw_gives_the_original_values_in_single_precision(reference32: Any) -> None:
    trace = severed(reference32, "noise_pass1", None, severed="attn", held_layers="all")
    check(trace.scores[:, 0], "attn_severed.all_layers.same_noise", "f32")
    check(trace.ordinary_scores[:, 0], "ordinary", "f32")


def test_two_draws_give_the_original_values() -> None:
    model = reference_model(CLASSES[0], torch.float64)
    second = severed(model, "noise_pass2", None, layers=[7]).ordinary_scores
    for what in ("mlp", "attn", "both"):
        every, later = (
            severed(model, "noise_pass2", "noise_pass1", severed=what, held_layers=held_layers)
            for held_layers in ("all", "later")
        )
        check(every.scores[:, 0], f"{what}_severed.all_layers", "f64")
        expected = torch.tensor(ARRAYS[f"fact0.{what}_severed.later_only.f64"])
        close = {"atol": 1e-10, "rtol": 0.0}
        torch.testing.assert_close(later.scores[:-1, 0], expected[:-1], **close)
        # After the last layer nothing is held. There the original scores its first draw instead.
        ordinary = torch.tensor(ARRAYS["fact0.ordinary.f64"][-1])
        torch.testing.assert_close(expected[-1], ordinary, **close)
        for scores in (later.scores, later.ordinary_scores, every.ordinary_scores):
            torch.testing.assert_close(scores[-1:], second, **close)


def one_row_per_layer(model: Any, fact: rl.Fact, what: str, noise: torch.Tensor) -> torch.Tensor:
    """Scores from two whole runs: one keeps the corrupted outputs, one has a row per layer."""
    encoded = encode(model, fact)
    (start, end), pos = encoded.subject, encoded.subject_last
    n_layers, samples = model.cfg.n_layers, len(noise)
    rows = encoded.tokens[None].expand(1 + samples * n_layers, -1)
    kept: dict[str, torch.Tensor] = {}

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, start:end] = value[:1, start:end] + noise.repeat(n_layers, 1, 1)
        return value

    def keep(layer: int) -> Any:
        name = component_hook(what, layer)
        return name, lambda value, hook: kept.update({name: value.clone()})

    def restore(layer: int) -> Any:
        def hook_fn(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[1 + layer * samples : 1 + (layer + 1) * samples, pos] = value[0, pos]
            return value

        return component_hook("resid", layer), hook_fn

    def hold(layer: int) -> Any:
        name = component_hook(what, layer)

        def hook_fn(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value, restored_before = value.clone(), slice(1, 1 + layer * samples)
            value[restored_before, pos] = kept[name][restored_before, pos]
            return value

        return name, hook_fn

    layers = range(n_layers)
    with torch.no_grad():
        model.run_with_hooks(rows, fwd_hooks=[(EMBED, corrupt), *map(keep, layers)])
        hooks = [(EMBED, corrupt), *map(restore, layers), *map(hold, layers)]
        logits = model.run_with_hooks(rows, fwd_hooks=hooks)[1:, -1]
    return logits.softmax(-1)[:, encoded.answer[0]].view(n_layers, samples).mean(1)


def test_it_equals_whole_runs(few_tiny_models: Any, fact: rl.Fact) -> None:
    model = few_tiny_models
    start, end = encode(model, fact).subject
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn((3, end - start, model.cfg.d_model), generator=generator)
    for what in ("mlp", "attn"):
        expected = one_row_per_layer(model, fact, what, noise)
        trace = rl.severed_trace(
            model, fact, severed=what, noise=noise, require_correct=False, batch_size=5
        )
        torch.testing.assert_close(trace.scores[:, 0], expected, atol=0.0, rtol=5e-4)
        lost = trace.lost[:-1, 0].abs()
        assert (lost > 1e-5 * trace.clean).any(), f"severing {what} changes nothing"


def noised_by_whole_runs(model: Any, fact: rl.Fact, what: str, noise: torch.Tensor) -> torch.Tensor:
    """Scores of clean runs with a corrupted state, and later modules there as in the clean run."""
    encoded = encode(model, fact)
    (start, end), pos = encoded.subject, encoded.subject_last
    layers = range(model.cfg.n_layers)
    rows = encoded.tokens[None].expand(1 + len(noise), -1)
    kept: dict[str, torch.Tensor] = {}

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, start:end] = value[1:, start:end] + noise
        return value

    def keep(name: str) -> Any:
        return name, lambda value, hook: kept.update({name: value.clone()})

    def put(name: str, rows: slice) -> Any:
        def hook_fn(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[:, pos] = kept[name][rows, pos]
            return value

        return name, hook_fn

    names = {kind: [component_hook(kind, layer) for layer in layers] for kind in ("resid", what)}
    scores = []
    with torch.no_grad():
        hooks = [(EMBED, corrupt), *map(keep, [*names["resid"], *names[what]])]
        model.run_with_hooks(rows, fwd_hooks=hooks)
        for layer in layers:
            held = [put(name, slice(0, 1)) for name in names[what][layer + 1 :]]
            hooks = [put(names["resid"][layer], slice(1, None)), *held]
            logits = model.run_with_hooks(rows[1:], fwd_hooks=hooks)[:, -1]
            scores.append(logits.softmax(-1)[:, encoded.answer[0]].mean())
    return torch.stack(scores)


def test_noising_equals_whole_runs(few_tiny_models: Any, fact: rl.Fact) -> None:
    model = few_tiny_models
    start, end = encode(model, fact).subject
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn((3, end - start, model.cfg.d_model), generator=generator)
    options: dict[str, Any] = {"noise": noise, "require_correct": False, "batch_size": 5}
    plain = rl.causal_trace(model, fact, direction="noising", **options)
    for what in ("mlp", "attn"):
        trace = rl.severed_trace(model, fact, severed=what, direction="noising", **options)
        expected = noised_by_whole_runs(model, fact, what, noise)
        torch.testing.assert_close(trace.scores[:, 0], expected, atol=0.0, rtol=5e-4)
        at = plain.positions.index(trace.positions[0])
        torch.testing.assert_close(trace.ordinary_scores[:, 0], plain.scores[:, at])
        torch.testing.assert_close(trace.lost, trace.scores - trace.ordinary_scores)
        assert (trace.lost[:-1, 0].abs() > 1e-5 * trace.clean).any(), f"severing {what}: nothing"
    with pytest.raises(ArgumentError, match="held values are those of the clean run"):
        rl.severed_trace(model, fact, direction="noising", held_noise=noise, **options)


def test_nothing_is_lost_where_nothing_follows(one_toy: Any, toy_record: rl.data.Record) -> None:
    trace = rl.severed_trace(one_toy, toy_record.fact, layers=[4, 5], positions=[-1, 2], samples=3)
    torch.testing.assert_close(trace.scores[-1], trace.ordinary_scores[-1], atol=1e-6, rtol=0.0)
    assert trace.positions == (len(trace.labels) - 1, 2)


def test_the_ordinary_side_is_the_causal_trace(one_toy: Any, toy_record: rl.data.Record) -> None:
    trace = rl.severed_trace(one_toy, toy_record.fact, samples=4)
    plain = rl.causal_trace(one_toy, toy_record.fact, samples=4, positions=trace.positions)
    torch.testing.assert_close(
        trace.ordinary_sample_scores, plain.sample_scores, atol=1e-6, rtol=0.0
    )
    assert torch.equal(trace.corrupted_samples, plain.corrupted_samples)


def test_batch_size_changes_nothing(one_toy: Any, toy_record: rl.data.Record) -> None:
    for held_layers in ("later", "all"):
        one, many = (
            rl.severed_trace(
                one_toy,
                toy_record.fact,
                held_layers=held_layers,
                samples=3,
                layers=[0, 3],
                batch_size=size,
            )
            for size in (2, 100)
        )
        torch.testing.assert_close(one.sample_scores, many.sample_scores, atol=1e-5, rtol=0.0)


@pytest.mark.skipif(len(CLASSES) < 2, reason="this TransformerLens has one model class")
def test_both_model_classes_agree(fact: rl.Fact) -> None:
    ours, theirs = (
        rl.severed_trace(tiny("gemma3", name), fact, require_correct=False, severed="both")
        for name in CLASSES
    )
    torch.testing.assert_close(ours.scores, theirs.scores, atol=0.0, rtol=5e-4)


def test_it_is_saved_and_shown(one_toy: Any, toy_record: rl.data.Record, tmp_path: Any) -> None:
    trace = rl.severed_trace(one_toy, toy_record.fact, severed="both", samples=3, layers=[0, 1, 3])
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


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused(
    one_toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(one_toy)
    start, end = encode(one_toy, toy_record.fact).subject
    few = torch.zeros(2, end - start, one_toy.cfg.d_model)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"severed": "heads"}, ArgumentError, "expected one of 'mlp', 'attn', 'both'"),
        ({"held_layers": "none"}, ArgumentError, "expected one of 'later', 'all'"),
        ({"held_noise": torch.zeros(3, 3, 5)}, NoiseError, "expected [samples, "),
        ({"held_noise": few}, NoiseError, "held_noise has 2 samples, but noise has 10"),
        ({"layers": [99]}, ModelError, "layers 0 to"),
        ({"positions": []}, ArgumentError, "positions is empty"),
    ]
    assert not not_refused(
        lambda **options: rl.severed_trace(one_toy, toy_record.fact, **options), cases
    )
