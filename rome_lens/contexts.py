"""A fact's prompt in contexts, each with the new target behind it: the rows that every optimisation of an edit reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.facts import SLOT, Fact, FactError
from rome_lens.models import LensModel
from rome_lens.tokens import encode


@dataclass(frozen=True, kw_only=True)
class ContextRows:
    """One row for each context: its prompt, and the new target's tokens but the last.

    Attributes:
        rows: token ids, of different lengths.
        lookups: of each row the position of the subject's last token.
        target: the new target's tokens.
        target_positions: target token ``j`` of row ``i`` is predicted at ``target_positions[i, j]``.
    """

    rows: tuple[tuple[int, ...], ...]
    lookups: tuple[int, ...]
    target: Int[Tensor, " target"]
    target_positions: Int[Tensor, "row target"]

    @classmethod
    def of(cls, model: LensModel, fact: Fact, contexts: Sequence[str], prepend_bos: bool | None) -> "ContextRows":
        """The rows of a fact; FactError where it has no new target, or a context is not one."""
        if fact.new_target is None:
            raise FactError(f"The fact {fact.text!r} has no new target: Fact(..., new_target='Rome').")
        if not contexts:
            raise FactError("The list of contexts is empty: give at least one, such as the bare '{}'.")
        target = encode(model, fact, prepend_bos=prepend_bos).new_answer
        asked = [encode(model, _in_context(fact, context), prepend_bos=prepend_bos) for context in contexts]
        last = torch.tensor([len(row.tokens) - 1 for row in asked])
        return cls(
            rows=tuple((*row.tokens.tolist(), *target[:-1]) for row in asked),
            lookups=tuple(row.subject_last for row in asked),
            target=torch.tensor(target),
            target_positions=last[:, None] + torch.arange(len(target)),
        )


def _in_context(fact: Fact, context: str) -> Fact:
    if context.count(SLOT) != 1:
        raise FactError(f"The context {context!r} has {context.count(SLOT)} slots {{}}, expected one for the prompt.")
    return Fact(context.replace(SLOT, fact.prompt), subject=fact.subject, target=fact.target)
