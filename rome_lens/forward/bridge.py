"""What only TransformerBridge does in a forward pass."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.generalized_components.block import VARIANT_SUBMODULE_NAMES
from transformers import DynamicCache

from rome_lens.forward.kv_cache import LayerPast, Past, call, pre_hooks
from rome_lens.forward.runs import unembedding_only
from rome_lens.models.hook_names import capture_hooks, component_hook
from rome_lens.models.lens import LensModel

# A block's arguments in transformers: those with a position axis and where it is (a mask's is that of its queries), and
# the names of the key-value cache.
_POSITION_AXES = {
    "attention_mask": -2,
    "position_embeddings": -2,
    "position_ids": -1,
    "cache_position": -1,
}
_CACHES = ("past_key_values", "layer_past")


def run_bridge(model: LensModel, tokens: Tensor, *, with_past: bool) -> tuple[Tensor, Past | None]:
    """A run of the Bridge; None for its past where a layer's attention did not use the cache that its block was given."""
    cache = DynamicCache()

    def give_cache(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[:1], with_cache(named_arguments(block, args, kwargs), cache)

    last = component_hook("resid", model.cfg.n_layers - 1)
    kept: dict[str, Tensor] = {}
    with (
        pre_hooks(model.blocks if with_past else (), give_cache),
        model.hooks(fwd_hooks=capture_hooks([last], kept)),
    ):
        with unembedding_only(model, lambda stream: stream[:0]):
            call(model, tokens)
    layers = [layer for layer in cache.layers if layer.is_initialized]
    if len(layers) < len(model.blocks):
        return kept[last], None
    keys, values = zip(
        *((layer.keys.transpose(1, 2), layer.values.transpose(1, 2)) for layer in layers),
        strict=True,
    )
    return kept[last], Past(keys=keys, values=values)


def named_arguments(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments on the Bridge by their names, without the first, the stream."""
    names = inspect.signature(block.original_component.forward).parameters
    return {**dict(zip(list(names)[1:], args[1:], strict=False)), **kwargs}


def for_rows(arguments: dict[str, Any], rows: int) -> dict[str, Any]:
    """A block's arguments as one row's run had them, for several rows: ALiBi's biases are the batch's, not broadcast."""
    alibi = arguments.get("alibi")
    if not isinstance(alibi, Tensor):
        return arguments
    return {**arguments, "alibi": alibi.repeat(rows, *[1] * (alibi.ndim - 1))}


def with_cache(arguments: dict[str, Any], cache: DynamicCache) -> dict[str, Any]:
    """A block's arguments with this key-value cache, where the block takes one."""
    return {name: cache if name in _CACHES else value for name, value in arguments.items()}


def only_attends(block: torch.nn.Module) -> bool:
    """Whether attention alone moves information between positions: other ways keep a state, which is no ``Past``."""
    return [name for name in VARIANT_SUBMODULE_NAMES if hasattr(block, name)] == ["attn"]


def can_be_cut(arguments: dict[str, Any]) -> bool:
    """Whether it is known how to cut a block's arguments to later positions: no tensor by another name or shape."""
    mask = arguments.get("attention_mask")
    unknown = [
        name
        for name, value in arguments.items()
        if isinstance(value, Tensor) and name not in _POSITION_AXES
    ]
    return not unknown and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 4))


def later_arguments(
    arguments: dict[str, Any], layer: int, stream: Tensor, past: LayerPast
) -> dict[str, Any]:
    """A block's arguments for the positions of ``stream``, which follow a past."""
    cache = DynamicCache()
    cache.update(past.key.transpose(1, 2), past.value.transpose(1, 2), layer)
    later = with_cache(arguments, cache)
    start, end = past.key.shape[1], past.key.shape[1] + stream.shape[1]
    for name, axis in _POSITION_AXES.items():
        value = later.get(name)
        if isinstance(value, Tensor):
            later[name] = value.narrow(axis, start, end - start)
        elif isinstance(value, tuple):
            later[name] = tuple(each.narrow(axis, start, end - start) for each in value)
    mask = later.get("attention_mask")
    if mask is None:  # without one torch takes the first of these positions for the first of all
        mask = stream.new_full((1, 1, end - start, end), torch.finfo(stream.dtype).min).triu(
            start + 1
        )
    later["attention_mask"] = mask[..., :end]
    return later
