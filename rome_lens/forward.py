"""Parts of a forward pass: without dropout, up to a layer, from a layer on, with only some positions unembedded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.models import (
    EMBED,
    Hook,
    LensModel,
    ModelError,
    at_least_float32,
    b_out,
    capture_hooks,
    component_hook,
    device,
    has_hooks_on_logits,
    is_bridge,
    key_hook,
    resid_pre_hook,
    unembedding,
    w_out,
)

_VOCABULARY_SLICE = 8192
_ROWS_PER_SLICE = 512


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
    return max(1e-2, 16 * torch.finfo(dtype).eps)


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


@dataclass(frozen=True, kw_only=True)
class Past:
    """Attention keys and values of a run, one ``[row, pos, head, d_head]`` pair for each layer.

    In a causal model what a later position reads of the earlier ones does not change when only later ones are changed.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def at(self, layer: int, *, before: int, rows: Int[Tensor, " row"]) -> "LayerPast":
        """Of chosen rows, what lies before a position."""
        return LayerPast(key=self.keys[layer][rows, :before], value=self.values[layer][rows, :before])


@dataclass(frozen=True, kw_only=True)
class LayerPast:
    """One layer's part of a :class:`Past`."""

    key: Tensor
    value: Tensor


class PartialForward:
    """The later layers of a model, from any one on, for sequences of one length.

    ``resume(x, l)`` runs layers ``l, l+1, ...`` on the residual stream ``x`` that enters layer ``l`` and returns the
    stream after the last layer; ``logits`` unembeds chosen rows of it. HookedTransformer does this itself, and with the
    ``Past`` of a run also for the later positions alone. The Bridge can do neither, so that each block is called with the
    arguments (mask, rotary angles) that it was given in one full run, on all positions.

    Constructing it makes that run and compares the ways once: an architecture whose forward does something this class
    does not know is refused instead of answered wrongly.

    Raises:
        ModelError: resumed logits differ from the model's own.
    """

    def __init__(self, model: LensModel, tokens: Int[Tensor, " pos"]) -> None:
        self.model = model
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        layer, position = model.cfg.n_layers // 2, len(tokens) // 2
        name = resid_pre_hook(layer)
        kept: dict[str, Tensor] = {}
        with evaluating(model), torch.no_grad():
            with self._recording_calls(), model.hooks(fwd_hooks=capture_hooks([name], kept)):
                expected, past = self.run(tokens[None])
            found = [self.logits(self.resume(kept[name], layer)[:, -1])]
            if past is not None:
                later = kept[name][:, position:]
                found.append(
                    self.logits(
                        self.resume(later, layer, past=lambda i: past.at(i, before=position, rows=torch.arange(1)))[
                            :, -1
                        ]
                    )
                )
        error = max(float((logits - expected).abs().max()) for logits in found)
        if not error <= agreement(kept[name].dtype) * max(1.0, float(expected.abs().max())):
            raise ModelError(
                f"Resuming this model from layer {layer} misses its own logits by {error:.2g}: its forward pass does more "
                "than blocks, final norm, unembedding and soft cap, which is all that is known here."
            )

    @contextmanager
    def _recording_calls(self) -> Iterator[None]:
        if not is_bridge(self.model):
            yield
            return

        def record(_block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

        handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in self.model.blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, tokens: Int[Tensor, "row pos"]) -> tuple[Float[Tensor, "row d_vocab"], Past | None]:
        """A full run: the last position's logits, and the run's ``Past`` where the model class can resume from one."""
        tokens = tokens.to(device(self.model))
        with last_position_logits(self.model):
            if is_bridge(self.model):
                return at_least_float32(self.model(tokens, use_cache=False)[:, -1]), None
            cache = new_key_value_cache(self.model, len(tokens))
            everything = torch.ones_like(
                tokens
            )  # else padding is guessed from the tokens, as it is not without a cache
            out = self.model(tokens, past_kv_cache=cache, attention_mask=everything)
            logits = at_least_float32(out[:, -1])
        return logits, Past(
            keys=tuple(entry.past_keys for entry in cache.entries),
            values=tuple(entry.past_values for entry in cache.entries),
        )

    def resume(
        self, stream: Float[Tensor, "row pos d_model"], layer: int, *, past: Callable[[int], LayerPast] | None = None
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after the last layer, from the stream that enters ``layer``; hooks fire as in any run.

        With a ``past``, ``stream`` holds the positions that follow it, and only they are run.
        """
        for i in range(layer, self.model.cfg.n_layers):
            stream = self.block(i, stream, None if past is None else past(i))
        return stream

    def block(self, layer: int, stream: Tensor, past: LayerPast | None = None) -> Tensor:
        block = self.model.blocks[layer]
        if is_bridge(self.model):
            args, kwargs = self._calls[layer]
            out = block(stream, *args, **kwargs)
            return out[0] if isinstance(out, tuple) else out
        if past is None:
            return block(stream)
        return block(stream, past_kv_cache_entry=frozen_entry(past.key, past.value))

    def logits(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Final norm, unembedding and soft cap of rows of the last stream, in float32 at least."""
        return self._capped(self.model.unembed(self._normalised(stream)[:, None])[:, 0])

    def answer_log_probs(
        self, stream: Float[Tensor, "row read d_model"], answer: Sequence[int]
    ) -> Float[Tensor, " row"]:
        """``sum_i log p(answer_i)``, each token read off its own position of the last stream.

        ``log p(t) = logit_t - log sum_v exp(logit_v)``, the sum taken over slices of the vocabulary, so that the logits
        are never held together: on a large vocabulary that saves most of the time and nearly all of the memory.
        """
        flat = stream.flatten(0, 1)
        tokens = torch.tensor(answer, device=flat.device).repeat(len(stream))
        if has_hooks_on_logits(self.model):
            parts = zip(flat.split(_ROWS_PER_SLICE), tokens.split(_ROWS_PER_SLICE), strict=True)
            log_probs = torch.cat([log_probabilities(self.logits(rows), chosen) for rows, chosen in parts])
        else:
            log_probs = self._log_probs(self._normalised(flat), tokens)
        return log_probs.view(len(stream), len(answer)).sum(1)

    def _log_probs(self, final: Float[Tensor, "row d_model"], tokens: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        weight, bias = unembedding(self.model)
        chosen = torch.empty(len(final), device=final.device, dtype=at_least_float32(final).dtype)
        log_sum = torch.full_like(chosen, -torch.inf)
        for start in range(0, weight.shape[1], _VOCABULARY_SLICE):
            part = slice(start, start + _VOCABULARY_SLICE)
            for rows in torch.arange(len(final), device=final.device).split(_ROWS_PER_SLICE):
                logits = self._capped(torch.addmm(bias[part], final[rows], weight[:, part]))
                log_sum[rows] = torch.logaddexp(log_sum[rows], logits.logsumexp(-1))
                # Taken from the same product as the sum, so that a sure answer's rounding cancels.
                here = (tokens[rows] >= start) & (tokens[rows] < start + logits.shape[1])
                chosen[rows[here]] = logits[here, tokens[rows[here]] - start]
        return chosen - log_sum

    def _normalised(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        return self.model.ln_final(stream[:, None].contiguous())[:, 0].contiguous()

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.model.cfg.output_logits_soft_cap
        return at_least_float32(cap * torch.tanh(logits / cap) if cap and cap > 0.0 else logits)


def new_key_value_cache(model: LensModel, rows: int) -> Any:
    """An empty key-value cache of HookedTransformer."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, device(model), rows)


def frozen_entry(keys: Tensor, values: Tensor) -> Any:
    """One layer's entry of a key-value cache of HookedTransformer, which a run reads and does not extend."""
    from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

    return TransformerLensKeyValueCacheEntry(past_keys=keys, past_values=values, frozen=True)
