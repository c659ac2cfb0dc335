"""The clean run of a fact: does the model know the answer, with what probability, and through which states."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.data.facts import Fact, FactError
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import log_probabilities
from rome_lens.forward.tokens import FactTokens
from rome_lens.models.hook_names import EMBED, component_hook
from rome_lens.models.lens import LensModel


class FactNotKnownError(FactError):
    """The model's first answer is another one, so that there is no fact to trace."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """A fact as it is run, and its clean run.

    Attributes:
        tokens: what is fed: the prompt, and of a whole answer all tokens but the last.
        answer: the scored tokens; the model predicts them at the last ``len(answer)`` positions of ``tokens``.
        embeddings: what ``hook_embed`` gives for ``tokens``.
        states: the component's clean states by layer.
        clean: probability of the answer.
    """

    encoded: FactTokens
    tokens: Int[Tensor, " pos"]
    answer: tuple[int, ...]
    embeddings: Float[Tensor, "pos d_model"]
    states: dict[int, Tensor]
    clean: float
    forward: PartialForward


def recall(
    model: LensModel,
    fact: Fact,
    encoded: FactTokens,
    answer: Sequence[int],
    component: str,
    *,
    require_correct: bool,
) -> Recall:
    """Run the fact clean.

    Raises:
        FactNotKnownError: the model's first choice is another token than the answer's, and ``require_correct`` is True.
        ModelError: the model's forward pass cannot be resumed.
    """
    tokens = torch.cat([encoded.tokens, torch.tensor(answer[:-1], dtype=encoded.tokens.dtype)])
    names = {layer: component_hook(component, layer) for layer in range(model.cfg.n_layers)}
    forward = PartialForward(model, tokens, keep=[EMBED, *names.values()], read=len(answer))
    logits = forward.read_logits
    if require_correct:
        check_known(model, fact, logits.log_softmax(-1), answer)
    return Recall(
        encoded=encoded,
        tokens=tokens,
        answer=tuple(answer),
        embeddings=forward.kept[EMBED][0],
        states={layer: forward.kept[name][0] for layer, name in names.items()},
        clean=float(log_probabilities(logits, torch.tensor(answer)).sum().exp()),
        forward=forward,
    )


def check_known(
    model: LensModel, fact: Fact, log_probs: Float[Tensor, "read d_vocab"], answer: Sequence[int]
) -> None:
    """Refuse a fact of whose answer a token is not the model's first choice, given the tokens before it."""
    for i, (row, token) in enumerate(zip(log_probs, answer, strict=True)):
        best = int(row.argmax())
        if best != token:
            said = model.tokenizer.decode([*answer[:i], best])
            raise FactNotKnownError(
                f"The model answers {fact.text!r} with {said!r} (p = {float(row[best].exp()):.3f}), "
                f"not with {fact.target!r} (p = {float(row[token].exp()):.3f}). "
                "Choose a fact that it knows, or trace the answer all the same with require_correct=False."
            )
