"""Runs of a model without dropout, up to a layer or with only some positions unembedded."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.forward.additions import mlp_contribution
from rome_lens.forward.backend import backend_of
from rome_lens.forward.module_hooks import hooks_on, unembedding_only
from rome_lens.models.door import visits_model
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
    mlp_output,
    ordinary_default_device,
)
from rome_lens.models.model_argument import checked_model
from rome_lens.models.visits import Temporary


def evaluating(model: LensModel) -> AbstractContextManager[None]:
    """Inside, the model is in evaluation mode (no dropout), and torch's default device is ordinary.

    Afterwards, the training flag of every module is as it was.
    """
    training = [module for module in backend_of(checked_model(model)).modules() if module.training]

    def set_training(mode: bool) -> None:
        for module in training:
            module.training = mode

    evaluation = Temporary(model, put=lambda: set_training(False), take=lambda: set_training(True))
    return _both(evaluation, ordinary_default_device(model))


@contextmanager
def _both(
    first: AbstractContextManager[None], second: AbstractContextManager[Any]
) -> Iterator[None]:
    with first, second:
        yield


def weights_laid_out(model: LensModel) -> AbstractContextManager[None]:
    """Inside, many calls of the model's blocks do not copy their weights each time.

    Where the model class copies them in a layout of its own, they are stored in that layout for the
    while. Their values do not change.
    """
    return backend_of(checked_model(model)).weights_laid_out()


def full_precision(model: LensModel) -> Temporary[None]:
    """Inside, the model computes in the precision of its weights, even under autocast."""
    kind = device(model).type
    enabled = torch.is_autocast_enabled(kind)
    return Temporary(
        model,
        put=lambda: torch.set_autocast_enabled(kind, False),
        take=lambda: torch.set_autocast_enabled(kind, enabled),
    )


def last_position_logits(model: LensModel) -> Temporary[None]:
    """Inside, the model unembeds only the last position: its logits are ``[batch, 1, d_vocab]``."""
    return unembedding_only(model, lambda stream: stream[:, -1:])


@visits_model
def chosen_logits(
    model: LensModel,
    tokens: Int[Tensor, "batch pos"],
    rows: Int[Tensor, " read"],
    positions: Int[Tensor, " read"],
    *,
    fwd_hooks: Sequence[Hook] = (),
) -> Float[Tensor, "read d_vocab"]:
    """Logits at the cells ``(rows[i], positions[i])`` of one run, in at least float32."""
    with evaluating(model), torch.no_grad(), hooks_on(model, fwd_hooks):
        if has_hooks_after_blocks(model):  # these must find all rows and positions
            logits = model(tokens.to(device(model)))[rows, positions]
        else:
            with unembedding_only(model, lambda stream: stream[rows, positions][:, None]):
                logits = model(tokens.to(device(model)))[:, 0]
    return at_least_float32(logits)


def finite_logits(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row d_vocab"]:
    """Logits or log probabilities, if none is NaN and the largest of each row is finite.

    Raises:
        ModelError: they do not.
    """
    if wrong := int((~torch.isfinite(logits.amax(-1))).sum()):
        raise ModelError(
            f"The model's own logits are not finite at {wrong} of the {len(logits)} positions that "
            "are read: its weights, an edit in them, or a hook on it hold or produce NaN or "
            "infinite values."
        )
    return logits


def log_probabilities(
    logits: Float[Tensor, "row d_vocab"], tokens: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """``log p(token)`` of one token per row, computed with ``logsumexp``.

    Over 262 144 logits, the relative error of torch's float32 ``softmax`` is about 2e-5. Here it is
    about 3e-7.
    """
    chosen = logits.gather(-1, tokens.to(logits.device)[:, None])[:, 0]
    return chosen - logits.logsumexp(-1)


def agreement(dtype: torch.dtype) -> float:
    """How far two computations of the same thing may differ, relative to the largest value.

    If they differ by more, one of them is wrong.
    """
    return max(1e-3, 16 * torch.finfo(dtype).eps)


@visits_model
def embed(model: LensModel, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """The token embeddings at ``hook_embed``: after Gemma's scaling, before positions are added."""
    kept: dict[str, Tensor] = {}
    with evaluating(model), torch.no_grad(), hooks_on(model, capture_hooks([EMBED], kept)):
        model(tokens[None].to(device(model)), stop_at_layer=0)
    return kept[EMBED][0]


