"""The token rows that the optimisation of an edit reads.

:class:`ContextRows` holds a fact's prompt in each context, followed by the new target. Fine-tuning
reads these rows alone. :class:`EditRows` adds two rows that ROME needs: the bare prompt before
them, and the KL prompt ``"{subject} is a"`` after them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.data.facts import SLOT, Fact, FactError
from rome_lens.forward.tokens import begins_with_bos, bos_marks_turns, encode, pad_right
from rome_lens.models.lens import LensModel

KL_PROMPT = "{} is a"


@dataclass(frozen=True, kw_only=True)
class ContextRows:
    """One row for each context: its prompt, then all tokens of the new target except the last."""

    rows: tuple[tuple[int, ...], ...]
    """Token ids. The rows have different lengths."""
    lookups: tuple[int, ...]
    """The lookup position of each row, which is that of one of the subject's tokens."""
    target: Int[Tensor, " target"]
    """The new target's tokens."""
    target_positions: Int[Tensor, "row target"]
    """Where target token ``j`` of row ``i`` is predicted: at ``target_positions[i, j]``."""

    @classmethod
    def of(
        cls,
        model: LensModel,
        fact: Fact,
        contexts: Sequence[str],
        prepend_bos: bool | None,
        lookup: int = -1,
    ) -> "ContextRows":
        """The rows of a fact in the given contexts.

        Args:
            lookup: as in :class:`RomeConfig`.

        Raises:
            FactError: the fact has no new target, there is no context, a context does not have
                exactly one ``{}``, or the subject has too few tokens.
        """
        check_has_new_target(fact)
        if not contexts:
            raise FactError(
                "The list of contexts is empty: give at least one, such as the bare '{}'."
            )
        target = encode(model, fact, prepend_bos=prepend_bos).new_answer
        prompts = [
            encode(model, in_context(model, fact, context), prepend_bos=prepend_bos)
            for context in contexts
        ]
        last = torch.tensor(
            [len(prompt.tokens) - 1 for prompt in prompts], dtype=torch.long, device="cpu"
        )
        return cls(
            rows=tuple((*prompt.tokens.tolist(), *target[:-1]) for prompt in prompts),
            lookups=tuple(prompt.lookup_position(lookup) for prompt in prompts),
            target=torch.tensor(target, dtype=torch.long, device="cpu"),
            target_positions=last[:, None] + torch.arange(len(target), device="cpu"),
        )


@dataclass(frozen=True, kw_only=True)
class EditRows:
    """The rows of a ROME edit: the bare prompt, the contexts with the target, the KL prompt."""

    tokens: Int[Tensor, "row pos"]
    """Token ids, padded on the right."""
    lookups: Int[Tensor, " row"]
    """The lookup position of each row, which is that of one of the subject's tokens."""
    target: Int[Tensor, " target"]
    """The new target's tokens."""
    target_positions: Int[Tensor, "context target"]
    """Where target token ``j`` of context ``i`` is predicted: at ``target_positions[i, j]``."""

    @classmethod
    def of(
        cls,
        model: LensModel,
        fact: Fact,
        contexts: Sequence[str],
        prepend_bos: bool | None,
        lookup: int = -1,
    ) -> "EditRows":
        """The rows of a fact in the given contexts. ``lookup`` is that of :class:`RomeConfig`.

        Raises:
            FactError: as for :meth:`ContextRows.of`.
        """
        bare = encode(model, fact, prepend_bos=prepend_bos)
        kl_fact = Fact(KL_PROMPT, subject=fact.subject, target=fact.target)
        kl = encode(model, kl_fact, prepend_bos=prepend_bos)
        in_contexts = ContextRows.of(model, fact, contexts, prepend_bos, lookup)
        return cls(
            tokens=pad_right([bare.tokens.tolist(), *in_contexts.rows, kl.tokens.tolist()]),
            lookups=torch.tensor(
                [bare.lookup_position(lookup), *in_contexts.lookups, kl.lookup_position(lookup)],
                dtype=torch.long,
                device="cpu",
            ),
            target=in_contexts.target,
            target_positions=in_contexts.target_positions,
        )

    @property
    def later_positions(self) -> int:
        """The most positions of a row from its lookup position to the last one that is read."""
        return 1 + int((self.target_positions[:, -1] - self.lookups[1:-1]).max())

    @property
    def reads(self) -> tuple[Int[Tensor, " read"], Int[Tensor, " read"]]:
        """Row and position of every prediction that the loss reads.

        The targets of each context come first, context by context. The KL row's lookup position
        comes last.
        """
        n_contexts, n_target = self.target_positions.shape
        context_rows = torch.arange(1, n_contexts + 1, device="cpu").repeat_interleave(n_target)
        rows = torch.cat(
            [context_rows, torch.tensor([n_contexts + 1], dtype=torch.long, device="cpu")]
        )
        return rows, torch.cat([self.target_positions.flatten(), self.lookups[-1:]])


def check_has_new_target(fact: Fact) -> None:
    """Raise FactError unless the fact has a new target."""
    if fact.new_target is None:
        raise FactError(f"The fact {fact.text!r} has no new target: Fact(..., new_target='Rome').")


def in_context(model: LensModel, fact: Fact, context: str) -> Fact:
    """The fact with its prompt in a context, and without a new target.

    Raises:
        FactError: the context does not have exactly one ``{}``.
    """
    if context.count(SLOT) != 1:
        raise FactError(
            f"The context {context!r} has {context.count(SLOT)} slots {{}}, expected one for the "
            "prompt."
        )
    prompt = fact.prompt
    if (
        context.split(SLOT)[0]
        and begins_with_bos(model, prompt)
        and not bos_marks_turns(model, prompt)
    ):
        prompt = prompt.removeprefix(model.tokenizer.bos_token)  # BOS has no place inside a text
    return Fact(
        context.replace(SLOT, prompt),
        subject=fact.subject,
        target=fact.target,
        joiner=fact.own_joiner,
    )
