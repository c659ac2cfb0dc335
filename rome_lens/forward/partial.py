"""The later layers of a model, alone: from any layer on, for later positions alone where the earlier ones stay as they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.forward.bridge import (
    can_be_cut,
    for_rows,
    later_arguments,
    named_arguments,
    only_attends,
    run_bridge,
)
from rome_lens.forward.hooked import frozen_entry, run_hooked_transformer
from rome_lens.forward.kv_cache import LayerPast, Past, call, entering_blocks, pre_hooks
from rome_lens.forward.runs import agreement, evaluating, unembedding_only
from rome_lens.models.hook_names import capture_hooks, has_hooks, has_hooks_after_blocks
from rome_lens.models.lens import (
    LensModel,
    ModelError,
    at_least_float32,
    device,
    is_bridge,
    unembedding,
)

_VOCABULARY_SLICE = 2048
_ROWS_PER_SLICE = 1024
_ROWS_UNDER_HOOKS = 64


class PartialForward:
    """The later layers of a model, from any one on, for sequences of one length.

    ``resume(x, l)`` runs layers ``l, l+1, ...`` on the residual stream ``x`` that enters layer ``l`` and returns the
    stream after the last layer; ``logits`` unembeds chosen rows of it. With the ``Past`` of a ``run`` the later positions
    can be run alone. HookedTransformer does all this itself. On the Bridge each block is called with the arguments (mask,
    rotary angles) that it was given in one full run, cut to the positions that are run.

    Constructing it makes that run and compares the ways once: an architecture whose forward does something this class
    does not know is refused instead of answered wrongly. Where only the way with a past differs (no cache in some layer,
    attention to later positions), ``run`` gives None in its place; so it does while the caller has hooks on the model,
    which may act on a position by its number.

    Raises:
        ModelError: resumed logits differ from the model's own.
    """

    def __init__(
        self,
        model: LensModel,
        tokens: Int[Tensor, " pos"],
        *,
        keep: Sequence[str] = (),
        read: int = 1,
    ) -> None:
        self.model = model
        self.kept: dict[str, Tensor] = {}
        self._arguments: list[dict[str, Any]] = []
        self._length = len(tokens)
        hooked = has_hooks(model)
        only = (
            nullcontext()
            if has_hooks_after_blocks(model)
            else unembedding_only(model, lambda x: x[:, -read:])
        )
        with evaluating(model), torch.no_grad():
            with (
                self._recording_arguments(),
                model.hooks(fwd_hooks=capture_hooks(keep, self.kept)),
                only,
            ):
                with entering_blocks(model) as streams:
                    logits = call(model, tokens[None].to(device(model)))
            self.read_logits = at_least_float32(logits[0, -read:])
            self._has_past = (
                not hooked
                and all(map(only_attends, model.blocks))
                and all(map(can_be_cut, self._arguments))
            )
            self._check(tokens, streams[0])

    def _check(self, tokens: Int[Tensor, " pos"], stream: Float[Tensor, "1 pos d_model"]) -> None:
        """Compare log probabilities of some tokens, resumed on all positions and on the later half, with the
        model's own.

        The past of the later half is that of a run with other later tokens: where earlier positions read later ones, there
        is no past.
        """
        finals = [self.resume(stream, 0)[:, -1:]]
        if self._has_past:
            half = len(tokens) // 2
            other = torch.cat([tokens[:half], (tokens[half:] + 1) % self.model.cfg.d_vocab])
            streams, past = self.run(torch.stack([tokens, other]))
            self._has_past = past is not None
            if past is not None:
                row = torch.ones(1, dtype=torch.long)
                later = self.resume(
                    stream[:, half:], 0, past=lambda layer: past.at(layer, before=half, rows=row)
                )
                finals += [streams[-1][:1, -1:], later[:, -1:]]
        logits = self.read_logits[-1]
        if not torch.isfinite(logits).all():
            raise ModelError(
                f"Of the model's own logits, {int((~torch.isfinite(logits)).sum())} of {len(logits)} are not finite: its weights, "
                "or a hook on it, hold or make NaN or infinite values."
            )
        spread = torch.arange(0, len(logits), max(1, len(logits) // 32), device=logits.device)
        compared = torch.cat([logits.argmax(-1, keepdim=True), spread])
        expected = logits[compared] - logits.logsumexp(-1)
        found = self._log_probs(torch.cat(finals), compared.expand(len(finals), 1, -1))[:, 0]
        errors = (found - expected).abs().amax(1)
        allowed = agreement(stream.dtype) * max(1.0, float(expected.abs().max()))
        if not errors[0] <= allowed:
            raise ModelError(
                f"Resuming this model from layer 0 misses its own log probabilities by {float(errors[0]):.2g}: its forward "
                "pass does more than blocks, final norm, unembedding and soft cap, which is all that is known here."
            )
        self._has_past = self._has_past and bool((errors <= allowed).all())

    @contextmanager
    def _recording_arguments(self) -> Iterator[None]:
        def record(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arguments = named_arguments(block, args, kwargs)
            arguments.pop(
                "hidden_states", None
            )  # the stream, where the model hands it over by its name
            self._arguments.append(arguments)

        with pre_hooks(self.model.blocks if is_bridge(self.model) else (), record):
            yield

    def run(
        self, tokens: Int[Tensor, "row pos"]
    ) -> tuple[tuple[Float[Tensor, "row pos d_model"], ...], Past | None]:
        """A run of all layers: the stream that enters each block and the one that leaves the last; and the run's ``Past``
        where this model can resume from one."""
        run = run_bridge if is_bridge(self.model) else run_hooked_transformer
        with entering_blocks(self.model) as streams:
            final, past = run(self.model, tokens.to(device(self.model)), with_past=self._has_past)
        return (*streams, final), past

    def resume(
        self,
        stream: Float[Tensor, "row pos d_model"],
        layer: int,
        *,
        past: Callable[[int], LayerPast] | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after the last layer, from the stream that enters ``layer``; hooks fire as in any run.

        With a ``past``, which gives what each layer's attention reads, ``stream`` holds positions that follow it, and only
        they are run.
        """
        for i in range(layer, self.model.cfg.n_layers):
            stream = self.block(i, stream, None if past is None else past(i))
        return stream

    def block(
        self, layer: int, stream: Float[Tensor, "row pos d_model"], past: LayerPast | None = None
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after one layer, from the stream that enters it, of positions that follow ``past``."""
        block = self.model.blocks[layer]
        if is_bridge(self.model):
            arguments = for_rows(self._arguments[layer], len(stream))
            out = block(
                stream,
                **(arguments if past is None else later_arguments(arguments, layer, stream, past)),
            )
            return out if isinstance(out, Tensor) else out[0]
        if past is None:
            return block(stream)
        return block(stream, past_kv_cache_entry=frozen_entry(past.key, past.value))

    def logits(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Final norm, unembedding and soft cap of rows of the last stream, in float32 at least."""
        return self._capped(self.model.unembed(self._normalised(stream)[:, None])[:, 0])

    def logits_at(
        self, cells: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> Float[Tensor, "cell d_vocab"]:
        """Logits of chosen cells of some last streams ``[row, pos, d_model]``, each given with its rows and positions.

        Under hooks on final norm or unembedding the streams must hold all positions, and all are unembedded, so that the
        hooks find theirs.
        """
        if not has_hooks_after_blocks(self.model):
            return self.logits(
                torch.cat([stream[rows, positions] for stream, rows, positions in cells])
            )
        whole = ((self.model.unembed(self.model.ln_final(stream)), *at) for stream, *at in cells)
        return self._capped(
            torch.cat([logits[rows, positions] for logits, rows, positions in whole])
        )

    def answer_log_probs(
        self, stream: Float[Tensor, "row read d_model"], answer: Sequence[int]
    ) -> Float[Tensor, " row"]:
        """``sum_i log p(answer_i)``, each token read off its own position of the last stream.

        ``log p(t) = logit_t - log sum_v exp(logit_v)``, the sum taken over slices of the vocabulary, so that the logits
        are never held together: on a large vocabulary that saves most of the time and nearly all of the memory.
        """
        tokens = torch.tensor(answer, device=stream.device).expand(len(stream), -1)[..., None]
        return self._log_probs(stream, tokens).sum((1, 2))

    def _log_probs(
        self, stream: Float[Tensor, "row read d_model"], tokens: Int[Tensor, "row read token"]
    ) -> Float[Tensor, "row read token"]:
        """Log probabilities of some tokens at each of the last positions."""
        if not has_hooks_after_blocks(self.model):
            return self._log_probs_by_slices(stream.flatten(0, 1), tokens.flatten(0, 1)).view(
                tokens.shape
            )
        found = []
        for rows, chosen in zip(
            stream.split(_ROWS_UNDER_HOOKS), tokens.split(_ROWS_UNDER_HOOKS), strict=True
        ):
            whole = rows.new_zeros(
                (len(rows), self._length, rows.shape[-1])
            )  # so that the hooks find their positions
            whole[:, -rows.shape[1] :] = rows
            logits = self._capped(self.model.unembed(self.model.ln_final(whole)))[
                :, -rows.shape[1] :
            ]
            found.append(logits.log_softmax(-1).gather(-1, chosen))
        return torch.cat(found)

    def _log_probs_by_slices(
        self, stream: Float[Tensor, "row d_model"], tokens: Int[Tensor, "row token"]
    ) -> Float[Tensor, "row token"]:
        weight, bias = unembedding(self.model)
        final = self._normalised(stream)
        chosen = torch.empty(tokens.shape, device=final.device, dtype=at_least_float32(final).dtype)
        log_sum = torch.full_like(chosen[:, 0], -torch.inf)
        for start in range(0, weight.shape[1], _VOCABULARY_SLICE):
            part = slice(start, start + _VOCABULARY_SLICE)
            for rows in torch.arange(len(final), device=final.device).split(_ROWS_PER_SLICE):
                logits = self._capped(torch.addmm(bias[part], final[rows], weight[:, part]))
                log_sum[rows] = torch.logaddexp(log_sum[rows], logits.logsumexp(-1))
                # Taken from the same product as the sum, so that a sure answer's rounding cancels.
                inside = (tokens[rows] >= start) & (tokens[rows] < start + logits.shape[1])
                found = logits.gather(-1, (tokens[rows] - start).clamp(0, logits.shape[1] - 1))
                chosen[rows] = torch.where(inside, found, chosen[rows])
        return chosen - log_sum[:, None]

    def _normalised(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        return self.model.ln_final(stream[:, None].contiguous())[:, 0].contiguous()

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.model.cfg.output_logits_soft_cap
        return at_least_float32(cap * torch.tanh(logits / cap) if cap and cap > 0.0 else logits)
