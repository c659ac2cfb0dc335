"""What a model has is asked: odd architectures give a plain loop's numbers, or a named error."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from models_for_tests import CLASSES, LLAMA, SIZES, last_logits, tokenizer
from transformer_lens.model_bridge import TransformerBridge

import rome_lens as rl
from rome_lens.forward.tokens import encode
from rome_lens.models.hook_names import component_hook
from rome_lens.models.lens import ModelError
from rome_lens.models.loading import load_model

XGLM = {
    "num_layers": 4,
    "d_model": 24,
    "attention_heads": 4,
    "ffn_dim": 40,
    "max_position_embeddings": 64,
}
MAMBA = {"hidden_size": 24, "num_hidden_layers": 4, "state_size": 4}
OPT_350M = {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 12, "do_layer_norm_before": False}
GRANITE = {
    "logits_scaling": 8.0,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
}
BERT = {**SIZES, "intermediate_size": 40, "is_decoder": True}
hooked = pytest.mark.skipif(len(CLASSES) < 2, reason="there is no HookedTransformer")


def transformers_model(family: str, **sizes: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer()),
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **sizes,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
    model.config.architectures = [type(model).__name__]
    return model.eval()


def bridge(family: str, **sizes: Any) -> Callable[[], Any]:
    return lambda: TransformerBridge.boot_transformers(
        f"tiny-{family}",
        hf_model=transformers_model(family, **sizes),
        tokenizer=tokenizer(),
        device="cpu",
    )


def hooked_transformer(**settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = HookedTransformerConfig(
            n_layers=4,
            d_model=24,
            n_ctx=64,
            d_head=6,
            n_heads=4,
            d_mlp=40,
            d_vocab=len(tokenizer()),
            initializer_range=0.2,
            seed=3,
            **{"act_fn": "gelu_new", "normalization_type": None, **settings},
        )
        return HookedTransformer(config, tokenizer=tokenizer()).eval()

    return make


WORKING = {
    "no norm": pytest.param(hooked_transformer(), marks=hooked),
    "no norm, other output vocabulary": pytest.param(
        hooked_transformer(d_vocab_out=700), marks=hooked
    ),
    "no norm, parallel": pytest.param(hooked_transformer(parallel_attn_mlp=True), marks=hooked),
    "a divided logit": bridge("Granite", **LLAMA, logits_scaling=8.0),
    "a scale everywhere": bridge("Granite", **LLAMA, **GRANITE),
    "a multiplied logit": bridge("Cohere", **LLAMA, logit_scale=0.0625),
    "a mask for each row": bridge("XGLM", **XGLM),
}
NOISE = torch.randn(2, 2, 24, generator=torch.Generator().manual_seed(0))


@functools.cache
def made(make: Callable[[], Any]) -> Any:
    """The model, made once for both tests, which leave it as it was."""
    return make()


@pytest.mark.parametrize("make", WORKING.values(), ids=WORKING.keys())
def test_a_trace_and_answers_are_those_of_a_plain_loop(
    make: Callable[[], Any], fact: rl.Fact
) -> None:
    model = made(make)
    encoded = encode(model, fact)
    start, end = encoded.subject
    noise = NOISE[:, :1].expand(-1, end - start, -1).contiguous()
    rows = encoded.tokens[None].repeat(3, 1)

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, start:end] += noise
        return value

    def restore(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, end - 1] = value[0, end - 1]
        return value

    for component in ("resid", "mlp", "attn"):
        trace = rl.causal_trace(
            model,
            fact,
            noise=noise,
            component=component,
            layers=[1, 3],
            positions=[end - 1, -1],
            require_correct=False,
        )
        hooks = [("hook_embed", corrupt), (component_hook(component, 1), restore)]
        plain = last_logits(model, rows, fwd_hooks=hooks).softmax(-1)[1:, encoded.answer[0]]
        torch.testing.assert_close(trace.scores[0, 0], plain.mean(), atol=1e-6, rtol=1e-4)
    (answers,) = rl.top_answers(model, [fact.text], count=1)
    own = last_logits(model, encoded.tokens[None])[0].softmax(-1)
    assert answers.probabilities[0] == pytest.approx(float(own.max()), rel=1e-4)


@pytest.mark.parametrize("make", WORKING.values(), ids=WORKING.keys())
def test_rome_is_the_same_as_hooks_and_in_the_weights(
    make: Callable[[], Any], fact: rl.Fact
) -> None:
    model = made(make)
    edit = rl.rome(
        model,
        fact,
        layer=1,
        statistics=rl.collect_key_statistics(
            model, layer=1, texts=[fact.text] * 4, sample_count=4, sample_length=8
        ),
        contexts=("{}",),
        config=rl.RomeConfig(steps=3, ridge=1e-3),
    )
    tokens = encode(model, fact).tokens[None]
    before, by_hooks = (
        last_logits(model, tokens),
        last_logits(model, tokens, fwd_hooks=edit.fwd_hooks(model)),
    )
    with edit.applied(model):
        torch.testing.assert_close(last_logits(model, tokens), by_hooks, atol=1e-4, rtol=1e-4)
    assert float((by_hooks - before).abs().max()) > 1e-3


REFUSED = {
    "a projection before W_U": (bridge("OPT", **OPT_350M), "resid", "word_embed_proj_dim"),
    "a norm at the end": (
        bridge("OPT", **{**OPT_350M, "word_embed_proj_dim": SIZES["hidden_size"]}),
        "resid",
        "without a final norm",
    ),
    "a state space model's MLP": (bridge("Mamba", **MAMBA), "mlp", "no hook point .*SSMBlockB"),
    "a head that is more": (bridge("Bert", **BERT), "resid", "its forward pass does more than"),
}


@pytest.mark.parametrize(("make", "component", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_missing_is_named(
    make: Callable[[], Any], component: Any, message: str, fact: rl.Fact
) -> None:
    with pytest.raises(ModelError, match=message):
        rl.causal_trace(make(), fact, component=component, require_correct=False)


def test_packed_weights_are_refused_as_w_out(fact: rl.Fact) -> None:
    model = bridge("Llama", **LLAMA)()
    packed = torch.zeros(24, 20, dtype=torch.uint8)
    down = model.blocks[1].mlp.out.original_component
    down.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ModelError, match=r"W_out of layer 1 cannot be read .*torch\.uint8"):
        rl.rome(model, fact, layer=1, statistics=rl.KeyStatistics.identity(model, layer=1))


def test_a_state_space_model_s_stream_can_be_traced(fact: rl.Fact) -> None:
    trace = rl.causal_trace(bridge("Mamba", **MAMBA)(), fact, require_correct=False)
    torch.testing.assert_close(trace.scores[-1, -1].double(), torch.tensor(trace.clean).double())


def test_a_directory_that_transformer_lens_computes_otherwise_is_refused(tmp_path: Any) -> None:
    """StableLM's attention is not that of transformers in a bridge."""
    transformers_model("StableLm", **LLAMA).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="log probabilities differ from those of transformers by"):
        load_model(tmp_path, model_class="TransformerBridge")
