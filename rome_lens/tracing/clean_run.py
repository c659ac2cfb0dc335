"""The clean run of a fact: whether the model knows the answer, and through which states."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.data.facts import Fact, FactError
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import log_probabilities
from rome_lens.forward.tokens import FactTokens
from rome_lens.models.hook_names import EMBED, Component, component_hook
from rome_lens.models.lens import LensModel


class FactNotKnownError(FactError):
    """The model's first choice is another answer, so there is no fact to trace."""


@dataclass(frozen=True, kw_only=True)
class CleanRun:
    """A fact's prompt as it is run, and what the model computes on it without corruption."""

    encoded: FactTokens
    """The fact as the model's tokens."""
    tokens: Int[Tensor, " pos"]
    """The input: the prompt, followed by all scored tokens of the answer but the last."""
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
    encoded: FactTokens,
    answer: Sequence[int],
    component: Component,
    *,
    require_correct: bool,
) -> CleanRun:
    """Run the fact without corruption.

    Raises:
        FactNotKnownError: ``require_correct`` is True and the model's first choice is not the
            answer.
        ModelError: the model's forward pass cannot be resumed from a layer.
    """
    tokens = torch.cat([encoded.tokens, torch.tensor(answer[:-1], dtype=torch.long, device="cpu")])
    names = {layer: component_hook(component, layer) for layer in range(model.cfg.n_layers)}
    forward = PartialForward(model, tokens, keep=[EMBED, *names.values()], read=len(answer))
    logits = forward.read_logits
    if require_correct:
        _check_known(model, fact, logits.log_softmax(-1), answer)
    return CleanRun(
        encoded=encoded,
        tokens=tokens,
        answer=tuple(answer),
        embeddings=forward.kept[EMBED][0],
        states={layer: forward.kept[name][0] for layer, name in names.items()},
        probability=float(
            log_probabilities(logits, torch.tensor(answer, dtype=torch.long, device="cpu"))
            .sum()
            .exp()
        ),
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
