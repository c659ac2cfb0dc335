"""What only HookedTransformer does in a forward pass."""

from typing import Any

import torch
from torch import Tensor

from rome_lens.forward.kv_cache import Past, caches_fit
from rome_lens.models.lens import LensModel, device


def run_hooked_transformer(
    model: LensModel, tokens: Tensor, *, with_past: bool
) -> tuple[Tensor, Past | None]:
    """A run of HookedTransformer."""
    n_layers = model.cfg.n_layers
    if not with_past or not caches_fit(model):
        return model(tokens, stop_at_layer=n_layers), None
    cache = new_key_value_cache(model, len(tokens))
    everything = torch.ones_like(
        tokens
    )  # else padding is guessed from the tokens, as it is not without a cache
    final = model(tokens, past_kv_cache=cache, attention_mask=everything, stop_at_layer=n_layers)
    keys, values = zip(
        *((entry.past_keys, entry.past_values) for entry in cache.entries), strict=True
    )
    return final, Past(keys=keys, values=values)


def new_key_value_cache(model: LensModel, rows: int) -> Any:
    """An empty key-value cache of HookedTransformer."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, device(model), rows)


def frozen_entry(keys: Tensor, values: Tensor) -> Any:
    """One layer's entry of a key-value cache of HookedTransformer, which a run reads and does not extend."""
    from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

    return TransformerLensKeyValueCacheEntry(past_keys=keys, past_values=values, frozen=True)
