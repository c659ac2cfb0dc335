"""The most likely next tokens after a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.arguments import texts, whole_number
from rome_lens.data.facts import FactError
from rome_lens.forward.answers import logits_per_batch
from rome_lens.forward.runs import chosen_logits, finite_logits
from rome_lens.forward.tokens import pad_right, token_ids
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel
from rome_lens.results import Result


@dataclass(frozen=True, kw_only=True, repr=False)
class TopAnswers(Result):
    """The most likely next tokens after a prompt, best first."""

    prompt: str
    """The prompt."""
    tokens: tuple[str, ...]
    """The text of each token."""
    probabilities: tuple[float, ...]
    """The probability of each token, after a softmax over the whole vocabulary."""

    def __str__(self) -> str:
        return ", ".join(
            f"{token!r} {p:.3f}" for token, p in zip(self.tokens, self.probabilities, strict=True)
        )


@visits_model
def top_answers(
    model: LensModel,
    prompts: Sequence[str],
    *,
    count: int = 5,
    fwd_hooks: Sequence[Hook] = (),
    prepend_bos: bool | None = None,
) -> list[TopAnswers]:
    """The ``count`` most likely next tokens after each prompt.

    Args:
        fwd_hooks: hooks to run the model with, such as ``edit.fwd_hooks(model)``.
        prepend_bos: whether a BOS token comes first. None means the model's default.

    Raises:
        FactError: there is no prompt, a prompt is empty, or ``prompts`` is a single text.
        ArgumentError: ``count`` is not a whole number from 1 to the size of the vocabulary.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> [best] = rl.top_answers(model, ["Wanda Brandt lives in the city of"], count=2)
        >>> best.tokens
        (' Pralec', '.')
        >>> [round(p, 2) for p in best.probabilities]
        [0.99, 0.0]
    """
    count = whole_number("count", count, least=1, most=model.cfg.d_vocab)
    prompts = texts("prompts", prompts, error=FactError)
    if not prompts or not all(prompts):
        raise FactError(
            f"prompts is {list(prompts)!r}, expected at least one prompt, and none of them empty."
        )
    rows = [token_ids(model, prompt, prepend_bos=prepend_bos) for prompt in prompts]
    row = torch.arange(len(rows), device="cpu")
    position = torch.tensor([len(ids) - 1 for ids in rows], dtype=torch.long, device="cpu")
    best = _best_in_batches(model, pad_right(rows), row, position, count, fwd_hooks)
    log_p, indices = (torch.cat(parts).cpu() for parts in zip(*best, strict=True))
    probabilities = finite_logits(log_p).exp().tolist()
    tokens = indices.tolist()
    return [
        TopAnswers(
            prompt=prompt,
            tokens=tuple(model.tokenizer.decode([i]) for i in ids),
            probabilities=tuple(p),
        )
        for prompt, ids, p in zip(prompts, tokens, probabilities, strict=True)
    ]


def _best_in_batches(
    model: LensModel,
    tokens: Int[Tensor, "row pos"],
    row: Tensor,
    position: Tensor,
    count: int,
    fwd_hooks: Sequence[Hook],
) -> list[tuple[Float[Tensor, "cell best"], Int[Tensor, "cell best"]]]:
    """The highest log probabilities at the cells ``(row[i], position[i])``, and their tokens.

    They stay on the model's device. The logits of many cells over a large vocabulary would not fit
    in memory at once.
    """
    best = []
    for some in torch.arange(len(row), device="cpu").split(logits_per_batch(model)):
        logits = _logits_of_some(model, tokens, row[some], position[some], fwd_hooks)
        top = logits.topk(count)
        best.append((top.values - logits.logsumexp(-1, keepdim=True), top.indices))
    return best


def _logits_of_some(
    model: LensModel, tokens: Tensor, row: Tensor, position: Tensor, fwd_hooks: Sequence[Hook]
) -> Tensor:
    """Logits at some cells, from a run of only the rows and positions that they need."""
    needed, local = row.unique(return_inverse=True)
    width = int(position.max()) + 1
    return chosen_logits(model, tokens[needed, :width], local, position, fwd_hooks=fwd_hooks)
