"""What only TransformerBridge does in a forward pass.

``hooked.py`` holds the same names for HookedTransformer.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.block import VARIANT_SUBMODULE_NAMES
from transformers import DynamicCache

from rome_lens.forward.kv_cache import LayerPast, Past
from rome_lens.forward.module_hooks import hooks_on, pre_hooks, unembedding_only
from rome_lens.models.hook_names import Hook, capture_hooks, component_hook, mark_as_ours
from rome_lens.models.lens import LensModel

# Arguments of a transformers block that have a position axis, and which axis it is. A mask's is
# that of its queries.
_POSITION_AXES = {
    "attention_mask": -2,
    "position_embeddings": -2,
    "position_ids": -1,
    "cache_position": -1,
}
# Names under which a transformers block takes its key-value cache.
_CACHES = ("past_key_values", "layer_past")


class BridgeBackend:
    """Forward passes of a TransformerBridge."""

    def __init__(self, model: LensModel) -> None:
        self.model = model

    @staticmethod
    def fits(model: LensModel) -> bool:
        """Whether the model is a TransformerBridge."""
        return isinstance(model, TransformerBridge)

    def modules(self) -> list[torch.nn.Module]:
        """The modules in a forward pass: the bridge's own, and those of the model that it wraps."""
        return [*self.model.modules(), *self.model.original_model.modules()]

    # Whole runs

    def run_plainly(self, tokens: Tensor) -> Tensor:
        """The model's own logits, without a key-value cache.

        The bridge's blocks would otherwise be given a cache, and keep filling it when they are
        called again.
        """
        return self.model(tokens, use_cache=False)

    def run_to_last_stream(self, tokens: Tensor) -> Tensor:
        """The residual stream that leaves the last layer."""
        last = component_hook("resid", self.model.cfg.n_layers - 1)
        kept: dict[str, Tensor] = {}
        with hooks_on(self.model, capture_hooks([last], kept)):
            with unembedding_only(self.model, lambda stream: stream[:0]):
                self.run_plainly(tokens)
        return kept[last]

    def run_with_past(self, tokens: Tensor) -> tuple[Tensor, Past | None]:
        """The residual stream that leaves the last layer, and the run's ``Past``.

        The past is None where a layer's attention did not use the cache that its block was given.
        """
        cache = DynamicCache()

        def give_cache(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args[:1], _with_cache(_named_arguments(block, args, kwargs), cache)

        with pre_hooks(self.model, give_cache):
            final = self.run_to_last_stream(tokens)
        layers = [layer for layer in cache.layers if layer.is_initialized]
        if len(layers) < len(self.model.blocks):
            return final, None
        return final, Past(
            attn_k=tuple(layer.keys.transpose(1, 2) for layer in layers),
            attn_v=tuple(layer.values.transpose(1, 2) for layer in layers),
        )

    def logit_scale(self) -> float:
        """The factor between the unembedding's output and the logits.

        It is applied by the transformers model: Cohere multiplies by an attribute of the model,
        Granite divides by an entry of its config.
        """
        wrapped = self.model.original_model
        factor = getattr(wrapped, "logit_scale", None)
        divisor = getattr(wrapped.config, "logits_scaling", None)
        return (1.0 if factor is None else float(factor)) / (divisor or 1.0)

    # Single blocks

    def weights_laid_out(self) -> AbstractContextManager[None]:
        """Inside, the weights of the blocks lie in memory as the blocks read them: always."""
        return nullcontext()

    def recording_arguments(self) -> AbstractContextManager[list[dict[str, Any]]]:
        """Inside, the list collects the arguments of each block that runs, without the stream.

        Examples are the mask and the rotary angles.
        """
        recorded: list[dict[str, Any]] = []

        def record(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arguments = _named_arguments(block, args, kwargs)
            arguments.pop("hidden_states", None)  # the stream, where it is passed by name
            recorded.append(arguments)

        return pre_hooks(self.model, record, recorded)

    def can_run_later_positions(self, arguments: Sequence[dict[str, Any]]) -> bool:
        """Whether blocks with these arguments can be called for later positions alone.

        Attention must be the only way in which information moves between positions, and it must be
        known how to cut the arguments.
        """
        return all(map(_only_attends, self.model.blocks)) and all(map(_can_be_cut, arguments))

    def run_block(
        self, layer: int, stream: Tensor, arguments: dict[str, Any], past: LayerPast | None
    ) -> Tensor:
        """The stream after a block, at all positions or at the positions that follow ``past``.

        ``arguments`` are those that :meth:`recording_arguments` recorded in a run of one row. They
        are repeated for the rows of ``stream`` and cut to its positions.
        """
        arguments = _for_rows(arguments, len(stream))
        if past is not None:
            arguments = _for_later_positions(arguments, layer, stream, past)
        out = self.model.blocks[layer](stream, **arguments)
        return out if isinstance(out, Tensor) else out[0]

    # Generation

    def can_generate_from_cache(self) -> bool:
        """Whether the model's key-value cache has room for its keys: always."""
        return True

    def attending_to_all(self) -> AbstractContextManager[None]:
        """Inside, ``generate`` treats no token as padding.

        The bridge never does, so there is nothing to change.
        """
        return nullcontext()

    # The raw output of W_out

    def raw_output_points(self, layer: int) -> tuple[str, ...]:
        """Names of the hook points where :meth:`raw_output_hooks` adds."""
        return (f"blocks.{layer}.mlp.out.hook_out",)

    def first_hook_after_raw_output(self, layer: int) -> str:
        """Name of the first hook point after those of :meth:`raw_output_points`."""
        return component_hook("mlp", layer)

    def raw_output_hooks(self, layer: int, change: Callable[[Tensor], Tensor]) -> list[Hook]:
        """Hooks that add ``change(x)`` to the raw output ``x`` of ``W_out``."""

        def add(value: Tensor, hook: Any) -> Tensor:
            return value + change(value)

        return [(name, mark_as_ours(add)) for name in self.raw_output_points(layer)]


def _named_arguments(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments by name, without the first one, the stream."""
    names = inspect.signature(block.original_component.forward).parameters
    return {**dict(zip(list(names)[1:], args[1:], strict=False)), **kwargs}


def _for_rows(arguments: dict[str, Any], rows: int) -> dict[str, Any]:
    """The arguments of a run of one row, for several rows.

    ALiBi's biases must be repeated, and some blocks (XGLM's) insist on a mask for each row. The
    other arguments broadcast over the batch.
    """
    alibi, mask = arguments.get("alibi"), arguments.get("attention_mask")
    changed = dict(arguments)
    if isinstance(alibi, Tensor):
        changed["alibi"] = alibi.repeat(rows, *[1] * (alibi.ndim - 1))
    if isinstance(mask, Tensor) and mask.ndim == 4 and len(mask) == 1:
        changed["attention_mask"] = mask.expand(rows, -1, -1, -1)
    return changed


def _with_cache(arguments: dict[str, Any], cache: DynamicCache) -> dict[str, Any]:
    """The arguments with this key-value cache, where the block takes one."""
    return {name: cache if name in _CACHES else value for name, value in arguments.items()}


def _only_attends(block: torch.nn.Module) -> bool:
    """Whether attention alone moves information between positions.

    Other mixers keep a state, which a ``Past`` does not hold.
    """
    return [name for name in VARIANT_SUBMODULE_NAMES if hasattr(block, name)] == ["attn"]


def _can_be_cut(arguments: dict[str, Any]) -> bool:
    """Whether it is known how to cut a block's arguments to later positions.

    It is unknown for a tensor under another name, or for a mask of another shape.
    """
    mask = arguments.get("attention_mask")
    unknown = [
        name
        for name, value in arguments.items()
        if isinstance(value, Tensor) and name not in _POSITION_AXES
    ]
    return not unknown and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 4))


def _for_later_positions(
    arguments: dict[str, Any], layer: int, stream: Tensor, past: LayerPast
) -> dict[str, Any]:
    """A block's arguments for the positions of ``stream``, which follow ``past``."""
    cache = DynamicCache()
    cache.update(past.attn_k.transpose(1, 2), past.attn_v.transpose(1, 2), layer)
    later = _with_cache(arguments, cache)
    if past.lengths is not None:
        return later | _for_padded_rows(later, stream, past)
    start = past.attn_k.shape[1]
    length = stream.shape[1]
    for name, axis in _POSITION_AXES.items():
        value = later.get(name)
        if isinstance(value, Tensor):
            later[name] = value.narrow(axis, start, length)
        elif isinstance(value, tuple):
            later[name] = tuple(each.narrow(axis, start, length) for each in value)
    mask = later.get("attention_mask")
    if mask is None:  # without a mask, torch takes the first of these positions for position 0
        mask = stream.new_full((1, 1, length, start + length), torch.finfo(stream.dtype).min)
        mask = mask.triu(start + 1).expand(len(stream), -1, -1, -1)
    later["attention_mask"] = mask[..., : start + length]
    return later


def _for_padded_rows(arguments: dict[str, Any], stream: Tensor, past: LayerPast) -> dict[str, Any]:
    """The arguments that depend on positions, where each row has its own positions.

    Padding on the right may lie beyond the recorded positions. It is given the last of them, and no
    token before it attends to it.
    """
    rows, length = stream.shape[:2]
    start = past.attn_k.shape[1]
    queries = past.positions(length)
    number = torch.arange(start + length, device=queries.device) - start
    keys = (queries[:, :1] + number).clamp(min=0)
    row = torch.arange(rows, device=queries.device)[:, None]
    changed: dict[str, Any] = {}

    def at_positions(value: Tensor, axis: int) -> Tensor:
        last = value.movedim(axis, 1) if value.ndim > 1 else value[None]
        last = last.expand(rows, *last.shape[1:])
        return last[row, queries.clamp(max=last.shape[1] - 1)]

    for name in ("position_ids", "position_embeddings"):
        value = arguments.get(name)
        if isinstance(value, Tensor):
            changed[name] = at_positions(value, _POSITION_AXES[name])
        elif isinstance(value, tuple):
            changed[name] = tuple(at_positions(each, _POSITION_AXES[name]) for each in value)
    if isinstance(arguments.get("cache_position"), Tensor):
        changed["cache_position"] = number[start:] + start
    causal = number[None, None] <= number[start:, None]
    seen = torch.cat([past.own(), torch.ones_like(queries, dtype=torch.bool)], dim=1)
    allowed = (causal & seen[:, None])[:, None]
    mask = arguments.get("attention_mask")
    if mask is None:
        mask = stream.new_zeros(())
    else:
        most = mask.shape[-1] - 1
        of_row = mask.expand(rows, -1, -1, -1).transpose(1, 2)[row, queries.clamp(max=most)]
        chosen = keys.clamp(max=most)[:, None, None].expand(*of_row.shape[:-1], -1)
        mask = of_row.gather(-1, chosen).transpose(1, 2)
    if mask.dtype == torch.bool:
        changed["attention_mask"] = mask & allowed
    else:
        hidden = torch.finfo(mask.dtype).min
        changed["attention_mask"] = torch.where(allowed, mask, mask.new_full((), hidden))
    return changed
