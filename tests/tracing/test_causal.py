"""Laws of causal tracing, and the reference values of the original method."""

import itertools
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_for_tests import snapshot
from models_for_tests import CLASSES, HOOKED_FAMILIES, REFERENCE, tiny

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.errors import ArgumentError
from rome_lens.forward import readout
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.tokens import encode
from rome_lens.models.hook_names import EMBED, component_hook
from rome_lens.models.lens import ModelError
from rome_lens.models.loading import from_directory
from rome_lens.tracing.clean_run import FactNotKnownError

FACTS = json.loads((REFERENCE / "reference.json").read_text())["traces"]
ARRAYS = np.load(REFERENCE / "traces.npz")
KINDS = {
    "resid": {},
    "mlp_w3": {"component": "mlp", "window": 3},
    "mlp_w10": {"component": "mlp", "window": 10},
    "attn_w3": {"component": "attn", "window": 3},
}


def one_row_per_cell(
    model: Any,
    fact: rl.Fact,
    component: str,
    window: int,
    noise: torch.Tensor,
    *,
    heads: int = 0,
    answer: tuple[int, ...] = (),
    positions: list[int] | None = None,
) -> torch.Tensor:
    """Scores of all cells from one run of the whole model that shares nothing between cells.

    Row 0 is clean. Each further row is one noise sample of one cell, restored from row 0 by a hook.
    ``heads`` restores single heads of ``"z"``; ``answer`` scores all of these tokens.
    """
    encoded = encode(model, fact)
    start, end = encoded.subject
    n_layers, length, samples = model.cfg.n_layers, len(encoded.tokens), len(noise)
    answer = answer or encoded.answer[:1]
    tokens = torch.cat([encoded.tokens, torch.tensor(answer[:-1], dtype=torch.long)])
    at = range(length) if positions is None else positions
    cells = list(itertools.product(range(n_layers), at, range(max(1, heads))))

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, start:end] = value[:1, start:end] + noise.repeat(len(cells), 1, 1)
        return value

    def restoring(restored: int) -> Any:
        def restore(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            for i, (layer, pos, head) in enumerate(cells):
                first, last = layer - window // 2, layer - (-window // 2) - 1
                if first <= restored <= last:
                    where = (pos, head) if heads else (pos,)
                    rows = slice(1 + i * samples, 1 + (i + 1) * samples)
                    value[(rows, *where)] = value[(slice(0, 1), *where)]
            return value

        return component_hook(component, restored), restore

    hooks = [(EMBED, corrupt), *map(restoring, range(n_layers))]
    rows = tokens[None].expand(1 + samples * len(cells), -1)
    with torch.no_grad():
        logits = model.run_with_hooks(rows, fwd_hooks=hooks)[1:, -len(answer) :]
    each = logits.float().softmax(-1)[:, torch.arange(len(answer)), list(answer)]
    scores = each.prod(1).view(len(cells), samples).mean(1).view(n_layers, len(at), -1)
    return scores if heads else scores[:, :, 0]


def noise_of(model: Any, fact: rl.Fact, scale: float = 1.0, samples: int = 2) -> torch.Tensor:
    start, end = encode(model, fact).subject
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn((samples, end - start, model.cfg.d_model), generator=generator)


def check_cells(
    model: Any, fact: rl.Fact, component: str, window: int, rtol: float, **options: Any
) -> rl.CausalTrace:
    """A trace, after comparing it with the run that has one row per cell."""
    noise = noise_of(model, fact)
    trace = rl.causal_trace(
        model,
        fact,
        component=component,
        window=window,
        noise=noise,
        require_correct=False,
        **options,
    )
    answer = encode(model, fact).answer if options.get("answer") == "whole" else ()
    expected = one_row_per_cell(model, fact, component, window, noise, answer=answer)
    what = f"{component}, window {window}"
    assert (expected / trace.corrupted - 1.0).abs().max() > 0.01, f"{what}: no cell matters"
    torch.testing.assert_close(
        trace.scores, expected, atol=0.0, rtol=rtol, msg=lambda message: f"{what}: {message}"
    )
    return trace


def test_a_trace_equals_the_run_with_one_row_per_cell(tiny_model: Any, fact: rl.Fact) -> None:
    for component, window in (("resid", 1), ("mlp", 4), ("attn", 3)):
        check_cells(tiny_model, fact, component, window, 2e-4, batch_size=31)


def test_other_windows_equal_the_run_with_one_row_per_cell(
    few_tiny_models: Any, fact: rl.Fact
) -> None:
    for component, window in (("resid", 2), ("mlp", 1), ("mlp", 2), ("attn", 6)):
        check_cells(few_tiny_models, fact, component, window, 2e-4)


def test_a_trace_of_heads_equals_the_run_with_one_row_per_cell(
    tiny_model: Any, fact: rl.Fact
) -> None:
    noise = noise_of(tiny_model, fact)
    last, heads = encode(tiny_model, fact).subject_last, tiny_model.cfg.n_heads
    expected = one_row_per_cell(tiny_model, fact, "z", 1, noise, heads=heads, positions=[last, -1])
    trace = rl.causal_trace(
        tiny_model,
        fact,
        component="z",
        noise=noise,
        require_correct=False,
        positions=[last, -1],
        batch_size=9,
    )
    torch.testing.assert_close(trace.scores, expected, atol=0.0, rtol=2e-4)


def test_heads_at_every_position_equal_the_run_with_one_row_per_cell(
    few_tiny_models: Any, fact: rl.Fact
) -> None:
    model, noise = few_tiny_models, noise_of(few_tiny_models, fact)
    options: dict[str, Any] = {"component": "z", "noise": noise, "require_correct": False}
    trace = rl.causal_trace(model, fact, **options)
    expected = one_row_per_cell(model, fact, "z", 1, noise, heads=model.cfg.n_heads)
    torch.testing.assert_close(trace.scores, expected, atol=0.0, rtol=2e-4)
    layer, pos, head = trace.peak()
    assert float(expected[layer, pos, head]) == pytest.approx(float(trace.scores.max()), rel=1e-3)
    some = rl.causal_trace(model, fact, heads=[3, 1], positions=[-1], layers=[1], **options)
    torch.testing.assert_close(some.scores[0, 0], expected[1, -1, [3, 1]], atol=0.0, rtol=2e-4)
    assert some.to_frame().head(2)["head"].tolist() == [3, 1]


def test_a_whole_answer_equals_the_run_with_one_row_per_cell(
    few_tiny_models: Any, fact: rl.Fact
) -> None:
    fact = rl.Fact(fact.prompt, subject=fact.subject, target="Ondavel and Pralec")
    assert len(encode(few_tiny_models, fact).answer) > 2
    for component, window in (("mlp", 3), ("resid", 1)):
        trace = check_cells(few_tiny_models, fact, component, window, 5e-4, answer="whole")
        assert trace.answer.strip() == fact.target


def test_a_whole_answer_must_be_known_to_its_end(one_toy: Any, toy_record: rl.data.Record) -> None:
    fact = toy_record.fact
    options: dict[str, Any] = {"samples": 1, "layers": [0], "positions": [0]}
    whole = rl.causal_trace(one_toy, fact, answer="whole", **options)
    first = rl.causal_trace(one_toy, fact, **options)
    assert whole.clean <= first.clean + 1e-6
    longer = rl.Fact(fact.prompt, subject=fact.subject, target=f"{fact.target} {fact.target}")
    with pytest.raises(FactNotKnownError, match="The model answers"):
        rl.causal_trace(one_toy, longer, answer="whole")


def test_prompt_and_answer_must_fit_the_context(one_toy: Any) -> None:
    prompt = "{} " + "and so on " * 8 + "lives in"
    room = one_toy.cfg.n_ctx - len(
        encode(one_toy, rl.Fact(prompt, subject="Wanda", target="Pralec")).tokens
    )
    assert room >= 0
    long = rl.Fact(prompt, subject="Wanda", target="Pralec " * (room + 2))
    with pytest.raises(FactError, match="context only"):
        rl.causal_trace(one_toy, long, answer="whole")


def test_half_precision_scores_in_float32() -> None:
    """Rounding differs from batch to batch, so the reference is the original's float32 values."""
    known = FACTS["facts"]["fact0"]
    fact = rl.Fact.from_text(known["prompt"], subject=known["subject"], target=known["attribute"])
    noise = torch.tensor(ARRAYS["fact0.noise"])
    expected = torch.tensor(ARRAYS["fact0.resid.scores.f32"]).T
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
        model = from_directory(REFERENCE / "model", model_class=CLASSES[0]).to(dtype)
        trace = rl.causal_trace(model, fact, noise=noise, prepend_bos=False, layers=[0, 1, 2, 3, 4])
        assert trace.sample_scores.dtype == torch.float32
        assert len(trace.sample_scores.unique()) > 100, "scores are rounded to half precision"
        assert float((trace.scores - expected[:5]).abs().max()) < tolerance, dtype
        estimate = rl.attribution_trace(
            model, fact, noise=noise[:2], prepend_bos=False, layers=[0], positions=[0]
        )
        assert estimate.sample_scores.dtype == torch.float32


def test_processed_weights_give_the_same_scores_for_the_same_noise() -> None:
    """Folded norms and centred weights change states, but not what restoring them does."""
    known = FACTS["facts"]["fact0"]
    fact = rl.Fact.from_text(known["prompt"], subject=known["subject"], target=known["attribute"])
    noise = torch.tensor(ARRAYS["fact0.noise"])
    plain = from_directory(REFERENCE / "model", model_class="TransformerBridge")
    processed = from_directory(REFERENCE / "model", model_class="TransformerBridge")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processed.enable_compatibility_mode()
    some: dict[str, Any] = {"layers": [0, 3], "positions": [1, -1]}
    for options in (
        {},
        {"component": "mlp", "window": 3},
        {"component": "attn"},
        {"component": "z"},
    ):
        ours, theirs = (
            rl.causal_trace(m, fact, noise=noise, prepend_bos=False, **some, **options)
            for m in (plain, processed)
        )
        torch.testing.assert_close(ours.scores, theirs.scores, atol=2e-5, rtol=0.0)
    cut, cut_processed = (
        rl.severed_trace(m, fact, noise=noise, prepend_bos=False, layers=[0, 3])
        for m in (plain, processed)
    )
    torch.testing.assert_close(cut.scores, cut_processed.scores, atol=2e-5, rtol=0.0)
    # The noise level is not: centred embeddings have another standard deviation.
    states = [
        m.run_with_cache(torch.tensor([[5, 6, 7]]))[1]["blocks.2.hook_mlp_out"]
        for m in (plain, processed)
    ]
    assert float((states[0] - states[1]).abs().max()) > 1e-3, "the second model is not processed"


def test_no_forward_has_more_rows_than_the_bound(one_toy: Any, toy_record: rl.data.Record) -> None:
    rows: list[int] = []
    watch = [
        (component_hook("mlp", layer), lambda value, hook: rows.append(len(value)))
        for layer in (0, 3, 5)
    ]
    with one_toy.hooks(fwd_hooks=watch):
        for batch_size in (2, 8):
            for options in ({}, {"component": "attn", "window": 2}):
                rows.clear()
                rl.causal_trace(
                    one_toy,
                    toy_record.fact,
                    samples=5,
                    layers=[0, 1, 4],
                    positions=[2, -1],
                    batch_size=batch_size,
                    **options,
                )
                # The check of the model itself compares two rows.
                assert max(rows) <= max(batch_size, 2), (batch_size, options)
                assert max(rows) >= min(batch_size, 5), (batch_size, options)


def test_without_noise_every_score_is_clean(few_tiny_models: Any, fact: rl.Fact) -> None:
    trace = rl.causal_trace(
        few_tiny_models,
        fact,
        noise=noise_of(few_tiny_models, fact, scale=0.0),
        require_correct=False,
    )
    torch.testing.assert_close(
        trace.scores, torch.full_like(trace.scores, trace.clean), atol=0.0, rtol=2e-4
    )


def test_nothing_restored_scores_corrupted(one_toy: Any, toy_record: rl.data.Record) -> None:
    """States before the subject were never corrupted, so restoring them restores nothing."""
    record = toy_record
    fact = rl.Fact(
        "It was raining. {} lives in the city of",
        subject=record.fact.subject,
        target=record.fact.target,
    )
    trace = rl.causal_trace(one_toy, fact, require_correct=False)
    assert trace.subject[0] > 2
    assert torch.equal(
        trace.sample_scores[:, :, : trace.subject[0]],
        trace.corrupted_samples[:, None, None].expand(-1, len(trace.layers), trace.subject[0]),
    )
    assert trace.total_effect > 0.3


def test_the_whole_restored_stream_gives_clean(few_tiny_models: Any, fact: rl.Fact) -> None:
    model = few_tiny_models
    encoded = encode(model, fact)
    forward = PartialForward(model, encoded.tokens)
    with torch.no_grad():
        expected = model(encoded.tokens[None])[:, -1]
        for layer in range(model.cfg.n_layers):
            clean = rl.forward.run_through(
                model, encoded.tokens[None], layer, [component_hook("resid", layer)]
            )[component_hook("resid", layer)]
            found = forward.logits(forward.resume(clean, layer + 1)[:, -1])
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_the_last_state_of_the_last_position_gives_clean(
    toy: Any, toy_record: rl.data.Record
) -> None:
    trace = rl.causal_trace(toy, toy_record.fact, layers=[0, 5], samples=3)
    assert abs(float(trace.scores[-1, -1]) - trace.clean) < 1e-5
    assert torch.equal(trace.sample_scores[:, -1, 0], trace.corrupted_samples)


@pytest.mark.parametrize("name", ["fact0", "fact3"])
def test_double_precision_gives_the_original_values(reference64: Any, name: str) -> None:
    for kind in KINDS if name == "fact0" else ("resid", "mlp_w10"):
        check_reference(reference64, name, kind, "f64", 1e-10)


def test_single_precision_gives_the_original_values(reference32: Any) -> None:
    for name, kind in [("fact0", "resid"), ("fact0", "attn_w3"), ("fact3", "mlp_w10")]:
        check_reference(reference32, name, kind, "f32", 5e-6)


def check_reference(model: Any, name: str, kind: str, precision: str, tolerance: float) -> None:
    known = FACTS["facts"][name]
    fact = rl.Fact.from_text(known["prompt"], subject=known["subject"], target=known["attribute"])
    noise = torch.tensor(ARRAYS[f"{name}.noise"])
    trace = rl.causal_trace(model, fact, noise=noise, prepend_bos=False, **KINDS[kind])
    assert list(trace.subject) == known["subject_range"]
    expected = torch.tensor(ARRAYS[f"{name}.{kind}.scores.{precision}"]).T
    torch.testing.assert_close(trace.scores.to(expected), expected, atol=tolerance, rtol=0.0)
    assert abs(trace.corrupted - float(ARRAYS[f"{name}.{kind}.low_score.{precision}"])) < tolerance
    assert abs(trace.clean - float(ARRAYS[f"{name}.high_score.{precision}"])) < tolerance


def test_batch_size_changes_nothing(one_toy: Any, toy_record: rl.data.Record) -> None:
    one, many = (
        rl.causal_trace(
            one_toy, toy_record.fact, component="mlp", window=3, samples=5, batch_size=size
        )
        for size in (7, 1000)
    )
    torch.testing.assert_close(one.sample_scores, many.sample_scores, atol=1e-5, rtol=0.0)


def test_the_same_seed_gives_identical_numbers(one_toy: Any, toy_record: rl.data.Record) -> None:
    first, second = (rl.causal_trace(one_toy, toy_record.fact, samples=4) for _ in range(2))
    assert torch.equal(first.sample_scores, second.sample_scores)
    other = rl.causal_trace(
        one_toy, toy_record.fact, noise=rl.GaussianNoise(seed=1), samples=4, layers=[0]
    )
    assert not torch.equal(first.corrupted_samples, other.corrupted_samples)


def test_chosen_cells_are_those_of_the_whole_trace(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    whole = rl.causal_trace(one_toy, toy_record.fact, samples=4)
    part = rl.causal_trace(one_toy, toy_record.fact, samples=4, layers=[3, 1], positions=[-1, 2])
    assert part.positions == (len(whole.labels) - 1, 2)
    torch.testing.assert_close(part.scores, whole.scores[[3, 1]][:, [-1, 2]], atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(len(CLASSES) < 2, reason="this TransformerLens has one model class")
def test_both_model_classes_agree(fact: rl.Fact) -> None:
    different = []
    for family in HOOKED_FAMILIES:
        noise = noise_of(tiny(family, "TransformerBridge"), fact)
        hooked, bridge = (
            rl.causal_trace(
                tiny(family, name),
                fact,
                noise=noise,
                require_correct=False,
                component="attn",
                positions=[3, -1],
            )
            for name in CLASSES
        )
        close = torch.allclose(hooked.scores, bridge.scores, atol=0.0, rtol=5e-4)
        if not close or hooked.model_fingerprint != bridge.model_fingerprint:
            different.append(family)
    assert not different


def test_peak_and_layer_are_where_the_scores_are_highest(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    trace = rl.causal_trace(one_toy, toy_record.fact, component="mlp", window=2, samples=4)
    layer, pos = trace.peak()
    assert trace.scores[layer, pos] == trace.scores.max()
    layer, pos = trace.peak("subject_last")
    assert pos == trace.subject[1] - 1
    assert trace.scores[layer, pos] == trace.scores[:, pos].max()
    inside = trace.scores[:, slice(*trace.subject)]
    assert inside[rl.choose_layer(trace)].max() == inside.max()
    with pytest.raises(ValueError, match="component='mlp'"):
        rl.choose_layer(rl.causal_trace(one_toy, toy_record.fact, layers=[0], samples=1))


def test_the_frame_and_the_file_hold_the_scores(
    one_toy: Any, toy_record: rl.data.Record, tmp_path: Any
) -> None:
    trace = rl.causal_trace(one_toy, toy_record.fact, layers=[1, 2], samples=4)
    frame = trace.to_frame()
    assert len(frame) == trace.scores.numel()
    row = frame[(frame.layer == 2) & (frame.pos == 3)].iloc[0]
    assert row.score == pytest.approx(float(trace.scores[1, 3]))
    assert row.token == trace.labels[3]
    assert row.half_width > 0
    loaded = rl.CausalTrace.load(trace.save(tmp_path / "trace.safetensors"))
    assert torch.equal(loaded.sample_scores, trace.sample_scores)
    assert (loaded.fact, loaded.layers, loaded.labels, loaded.clean, loaded.component) == (
        trace.fact,
        trace.layers,
        trace.labels,
        trace.clean,
        trace.component,
    )


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"component": "head"}, ArgumentError, "component is 'head', expected one of 'resid'"),
    ({"component": "z", "window": 2}, ArgumentError, "window is 2, expected 1 for 'z'"),
    ({"component": "z", "heads": [99]}, ArgumentError, "a layer has heads 0 to"),
    ({"component": "z", "heads": []}, ArgumentError, "heads is empty"),
    ({"heads": [0]}, ArgumentError, "only component='z' has heads"),
    ({"answer": "last"}, ArgumentError, "answer is 'last', expected one of 'first_token'"),
    ({"window": 0}, ArgumentError, "window is 0, expected at least 1"),
    ({"window": 99}, ArgumentError, "is the whole model of 6 layers"),
    ({"layers": [99]}, ModelError, "layers 0 to"),
    ({"layers": [-1]}, ModelError, "layers 0 to"),
    ({"positions": [99]}, ArgumentError, "are outside the prompt, which has"),
    ({"positions": []}, ArgumentError, "positions is empty"),
    ({"batch_size": 0}, ArgumentError, "batch_size is 0, expected a whole number of at least 1"),
]


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused_and_leave_nothing(
    toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(toy)
    assert not not_refused(lambda **options: rl.causal_trace(toy, toy_record.fact, **options))


def not_refused(call: Any, cases: Any = REFUSED) -> list[str]:
    """The cases that do not raise their error with these words."""
    wrong = []
    for options, error, message in cases:
        try:
            call(**options)
        except error as raised:
            if message not in str(raised):
                wrong.append(f"{options}: {raised}")
        else:
            wrong.append(f"{options}: nothing was raised")
    return wrong


def test_an_unknown_fact_is_traced_only_when_asked(
    toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(toy)
    known = toy_record.fact
    wrong = rl.Fact(known.prompt, subject=known.subject, target=str(known.new_target))
    with pytest.raises(
        FactNotKnownError, match=f"' {known.target}'.*not with '{known.new_target}'"
    ):
        rl.causal_trace(toy, wrong)
    trace = rl.causal_trace(toy, wrong, require_correct=False, layers=[0], samples=2)
    assert trace.answer.strip() == known.new_target
    assert trace.clean < 0.1


def test_a_prompt_longer_than_the_context_is_refused(one_toy: Any) -> None:
    long = rl.Fact("{} " + "and so on " * 50 + "lives in", subject="Wanda", target="Pralec")
    with pytest.raises(FactError, match="context only"):
        rl.causal_trace(one_toy, long)


def test_traces_leave_the_model_as_it_was(
    few_tiny_models: Any, fact: rl.Fact, untouched: Any
) -> None:
    model = few_tiny_models
    untouched(model)
    options: dict[str, Any] = {"require_correct": False, "samples": 2, "layers": [1]}
    rl.causal_trace(model, fact, component="attn", window=2, **options)
    rl.severed_trace(model, fact, severed="both", **options)
    rl.attribution_trace(model, fact, **options)


def test_a_model_in_training_mode_is_traced_without_dropout_and_stays_in_it(fact: rl.Fact) -> None:
    """GPT-2 has dropout in training mode, which would make every run different."""
    model = tiny("gpt2", "TransformerBridge")
    expected = rl.causal_trace(model, fact, require_correct=False)
    modes = [module.training for module in model.modules()]
    try:
        model.train()
        during = [module.training for module in model.modules()]
        found = rl.causal_trace(model, fact, require_correct=False)
        assert [module.training for module in model.modules()] == during
        assert any(during)
    finally:
        model.eval()  # which reaches the modules inside the Bridge, as train() did
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
    assert torch.equal(found.sample_scores, expected.sample_scores)


@pytest.mark.skipif("HookedTransformer" not in CLASSES, reason="needs HookedTransformer")
def test_weights_are_laid_out_once_and_are_the_same_tensors_afterwards(fact: rl.Fact) -> None:
    model = tiny("llama", "HookedTransformer")
    loaded = {name: parameter.data for name, parameter in model.named_parameters()}
    expected = rl.causal_trace(model, fact, require_correct=False, component="mlp")
    seen: list[bool] = []

    def watch(block: Any, args: Any) -> None:
        seen.append(block.mlp.W_out.T.is_contiguous() and block.attn.W_Q.mT.is_contiguous())

    handle = model.blocks[2].register_forward_pre_hook(watch)
    try:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        before = [parameter.data_ptr() for parameter in model.parameters()]
        trace = rl.causal_trace(model, fact, require_correct=False, component="mlp")
        assert [parameter.data_ptr() for parameter in model.parameters()] == before
        assert all(seen)
        assert not model.blocks[2].mlp.W_out.T.is_contiguous()
    finally:
        handle.remove()
        for name, parameter in model.named_parameters():
            parameter.data = loaded[name]
    assert torch.equal(trace.sample_scores, expected.sample_scores)


def test_an_interrupted_trace_leaves_the_model_as_it_was(
    toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(toy)

    def interrupt(value: torch.Tensor, hook: Any) -> None:
        if value.shape[0] > 10:
            raise KeyboardInterrupt

    before = snapshot(toy)["hooks"]
    with (
        pytest.raises(KeyboardInterrupt),
        toy.hooks(fwd_hooks=[(component_hook("resid", 3), interrupt)]),
    ):
        rl.causal_trace(toy, toy_record.fact)
    assert snapshot(toy)["hooks"] == before


CALLERS = {
    "steering": ("blocks.2.hook_resid_pre", lambda value, hook: value + torch.linspace(-2, 2, 24)),
    "first block": ("blocks.0.hook_resid_pre", lambda value, hook: 1.3 * value),
    "last position": (
        component_hook("attn", 1),
        lambda value, hook: torch.cat([value[:, :-1], 3 * value[:, -1:]], 1),
    ),
    "one position": (
        component_hook("mlp", 2),
        lambda value, hook: torch.cat([value[:, :3], 3 * value[:, 3:4], value[:, 4:]], 1),
    ),
    "whole sequence": (
        component_hook("mlp", 3),
        lambda value, hook: value + torch.linspace(-2, 2, 24) * torch.arange(10)[:, None],
    ),
    "knockout": (
        "blocks.1.attn.hook_pattern",
        lambda value, hook: value * (torch.arange(value.shape[2]) != 9)[:, None],
    ),
    "final norm": (
        "ln_final.hook_normalized",
        lambda value, hook: value * (1.0 + torch.arange(10) / 10)[:, None],
    ),
}


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_trace_under_the_callers_hooks_is_that_of_the_hooked_model(
    model_class: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout, "_ROWS_UNDER_HOOKS", 16)  # several parts under a hook on the norm
    model = tiny("gpt2", model_class)
    fact = rl.Fact("Then {} lives in the city", subject="Wanda Brandt", target="Pralec")
    assert len(encode(model, fact).tokens) == 10, "the hooks above are made for this length"
    noise = noise_of(model, fact)
    kinds = {("resid", 1): list(CALLERS), ("mlp", 2): ["steering", "one position", "knockout"]}
    for (component, window), names in kinds.items():
        options: dict[str, Any] = {
            "component": component,
            "window": window,
            "noise": noise,
            "require_correct": False,
        }
        bare = rl.causal_trace(model, fact, **options)
        for name in names:
            with model.hooks(fwd_hooks=[CALLERS[name]]):
                expected = one_row_per_cell(model, fact, component, window, noise)
                trace = rl.causal_trace(model, fact, **options)
            assert torch.allclose(trace.scores, expected, atol=0.0, rtol=5e-4), name
            moved = (trace.scores / bare.scores - 1.0).abs().max()
            assert moved > 1e-3, f"the caller's hook {name!r} does nothing"


@pytest.mark.skipif("HookedTransformer" not in CLASSES, reason="needs HookedTransformer")
def test_a_model_that_reads_later_positions_is_traced_before_the_subject_too() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {
        "n_layers": 3,
        "d_model": 24,
        "n_heads": 4,
        "d_head": 6,
        "d_mlp": 40,
        "n_ctx": 32,
        "d_vocab": 720,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cfg = HookedTransformerConfig(
            **sizes, act_fn="gelu", attention_dir="bidirectional", init_weights=True
        )
        model = HookedTransformer(cfg, tokenizer=tiny("gpt2", "HookedTransformer").tokenizer)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    fact = rl.Fact("Then {} lives in the city", subject="Wanda Brandt", target="Pralec")
    noise = noise_of(model, fact, scale=3.0)
    trace = rl.causal_trace(model, fact, noise=noise, require_correct=False)
    expected = one_row_per_cell(model, fact, "resid", 1, noise)
    torch.testing.assert_close(trace.scores, expected, atol=0.0, rtol=5e-5)
    before = expected[:, : trace.subject[0]]
    assert (before / trace.corrupted - 1.0).abs().max() > 1e-3, (
        "states before the subject do not matter here either"
    )


def test_an_architecture_that_does_more_is_refused(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    """A forward pass that changes logits after the unembedding cannot be resumed from a layer."""

    def sharpen(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        return 3.0 * out if out.shape[-1] == one_toy.cfg.d_vocab else out

    handle = one_toy.register_forward_hook(sharpen)
    try:
        with pytest.raises(ModelError, match="misses its own"):
            rl.causal_trace(one_toy, toy_record.fact)
    finally:
        handle.remove()
