"""Adding to the raw output of ``W_out`` with hooks, on every model class."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.models.hook_names import (
    Hook,
    capture_hooks,
    component_hook,
    is_ours,
    is_wiring,
    key_hook,
    mark_as_ours,
)
from rome_lens.models.lens import LensModel, is_bridge, post_norm


def has_hooks_where_edits_add(model: LensModel, layer: int) -> bool:
    """Whether hooks of the caller's act on the very output that :func:`raw_output_hooks` adds to: they would come before it.

    Hooks of other edits do not count: additions may come in any order.
    """
    names = [
        name
        for name, _ in raw_output_hooks(model, layer, lambda keys: keys)
        if name != key_hook(layer)
    ]
    points = [
        name for name in names if len(names) == 1 or name != component_hook("mlp", layer)
    ]  # which follows the norm
    handles = (handle for name in points for handle in model.hook_dict[name].fwd_hooks)
    return any(not is_wiring(handle) and not is_ours(handle) for handle in handles)


def hook_behind_edits(model: LensModel, layer: int) -> str:
    """Name of the first hook that :func:`has_hooks_where_edits_add` does not count and that sees what an edit adds."""
    has_hook_of_its_own = is_bridge(model) or post_norm(model, layer) is not None
    return component_hook("mlp" if has_hook_of_its_own else "resid", layer)


def mlp_contribution(
    model: LensModel, layer: int, raw: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_model"]:
    """What an MLP whose ``W_out`` gives ``raw`` adds to the residual stream: ``raw`` itself, or its norm on Gemma 2 and 3."""
    norm = post_norm(model, layer)
    return raw if norm is None else norm(raw[:, None])[:, 0]


def raw_output_hooks(
    model: LensModel, layer: int, addition: Callable[[Tensor], Tensor]
) -> list[Hook]:
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
        return [*hooks, (f"blocks.{layer}.mlp.out.hook_out", mark_as_ours(add))]
    if post_norm(model, layer) is None:
        return [*hooks, (component_hook("mlp", layer), mark_as_ours(add))]

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
        (f"{norm}.hook_scale", mark_as_ours(remember_scale)),
        (f"{norm}.hook_normalized", mark_as_ours(renormalise)),
        (component_hook("mlp", layer), mark_as_ours(forget_scale)),
    ]
