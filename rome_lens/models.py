"""The seam to TransformerLens: hook names, the orientation of ``W_out``, and how its two model classes differ.

No other module knows a hook name, or but for ``fingerprints.py`` where a weight lies, and beside this one only ``forward.py``,
which runs parts of a model, and ``loading.py`` know that there are two classes. The two classes are
``HookedTransformer`` (TransformerLens up to 3.x) and ``TransformerBridge`` (3.x and 4.x, around a transformers model).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from rome_lens.arguments import whole_number

Component = Literal["resid", "mlp", "attn", "z"]
COMPONENTS: tuple[Component, ...] = ("resid", "mlp", "attn", "z")
Hook = tuple[str, Callable[..., Tensor | None]]

EMBED = "hook_embed"
_COMPONENT_HOOKS = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out", "z": "attn.hook_z"}


class ModelError(ValueError):
    """A model that lacks what is asked of it: a tokenizer, a layer, a dense MLP."""


# HookedTransformer or TransformerBridge. There is no class to name: TransformerLens 4 has only the second, they share no
# base, and what they have in common lies in attributes of torch modules, which a Protocol cannot see.
LensModel: TypeAlias = Any


def component_hook(component: str, layer: int) -> str:
    """Name of the hook at a layer's output: the stream after it, what its MLP or attention adds, or its heads' ``z``."""
    return f"blocks.{layer}.{_COMPONENT_HOOKS[component]}"


def key_hook(layer: int) -> str:
    """Name of the hook at the input of ``W_out``: the keys ``k``, shape ``[batch, pos, d_mlp]``."""
    return f"blocks.{layer}.mlp.hook_post"


def resid_pre_hook(layer: int) -> str:
    """Name of the hook at the residual stream that enters a layer."""
    return f"blocks.{layer}.hook_resid_pre"


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
        raise ModelError(f"Layer {layer} is out of range: the model has layers 0 to {model.cfg.n_layers - 1}.")
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
        what = "a mixture of experts" if model.cfg.num_experts else "absent or of a form without one W_out matrix"
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
    found |= {name: True for name, value in here.items() if name not in found and _same_layout(value, weight.T)}
    if not found:
        raise ModelError(f"No entry of the model's state dict is the W_out of layer {layer} itself.")
    return found


def _same_layout(value: Tensor, weight: Tensor) -> bool:
    return value.shape == weight.shape and value.stride() == weight.stride()


def b_out(model: LensModel, layer: int) -> Float[Tensor, " d_model"] | None:
    """The bias that follows ``W_out``, or None where there is none."""
    bias = getattr(model.blocks[layer].mlp, "b_out", None)
    return None if bias is None else bias.detach()


def mlp_output(model: LensModel, layer: int, keys: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_model"]:
    """``k W_out + b_out``, where the keys are and in their precision."""
    return raw_output(model, layer, keys, w_out(model, layer))


def raw_output(
    model: LensModel, layer: int, keys: Float[Tensor, "*batch d_mlp"], weight: Float[Tensor, "d_mlp d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """``k W + b_out`` with any other weight in the place of ``W_out``."""
    bias = b_out(model, layer)
    output = keys @ weight.to(keys)
    return output if bias is None else output + bias.to(keys)


def post_norm(model: LensModel, layer: int) -> Callable[[Tensor], Tensor] | None:
    """The norm between the output of ``W_out`` and the residual stream (Gemma 2 and 3), or None."""
    return getattr(model.blocks[layer], "ln2_post", None)


def is_bridge(model: LensModel) -> bool:
    """Whether the model is a TransformerBridge."""
    return isinstance(model, TransformerBridge)


def has_processed_weights(model: LensModel) -> bool:
    """Whether a bridge has folded or centred the weights of the transformers model that it wraps."""
    return bool(getattr(model, "_weights_processed", False))


def unwrapped_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a transformers model without the levels that a bridge puts between its modules."""
    return {name.replace("._original_component", ""): value for name, value in state.items()}


def device(model: LensModel) -> torch.device:
    """Where the model computes."""
    return torch.device(model.cfg.device) if model.cfg.device is not None else torch.device("cpu")


def unembedding(model: LensModel) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"]]:
    """``W_U`` and ``b_U``."""
    return model.unembed.W_U.detach(), model.unembed.b_U.detach()


def has_hooks(model: LensModel, *, points: tuple[str, ...] = ("",)) -> bool:
    """Whether the caller has hooks on the model, on points whose names begin as given; the Bridge's own do not count."""
    named = (point for name, point in model.hook_dict.items() if name.startswith(points))
    return any(not _is_own(handle) for point in named for handle in point.fwd_hooks)


def has_hooks_after_blocks(model: LensModel) -> bool:
    """Whether hooks act on the final norm or on the unembedding, so that these must be called as the model calls them."""
    return has_hooks(model, points=("ln_final", "unembed"))


