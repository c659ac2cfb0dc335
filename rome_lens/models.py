"""The seam to TransformerLens: hook names, the orientation of ``W_out``, and how its two model classes differ.

No other module of the package knows a hook name, a weight's layout or a TransformerLens version. The two classes are
``HookedTransformer`` (TransformerLens up to 3.x) and ``TransformerBridge`` (3.x and 4.x, around a transformers model).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

Component = Literal["resid", "mlp", "attn"]
COMPONENTS: tuple[Component, ...] = ("resid", "mlp", "attn")
Hook = tuple[str, Callable[..., Tensor | None]]

EMBED = "hook_embed"
_COMPONENT_HOOKS = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}


class ModelError(ValueError):
    """A model that lacks what is asked of it: a tokenizer, a layer, a dense MLP."""


# HookedTransformer or TransformerBridge. There is no class to name: TransformerLens 4 has only the second, they share no
# base, and what they have in common lies in attributes of torch modules, which a Protocol cannot see.
LensModel: TypeAlias = Any


def component_hook(component: str, layer: int) -> str:
    """Name of the hook at a layer's output: the residual stream after it, or what its MLP or attention adds."""
    return f"blocks.{layer}.{_COMPONENT_HOOKS[component]}"


def key_hook(layer: int) -> str:
    """Name of the hook at the input of ``W_out``: the keys ``k``, shape ``[batch, pos, d_mlp]``."""
    return f"blocks.{layer}.mlp.hook_post"


def resid_pre_hook(layer: int) -> str:
    """Name of the hook at the residual stream that enters a layer."""
    return f"blocks.{layer}.hook_resid_pre"


