"""Later layers and later positions alone give what the whole model gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_for_tests import CLASSES, FAMILIES, FEW_TINY, GEMMA, LLAMA, SIZES, in_dtype, tiny

from rome_lens.forward.kv_cache import LayerPast, Past
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import evaluating
from rome_lens.models.hook_names import capture_hooks, component_hook, resid_pre_hook
from rome_lens.models.lens import ModelError

# Longer than the sliding window of the tiny Gemmas; rows that differ.
TOKENS = torch.randint(3, 500, (3, 13), generator=torch.Generator().manual_seed(5))
LENGTH = TOKENS.shape[1]
ROWS = torch.tensor([2, 0, 0, 1])


def fresh(family: str, model_class: str) -> Any:
    """A tiny model that the test may change."""
    return tiny.__wrapped__(family, model_class)


def streams(model: Any, tokens: torch.Tensor = TOKENS) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The residual stream that enters each layer, and the last position's logits."""
    names = [resid_pre_hook(layer) for layer in range(model.cfg.n_layers)]
    kept: dict[str, torch.Tensor] = {}
    with evaluating(model), torch.no_grad(), model.hooks(fwd_hooks=capture_hooks(names, kept)):
        logits = model(tokens)[:, -1]
    return [kept[name] for name in names], logits


def reading(
    past: Past, before: int | torch.Tensor, rows: torch.Tensor = ROWS
) -> Callable[[int], LayerPast]:
    return lambda layer: past.at(layer, before=before, rows=rows)


def past_of(forward: PartialForward) -> Past:
    with evaluating(forward.model), torch.no_grad():
        past = forward.run(TOKENS)[1]
    assert past is not None
    return past


def test_later_positions_of_later_layers_give_the_models_logits(
    tiny_model: Any, untouched: Any
) -> None:
    untouched(tiny_model)
    forward = PartialForward(tiny_model, TOKENS[0])
    entering, expected = streams(tiny_model)
    with torch.no_grad():
        through, past = forward.run(TOKENS)
        torch.testing.assert_close(
            torch.stack(through[:-1]), torch.stack(entering), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            forward.logits(through[-1][:, -1]), expected, atol=1e-5, rtol=1e-5
        )
        assert past is not None
        for layer, stream in enumerate(entering):
            for start in (0, 1, 6, LENGTH - 1):
                final = forward.resume(stream[ROWS, start:], layer, past=reading(past, start))
                assert final.shape[1] == LENGTH - start
                torch.testing.assert_close(
                    forward.logits(final[:, -1]), expected[ROWS], atol=2e-5, rtol=1e-5
                )


def test_each_later_position_is_what_all_positions_give(tiny_model: Any) -> None:
    """A mask that is moved by one shows at other positions before it shows at the last."""
    forward = PartialForward(tiny_model, TOKENS[0])
    past, (entering, _) = past_of(forward), streams(tiny_model)
    with torch.no_grad():
        whole = forward.resume(entering[0], 0)
        for start in (1, 6):
            later = forward.resume(entering[0][ROWS, start:], 0, past=reading(past, start))
            torch.testing.assert_close(later, whole[ROWS, start:], atol=2e-5, rtol=1e-5)
            for end in (start + 1, start + 4):  # later positions are not needed
                part = forward.resume(entering[0][ROWS, start:end], 0, past=reading(past, start))
                torch.testing.assert_close(part, whole[ROWS, start:end], atol=2e-5, rtol=1e-5)


def test_rows_with_pasts_of_different_lengths_run_together(tiny_model: Any) -> None:
    """Padding is never read, neither on the left nor on the right, where the tokens have ended."""
    forward = PartialForward(tiny_model, TOKENS[0])
    past, (entering, _) = past_of(forward), streams(tiny_model)
    starts, ends = torch.tensor([0, 1, 6, 12]), torch.tensor([9, 13, 11, 13])
    stream = torch.full((len(ROWS), 9 + 3, tiny_model.cfg.d_model), 3.0)
    for number, (row, start, end) in enumerate(zip(ROWS, starts, ends, strict=True)):
        stream[number, : end - start] = entering[1][row, start:end]
    with torch.no_grad():
        whole = forward.resume(entering[1], 1)
        later = forward.resume(stream, 1, past=reading(past, starts))
    for number, (row, start, end) in enumerate(zip(ROWS, starts, ends, strict=True)):
        torch.testing.assert_close(
            later[number, : end - start], whole[row, start:end], atol=2e-5, rtol=1e-5
        )


