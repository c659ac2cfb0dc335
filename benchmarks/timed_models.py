"""The models that the benchmarks time: a TransformerLens model, and its twin in transformers.

The twin has the same weights and tokenizer. Nothing is downloaded: ``gpt2-small`` is GPT-2 small's
shape (12 layers, width 768, 50,257 logits) with seeded random weights and the toy's tokenizer, and
any other name is one that :func:`rome_lens.load_model` finds on this machine.
"""

import dataclasses
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

import rome_lens as rl
from rome_lens.forward.tokens import encode
from rome_lens.models.convert import hooked_transformer, hooked_transformer_class
from rome_lens.models.directory import open_directory
from rome_lens.models.gguf import SOURCES, transformers_directory
from rome_lens.models.loading import TOY

RANDOM_FACT = rl.Fact(
    "{} lives in the city of the", subject="Wanda Brandt", target="Pralec", new_target="Ondavel"
)


def default_class() -> str:
    """The class that ``load_model`` chooses."""
    return "HookedTransformer" if hooked_transformer_class() else "TransformerBridge"


def random_gpt2(**sizes: int) -> tuple[Any, Any]:
    """A GPT-2 with seeded random weights in transformers, small's shape unless told otherwise."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOY)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    hf_model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**ids, **sizes)).eval()
    hf_model.config.architectures = ["GPT2LMHeadModel"]
    return hf_model, tokenizer


def wrapped(hf_model: Any, tokenizer: Any, model_class: str | None = None) -> Any:
    """A transformers model as a model of TransformerLens."""
    if (model_class or default_class()) == "HookedTransformer":
        return hooked_transformer(hf_model, tokenizer)
    return TransformerBridge.boot_transformers(
        "random", hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )


def load(name: str, model_class: str | None = None) -> Any:
    """The model in TransformerLens, with the weights laid out as ``load_model`` does it."""
    if name == "gpt2-small":
        return wrapped(*random_gpt2(), model_class)
    return in_memory(rl.load_model(name, model_class=model_class or default_class()))


def in_memory(model: Any) -> Any:
    """The model, with its weights read from the file now and not in the first timed call."""
    for weights in model.parameters():
        weights.data.sum()
    return model


def in_library_layout(model: Any) -> Any:
    """The model with its weights as TransformerLens itself lays them out, without a copy."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


def twin(name: str) -> tuple[Any, Any]:
    """The model, frozen, and its tokenizer in transformers, in float32, on weights of its own."""
    if name == "gpt2-small":
        hf_model, tokenizer = random_gpt2()
    else:
        directory = transformers_directory(SOURCES[name]) if name in SOURCES else TOY
        hf_model, tokenizer = open_directory(directory, dtype=torch.float32)
    return in_memory(hf_model.requires_grad_(False)), tokenizer


def fact(name: str) -> rl.Fact:
    """A fact that the model can be asked for. Random weights know none."""
    if name == "gpt2-small":
        return RANDOM_FACT
    return rl.data.record("wanda-brandt" if name == "toy" else "eiffel-tower").fact


def facts(name: str, count: int) -> list[rl.Fact]:
    """Facts that the model knows, with new targets: one for each record, at most ``count``."""
    return [record.fact for record in rl.data.records(known_by=name)][:count]


def fact_of_length(model: Any, tokens: int) -> rl.Fact:
    """The random models' fact, with words after it that give its prompt this many tokens."""
    missing = tokens - len(encode(model, RANDOM_FACT).tokens)
    return dataclasses.replace(RANDOM_FACT, prompt=RANDOM_FACT.prompt + " the" * missing)
