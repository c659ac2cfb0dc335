"""Hooks that add to the raw output of ``W_out``, for edits that leave the weights alone."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.forward.backend import backend_of
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import Hook, capture_hooks, is_ours, is_wiring, key_hook
from rome_lens.models.lens import LensModel, post_norm
from rome_lens.models.visits import hook_points


@visits_model
def raw_output_hooks(
    model: LensModel, layer: int, addition: Callable[[Tensor], Tensor]
) -> list[Hook]:
    """Hooks that add ``addition(k)`` to the raw output of ``W_out``.

    ``k`` is the input of ``W_out``, shape ``[batch, pos, d_mlp]``. Several such sets of hooks on
    one model compose.
    """
    kept: dict[str, Tensor] = {}

    def change(output: Tensor) -> Tensor:
        return addition(kept[key_hook(layer)]).to(output.dtype)

    return [
        *capture_hooks([key_hook(layer)], kept),
        *backend_of(model).raw_output_hooks(layer, change),
    ]


def has_hooks_where_edits_add(model: LensModel, layer: int) -> bool:
    """Whether the caller has hooks on the output that :func:`raw_output_hooks` adds to.

    Such hooks would run first, and not see the addition. Hooks of other edits do not count, because
    additions may come in any order.
    """
    points = backend_of(model).raw_output_points(layer)
    handles = (handle for name in points for handle in hook_points(model)[name].fwd_hooks)
    return any(not is_wiring(handle) and not is_ours(handle) for handle in handles)


def first_hook_after_edits(model: LensModel, layer: int) -> str:
    """Name of the first hook point after ``W_out`` where a caller's hook sees what an edit adds.

    :func:`has_hooks_where_edits_add` does not count the hooks there.
    """
    return backend_of(model).first_hook_after_raw_output(layer)


@visits_model
def mlp_contribution(
    model: LensModel, layer: int, raw: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_model"]:
    """What an MLP adds to the residual stream when its ``W_out`` returns ``raw``.

    It is in the precision of ``raw``, also for a model in half precision.

    That is ``raw`` itself; or the output of the norm after the MLP, where there is one (Gemma 2 and
    3); or a multiple of it, where the config has a ``residual_multiplier`` (Granite).
    """
    norm = post_norm(model, layer)
    added = raw if norm is None else _in_precision(norm, raw.dtype)(raw[:, None])[:, 0]
    multiplier = getattr(model.cfg, "residual_multiplier", None)
    return added if multiplier is None else added * multiplier


def _in_precision(norm: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The norm, with results in this precision.

    HookedTransformer's norms round their results to the dtype in their config.
    """
    config = getattr(norm, "cfg", None)
    if config is None or config.dtype == dtype:
        return norm
    precise = copy.copy(norm)
    precise.cfg = copy.copy(config)
    precise.cfg.dtype = dtype
    return precise
