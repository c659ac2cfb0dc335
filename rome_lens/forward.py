"""Parts of a forward pass: without dropout, up to a layer, from a layer on, with only some positions unembedded."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.models import (
    EMBED,
    Hook,
    LensModel,
    at_least_float32,
    capture_hooks,
    device,
    is_bridge,
    key_hook,
)


@contextmanager
def evaluating(model: LensModel) -> Iterator[None]:
    """Evaluation mode (no dropout) inside; afterwards every module's training flag is as it was."""
    inner = [] if not is_bridge(model) else list(model.original_model.modules())
    training = [module for module in (*model.modules(), *inner) if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def unembedding_only(model: LensModel, pick: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the model unembeds only what ``pick`` takes from the final stream ``[batch, pos, d_model]``."""

    def picked(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (pick(args[0]).contiguous(), *args[1:])  # a strided input would make the product as slow as the full one

    handle = model.unembed.register_forward_pre_hook(picked)
    try:
        yield
    finally:
        handle.remove()


def last_position_logits(model: LensModel) -> AbstractContextManager[None]:
    """Inside, the model unembeds only the last position: its logits have shape ``[batch, 1, d_vocab]``."""
    return unembedding_only(model, lambda stream: stream[:, -1:])


def chosen_logits(
    model: LensModel,
    tokens: Int[Tensor, "batch pos"],
    rows: Int[Tensor, " read"],
    positions: Int[Tensor, " read"],
    *,
    fwd_hooks: Sequence[Hook] = (),
) -> Float[Tensor, "read d_vocab"]:
    """Logits at the cells ``(rows[i], positions[i])`` of one run under ``fwd_hooks``, in float32 at least."""
    only = unembedding_only(model, lambda stream: stream[rows, positions][:, None])
    with evaluating(model), torch.no_grad(), model.hooks(fwd_hooks=list(fwd_hooks)), only:
        logits = model(tokens.to(device(model)))
    return at_least_float32(logits[:, 0])


def log_probabilities(logits: Float[Tensor, "row d_vocab"], tokens: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """``log p(token)`` of one token a row, by ``logsumexp``.

    torch's float32 ``softmax`` over 262 144 logits misses the probability by some 2e-5 of itself, this by some 3e-7.
    """
    chosen = logits.gather(-1, tokens.to(logits.device)[:, None])[:, 0]
    return chosen - logits.logsumexp(-1)


def agreement(dtype: torch.dtype) -> float:
    """How far two ways of computing the same may differ, relative to the largest value, before one must be wrong."""
    return max(1e-3, 16 * torch.finfo(dtype).eps)


def embed(model: LensModel, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """What ``hook_embed`` gives for these tokens: token embeddings before positions, after Gemma's scaling."""
    kept: dict[str, Tensor] = {}
    with evaluating(model), torch.no_grad(), model.hooks(fwd_hooks=capture_hooks([EMBED], kept)):
        model(tokens[None].to(device(model)), stop_at_layer=0)
    return kept[EMBED][0]


def run_through(
    model: LensModel, tokens: Int[Tensor, "batch pos"], layer: int, names: Sequence[str]
) -> dict[str, Tensor]:
    """The named activations of a run that stops after ``layer``."""
    kept: dict[str, Tensor] = {}
    # Of the last layer a run cannot stop before the unembedding on every model class: there it is kept to one position.
    stop = {"stop_at_layer": layer + 1} if layer + 1 < model.cfg.n_layers else {}
    with evaluating(model), torch.no_grad(), last_position_logits(model):
        with model.hooks(fwd_hooks=capture_hooks(names, kept)):
            model(tokens.to(device(model)), **stop)
    return kept


def keys_of(model: LensModel, tokens: Int[Tensor, "batch pos"], layer: int) -> Float[Tensor, "batch pos d_mlp"]:
    """The keys ``k`` of a layer, the input of its ``W_out``, at every position."""
    return run_through(model, tokens, layer, [key_hook(layer)])[key_hook(layer)]


def in_float32(model: LensModel) -> LensModel:
    """The model itself, or of one in half precision a float32 copy."""
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    return copy.deepcopy(model).to(torch.float32) if half else model