@visits_model
def run_through(
    model: LensModel, tokens: Int[Tensor, "batch pos"], layer: int, names: Sequence[str]
) -> dict[str, Tensor]:
    """Activations at the named hook points, from a run that stops after ``layer``.

    The run is in the precision of the weights.
    """
    kept: dict[str, Tensor] = {}
    # Not every model class can stop between the last layer and the unembedding. There only one
    # position is unembedded.
    stop = {"stop_at_layer": layer + 1} if layer + 1 < model.cfg.n_layers else {}
    with evaluating(model), torch.no_grad(), full_precision(model), last_position_logits(model):
        with hooks_on(model, capture_hooks(names, kept)):
            model(tokens.to(device(model)), **stop)
    return kept


@visits_model
def keys_of(
    model: LensModel, tokens: Int[Tensor, "batch pos"], layer: int
) -> Float[Tensor, "batch pos d_mlp"]:
    """The keys ``k`` of a layer at every position, i.e. the input of its ``W_out``."""
    return run_through(model, tokens, layer, [key_hook(layer)])[key_hook(layer)]


@visits_model
def layer_states(
    model: LensModel, tokens: Int[Tensor, "batch pos"], layer: int
) -> tuple[
    Float[Tensor, "batch pos d_mlp"],
    Float[Tensor, "batch pos d_model"],
    Float[Tensor, "batch pos d_model"],
]:
    """A layer's keys, its raw output ``k W_out + b_out``, and the stream after the layer.

    Raises:
        ModelError: the MLP does not add this raw output (see :func:`check_raw_output`).
    """
    names = (key_hook(layer), component_hook("mlp", layer), component_hook("resid", layer))
    kept = run_through(model, tokens, layer, names)
    keys, mlp_out, stream = (kept[name] for name in names)
    outputs = mlp_output(model, layer, keys)
    check_raw_output(model, layer, outputs.flatten(0, 1), mlp_out.flatten(0, 1))
    return keys, outputs, stream


@visits_model
def check_raw_output(
    model: LensModel,
    layer: int,
    outputs: Float[Tensor, "row d_model"],
    mlp_out: Float[Tensor, "row d_model"],
) -> None:
    """Check that what an MLP adds to the stream is its raw output, after its norm where it has one.

    Args:
        outputs: the raw output ``k W_out + b_out``.
        mlp_out: what the MLP added to the stream in the same run.

    Raises:
        ModelError: the two do not agree.
    """
    with torch.no_grad():
        expected = mlp_contribution(model, layer, outputs)
    error = float((mlp_out - expected).abs().max())
    if not error <= agreement(mlp_out.dtype) * max(1.0, float(expected.abs().max())):
        raise ModelError(
            f"Layer {layer}'s MLP output is not W_out's output (after its norm, where it has one), "
            f"but differs by {error:.2g}: a hook adds to it, or this architecture does something "
            "that is not supported here."
        )


@contextmanager
def differentiating(model: LensModel) -> Iterator[None]:
    """Inside, gradients can be taken, without dropout and in the precision of the weights.

    They are not taken of the weights. This holds for a caller in inference mode or under autocast
    too. Afterwards, no module keeps a graph.
    """
    release = Temporary(model, put=lambda: None, take=lambda: _release_graphs(model))
    # Gradients cannot flow through inference tensors.
    with (
        release,
        _frozen(model),
        torch.inference_mode(False),
        full_precision(model),
        evaluating(model),
    ):
        yield


def _frozen(model: LensModel) -> Temporary[None]:
    """Inside, no weight requires a gradient.

    Autograd would otherwise keep what a gradient of the weights needs.
    """
    backend = backend_of(model)
    parameters = {id(each): each for module in backend.modules() for each in module.parameters()}
    trained = [
        each for each in parameters.values() if each.requires_grad and not each.is_inference()
    ]

    def require(gradient: bool) -> None:
        for parameter in trained:
            parameter.requires_grad_(gradient)

    return Temporary(model, put=lambda: require(False), take=lambda: require(True))


def _release_graphs(model: LensModel) -> None:
    """Detach tensors that modules keep as attributes.

    The attention of some Bridges keeps its pattern. With a graph, the pattern would hold the run's
    memory, and the model could not be deep-copied.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()


@visits_model
def differentiable(model: LensModel) -> LensModel:
    """The model itself, or a copy of a model that was made in inference mode.

    Gradients cannot flow through that model's own tensors.
    """
    if not any(parameter.is_inference() for parameter in model.parameters()):
        return model
    _release_graphs(model)
    with torch.inference_mode(False):
        return copy.deepcopy(model)


@visits_model
def in_float32(model: LensModel) -> LensModel:
    """The model itself, or a float32 copy of a model in half precision.

    A model that was made in inference mode is copied too, because gradients cannot flow through its
    tensors.
    """
    if not any(each.dtype in (torch.float16, torch.bfloat16) for each in model.parameters()):
        return differentiable(model)
    _release_graphs(model)
    with torch.inference_mode(False):
        return copy.deepcopy(model).to(torch.float32)
