"""What a model answers: probabilities of whole answers, and the likeliest next tokens, with or without hooks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.facts import FactError
from rome_lens.forward import chosen_logits, log_probabilities
from rome_lens.models import Hook, LensModel
from rome_lens.tokens import continuation, pad_right, token_ids

_LOGITS_PER_BATCH = 1 << 25


@dataclass(frozen=True, kw_only=True)
class TopAnswers:
    """The likeliest next tokens of a prompt with their probabilities, best first."""

    prompt: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __str__(self) -> str:
        return ", ".join(f"{token!r} {p:.3f}" for token, p in zip(self.tokens, self.probabilities, strict=True))


def answer_log_probs(
    model: LensModel,
    questions: Sequence[tuple[str, str]],
    *,
    fwd_hooks: Sequence[Hook] = (),
    prepend_bos: bool | None = None,
) -> Float[Tensor, " question"]:
    """``log p(answer | prompt)``: the sum over the answer's tokens, natural logarithm.

    Args:
        questions: pairs of prompt and answer; one space joins them.

    Raises:
        FactError: there is no question, or a prompt or answer is empty or ends in white space.
    """
    if not questions:
        raise FactError("There is no question: give at least one pair of prompt and answer.")
    answers = [continuation(model, prompt, answer) for prompt, answer in questions]
    prompts = [token_ids(model, prompt, prepend_bos=prepend_bos) for prompt, _ in questions]
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    reads = [
        (i, len(prompt) - 1 + j, token)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        for j, token in enumerate(answer)
    ]
    row, position, token = (torch.tensor(column) for column in zip(*reads, strict=True))
    logits = _logits_in_batches(model, pad_right(rows), row, position, fwd_hooks)
    pairs = zip(logits, token.split([len(part) for part in logits]), strict=True)
    each = torch.cat([log_probabilities(part, ids) for part, ids in pairs])
    return torch.zeros(len(questions), dtype=each.dtype).index_add_(0, row, each)


def top_answers(
    model: LensModel,
    prompts: Sequence[str],
    *,
    count: int = 5,
    fwd_hooks: Sequence[Hook] = (),
    prepend_bos: bool | None = None,
) -> list[TopAnswers]:
    """The ``count`` likeliest next tokens after each prompt.

    Raises:
        FactError: there is no prompt, or an empty one.
    """
    if not prompts or not all(prompts):
        raise FactError(f"The prompts are {list(prompts)!r}, expected at least one, and none empty.")
    rows = [token_ids(model, prompt, prepend_bos=prepend_bos) for prompt in prompts]
    row = torch.arange(len(rows))
    position = torch.tensor([len(ids) - 1 for ids in rows])
    logits = _logits_in_batches(model, pad_right(rows), row, position, fwd_hooks)
    best = [part.topk(count) for part in logits]
    log_p = [each.values - part.logsumexp(-1, keepdim=True) for each, part in zip(best, logits, strict=True)]
    probabilities = torch.cat(log_p).exp().tolist()
    tokens = torch.cat([each.indices for each in best]).tolist()
    return [
        TopAnswers(prompt=prompt, tokens=tuple(model.tokenizer.decode([i]) for i in ids), probabilities=tuple(p))
        for prompt, ids, p in zip(prompts, tokens, probabilities, strict=True)
    ]


def _logits_in_batches(
    model: LensModel, tokens: Int[Tensor, "row pos"], row: Tensor, position: Tensor, fwd_hooks: Sequence[Hook]
) -> list[Tensor]:
    """Logits at the read cells, a few at a time: a large vocabulary times many cells would not fit in memory."""
    size = max(1, _LOGITS_PER_BATCH // model.cfg.d_vocab)
    cells = torch.arange(len(row)).split(size)
    return [_some_logits(model, tokens, row[some], position[some], fwd_hooks) for some in cells]


def _some_logits(model: LensModel, tokens: Tensor, row: Tensor, position: Tensor, fwd_hooks: Sequence[Hook]) -> Tensor:
    needed, local = row.unique(return_inverse=True)
    width = int(position.max()) + 1
    return chosen_logits(model, tokens[needed, :width], local, position, fwd_hooks=fwd_hooks).cpu()