def test_a_state_changed_later_gives_what_a_hooked_run_gives(few_tiny_models: Any) -> None:
    """The past is that of the unchanged run."""
    model = few_tiny_models
    forward = PartialForward(model, TOKENS[0])
    past, (entering, clean) = past_of(forward), streams(model)
    layer, position = 1, 7
    change = torch.randn(len(TOKENS), model.cfg.d_model, generator=torch.Generator().manual_seed(1))

    def changed(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, position] += change
        return value

    with torch.no_grad():
        hooks = [(resid_pre_hook(layer), changed)]
        expected = model.run_with_hooks(TOKENS, fwd_hooks=hooks)[:, -1]
        stream = entering[layer][:, position:].clone()
        stream[:, 0] += change
        final = forward.resume(
            stream, layer, past=reading(past, position, torch.arange(len(TOKENS)))
        )
    assert (expected - clean).abs().max() > 0.01
    torch.testing.assert_close(forward.logits(final[:, -1]), expected, atol=2e-5, rtol=1e-5)


ALIBI = {
    "bloom": ("Bloom", {"n_layer": 4, "hidden_size": 24, "n_head": 4}),
    "falcon": (
        "Falcon",
        {**SIZES, "alibi": True, "multi_query": False, "new_decoder_architecture": False},
    ),
    "mpt": ("Mpt", {"n_layers": 4, "d_model": 24, "n_heads": 4, "max_seq_len": 64}),
}


@pytest.mark.parametrize("family", ALIBI)
def test_alibis_biases_fit_any_number_of_rows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, family, ALIBI[family])
    model = fresh(family, "TransformerBridge")
    forward = PartialForward(model, TOKENS[0])
    entering, expected = streams(model)
    for layer in (0, 2):
        with evaluating(model), torch.no_grad():
            final = forward.resume(entering[layer][ROWS], layer)
            torch.testing.assert_close(
                forward.logits(final[:, -1]), expected[ROWS], atol=2e-5, rtol=1e-5
            )


def test_gradients_are_those_of_all_positions(few_tiny_models: Any) -> None:
    model = few_tiny_models
    forward = PartialForward(model, TOKENS[0])
    past, (entering, _) = past_of(forward), streams(model)
    start, rows = 6, torch.arange(len(TOKENS))
    gradients = []
    for begin, read in ((0, None), (start, reading(past, start, rows))):
        stream = entering[1][:, begin:].clone().requires_grad_()
        with evaluating(model), torch.enable_grad():
            score = forward.logits(forward.resume(stream, 1, past=read)[:, -1])[:, 7].sum()
        gradients.append(torch.autograd.grad(score, [stream])[0])
    assert gradients[1].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0][:, start:], atol=2e-5, rtol=1e-4)


def test_hooks_see_the_later_positions_alone(few_tiny_models: Any) -> None:
    model = few_tiny_models
    forward = PartialForward(model, TOKENS[0])
    past, (entering, _) = past_of(forward), streams(model)
    kept: dict[str, torch.Tensor] = {}
    names = [
        component_hook(component, layer)
        for component in ("attn", "mlp", "resid")
        for layer in (1, 2, 3)
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=capture_hooks(names, kept)):
        after = forward.block(1, entering[1][ROWS, 9:], past.at(1, before=9, rows=ROWS))
        assert {name for name in names if ".1." in name} == set(kept)
        forward.resume(after, 2, past=reading(past, 9))
    assert {value.shape for value in kept.values()} == {(len(ROWS), LENGTH - 9, model.cfg.d_model)}
    torch.testing.assert_close(after, entering[2][ROWS, 9:], atol=1e-5, rtol=1e-5)


