"""What only HookedTransformer does in a forward pass.

``bridge.py`` holds the same names for TransformerBridge.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rome_lens.forward.kv_cache import LayerPast, Past
from rome_lens.forward.memory import bytes_per_batch
from rome_lens.models.convert import from_memory, in_memory, is_as_in_memory
from rome_lens.models.hook_names import Hook, component_hook, mark_as_ours
from rome_lens.models.lens import LensModel, device, post_norm
from rome_lens.models.visits import Temporary

_SCALE = "rome_lens_scale"
# A second copy of the blocks' weights may take as much memory as so many batches.
_BATCHES_FOR_WEIGHTS = 4


class HookedBackend:
    """Forward passes of a HookedTransformer."""

    def __init__(self, model: LensModel) -> None:
        self.model = model

    def modules(self) -> list[torch.nn.Module]:
        """The modules in a forward pass."""
        return list(self.model.modules())

    # Whole runs

    def run_plainly(self, tokens: Tensor) -> Tensor:
        """The model's own logits, without a key-value cache."""
        return self.model(tokens)

    def run_to_last_stream(self, tokens: Tensor) -> Tensor:
        """The residual stream that leaves the last layer."""
        return self.model(tokens, stop_at_layer=self.model.cfg.n_layers)

    def run_with_past(self, tokens: Tensor) -> tuple[Tensor, Past | None]:
        """The residual stream that leaves the last layer, and the run's ``Past``.

        The past is None where :meth:`can_generate_from_cache` is False.
        """
        if not self.can_generate_from_cache():
            return self.run_to_last_stream(tokens), None
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cache = TransformerLensKeyValueCache.init_cache(
            self.model.cfg, device(self.model), len(tokens)
        )
        final = self.model(
            tokens,
            past_kv_cache=cache,
            # Without a mask, a run with a cache guesses the padding from the tokens, and a run
            # without one does not.
            attention_mask=torch.ones_like(tokens),
            stop_at_layer=self.model.cfg.n_layers,
        )
        return final, Past(
            attn_k=tuple(entry.past_keys for entry in cache.entries),
            attn_v=tuple(entry.past_values for entry in cache.entries),
        )

    def logit_scale(self) -> float:
        """The factor between the unembedding's output and the logits: none here."""
        return 1.0

    # Single blocks

    def weights_laid_out(self) -> AbstractContextManager[None]:
        """Inside, the weights of the blocks lie in memory as the blocks read them.

        Otherwise each call of a block copies them first. Their values do not change, and afterwards
        each parameter holds the very tensor that it held before. Where memory has no room for a
        second copy of the blocks, nothing is done.
        """
        first = self.model.blocks[0].named_parameters()
        if all(is_as_in_memory(name, parameter.data) for name, parameter in first):
            return nullcontext()  # so are the other blocks, or little is lost
        named = [
            (name, parameter)
            for name, parameter in self.model.blocks.named_parameters()
            if not is_as_in_memory(name, parameter.data)
        ]
        size = sum(parameter.nbytes for _, parameter in named)
        if size > _BATCHES_FOR_WEIGHTS * bytes_per_batch(device(self.model)):
            return nullcontext()
        before = [parameter.data for _, parameter in named]

        def put() -> None:
            for name, parameter in named:
                parameter.data = from_memory(name, in_memory(name, parameter.data))

        def take() -> None:
            for (_, parameter), data in zip(named, before, strict=True):
                parameter.data = data

        return Temporary(self.model, put=put, take=take)

    def recording_arguments(self) -> AbstractContextManager[list[dict[str, Any]]]:
        """Inside, the list collects the arguments of each block that runs, without the stream.

        Here they are empty for every layer, because a block needs nothing but the stream.
        """
        return nullcontext([{} for _ in self.model.blocks])

    def can_run_later_positions(self, arguments: Sequence[dict[str, Any]]) -> bool:
        """Whether blocks with these arguments can be called for later positions alone.

        They cannot where a run's length changes what attention computes (Qwen 1): padded rows
        would be longer than their tokens.
        """
        return not (self.model.cfg.use_logn_attn or self.model.cfg.use_dynamic_ntk_rope)

    def run_block(
        self, layer: int, stream: Tensor, arguments: dict[str, Any], past: LayerPast | None
    ) -> Tensor:
        """The stream after a block, at all positions or at the positions that follow ``past``."""
        block = self.model.blocks[layer]
        if past is None:
            return block(stream)
        from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

        # A frozen entry is read by the run and not extended.
        entry = TransformerLensKeyValueCacheEntry(
            past_keys=past.attn_k, past_values=past.attn_v, frozen=True
        )
        if past.lengths is None:
            return block(stream, past_kv_cache_entry=entry)
        # The block counts positions from the first token that the mask does not hide. Padding on
        # the right may lie beyond the model's context, which has no positions for it.
        in_context = past.positions(stream.shape[1]) < self.model.cfg.n_ctx
        mask = torch.cat([past.own(), in_context], dim=1).long()
        return block(stream, past_kv_cache_entry=entry, attention_mask=mask)

    # Generation

    def can_generate_from_cache(self) -> bool:
        """Whether the model's key-value cache has room for its keys.

        It does not where the model repeats them for each query head
        (``set_ungroup_grouped_query_attention``).
        """
        return not self.model.cfg.ungroup_grouped_query_attention

    def attending_to_all(self) -> AbstractContextManager[None]:
        """Inside, ``generate`` treats no token as padding, whatever its id.

        HookedTransformer's ``generate`` guesses the padding from the tokens. A BOS with the id of
        the padding token would be masked, and positions would be counted without it.
        """
        model = self.model

        def unmasked(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Any:
                if attention_mask is not None:
                    options["attention_mask"] = torch.ones_like(attention_mask)
                return method(*args, **options)

            return call

        names = ("get_residual", "forward")
        # A caller may have set these on the instance, where they hide the methods of the class.
        own = {name: vars(model)[name] for name in names if name in vars(model)}

        def put() -> None:
            for name in names:
                setattr(model, name, unmasked(getattr(model, name)))

        def take() -> None:
            for name in names:
                model.__dict__.pop(name, None)
            model.__dict__.update(own)

        return Temporary(model, put=put, take=take)

    # The raw output of W_out

    def raw_output_points(self, layer: int) -> tuple[str, ...]:
        """Names of the hook points where :meth:`raw_output_hooks` adds."""
        if post_norm(self.model, layer) is None:
            return (component_hook("mlp", layer),)
        norm = f"blocks.{layer}.ln2_post"
        return (f"{norm}.hook_scale", f"{norm}.hook_normalized")

    def first_hook_after_raw_output(self, layer: int) -> str:
        """Name of the first hook point after those of :meth:`raw_output_points`."""
        return component_hook("resid" if post_norm(self.model, layer) is None else "mlp", layer)

    def raw_output_hooks(self, layer: int, change: Callable[[Tensor], Tensor]) -> list[Hook]:
        """Hooks that add ``change(x)`` to the raw output of ``W_out``.

        ``x`` is a tensor with the shape and dtype of the output. Where no norm follows ``W_out``,
        its raw output is at ``hook_mlp_out``.

        With a norm (Gemma 2 and 3), the change belongs before the norm. The norm's input is rebuilt
        from its two hooks, as normalised value times scale, and normalised again after the change.
        The scale is passed on in the hook point's context, and several such changes compose.
        Where the change is zero, the norm's output stays bit for bit.
        """

        def add(value: Tensor, hook: Any) -> Tensor:
            return value + change(value)

        if post_norm(self.model, layer) is None:
            return [(component_hook("mlp", layer), mark_as_ours(add))]

        model = self.model
        scale_point, normalised_point = self.raw_output_points(layer)

        def context() -> dict[str, Any]:  # looked up each time, because clear_contexts replaces it
            return model.hook_dict[normalised_point].ctx

        def remember_scale(scale: Tensor, hook: Any) -> None:
            context()[_SCALE] = scale

        def renormalise(normalised: Tensor, hook: Any) -> Tensor:
            added, scale = change(normalised), context()[_SCALE]
            raw = normalised * scale + added
            new_scale = (
                raw.pow(2).mean(-1, keepdim=True) + model.blocks[layer].ln2_post.eps
            ).sqrt()
            # Where nothing is added, the rebuilt input of the norm would differ by its rounding.
            # For a gradient, it is needed all the same.
            unchanged = (added == 0).all(-1, keepdim=True) & (not added.requires_grad)
            context()[_SCALE] = torch.where(unchanged, scale, new_scale)
            return torch.where(unchanged, normalised, raw / new_scale)

        def forget_scale(_value: Tensor, hook: Any) -> None:
            context().pop(_SCALE, None)

        return [
            (scale_point, mark_as_ours(remember_scale)),
            (normalised_point, mark_as_ours(renormalise)),
            (component_hook("mlp", layer), mark_as_ours(forget_scale)),
        ]