def check_layer(model: LensModel, layer: int) -> int:
    """The layer, if the model has it.

    Raises:
        ModelError: the layer is out of range.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise ModelError(f"Layer {layer} is out of range: the model has layers 0 to {model.cfg.n_layers - 1}.")
    return layer


def w_out(model: LensModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The live weight ``blocks[layer].mlp.W_out``: what is written into its data changes the model.

    Raises:
        ModelError: the layer is out of range, or its MLP is absent or a mixture of experts.
    """
    check_layer(model, layer)
    mlp = getattr(model.blocks[layer], "mlp", None)
    weight = None if mlp is None or model.cfg.num_experts else getattr(mlp, "W_out", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        what = "a mixture of experts" if model.cfg.num_experts else "absent or of a form without one W_out matrix"
        raise ModelError(
            f"The MLP of layer {layer} is {what}: keys, values and edits need one dense W_out [d_mlp, d_model]."
        )
    return weight.detach()


def b_out(model: LensModel, layer: int) -> Float[Tensor, " d_model"] | None:
    """The bias that follows ``W_out``, or None where there is none."""
    bias = getattr(model.blocks[layer].mlp, "b_out", None)
    return None if bias is None else bias.detach()


def post_norm(model: LensModel, layer: int) -> Callable[[Tensor], Tensor] | None:
    """The norm between the output of ``W_out`` and the residual stream (Gemma 2 and 3), or None."""
    return getattr(model.blocks[layer], "ln2_post", None)


def is_bridge(model: LensModel) -> bool:
    """Whether the model is a TransformerBridge."""
    return isinstance(model, TransformerBridge)


def device(model: LensModel) -> torch.device:
    """Where the model computes."""
    return torch.device(model.cfg.device) if model.cfg.device is not None else torch.device("cpu")


def embed(model: LensModel, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """What ``hook_embed`` gives for these tokens: token embeddings before positions, after Gemma's scaling."""
    kept: dict[str, Tensor] = {}
    with evaluating(model), torch.no_grad(), model.hooks(fwd_hooks=capture_hooks([EMBED], kept)):
        model(tokens[None].to(device(model)), stop_at_layer=0)
    return kept[EMBED][0]


def capture_hooks(names: Sequence[str], kept: dict[str, Tensor]) -> list[Hook]:
    """Hooks that store each named activation in ``kept`` under the name asked for, whatever alias the model reports."""

    def keep(name: str) -> Hook:
        def hook_fn(value: Tensor, hook: Any) -> None:
            kept[name] = value.detach()

        return name, hook_fn

    return [keep(name) for name in names]


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


def at_least_float32(value: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


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


def layer_states(
    model: LensModel, tokens: Int[Tensor, "batch pos"], layer: int
) -> tuple[
    Float[Tensor, "batch pos d_mlp"],
    Float[Tensor, "batch pos d_model"],
    Float[Tensor, "batch pos d_model"],
    Float[Tensor, "batch pos d_model"],
]:
    """A layer's keys, the raw output ``k W_out + b_out``, what the MLP adds to the stream, and the stream after it."""
    names = (key_hook(layer), component_hook("mlp", layer), component_hook("resid", layer))
    kept = run_through(model, tokens, layer, names)
    keys, mlp_out, stream = (kept[name] for name in names)
    bias = b_out(model, layer)
    raw = keys @ w_out(model, layer) + (0.0 if bias is None else bias)
    return keys, raw, mlp_out, stream


def mlp_contribution(model: LensModel, layer: int, raw: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """What an MLP whose ``W_out`` gives ``raw`` adds to the residual stream: ``raw`` itself, or its norm on Gemma 2 and 3."""
    norm = post_norm(model, layer)
    return raw if norm is None else norm(raw[:, None])[:, 0]


class PartialForward:
    """The later layers of a model, from any one on, for sequences of one length.

    ``resume(x, l)`` runs layers ``l, l+1, ...`` on the residual stream ``x`` that enters layer ``l`` and returns the
    stream after the last layer; ``logits`` unembeds chosen rows of it. HookedTransformer does this itself. The Bridge
    cannot, so that each block is called with the arguments (mask, rotary angles) that it was given in one full run.

    Constructing it makes that run and compares the two ways once: an architecture whose forward does something this
    class does not know is refused instead of answered wrongly.

    Raises:
        ModelError: resumed logits differ from the model's own.
    """

    def __init__(self, model: LensModel, tokens: Int[Tensor, " pos"]) -> None:
        self.model = model
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        middle = resid_pre_hook(model.cfg.n_layers // 2)
        kept: dict[str, Tensor] = {}
        with evaluating(model), torch.no_grad(), self._recording_calls():
            with model.hooks(fwd_hooks=capture_hooks([middle], kept)), last_position_logits(model):
                expected = model(tokens[None].to(device(model)), **({"use_cache": False} if is_bridge(model) else {}))
            found = self.logits(self.resume(kept[middle], model.cfg.n_layers // 2)[:, -1])
        error = float((found - at_least_float32(expected[:, -1])).abs().max())
        if not error <= 1e-2 * max(1.0, float(expected.abs().max())):
            raise ModelError(
                f"Resuming this model from layer {model.cfg.n_layers // 2} misses its own logits by {error:.2g}: its forward pass "
                "does more than blocks, final norm, unembedding and soft cap, which is all that is known here."
            )

    @contextmanager
    def _recording_calls(self) -> Iterator[None]:
        if not is_bridge(self.model):
            yield
            return

        def record(_block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(self._calls) < self.model.cfg.n_layers:
                self._calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

        handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in self.model.blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def resume(self, stream: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after the last layer, from the stream that enters ``layer``; hooks fire as in any run."""
        n_layers = self.model.cfg.n_layers
        if layer == n_layers:
            return stream
        if not is_bridge(self.model):
            return self.model(stream, start_at_layer=layer, stop_at_layer=n_layers)
        for block, (args, kwargs) in list(zip(self.model.blocks, self._calls, strict=True))[layer:]:
            out = block(stream, *args, **kwargs)
            stream = out[0] if isinstance(out, tuple) else out
        return stream

    def logits(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Final norm, unembedding and soft cap of rows of the last stream, in float32 at least."""
        logits = self.model.unembed(self.model.ln_final(stream[:, None].contiguous()))[:, 0]
        cap = self.model.cfg.output_logits_soft_cap
        if cap and cap > 0.0:
            logits = cap * torch.tanh(logits / cap)
        return at_least_float32(logits)


def raw_output_hooks(model: LensModel, layer: int, addition: Callable[[Tensor], Tensor]) -> list[Hook]:
    """Hooks that add ``addition(k)`` to the raw output of ``W_out``, ``k`` being its input ``[batch, pos, d_mlp]``.

    Without a norm behind ``W_out`` that is an addition at ``hook_mlp_out``. With one (Gemma 2 and 3) it belongs before
    the norm: the Bridge has a hook there; on HookedTransformer the norm's input is rebuilt from its two hooks, as
    normalised value times scale, and normalised again after the addition. The scale passes through the hook point's
    context, so that several such additions compose.
    """
    keys: dict[str, Tensor] = {}
    hooks = capture_hooks([key_hook(layer)], keys)

    def add(value: Tensor, hook: Any) -> Tensor:
        return value + addition(keys[key_hook(layer)]).to(value.dtype)

    if post_norm(model, layer) is None:
        return [*hooks, (component_hook("mlp", layer), add)]
    if is_bridge(model):
        return [*hooks, (f"blocks.{layer}.mlp.out.hook_out", add)]

    norm = f"blocks.{layer}.ln2_post"
    context = model.hook_dict[f"{norm}.hook_normalized"].ctx

    def remember_scale(scale: Tensor, hook: Any) -> None:
        context["rome_lens_scale"] = scale

    def renormalise(normalised: Tensor, hook: Any) -> Tensor:
        raw = add(normalised * context["rome_lens_scale"], hook)
        scale = (raw.pow(2).mean(-1, keepdim=True) + model.blocks[layer].ln2_post.eps).sqrt()
        context["rome_lens_scale"] = scale
        return raw / scale

    def forget_scale(_value: Tensor, hook: Any) -> None:
        context.pop("rome_lens_scale", None)

    return [
        *hooks,
        (f"{norm}.hook_scale", remember_scale),
        (f"{norm}.hook_normalized", renormalise),
        (component_hook("mlp", layer), forget_scale),
    ]


def fingerprint(model: LensModel) -> str:
    """A hash of the model's sizes and of samples of its weights, the same on both model classes.

    ``W_out`` is left out: statistics of keys and other edits stay valid for a model that carries an edit.
    """
    cfg = model.cfg
    digest = hashlib.sha256(json.dumps([cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.n_heads, cfg.d_vocab]).encode())
    for block in model.blocks:
        for weight in (block.mlp.W_in, block.attn.W_O.flatten(0, -2)):
            digest.update(_sample(weight))
    digest.update(_sample(model.unembed.W_U))
    return digest.hexdigest()[:16]


def _sample(weight: Tensor, per_axis: int = 32) -> bytes:
    rows, columns = (max(1, size // per_axis) for size in weight.shape)
    return weight.detach()[::rows, ::columns].to("cpu", torch.float32).contiguous().numpy().tobytes()
