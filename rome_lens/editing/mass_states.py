"""Keys and block outputs of many facts at their lookup positions, on the model as it is now.

A fact's key is a weighted mean over its contexts. A fact's block output is that of its bare prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.editing.mass_config import KeyMean
from rome_lens.editing.prompts import EditRows
from rome_lens.forward.memory import rows_per_batch
from rome_lens.forward.runs import run_through
from rome_lens.forward.tokens import pad_right
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import component_hook, key_hook
from rome_lens.models.lens import LensModel, at_least_float32, device, w_out

_BARE = "{}"


@dataclass(frozen=True, kw_only=True)
class States:
    """What some layers read at the facts' lookup positions, and what the last one's block gives."""

    keys: dict[int, Float[Tensor, "fact d_mlp"]]
    """The mean key of each fact, by layer."""
    bare_keys: dict[int, Float[Tensor, "fact d_mlp"]]
    """The key of each fact's bare prompt, by layer."""
    streams: Float[Tensor, "fact d_model"]
    """The output of the last layer's block for each fact's bare prompt."""


@dataclass(frozen=True, kw_only=True)
class LookupRows:
    """The rows up to the lookup positions, each of them once although several facts may share it.

    Later tokens have no influence on a causal model's states there.
    """

    rows: tuple[tuple[int, ...], ...]
    """Token ids, which end with the lookup position."""
    bare: Int[Tensor, " fact"]
    """The row of each fact's bare prompt."""
    contexts: Int[Tensor, "fact context"]
    """The row of each fact in each context."""
    weights: Float[Tensor, " context"]
    """The weight of each context in the mean key."""

    @classmethod
    def of(
        cls, rows: Sequence[EditRows], contexts: Sequence[str], key_mean: KeyMean
    ) -> "LookupRows":
        """The rows of several facts, in the contexts with which they were made."""
        numbers: dict[tuple[int, ...], int] = {}
        places = []
        for each in rows:
            cut = [
                tuple(row[: end + 1])
                for row, end in zip(each.tokens.tolist(), each.lookups.tolist(), strict=True)
            ]
            places.append([numbers.setdefault(row, len(numbers)) for row in cut[:-1]])
        at = torch.tensor(places, dtype=torch.long, device="cpu")
        weights = context_weights(contexts, key_mean)
        return cls(rows=tuple(numbers), bare=at[:, 0], contexts=at[:, 1:], weights=weights)

    @visits_model
    def states(self, model: LensModel, layers: Sequence[int], last: int) -> States:
        """The keys at some layers, and the output of the last layer's block."""
        names = [*(key_hook(layer) for layer in layers), component_hook("resid", last)]
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        longest = max(map(len, self.rows))
        width = max(model.cfg.d_model, *(w_out(model, layer).shape[0] for layer in layers))
        size = rows_per_batch(len(names) * longest * width * 4, device(model))
        for first in range(0, len(self.rows), size):
            rows = self.rows[first : first + size]
            kept = run_through(model, pad_right([list(row) for row in rows]), last, names)
            ends = torch.tensor([len(row) - 1 for row in rows], dtype=torch.long, device="cpu")
            at = (torch.arange(len(rows), device="cpu"), ends)
            for name in names:
                found[name].append(at_least_float32(kept[name][at]))
        values = {name: torch.cat(parts).detach() for name, parts in found.items()}
        by_layer = {layer: values[key_hook(layer)] for layer in layers}
        return States(
            keys={layer: self._mean(keys) for layer, keys in by_layer.items()},
            bare_keys={layer: keys[self.bare] for layer, keys in by_layer.items()},
            streams=values[names[-1]][self.bare],
        )

    def _mean(self, keys: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
        return (self.weights.to(keys)[:, None] * keys[self.contexts]).sum(1)


def context_weights(contexts: Sequence[str], key_mean: KeyMean) -> Float[Tensor, " context"]:
    """The weight of each context in the mean key, in float64. They add up to 1."""
    is_bare = [context == _BARE for context in contexts]
    groups = [is_bare.count(kind) for kind in is_bare]
    if key_mean == "plain":
        weights = [1.0 / len(contexts) for _ in contexts]
    else:
        weights = [1.0 / (len(set(is_bare)) * size) for size in groups]
    return torch.tensor(weights, dtype=torch.float64, device="cpu")
