"""What a run leaves behind for later positions, its attention keys and values, and how each model class keeps and reads them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.models.lens import LensModel, is_bridge


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
        return LayerPast(
            key=self.keys[layer][rows, :before], value=self.values[layer][rows, :before]
        )


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
