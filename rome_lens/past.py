"""What a run leaves behind for later positions, its attention keys and values, and how each model class keeps and reads them."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge.generalized_components.block import VARIANT_SUBMODULE_NAMES
from transformers import DynamicCache

from rome_lens.forward import unembedding_only
from rome_lens.models import LensModel, capture_hooks, component_hook, device, is_bridge

# A block's arguments in transformers: those with a position axis and where it is (a mask's is that of its queries), and
# the names of the key-value cache.
_POSITION_AXES = {"attention_mask": -2, "position_embeddings": -2, "position_ids": -1, "cache_position": -1}
_CACHES = ("past_key_values", "layer_past")


@dataclass(frozen=True, kw_only=True)
class LayerPast:
    """What one layer's attention reads of the positions before those that are run: its keys and values there."""

    key: Float[Tensor, "row pos head d_head"]
    value: Float[Tensor, "row pos head d_head"]


@dataclass(frozen=True, kw_only=True)
class Past:
    """Attention keys and values of a run, one ``[row, pos, head, d_head]`` pair for each layer.

    In a causal model what a later position reads of the earlier ones does not change when only later ones are changed.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def at(self, layer: int, *, before: int, rows: Int[Tensor, " row"]) -> LayerPast:
        """Of one layer and of chosen rows, which may repeat, what lies before a position."""
        return LayerPast(key=self.keys[layer][rows, :before], value=self.values[layer][rows, :before])


@contextmanager
def entering_blocks(model: LensModel) -> Iterator[list[Tensor]]:
    """Inside, the list takes the stream that each block is called with, before any hook of the block acts on it."""
    streams: list[Tensor] = []

    def keep(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams.append((args[0] if args else kwargs["hidden_states"]).detach())

    with pre_hooks(model.blocks, keep):
        yield streams


@contextmanager
def pre_hooks(blocks: Iterable[torch.nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Inside, the hook sees each block's arguments before the block does, and may give it others."""
    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def call(model: LensModel, tokens: Int[Tensor, "row pos"]) -> Tensor:
    """A plain run, without the cache that the Bridge's blocks would else be given and go on filling when called again."""
    return model(tokens, use_cache=False) if is_bridge(model) else model(tokens)


def caches_fit(model: LensModel) -> bool:
    """Whether the model's key-value caches have room for its keys: HookedTransformer's have not where it repeats them for each
    query head (``set_ungroup_grouped_query_attention``)."""
    return is_bridge(model) or not model.cfg.ungroup_grouped_query_attention


def run_hooked_transformer(model: LensModel, tokens: Tensor, *, with_past: bool) -> tuple[Tensor, Past | None]:
    """A run of HookedTransformer."""
    n_layers = model.cfg.n_layers
    if not with_past or not caches_fit(model):
        return model(tokens, stop_at_layer=n_layers), None
    cache = new_key_value_cache(model, len(tokens))
    everything = torch.ones_like(tokens)  # else padding is guessed from the tokens, as it is not without a cache
    final = model(tokens, past_kv_cache=cache, attention_mask=everything, stop_at_layer=n_layers)
    keys, values = zip(*((entry.past_keys, entry.past_values) for entry in cache.entries), strict=True)
    return final, Past(keys=keys, values=values)


def run_bridge(model: LensModel, tokens: Tensor, *, with_past: bool) -> tuple[Tensor, Past | None]:
    """A run of the Bridge; None for its past where a layer's attention did not use the cache that its block was given."""
    cache = DynamicCache()

    def give_cache(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[:1], with_cache(named_arguments(block, args, kwargs), cache)

    last = component_hook("resid", model.cfg.n_layers - 1)
    kept: dict[str, Tensor] = {}
    with pre_hooks(model.blocks if with_past else (), give_cache), model.hooks(fwd_hooks=capture_hooks([last], kept)):
        with unembedding_only(model, lambda stream: stream[:0]):
            call(model, tokens)
    layers = [layer for layer in cache.layers if layer.is_initialized]
    if len(layers) < len(model.blocks):
        return kept[last], None
    keys, values = zip(*((layer.keys.transpose(1, 2), layer.values.transpose(1, 2)) for layer in layers), strict=True)
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
    unknown = [name for name, value in arguments.items() if isinstance(value, Tensor) and name not in _POSITION_AXES]
    return not unknown and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 4))


def later_arguments(arguments: dict[str, Any], layer: int, stream: Tensor, past: LayerPast) -> dict[str, Any]:
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
        mask = stream.new_full((1, 1, end - start, end), torch.finfo(stream.dtype).min).triu(start + 1)
    later["attention_mask"] = mask[..., :end]
    return later


def new_key_value_cache(model: LensModel, rows: int) -> Any:
    """An empty key-value cache of HookedTransformer."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, device(model), rows)


def frozen_entry(keys: Tensor, values: Tensor) -> Any:
    """One layer's entry of a key-value cache of HookedTransformer, which a run reads and does not extend."""
    from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

    return TransformerLensKeyValueCacheEntry(past_keys=keys, past_values=values, frozen=True)
