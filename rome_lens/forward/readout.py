"""From the last residual stream to log probabilities: final norm, unembedding, scale, soft cap.

The functions here give what the model's own forward pass gives, at chosen rows and positions only.
The caller's hooks on the final norm or on the unembedding must find all positions in their places.
Under such hooks all of them are unembedded.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.forward.backend import backend_of
from rome_lens.forward.memory import bytes_per_slice
from rome_lens.models.hook_names import has_hooks_after_blocks
from rome_lens.models.lens import LensModel, at_least_float32, final_norm, unembedding

# Logits are summed in slices. Products of fewer words or rows than these are slower on a CPU, even
# where they fit its caches better.
_LEAST_WORDS = 2048
_LEAST_ROWS = 1024
_ROWS_UNDER_HOOKS = 64


def logits_of_rows(
    model: LensModel, stream: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits of rows of the last stream, in at least float32."""
    return finished(model, model.unembed(_normalised(model, stream)[:, None])[:, 0])


def logits_of_cells(
    model: LensModel, cells: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Float[Tensor, "cell d_vocab"]:
    """Logits of chosen cells of some last streams.

    Args:
        cells: triples of a last stream ``[row, pos, d_model]``, the rows to read in it, and the
            position of each. Under hooks on the final norm or the unembedding, the streams must
            hold all positions.
    """
    if not has_hooks_after_blocks(model):
        chosen = [stream[rows, positions] for stream, rows, positions in cells]
        return logits_of_rows(model, torch.cat(chosen))
    whole = ((model.unembed(final_norm(model, stream)), *at) for stream, *at in cells)
    return finished(
        model, torch.cat([logits[rows, positions] for logits, rows, positions in whole])
    )


def log_probs_of_tokens(
    model: LensModel,
    stream: Float[Tensor, "row read d_model"],
    tokens: Int[Tensor, "row read token"],
    *,
    length: int,
) -> Float[Tensor, "row read token"]:
    """Log probabilities of some tokens at each of the last positions.

    ``length`` is the number of tokens in the whole sequences.
    """
    if not has_hooks_after_blocks(model):
        flat = _log_probs_by_slices(model, stream.flatten(0, 1), tokens.flatten(0, 1))
        return flat.view(tokens.shape)
    read = stream.shape[1]
    log_probs = []
    for rows, chosen in zip(
        stream.split(_ROWS_UNDER_HOOKS), tokens.split(_ROWS_UNDER_HOOKS), strict=True
    ):
        whole = rows.new_zeros((len(rows), length, rows.shape[-1]))
        whole[:, -read:] = rows
        logits = finished(model, model.unembed(final_norm(model, whole)))[:, -read:]
        log_probs.append(logits.log_softmax(-1).gather(-1, chosen))
    return torch.cat(log_probs)


def _log_probs_by_slices(
    model: LensModel, stream: Float[Tensor, "row d_model"], tokens: Int[Tensor, "row token"]
) -> Float[Tensor, "row token"]:
    """``log p(t) = logit_t - log sum_v exp(logit_v)``, summed by slices of the vocabulary.

    The logits are never held all at once. On a large vocabulary that saves most of the time and
    nearly all of the memory.
    """
    weight, bias = unembedding(model)
    final = _normalised(model, stream)
    d_vocab, kind = weight.shape[1], at_least_float32(final).dtype
    entries = max(1, bytes_per_slice(final.device) // kind.itemsize)
    rows = max(1, min(len(final), max(_LEAST_ROWS, entries // _LEAST_WORDS)))
    words = max(_LEAST_WORDS, entries // rows)
    log_probs = []
    for some, wanted in zip(final.split(rows), tokens.split(rows), strict=True):
        chosen = torch.zeros(wanted.shape, device=final.device, dtype=kind)
        log_sum = torch.full_like(chosen[:, 0], -torch.inf)
        for start in range(0, d_vocab, words):
            part = slice(start, start + words)
            logits = finished(model, torch.addmm(bias[part], some, weight[:, part]))
            log_sum = torch.logaddexp(log_sum, logits.logsumexp(-1))
            # Taken from the same product as the sum, so that the rounding of a near-certain answer
            # cancels.
            inside = (wanted >= start) & (wanted < start + logits.shape[1])
            here = logits.gather(-1, (wanted - start).clamp(0, logits.shape[1] - 1))
            chosen = torch.where(inside, here, chosen)
        log_probs.append(chosen - log_sum[:, None])
    return torch.cat(log_probs)


def finished(model: LensModel, logits: Tensor) -> Tensor:
    """Logits after what a model does to the unembedding's output, in at least float32.

    That is a scale (Granite, Cohere) or a soft cap (Gemma 2), if it has one.
    """
    scale, cap = backend_of(model).logit_scale(), model.cfg.output_logits_soft_cap
    if scale != 1.0:
        logits = logits * scale
    return at_least_float32(cap * torch.tanh(logits / cap) if cap and cap > 0.0 else logits)


def _normalised(
    model: LensModel, stream: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_model"]:
    return final_norm(model, stream[:, None].contiguous())[:, 0].contiguous()
