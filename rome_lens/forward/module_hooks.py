"""Temporary PyTorch hooks on modules, for what TransformerLens' hook points do not reach."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rome_lens.models.lens import LensModel


@contextmanager
def pre_hooks(blocks: Iterable[torch.nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Inside, ``hook`` gets each block's arguments before the block does, and may replace them."""
    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entering_blocks(model: LensModel) -> Iterator[list[Tensor]]:
    """Inside, the list collects the stream that each block is called with.

    It is the stream before any hook of the block acts on it.
    """
    streams: list[Tensor] = []

    def keep(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams.append((args[0] if args else kwargs["hidden_states"]).detach())

    with pre_hooks(model.blocks, keep):
        yield streams


@contextmanager
def unembedding_only(model: LensModel, pick: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the model unembeds only what ``pick`` selects from the last stream.

    The stream has shape ``[batch, pos, d_model]``.
    """

    def select(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # A strided input would make the product as slow as the full one.
        return (pick(args[0]).contiguous(), *args[1:])

    handle = model.unembed.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
