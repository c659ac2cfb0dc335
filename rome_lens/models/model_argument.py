"""The one check of the model argument."""

from typing import Any, TypeAlias

import torch

from rome_lens.errors import RomeLensError


class ModelError(RomeLensError):
    """A model lacks what is needed, such as a tokenizer or a dense MLP, or is not supported."""


# HookedTransformer or TransformerBridge. There is no class to name: TransformerLens 4 has only the
# second, the two share no base class, and what they have in common are attributes of torch modules,
# which a Protocol cannot see.
LensModel: TypeAlias = Any

_CLASSES = {"HookedTransformer", "TransformerBridge"}
_EXPECTED = "expected a HookedTransformer or a TransformerBridge"
_PARTS = ("embed", "blocks", "unembed")


def checked_model(model: Any) -> LensModel:
    """The model, if it is of a class that the package can use.

    Raises:
        ModelError: it is not. The message says what to pass instead.
    """
    if not _CLASSES & {each.__name__ for each in type(model).__mro__}:
        raise ModelError(f"model is {_description(model)}, {_EXPECTED}{_advice(model)}")
    missing = [part for part in _PARTS if not hasattr(model, part)]
    if missing:
        raise ModelError(
            f"model is a {type(model).__name__} without {' and '.join(missing)}, expected one of a "
            "decoder-only language model."
        )
    # A bridge has an empty module where the transformers model has None, and fails when it runs.
    if getattr(getattr(model, "ln_final", None), "original_component", model) is None:
        raise ModelError(
            f"model is a {type(model).__name__} around a model without a final norm, which "
            "TransformerLens cannot run: OPT-350m is one (do_layer_norm_before is False; its "
            "word_embed_proj_dim is not supported either). Use another model, such as OPT-125m."
        )
    compiled = [model, getattr(model, "original_model", model)]
    if any(getattr(each, "_compiled_call_impl", None) is not None for each in compiled):
        raise ModelError(
            "model was compiled with model.compile(). Compiled code does not run hooks that come "
            "later. Load the model again, and pass it without compiling it."
        )
    return model


def _description(model: Any) -> str:
    if model is None:
        return "None"
    if isinstance(model, str):
        return f"the name {model!r}"
    if isinstance(model, type):
        return f"the class {model.__name__}"
    name = type(model).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _advice(model: Any) -> str:
    """What to pass instead, after a comma that follows what was expected."""
    if isinstance(model, str):
        return f": load it with rl.load_model({model!r})."
    if isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
        return ": pass the model that you gave to torch.compile, because compiled code skips hooks."
    if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return ": pass the model inside it, model.module."
    if hasattr(model, "config") and isinstance(model, torch.nn.Module):
        return (
            ": wrap it with TransformerBridge.boot_transformers(name, hf_model=model, "
            "tokenizer=tokenizer), from transformer_lens.model_bridge."
        )
    return (
        ", such as rl.load_model(name) returns. The model comes first and the fact or edit second, "
        "in this order."
    )
