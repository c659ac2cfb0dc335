"""Refuses a fact whose new target the model already answers with."""

import torch

from rome_lens.data.facts import Fact, FactError
from rome_lens.forward.runs import chosen_logits, finite_logits, log_probabilities
from rome_lens.forward.tokens import FactTokens
from rome_lens.models.lens import LensModel
from rome_lens.warning import warn


class LikelyTargetWarning(UserWarning):
    """The model already answers with the new target, but not confidently."""


def refuse_what_is_said_already(model: LensModel, fact: Fact, bare: FactTokens) -> None:
    """Check that the new target is not already the model's answer to the bare prompt.

    The new target is the model's answer if greedy decoding yields it.

    Raises:
        FactError: the new target is the model's answer, with a probability above 0.5. A less
            confident answer only gives a :class:`LikelyTargetWarning`.
    """
    new = torch.tensor(bare.new_answer, dtype=torch.long, device="cpu")
    tokens = torch.cat([bare.tokens, new[:-1]])
    positions = torch.arange(len(bare.tokens) - 1, len(tokens), device="cpu")
    logits = chosen_logits(model, tokens[None], torch.zeros_like(positions), positions).cpu()
    finite_logits(logits)
    probability = float(log_probabilities(logits, new).mean().exp())
    is_answer = bool((logits.argmax(-1) == new).all())
    if bare.answer == bare.new_answer or (is_answer and probability > 0.5):
        raise FactError(
            f"{fact.text!r} is already answered with the new target {fact.new_target!r} "
            f"(p = {probability:.2f}): there is nothing to edit. Give another new target."
        )
    if is_answer:
        warn(
            "The new target is already the model's most likely answer, although not a "
            f"confident one (p = {probability:.2f}). The edit makes the model more confident. That "
            "shows less than changing an answer. rl.top_answers(model, [fact.text]) shows what the "
            "unedited model answers.",
            LikelyTargetWarning,
        )
