"""The seam to TransformerLens: hook names, the orientation of ``W_out``, and how its two model classes differ.

No other module knows a hook name, or but for ``fingerprints.py`` where a weight lies, and beside this one only ``forward.py``,
which runs parts of a model, and ``loading.py`` know that there are two classes. The two classes are
``HookedTransformer`` (TransformerLens up to 3.x) and ``TransformerBridge`` (3.x and 4.x, around a transformers model).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import whole_number, whole_numbers
from rome_lens.errors import ArgumentError, RomeLensError


class ModelError(RomeLensError):
    """A model that lacks what is asked of it: a tokenizer, a layer, a dense MLP."""


# HookedTransformer or TransformerBridge. There is no class to name: TransformerLens 4 has only the second, they share no
# base, and what they have in common lies in attributes of torch modules, which a Protocol cannot see.
LensModel: TypeAlias = Any


def check_layer(model: LensModel, layer: SupportsIndex) -> int:
    """The layer as an ``int``, if the model has it.

    Raises:
        ModelError: the layer is no whole number, or out of range.
    """
    try:
        layer = whole_number("layer", layer)
    except ValueError as error:
        raise ModelError(f"{error} The model has layers 0 to {model.cfg.n_layers - 1}.") from error
    if not 0 <= layer < model.cfg.n_layers:
        raise ModelError(
            f"Layer {layer} is out of range: the model has layers 0 to {model.cfg.n_layers - 1}."
        )
    return layer


def w_out(model: LensModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The live weight ``blocks[layer].mlp.W_out``: what is written into its data changes the model.

    Raises:
        ModelError: the layer is out of range, or its MLP is absent or a mixture of experts.
    """
    check_layer(model, layer)
    mlp = mlp_module(model, layer)
    weight = None if mlp is None or model.cfg.num_experts else getattr(mlp, "W_out", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        what = (
            "a mixture of experts"
            if model.cfg.num_experts
            else "absent or of a form without one W_out matrix"
        )
        raise ModelError(
            f"The MLP of layer {layer} is {what}: keys, values and edits need one dense W_out [d_mlp, d_model]."
        )
    return weight.detach()


def mlp_module(model: LensModel, layer: int) -> torch.nn.Module | None:
    """The module ``blocks[layer].mlp``, or None where the layer has none."""
    return getattr(model.blocks[layer], "mlp", None)


def state_entries(model: LensModel, state: Mapping[str, Any], layer: int) -> dict[str, bool]:
    """The entries of ``model.state_dict()`` that are ``W_out`` of a layer, and whether each is stored transposed.

    They are found by the memory that they share with it.

    Raises:
        ModelError: there is none.
    """
    weight = w_out(model, layer)
    here = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and value.ndim == 2 and value.data_ptr() == weight.data_ptr()
    }
    found = {name: False for name, value in here.items() if _same_layout(value, weight)}
    found |= {
        name: True
        for name, value in here.items()
        if name not in found and _same_layout(value, weight.T)
    }
    if not found:
        raise ModelError(
            f"No entry of the model's state dict is the W_out of layer {layer} itself."
        )
    return found


def _same_layout(value: Tensor, weight: Tensor) -> bool:
    return value.shape == weight.shape and value.stride() == weight.stride()


def b_out(model: LensModel, layer: int) -> Float[Tensor, " d_model"] | None:
    """The bias that follows ``W_out``, or None where there is none."""
    bias = getattr(model.blocks[layer].mlp, "b_out", None)
    return None if bias is None else bias.detach()


def mlp_output(
    model: LensModel, layer: int, keys: Float[Tensor, "*batch d_mlp"]
) -> Float[Tensor, "*batch d_model"]:
    """``k W_out + b_out``, where the keys are and in their precision."""
    return raw_output(model, layer, keys, w_out(model, layer))


def raw_output(
    model: LensModel,
    layer: int,
    keys: Float[Tensor, "*batch d_mlp"],
    weight: Float[Tensor, "d_mlp d_model"],
) -> Float[Tensor, "*batch d_model"]:
    """``k W + b_out`` with any other weight in the place of ``W_out``."""
    bias = b_out(model, layer)
    output = keys @ weight.to(keys)
    return output if bias is None else output + bias.to(keys)


def post_norm(model: LensModel, layer: int) -> Callable[[Tensor], Tensor] | None:
    """The norm between the output of ``W_out`` and the residual stream (Gemma 2 and 3), or None."""
    return getattr(model.blocks[layer], "ln2_post", None)


def device(model: LensModel) -> torch.device:
    """Where the model computes."""
    return torch.device(model.cfg.device) if model.cfg.device is not None else torch.device("cpu")


def unembedding(
    model: LensModel,
) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"]]:
    """``W_U`` and ``b_U``."""
    return model.unembed.W_U.detach(), model.unembed.b_U.detach()


def at_least_float32(value: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def starts_with_bos(model: LensModel, prepend_bos: bool | None) -> bool:
    """Whether a text's tokens start with BOS: as it is said, and else by the model's default."""
    return bool(model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos)


def has_centred_w_out(model: LensModel, layer: int) -> bool:
    """Whether every row of ``W_out`` has mean zero, as TransformerLens' ``center_writing_weights`` leaves it."""
    weight = at_least_float32(w_out(model, layer))
    return float(weight.mean(-1).abs().max()) < 1e-5 * float(weight.abs().mean())


def check_has_mlp(model: LensModel) -> None:
    """Refuse a model of attention only.

    Raises:
        ModelError: it is one.
    """
    if getattr(model.cfg, "attn_only", False):
        raise ModelError("The model has no MLP (attention only): trace 'resid', 'attn' or 'z'.")


def named_layers(model: LensModel, layers: Iterable[int] | None) -> tuple[int, ...]:
    """The layers asked for, all for None; ValueError where they are none, or no layers of the model."""
    chosen = whole_numbers("layers", range(model.cfg.n_layers) if layers is None else layers)
    if not chosen:
        raise ArgumentError("layers is empty: name at least one, or None for all.")
    return tuple(check_layer(model, layer) for layer in chosen)
