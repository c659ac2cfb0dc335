"""Parts of a forward pass: without dropout, up to a layer, from a layer on, with only some positions unembedded."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.forward.additions import mlp_contribution
from rome_lens.models.hook_names import (
    EMBED,
    Hook,
    capture_hooks,
    component_hook,
    has_hooks_after_blocks,
    key_hook,
)
from rome_lens.models.lens import (
    LensModel,
    ModelError,
    at_least_float32,
    device,
    is_bridge,
    mlp_output,
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


def full_precision(model: LensModel) -> AbstractContextManager[Any]:
    """Inside, the model computes in its weights' own precision, under a caller's autocast too."""
    return torch.autocast(device(model).type, enabled=False)


@contextmanager
def attending_to_all(model: LensModel) -> Iterator[None]:
    """Inside, ``generate`` takes no token for padding, whatever its id.

    HookedTransformer's guesses the padding from the tokens: a BOS with the id of the padding token is masked, and the
    positions are counted without it.
    """
    if is_bridge(model):
        yield
        return

    def unmasked(method: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Any:
            everything = (
                {}
                if attention_mask is None
                else {"attention_mask": torch.ones_like(attention_mask)}
            )
            return method(*args, **everything, **options)

        return called

    names = ("get_residual", "forward")
    own = {
        name: vars(model)[name] for name in names if name in vars(model)
    }  # the caller's, in front of the class's
    for name in names:
        setattr(model, name, unmasked(getattr(model, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)
        for name, method in own.items():
            setattr(model, name, method)


@contextmanager
def unembedding_only(model: LensModel, pick: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the model unembeds only what ``pick`` takes from the final stream ``[batch, pos, d_model]``."""

    def picked(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (
            pick(args[0]).contiguous(),
            *args[1:],
        )  # a strided input would make the product as slow as the full one

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
    with evaluating(model), torch.no_grad(), model.hooks(fwd_hooks=list(fwd_hooks)):
        if has_hooks_after_blocks(model):  # which must find all rows and positions
            return at_least_float32(model(tokens.to(device(model)))[rows, positions])
        with unembedding_only(model, lambda stream: stream[rows, positions][:, None]):
            return at_least_float32(model(tokens.to(device(model)))[:, 0])


def log_probabilities(
    logits: Float[Tensor, "row d_vocab"], tokens: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
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
    """The named activations of a run that stops after ``layer``, in the weights' own precision."""
    kept: dict[str, Tensor] = {}
    # Of the last layer a run cannot stop before the unembedding on every model class: there it is kept to one position.
    stop = {"stop_at_layer": layer + 1} if layer + 1 < model.cfg.n_layers else {}
    with evaluating(model), torch.no_grad(), full_precision(model), last_position_logits(model):
        with model.hooks(fwd_hooks=capture_hooks(names, kept)):
            model(tokens.to(device(model)), **stop)
    return kept


def keys_of(
    model: LensModel, tokens: Int[Tensor, "batch pos"], layer: int
) -> Float[Tensor, "batch pos d_mlp"]:
    """The keys ``k`` of a layer, the input of its ``W_out``, at every position."""
    return run_through(model, tokens, layer, [key_hook(layer)])[key_hook(layer)]


def layer_states(
    model: LensModel, tokens: Int[Tensor, "batch pos"], layer: int
) -> tuple[
    Float[Tensor, "batch pos d_mlp"],
    Float[Tensor, "batch pos d_model"],
    Float[Tensor, "batch pos d_model"],
]:
    """A layer's keys, the raw output ``k W_out + b_out``, and the stream after it.

    Raises:
        ModelError: as :func:`check_raw_output` says.
    """
    names = (key_hook(layer), component_hook("mlp", layer), component_hook("resid", layer))
    kept = run_through(model, tokens, layer, names)
    keys, mlp_out, stream = (kept[name] for name in names)
    outputs = mlp_output(model, layer, keys)
    check_raw_output(model, layer, outputs.flatten(0, 1), mlp_out.flatten(0, 1))
    return keys, outputs, stream


def check_raw_output(
    model: LensModel,
    layer: int,
    outputs: Float[Tensor, "row d_model"],
    mlp_out: Float[Tensor, "row d_model"],
) -> None:
    """Raise ModelError unless the MLP adds to the stream what :func:`mlp_contribution` makes of W_out's output."""
    with torch.no_grad():
        expected = mlp_contribution(model, layer, outputs)
    error = float((mlp_out - expected).abs().max())
    if not error <= agreement(mlp_out.dtype) * max(1.0, float(expected.abs().max())):
        raise ModelError(
            f"Layer {layer}'s MLP output is not W_out's output (after its norm, where it has one), but differs by "
            f"{error:.2g}: a hook adds to it, or this architecture does something that is not known here."
        )


@contextmanager
def differentiating(model: LensModel) -> Iterator[None]:
    """Inside, gradients can be taken, without dropout and in the weights' own precision, by a caller in inference mode or
    under autocast too; afterwards no module keeps a graph."""
    try:
        # Inference tensors cannot be differentiated through.
        with torch.inference_mode(False), full_precision(model), evaluating(model):
            yield
    finally:
        _release_graphs(model)


def _release_graphs(model: LensModel) -> None:
    """Some Bridges' attention keeps its pattern: with its graph it would hold the run's memory, and refuse a deep copy."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()


def in_float32(model: LensModel) -> LensModel:
    """The model itself, or of one in half precision a float32 copy.

    A copy too of a model that was made in inference mode, whose tensors no gradient can pass.
    """
    parameters = list(model.parameters())
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in parameters)
    if not half and not any(parameter.is_inference() for parameter in parameters):
        return model
    _release_graphs(model)
    with torch.inference_mode(False):
        copied = copy.deepcopy(model)
        return copied.to(torch.float32) if half else copied
