"""The clean run of a fact: whether the model knows the answer, and through which states."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.data.facts import Fact, FactError
from rome_lens.forward.answers import answer_distributions
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import log_probabilities
from rome_lens.forward.tokens import FactTokens
from rome_lens.models.hook_names import EMBED, Component, component_hook
from rome_lens.models.lens import LensModel
from rome_lens.tracing.cells import Grid


class FactNotKnownError(FactError):
    """The model's first choice is another answer, so there is no fact to trace."""


@dataclass(frozen=True, kw_only=True)
class CleanRun:
    """A fact's prompt as it is run, and what the model computes on it without corruption."""

    encoded: FactTokens
    """The fact as the model's tokens."""
    tokens: Int[Tensor, " pos"]
    """The input: the prompt, then the answer's tokens up to the last scored one, without it."""
    answer: tuple[int, ...]
    """The scored tokens. They are predicted at the last ``len(answer)`` positions of ``tokens``."""
    embeddings: Float[Tensor, "pos d_model"]
    """The output of ``hook_embed`` for ``tokens``."""
    states: dict[int, Tensor]
    """The clean outputs of the traced component, by layer."""
    probability: float
    """The probability of the answer."""
    forward: PartialForward
    """The model, ready to run from any layer on."""


def run_clean(
    model: LensModel,
    fact: Fact,
    cells: Grid,
    component: Component,
    prepend_bos: bool | None,
    *,
    require_correct: bool,
) -> CleanRun:
    """Run the fact without corruption.

    Raises:
        FactNotKnownError: ``require_correct`` is True and the model does not know the fact, as
            :func:`rome_lens.knows` decides it.
        ModelError: the model's forward pass cannot be resumed from a layer.
    """
    encoded, answer = cells.encoded, cells.answer.tokens
    if require_correct and answer != encoded.answer:
        [(ids, log_probs)] = answer_distributions(model, [fact], prepend_bos=prepend_bos)
        _check_known(model, fact, log_probs, ids.tolist())
    continued = (*cells.answer.given, *answer[:-1])
    tokens = torch.cat([encoded.tokens, torch.tensor(continued, dtype=torch.long, device="cpu")])
    names = {layer: component_hook(component, layer) for layer in range(model.cfg.n_layers)}
    forward = PartialForward(model, tokens, keep=[EMBED, *names.values()], read=len(answer))
    logits = forward.read_logits
    if require_correct and answer == encoded.answer:
        _check_known(model, fact, logits.log_softmax(-1), answer)
    log_p = log_probabilities(logits, torch.tensor(answer, dtype=torch.long, device="cpu")).sum()
    return CleanRun(
        encoded=encoded,
        tokens=tokens,
        answer=answer,
        embeddings=forward.kept[EMBED][0],
        states={layer: forward.kept[name][0] for layer, name in names.items()},
        # The product over a long answer would underflow float32.
        probability=float(log_p.exp()) if len(answer) == 1 else math.exp(float(log_p)),
        forward=forward,
    )


def _check_known(
    model: LensModel, fact: Fact, log_probs: Float[Tensor, "read d_vocab"], answer: Sequence[int]
) -> None:
    """Refuse a fact unless each token of its answer is the model's first choice in its place."""
    for i, (row, token) in enumerate(zip(log_probs, answer, strict=True)):
        best = int(row.argmax())
        if best != token:
            said = model.tokenizer.decode([*answer[:i], best])
            raise FactNotKnownError(
                f"The model answers {fact.text!r} with {said!r} (p = "
                f"{float(row[best].exp()):.3f}), not with {fact.target!r} (p = "
                f"{float(row[token].exp()):.3f}). Choose a fact that it knows, or trace this "
                "answer anyway with require_correct=False."
            )
