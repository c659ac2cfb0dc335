"""Run only the later layers of a model.

Where the earlier positions stay as they are, only the later positions are run.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rome_lens.forward.backend import backend_of
from rome_lens.forward.kv_cache import LayerPast, Past
from rome_lens.forward.module_hooks import entering_blocks, hooks_on, unembedding_only
from rome_lens.forward.readout import log_probs_of_tokens, logits_of_cells, logits_of_rows
from rome_lens.forward.runs import agreement, evaluating
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import (
    capture_hooks,
    check_has_points,
    has_hooks,
    has_hooks_after_blocks,
)
from rome_lens.models.lens import LensModel, ModelError, at_least_float32, device, unembedding

Check = Literal["all", "past", "none"]
"""Which resumed results a :class:`PartialForward` compares with the model's own."""


class ResumeError(ModelError):
    """What the later layers alone give is not what the whole model gives."""


class PartialForward:
    """The later layers of a model, from any layer on, for sequences of one length.

    ``resume(x, l)`` runs layers ``l, l+1, ...`` on the residual stream ``x`` that enters layer
    ``l``, and returns the stream after the last layer. ``logits`` unembeds chosen rows of that
    stream. With the ``Past`` of a ``run``, later positions can be run without the earlier ones.

    The constructor makes one full run. It keeps the arguments (mask, rotary angles) that each block
    was given, and compares the resumed results with the model's own. An architecture whose forward
    pass does something unknown here is refused, instead of being answered wrongly. Where only later
    positions fail to agree (a layer without a cache, or attention to later positions), ``run``
    returns None in the place of the past. It does so too while the caller has hooks on the model,
    because those may act on a position by its number.

    With ``check="none"`` nothing is compared. The caller must then compare what it computes, with
    :meth:`check_log_probs`. With ``check="past"`` only what is resumed from a past is compared,
    where there is one. The caller must then resume from it.

    Args:
        tokens: one sequence of the length that is to be run.
        keep: names of hook points whose activations in the full run are stored in ``kept``.
        read: the positions whose logits in the full run are stored in ``read_logits``, or a number
            of last positions.
        check: which resumed results are compared.

    Raises:
        ModelError: the model's logits are not finite.
        ResumeError: the resumed logits differ from them.
    """

    @visits_model
    def __init__(
        self,
        model: LensModel,
        tokens: Int[Tensor, " pos"],
        *,
        keep: Sequence[str] = (),
        read: int | Int[Tensor, " read"] = 1,
        check: Check = "all",
    ) -> None:
        self.model = model
        self.kept: dict[str, Tensor] = {}
        self._backend = backend_of(model)
        self._length = len(tokens)
        check_has_points(model, keep)
        unembedding(model)  # checks that it reads the stream
        caller_has_hooks = has_hooks(model)
        last = range(len(tokens))
        positions = list(last[-read:]) if isinstance(read, int) else read.tolist()
        whole = has_hooks_after_blocks(model)  # these hooks must find all positions
        only_read_positions = (
            nullcontext() if whole else unembedding_only(model, lambda stream: stream[:, positions])
        )
        with evaluating(model), torch.no_grad():
            with (
                self._backend.recording_arguments() as arguments,
                hooks_on(model, capture_hooks(keep, self.kept)),
                only_read_positions,
                entering_blocks(model) as streams,
            ):
                logits = self._backend.run_plainly(tokens[None].to(device(model)))
            self._arguments: list[dict[str, Any]] = arguments
            self._dtype = streams[0].dtype
            self.read_logits = at_least_float32(logits[0, positions] if whole else logits[0])
            self._has_past = not caller_has_hooks and self._backend.can_run_later_positions(
                arguments
            )
            self._check_is_finite()
            if check != "none":
                self._check(tokens, streams[0], check)

    def _check_is_finite(self) -> None:
        logits = self.read_logits[-1]
        if not torch.isfinite(logits).all():
            raise ModelError(
                f"Of the model's own logits, {int((~torch.isfinite(logits)).sum())} of "
                f"{len(logits)} are not finite: its weights, or a hook on it, hold or produce NaN "
                "or infinite values."
            )

    def check_log_probs(self, log_p: Float[Tensor, "read d_vocab"]) -> None:
        """Compare log probabilities at the positions ``read`` with the model's own.

        Raises:
            ResumeError: they do not agree.
        """
        own = self.read_logits
        compared = _compared_tokens(own)
        expected = own.gather(-1, compared) - own.logsumexp(-1, keepdim=True)
        error = float((log_p.detach().gather(-1, compared) - expected).abs().max())
        allowed = agreement(self._dtype) * max(1.0, float(expected.abs().max()))
        if not error <= allowed:
            raise ResumeError(_misses(error))

    def _check(
        self, tokens: Int[Tensor, " pos"], stream: Float[Tensor, "1 pos d_model"], check: Check
    ) -> None:
        """Compare resumed log probabilities of some tokens with the model's own."""
        if self._has_past:
            errors, allowed = self._errors(self._resumed_from_a_past(tokens, stream))
            self._has_past = self._has_past and bool((errors <= allowed).all())
        if check == "all" or not self._has_past:
            errors, allowed = self._errors([self.resume(stream, 0)[:, -1:]])
            if not errors[0] <= allowed:
                raise ResumeError(_misses(float(errors[0])))

    def _errors(
        self, finals: Sequence[Float[Tensor, "1 1 d_model"]]
    ) -> tuple[Float[Tensor, " way"], float]:
        """How far each of these last streams misses the model's own log probabilities.

        And how far it may.
        """
        logits = self.read_logits[-1]
        compared = _compared_tokens(logits)
        expected = logits[compared] - logits.logsumexp(-1)
        streams = torch.cat([*finals])
        resumed = self._log_probs(streams, compared.expand(len(streams), 1, -1))[:, 0]
        allowed = agreement(self._dtype) * max(1.0, float(expected.abs().max()))
        return (resumed - expected).abs().amax(1), allowed

    def _resumed_from_a_past(
        self, tokens: Int[Tensor, " pos"], stream: Float[Tensor, "1 pos d_model"]
    ) -> list[Float[Tensor, "1 1 d_model"]]:
        """The last stream at the last position, in every way that needs a past.

        The first is a run that keeps it, the second resumes on the later half, and the third
        resumes rows with pasts of different lengths. The pasts come from a run with other later
        tokens. So where earlier positions read later ones, the results differ, and there is no
        past.
        """
        half = len(tokens) // 2
        other = torch.cat([tokens[:half], (tokens[half:] + 1) % self.model.cfg.d_vocab])
        streams, past = self.run(torch.stack([tokens, other]))
        final = streams[-1][:1, -1:]
        if past is None:
            self._has_past = False
            return [final]
        row = torch.ones(1, dtype=torch.long, device="cpu")
        later = self.resume(
            stream[:, half:], 0, past=lambda layer: past.at(layer, before=half, rows=row)
        )
        return [
            final,
            later[:, -1:],
            *self._resumed_in_padded_rows(stream, past, (half // 2, half)),
        ]

    def _resumed_in_padded_rows(
        self, stream: Float[Tensor, "1 pos d_model"], past: Past, starts: Sequence[int]
    ) -> list[Float[Tensor, "1 1 d_model"]]:
        """The last stream at the last position, from rows that begin at different positions."""
        before = torch.tensor(starts, dtype=torch.long, device="cpu")
        rows = torch.ones_like(before)
        padded = pad_sequence([stream[0, start:] for start in starts], batch_first=True)
        finals = self.resume(padded, 0, past=lambda layer: past.at(layer, before=before, rows=rows))
        last = [self._length - 1 - start for start in starts]
        return [final[None, at : at + 1] for final, at in zip(finals, last, strict=True)]

    @property
    def length(self) -> int:
        """The number of tokens of the sequences that are run."""
        return self._length

    @property
    def has_past(self) -> bool:
        """Whether later positions can be run without the earlier ones."""
        return self._has_past

    def embedded(self, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
        """The residual stream that enters the first block."""
        return self.model(tokens.to(device(self.model)), stop_at_layer=0)

    def run(
        self, tokens: Int[Tensor, "row pos"]
    ) -> tuple[tuple[Float[Tensor, "row pos d_model"], ...], Past | None]:
        """Run all layers on new tokens.

        Returns:
            The streams that enter each block, followed by the stream that leaves the last; and the
            run's ``Past``, or None where this model cannot resume from one.
        """
        tokens = tokens.to(device(self.model))
        past: Past | None = None
        with entering_blocks(self.model) as streams:
            if self._has_past:
                final, past = self._backend.run_with_past(tokens)
            else:
                final = self._backend.run_to_last_stream(tokens)
        return (*streams, final), past

    def resume(
        self,
        stream: Float[Tensor, "row pos d_model"],
        layer: int,
        *,
        past: Callable[[int], LayerPast] | None = None,
        stop: int | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after the last layer, from the stream that enters ``layer``.

        Hooks fire as in any run.

        Args:
            past: a function that returns what the attention of a layer reads. ``stream`` then holds
                only the positions that follow it, and only they are run. Where rows have pasts of
                different lengths, each row of ``stream`` begins where its own past ends, and may be
                padded on the right. None means that ``stream`` holds all positions.
            stop: end before this layer instead of after the last one.
        """
        for i in range(layer, self.model.cfg.n_layers if stop is None else stop):
            stream = self.block(i, stream, None if past is None else past(i))
        return stream

    def block(
        self, layer: int, stream: Float[Tensor, "row pos d_model"], past: LayerPast | None = None
    ) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after one layer, from the stream that enters it.

        ``stream`` holds all positions, or those that follow ``past``.
        """
        return self._backend.run_block(layer, stream, self._arguments[layer], past)

    def logits(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Logits of rows of the last stream, in at least float32."""
        return logits_of_rows(self.model, stream)

    def logits_at(
        self, cells: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> Float[Tensor, "cell d_vocab"]:
        """Logits of chosen cells of some last streams; see :func:`readout.logits_of_cells`.

        Under hooks on the final norm or the unembedding, the streams must hold all positions.
        """
        return logits_of_cells(self.model, cells)

    def answer_log_probs(
        self, stream: Float[Tensor, "row read d_model"], answers: Int[Tensor, "row read"]
    ) -> Float[Tensor, " row"]:
        """``sum_i log p(answer_i)``, with token ``i`` read at position ``i`` of the last stream."""
        return self._log_probs(stream, answers.to(stream.device)[..., None]).sum((1, 2))

    def _log_probs(
        self, stream: Float[Tensor, "row read d_model"], tokens: Int[Tensor, "row read token"]
    ) -> Float[Tensor, "row read token"]:
        return log_probs_of_tokens(self.model, stream, tokens, length=self._length)


def _compared_tokens(logits: Float[Tensor, "*read d_vocab"]) -> Int[Tensor, "*read token"]:
    """The likeliest token at each position, and some that are spread over the vocabulary."""
    size = logits.shape[-1]
    spread = torch.arange(0, size, max(1, size // 32), device=logits.device)
    best = logits.argmax(-1, keepdim=True)
    return torch.cat([best, spread.expand(*best.shape[:-1], -1)], dim=-1)


def _misses(error: float) -> str:
    return (
        f"Resuming this model from one of its layers misses its own log probabilities by "
        f"{error:.2g}: its forward pass does more than blocks, final norm, unembedding, scale and "
        "soft cap, which is all that is supported here."
    )
