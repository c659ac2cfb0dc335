"""A run without and a run with an edit, and the two answers that are compared in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.editing.edit import Edit
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.numbered_edits import NumberedEdits
from rome_lens.forward.module_hooks import hooks_on
from rome_lens.forward.runs import evaluating
from rome_lens.forward.tokens import encode, shared_length, token_labels
from rome_lens.models.hook_names import Hook, capture_hooks, check_has_points
from rome_lens.models.lens import LensModel, device


@dataclass(frozen=True, kw_only=True)
class AnswerTokens:
    """A prompt up to where its true and its new answer part, and the two tokens there."""

    fact: Fact
    """The fact."""
    ids: tuple[int, ...]
    """The prompt's tokens, and those that both answers begin with."""
    labels: tuple[str, ...]
    """The text of each of them."""
    true: int
    """The first token of the true answer that the new one does not share."""
    new: int
    """The same of the new answer."""
    answers: tuple[str, str]
    """The text of these two tokens."""


def answer_tokens(
    model: LensModel, edit: Edit | None, fact: Fact | Record | None, prepend_bos: bool | None
) -> AnswerTokens:
    """The fact's prompt, and the tokens in which its answers differ.

    Args:
        fact: the fact that is asked; None takes the edit's own.

    Raises:
        ArgumentError: there is neither a fact nor an edit that names one; the fact has no new
            target; or one answer is the beginning of the other.
    """
    asked = getattr(edit, "fact", None) if fact is None else as_fact(fact)
    if asked is None:
        raise ArgumentError("Give the fact to ask: the edit does not name one.")
    if asked.new_target is None:
        raise ArgumentError(
            f"{asked.text!r} has no new target: give one, so that there are two answers to compare."
        )
    encoded = encode(model, asked, prepend_bos=prepend_bos)
    place = shared_length(encoded.answer, encoded.new_answer)
    if place == min(len(encoded.answer), len(encoded.new_answer)):
        raise ArgumentError(
            f"The answers {asked.target!r} and {asked.new_target!r} do not part: the tokens of one "
            "begin with those of the other. Compare answers that differ in a token."
        )
    ids = (*encoded.tokens.tolist(), *encoded.answer[:place])
    true, new = encoded.answer[place], encoded.new_answer[place]
    return AnswerTokens(
        fact=asked,
        ids=ids,
        labels=tuple(token_labels(model, ids)),
        true=true,
        new=new,
        answers=(model.tokenizer.decode([true]), model.tokenizer.decode([new])),
    )


def edited_layers(edit: Any) -> tuple[int, ...]:
    """The layers that an edit changes, as far as it says."""
    return tuple(sorted({part.layer for part in getattr(edit, "parts", ())}))


def hooks_of(model: LensModel, edit: Any) -> Sequence[Hook]:
    """The hooks of an edit, after a check that it goes with the model; none for None.

    Raises:
        ArgumentError, ModelError: as for :class:`NumberedEdits`.
    """
    NumberedEdits(model, [edit])
    return () if edit is None else edit.fwd_hooks(model)


def states(
    model: LensModel, ids: Sequence[int], names: Sequence[str], hooks: Sequence[Hook]
) -> tuple[dict[str, Tensor], Tensor]:
    """Activations ``[pos, ...]`` at hook points, and logits ``[pos, d_vocab]``, under hooks.

    Raises:
        ModelError: the model lacks a hook point.
    """
    check_has_points(model, names)
    kept: dict[str, Tensor] = {}
    tokens = torch.tensor([list(ids)], dtype=torch.long, device=device(model))
    # The edit's hooks come first, so that what is kept holds what they add.
    with evaluating(model), torch.no_grad(), hooks_on(model, hooks):
        with hooks_on(model, capture_hooks(names, kept)):
            logits = model(tokens)
    return {name: value[0] for name, value in kept.items()}, logits[0].detach()