def test_a_sequence_of_one_token_has_a_past_too(few_tiny_models: Any) -> None:
    forward = PartialForward(few_tiny_models, TOKENS[0, :1])
    with torch.no_grad():
        assert forward.run(TOKENS[:, :1])[1] is not None


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_token_with_the_id_of_the_padding_token_is_attended_to(model_class: str) -> None:
    """A run without a cache attends to it too, and HookedTransformer's with a cache would not."""
    model = tiny("gpt2", model_class)
    padding = torch.full((len(TOKENS), 1), model.tokenizer.pad_token_id)
    tokens = torch.cat([padding, TOKENS, padding], dim=1)
    forward = PartialForward(model, tokens[0])
    _, expected = streams(model, tokens)
    with evaluating(model), torch.no_grad():
        through, past = forward.run(tokens)
        assert past is not None
        torch.testing.assert_close(
            forward.logits(through[-1][:, -1]), expected, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(("family", "model_class"), FEW_TINY)
def test_half_precision_is_close_enough_and_more_is_refused(family: str, model_class: str) -> None:
    model = fresh(family, model_class)
    for dtype in (torch.float16, torch.bfloat16):
        in_dtype(model, dtype)
        assert past_of(PartialForward(model, TOKENS[0])).attn_k[0].dtype == dtype
        handle = model.register_forward_hook(lambda _module, _args, logits: 1.5 * logits)
        with pytest.raises(ModelError, match="misses its own"):
            PartialForward(model, TOKENS[0])
        handle.remove()


def test_half_precision_has_a_past_on_every_family() -> None:
    """Else such a model would be refused, or would run all positions of every cell."""
    for family in FAMILIES:
        # HookedTransformer has one attention for all families, which is tried above.
        if (family, "TransformerBridge") not in FEW_TINY:
            model = in_dtype(fresh(family, "TransformerBridge"), torch.bfloat16)
            past = past_of(PartialForward(model, TOKENS[0]))
            assert past.attn_k[0].dtype == torch.bfloat16, family


@pytest.mark.parametrize("family", FAMILIES)
def test_compatibility_mode_has_a_past(family: str) -> None:
    for no_processing in (True, False) if family == "gpt2" else (False,):
        model = fresh(family, "TransformerBridge")
        model.enable_compatibility_mode(no_processing=no_processing)
        forward = PartialForward(model, TOKENS[0])
        past, (entering, expected) = past_of(forward), streams(model)
        with torch.no_grad():
            final = forward.resume(entering[1][ROWS, 6:], 1, past=reading(past, 6))
            logits = forward.logits(final[:, -1])
        torch.testing.assert_close(logits, expected[ROWS], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_hook_at_one_position_leaves_no_past(model_class: str) -> None:
    """In a run of later positions, it would act at another position.

    In a run of all positions, it acts where it should. A hook on a later row does not show in the
    comparison that the constructor makes.
    """
    model = tiny("gpt2", model_class)
    for first_row in (0, 2):

        def enlarge_third(value: torch.Tensor, hook: Any, first_row: int = first_row) -> Any:
            factors = torch.ones(len(value), value.shape[1], 1)
            factors[first_row:, 2:3] = 5.0
            return factors * value

        with model.hooks(fwd_hooks=[(component_hook("mlp", 2), enlarge_third)]):
            forward = PartialForward(model, TOKENS[0])
            entering, expected = streams(model)
            with torch.no_grad():
                through, past = forward.run(TOKENS)
                final = forward.resume(entering[1], 1)
        assert past is None
        for last in (through[-1], final):
            torch.testing.assert_close(forward.logits(last[:, -1]), expected, atol=1e-5, rtol=1e-5)


def test_a_layer_that_uses_no_cache_leaves_no_past() -> None:
    for layer in (0, 3):
        model = fresh("llama", "TransformerBridge")
        model.blocks[layer].attn._update_kv_cache = lambda key, value, **_: (key, value)
        assert_resumes_without_past(model)


def assert_resumes_without_past(model: Any) -> None:
    forward = PartialForward(model, TOKENS[0])
    entering, expected = streams(model, TOKENS[:1])
    with torch.no_grad():
        assert forward.run(TOKENS)[1] is None
        final = forward.resume(entering[1], 1)
    torch.testing.assert_close(forward.logits(final[:, -1]), expected, atol=1e-5, rtol=1e-5)


# Its default state-space mixer has 128 heads and chunks of 256 positions.
FALCON_H1 = {
    **LLAMA,
    "num_hidden_layers": 2,
    "mamba_d_ssm": 16,
    "mamba_n_heads": 2,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_chunk_size": 8,
}
BIDIRECTIONAL = {**GEMMA, "use_bidirectional_attention": True}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("Bloom", ALIBI["bloom"][1], id="biases for each key, under an unknown name"),
        pytest.param("Gemma3Text", BIDIRECTIONAL, id="earlier positions read later ones"),
        pytest.param("FalconH1", FALCON_H1, id="a state next to each attention"),
    ],
)
def test_where_keys_and_values_do_not_hold_all_there_is_no_past(
    monkeypatch: pytest.MonkeyPatch, name: str, sizes: dict[str, Any]
) -> None:
    monkeypatch.setitem(FAMILIES, name, (name, sizes))
    assert_resumes_without_past(fresh(name, "TransformerBridge"))


def test_attention_of_transformers_own_is_given_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens 3 runs OPT's own attention, which calls torch's ``sdpa`` without a mask."""
    sizes = {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 24}
    monkeypatch.setitem(FAMILIES, "opt", ("OPT", sizes))
    past_of(PartialForward(fresh("opt", "TransformerBridge"), TOKENS[0]))