def has_hooks_where_edits_add(model: LensModel, layer: int) -> bool:
    """Whether hooks of the caller's act on the very output that :func:`raw_output_hooks` adds to: they would come before it.

    Hooks of other edits do not count: additions may come in any order.
    """
    names = [name for name, _ in raw_output_hooks(model, layer, lambda keys: keys) if name != key_hook(layer)]
    points = [
        name for name in names if len(names) == 1 or name != component_hook("mlp", layer)
    ]  # which follows the norm
    handles = (handle for name in points for handle in model.hook_dict[name].fwd_hooks)
    return any(not _is_own(handle) and handle.user_hook.__module__ != __name__ for handle in handles)


def hook_behind_edits(model: LensModel, layer: int) -> str:
    """Name of the first hook that :func:`has_hooks_where_edits_add` does not count and that sees what an edit adds."""
    has_hook_of_its_own = is_bridge(model) or post_norm(model, layer) is not None
    return component_hook("mlp" if has_hook_of_its_own else "resid", layer)


def _is_own(handle: Any) -> bool:
    """Whether TransformerLens itself put the hook in, as wiring."""
    return handle.is_permanent and getattr(handle.user_hook, "__module__", "").startswith("transformer_lens.")


def capture_hooks(names: Sequence[str], kept: dict[str, Tensor]) -> list[Hook]:
    """Hooks that store each named activation in ``kept`` under the name asked for, whatever alias the model reports."""

    def keep(name: str) -> Hook:
        def hook_fn(value: Tensor, hook: Any) -> None:
            kept[name] = value.detach()

        return name, hook_fn

    return [keep(name) for name in names]


def at_least_float32(value: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def mlp_contribution(model: LensModel, layer: int, raw: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """What an MLP whose ``W_out`` gives ``raw`` adds to the residual stream: ``raw`` itself, or its norm on Gemma 2 and 3."""
    norm = post_norm(model, layer)
    return raw if norm is None else norm(raw[:, None])[:, 0]


def raw_output_hooks(model: LensModel, layer: int, addition: Callable[[Tensor], Tensor]) -> list[Hook]:
    """Hooks that add ``addition(k)`` to the raw output of ``W_out``, ``k`` being its input ``[batch, pos, d_mlp]``.

    The Bridge has a hook there. On HookedTransformer it is ``hook_mlp_out`` where no norm follows ``W_out``; with one (Gemma
    2 and 3) the addition belongs before the norm, whose input is rebuilt from its two hooks, as
    normalised value times scale, and normalised again after the addition. The scale passes through the hook point's
    context, so that several such additions compose. Where the addition is zero the norm's output stays bit for bit.
    """
    keys: dict[str, Tensor] = {}
    hooks = capture_hooks([key_hook(layer)], keys)

    def added(like: Tensor) -> Tensor:
        return addition(keys[key_hook(layer)]).to(like.dtype)

    def add(value: Tensor, hook: Any) -> Tensor:
        return value + added(value)

    if is_bridge(model):
        return [*hooks, (f"blocks.{layer}.mlp.out.hook_out", add)]
    if post_norm(model, layer) is None:
        return [*hooks, (component_hook("mlp", layer), add)]

    norm = f"blocks.{layer}.ln2_post"

    def context() -> dict[str, Any]:  # asked for anew each time: clear_contexts replaces it
        return model.hook_dict[f"{norm}.hook_normalized"].ctx

    def remember_scale(scale: Tensor, hook: Any) -> None:
        context()["rome_lens_scale"] = scale

    def renormalise(normalised: Tensor, hook: Any) -> Tensor:
        change, scale = added(normalised), context()["rome_lens_scale"]
        raw = normalised * scale + change
        new_scale = (raw.pow(2).mean(-1, keepdim=True) + model.blocks[layer].ln2_post.eps).sqrt()
        # Where nothing is added the norm's input, rebuilt, would differ by its rounding; a gradient needs it all the same.
        none = (change == 0).all(-1, keepdim=True) & (not change.requires_grad)
        context()["rome_lens_scale"] = torch.where(none, scale, new_scale)
        return torch.where(none, normalised, raw / new_scale)

    def forget_scale(_value: Tensor, hook: Any) -> None:
        context().pop("rome_lens_scale", None)

    return [
        *hooks,
        (f"{norm}.hook_scale", remember_scale),
        (f"{norm}.hook_normalized", renormalise),
        (component_hook("mlp", layer), forget_scale),
    ]


def starts_with_bos(model: LensModel, prepend_bos: bool | None) -> bool:
    """Whether a text's tokens start with BOS: as it is said, and else by the model's default."""
    return bool(model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos)


def has_centred_w_out(model: LensModel, layer: int) -> bool:
    """Whether every row of ``W_out`` has mean zero, as TransformerLens' ``center_writing_weights`` leaves it."""
    weight = at_least_float32(w_out(model, layer))
    return float(weight.mean(-1).abs().max()) < 1e-5 * float(weight.abs().mean())
