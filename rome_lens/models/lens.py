"""A model's weights by the papers' names: ``W_out``, ``b_out``, the norm after an MLP, ``W_U``.

ROME's key ``k`` is the input of an MLP's output matrix, and its value is that matrix's output:

    raw output = k W_out + b_out        k: [d_mlp], W_out: [d_mlp, d_model]

TransformerLens offers these weights under the same names and in the same orientation on both of its
model classes, ``HookedTransformer`` (up to 3.x) and ``TransformerBridge`` (3.x and 4.x, around a
transformers model). So nothing here depends on the class. On a bridge, ``W_out`` may be a
transposed view of the stored parameter: :func:`state_entries` finds what is really stored. Where
the classes differ in a forward pass, see ``rome_lens/forward/backend.py``.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import whole_number, whole_numbers
from rome_lens.errors import ArgumentError
from rome_lens.models.door import visits_model
from rome_lens.models.model_argument import LensModel as LensModel
from rome_lens.models.model_argument import ModelError as ModelError


@visits_model
def check_layer(model: LensModel, layer: SupportsIndex) -> int:
    """The layer as an ``int``, if the model has it.

    Raises:
        ModelError: the layer is not a whole number, or is out of range.
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


@visits_model
def w_out(model: LensModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The live weight ``blocks[layer].mlp.W_out``. Writing into its data changes the model.

    Raises:
        ModelError: the layer is out of range, has no MLP, or its MLP has no single matrix
            ``W_out``.
    """
    check_layer(model, layer)
    mlp = mlp_module(model, layer)
    try:
        weight = None if mlp is None or model.cfg.num_experts else getattr(mlp, "W_out", None)
    except NotImplementedError as error:  # a bridge does not unpack quantised weights
        raise ModelError(
            f"W_out of layer {layer} cannot be read or edited: {error} Load the model in float32, "
            "float16 or bfloat16."
        ) from error
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        what = (
            "a mixture of experts"
            if model.cfg.num_experts
            else "absent or of a form without one W_out matrix"
        )
        raise ModelError(
            f"The MLP of layer {layer} is {what}: keys, values and edits need one dense "
            "W_out [d_mlp, d_model]."
        )
    return weight.detach()


@visits_model
def mlp_module(model: LensModel, layer: int) -> torch.nn.Module | None:
    """The module ``blocks[layer].mlp``, or None if the layer has no MLP."""
    return getattr(model.blocks[layer], "mlp", None)


@visits_model
def state_entries(model: LensModel, state: Mapping[str, Any], layer: int) -> dict[str, bool]:
    """Which entries of ``model.state_dict()`` are ``W_out`` of a layer.

    They are found by the memory that they share with it.

    Returns:
        A mapping from each entry's name to whether the entry is stored transposed.

    Raises:
        ModelError: no entry shares its memory with ``W_out``.
    """
    weight = w_out(model, layer)
    shared = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and value.ndim == 2 and value.data_ptr() == weight.data_ptr()
    }
    transposed = {name: False for name, value in shared.items() if _same_layout(value, weight)}
    transposed |= {
        name: True
        for name, value in shared.items()
        if name not in transposed and _same_layout(value, weight.T)
    }
    if not transposed:
        raise ModelError(
            f"No entry of the model's state dict shares its memory with the W_out of layer {layer}."
        )
    return transposed


def _same_layout(value: Tensor, weight: Tensor) -> bool:
    return value.shape == weight.shape and value.stride() == weight.stride()


@visits_model
def b_out(model: LensModel, layer: int) -> Float[Tensor, " d_model"] | None:
    """The bias that is added after ``W_out``, or None if there is none."""
    bias = getattr(model.blocks[layer].mlp, "b_out", None)
    return None if bias is None else bias.detach()


@visits_model
def mlp_output(
    model: LensModel, layer: int, keys: Float[Tensor, "*batch d_mlp"]
) -> Float[Tensor, "*batch d_model"]:
    """``k W_out + b_out``, on the device and in the precision of the keys."""
    return raw_output(model, layer, keys, w_out(model, layer))


@visits_model
def raw_output(
    model: LensModel,
    layer: int,
    keys: Float[Tensor, "*batch d_mlp"],
    weight: Float[Tensor, "d_mlp d_model"],
) -> Float[Tensor, "*batch d_model"]:
    """``k W + b_out``, with any weight ``W`` in the place of ``W_out``."""
    bias = b_out(model, layer)
    output = keys @ weight.to(keys)
    return output if bias is None else output + bias.to(keys)


@visits_model
def post_norm(model: LensModel, layer: int) -> Callable[[Tensor], Tensor] | None:
    """The norm between the output of ``W_out`` and the residual stream (Gemma 2, 3), or None."""
    return getattr(model.blocks[layer], "ln2_post", None)


@visits_model
def device(model: LensModel) -> torch.device:
    """The device that the model computes on."""
    return torch.device(model.cfg.device) if model.cfg.device is not None else torch.device("cpu")


def ordinary_default_device(model: LensModel) -> AbstractContextManager[Any]:
    """Inside, tensors that are created without a device come to the CPU, as torch's own default is.

    TransformerLens, transformers and torch's optimisers create such tensors and count on this. A
    caller may have set another default. It stays where it is the model's own device, because the
    caller's hooks may count on it.
    """
    default = torch.get_default_device()
    return nullcontext() if default.type in ("cpu", device(model).type) else torch.device("cpu")


@visits_model
def unembedding(
    model: LensModel,
) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"]]:
    """``W_U`` and ``b_U``, which is zero where a model has no such bias.

    Raises:
        ModelError: ``W_U`` does not read the residual stream.
    """
    weight, bias = model.unembed.W_U.detach(), getattr(model.unembed, "b_U", None)
    if weight.shape[0] != model.cfg.d_model:
        raise ModelError(
            f"The unembedding reads vectors of size {weight.shape[0]}, and the residual stream has "
            f"d_model = {model.cfg.d_model}: a projection lies between them (OPT-350m's "
            "word_embed_proj_dim), which neither model class of TransformerLens offers. Use a "
            "model without one, such as OPT-125m."
        )
    return weight, weight.new_zeros(weight.shape[1]) if bias is None else bias.detach()


def final_norm(model: LensModel, stream: Tensor) -> Tensor:
    """The last stream after the final norm, where the model has one.

    A HookedTransformer with ``normalization_type=None`` does not, nor does a model that normalises
    after each block.
    """
    norm = getattr(model, "ln_final", None)
    return stream if norm is None else norm(stream)


def check_vocabulary(model: LensModel, ids: Iterable[int]) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        ModelError: it has not, because the tokenizer belongs to another model.
    """
    # Not ``cfg.d_vocab``: a bridge sets it to the number of words of any new tokenizer.
    highest, rows = max(ids, default=0), len(model.embed.W_E)
    if highest >= rows:
        raise ModelError(
            f"The tokenizer gives a token the id {highest}, but the model has embeddings only for "
            f"0 to {rows - 1}: model.tokenizer is not the one that belongs to this "
            "model. Load the model with its own tokenizer."
        )


def at_least_float32(value: Tensor) -> Tensor:
    """The tensor in float32 if it is in half precision, otherwise unchanged."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


@visits_model
def starts_with_bos(model: LensModel, prepend_bos: bool | None) -> bool:
    """Whether tokens start with BOS: ``prepend_bos``, or the model's default if that is None."""
    return bool(model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos)


@visits_model
def has_centred_w_out(model: LensModel, layer: int) -> bool:
    """Whether every row of ``W_out`` has mean zero.

    That is how TransformerLens' ``center_writing_weights`` leaves it.
    """
    weight = at_least_float32(w_out(model, layer))
    return float(weight.mean(-1).abs().max()) < 1e-5 * float(weight.abs().mean())


def check_has_mlp(model: LensModel) -> None:
    """Check that the model has MLPs.

    Raises:
        ModelError: the model consists of attention only.
    """
    if getattr(model.cfg, "attn_only", False):
        raise ModelError("The model has no MLP (attention only): trace 'resid', 'attn' or 'z'.")


def named_layers(model: LensModel, layers: Iterable[int] | None) -> tuple[int, ...]:
    """The layers as a tuple of ``int``; None means all layers of the model.

    Raises:
        ArgumentError: the layers are not whole numbers, or there are none.
        ModelError: the model does not have one of them.
    """
    chosen = whole_numbers("layers", range(model.cfg.n_layers) if layers is None else layers)
    if not chosen:
        raise ArgumentError("layers is empty: name at least one, or None for all.")
    return tuple(check_layer(model, layer) for layer in chosen)
