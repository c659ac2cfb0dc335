"""Refusing facts whose new target the model says already."""

import torch

from rome_lens.data.facts import Fact, FactError
from rome_lens.forward.runs import chosen_logits, log_probabilities
from rome_lens.forward.tokens import FactTokens
from rome_lens.models.lens import LensModel
from rome_lens.warning import warn


class LikelyTargetWarning(UserWarning):
    """The new target is what the model says by itself, if not with much confidence."""


def refuse_what_is_said_already(model: LensModel, fact: Fact, bare: FactTokens) -> None:
    """Raise FactError where the new target is the model's likeliest answer, token by token, and a sure one (p > 0.5); warn
    where it is the likeliest and no sure one."""
    new = torch.tensor(bare.new_answer)
    tokens = torch.cat([bare.tokens, new[:-1]])
    positions = torch.arange(len(bare.tokens) - 1, len(tokens))
    logits = chosen_logits(model, tokens[None], torch.zeros_like(positions), positions).cpu()
    probability = float(log_probabilities(logits, new).mean().exp())
    likeliest = bool((logits.argmax(-1) == new).all())
    if bare.answer == bare.new_answer or (likeliest and probability > 0.5):
        raise FactError(
            f"{fact.text!r} is already answered with the new target {fact.new_target!r} (p = {probability:.2f}): there is "
            "nothing to edit. Give another new target."
        )
    if likeliest:
        warn(
            "The new target is the model's likeliest answer already, though no sure one (p <= 0.5): the edit makes it surer, "
            "which is less than to change an answer. rl.top_answers(model, [fact.text]) shows what a model says of itself.",
            LikelyTargetWarning,
        )
