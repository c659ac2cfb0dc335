"""Tiny seeded models of several families, on every model class that this TransformerLens has."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from rome_lens.models.convert import hooked_transformer, hooked_transformer_class
from rome_lens.models.loading import TOY, ModelClass, from_directory

REFERENCE = Path(__file__).parent / "reference"
CLASSES: list[ModelClass] = ["TransformerBridge"]
if hooked_transformer_class() is not None:
    CLASSES.insert(0, "HookedTransformer")

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 40}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 8}
GPT = {"n_layer": 4, "n_embd": 24, "n_head": 4, "n_positions": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT),
    "gptj": ("GPTJ", {**GPT, "rotary_dim": 4}),
    "neox": ("GPTNeoX", {**SIZES, "intermediate_size": 40}),
    "llama": ("Llama", LLAMA),
    "gemma3": ("Gemma3Text", GEMMA),
    "gemma2": ("Gemma2", GEMMA),
    "qwen2": ("Qwen2", LLAMA),
}
# TransformerLens derives HookedTransformer's config of the other families from a hub's name alone.
HOOKED_FAMILIES = ("gpt2", "gptj", "neox", "llama", "qwen2", "gemma3")
TINY = [(family, "TransformerBridge") for family in FAMILIES]
if "HookedTransformer" in CLASSES:
    TINY += [(family, "HookedTransformer") for family in HOOKED_FAMILIES]
# GPT-2 has biases and LayerNorm, Gemma a norm after the MLP, GPT-J parallel attention and MLP.
FEW_TINY = [("gpt2", CLASSES[0]), ("gemma3", CLASSES[0]), ("gptj", "TransformerBridge")]


def tokenizer() -> Any:
    """The toy model's tokenizer."""
    return transformers.AutoTokenizer.from_pretrained(TOY)


def tiny_transformers_model(family: str) -> Any:
    """A transformers model of the family with seeded random weights.

    They lie far enough apart that the model's answers differ.
    """
    name, sizes = FAMILIES[family]
    words = tokenizer()
    ids = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.eos_token_id,
    }
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(words), tie_word_embeddings=False, **sizes, **ids
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.architectures = [type(model).__name__]
    return model.eval()


@cache
def tiny(family: str, model_class: str) -> Any:
    """The tiny model of a family on a model class."""
    hf_model = tiny_transformers_model(family)
    if model_class == "TransformerBridge":
        return TransformerBridge.boot_transformers(
            f"tiny-{family}", hf_model=hf_model, tokenizer=tokenizer(), device="cpu"
        )
    return hooked_transformer(hf_model, tokenizer())


@cache
def reference_model(model_class: str, dtype: torch.dtype) -> Any:
    """The model of the reference values."""
    model = from_directory(REFERENCE / "model", model_class=model_class)
    return in_dtype(model, dtype)


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model itself, in another precision.

    For each of its modules, the Bridge's own ``to`` reads the state of the whole model.
    """
    torch.nn.Module.to(getattr(model, "original_model", model), dtype)
    model.cfg.dtype = dtype
    return model


def last_logits(model: Any, tokens: torch.Tensor, *, fwd_hooks: Any = ()) -> torch.Tensor:
    """Logits at the last position, the way a user of TransformerLens asks for them."""
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=list(fwd_hooks))[:, -1]
