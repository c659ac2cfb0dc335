"""A fact's prompt in contexts, each with the new target behind it: the rows that every optimisation of an edit reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.data.facts import SLOT, Fact, FactError
from rome_lens.forward.sampling import sample_tokens
from rome_lens.forward.tokens import encode, token_ids
from rome_lens.models.lens import LensModel


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
    def of(
        cls, model: LensModel, fact: Fact, contexts: Sequence[str], prepend_bos: bool | None
    ) -> "ContextRows":
        """The rows of a fact; FactError where it has no new target, or a context is not one."""
        if fact.new_target is None:
            raise FactError(
                f"The fact {fact.text!r} has no new target: Fact(..., new_target='Rome')."
            )
        if not contexts:
            raise FactError(
                "The list of contexts is empty: give at least one, such as the bare '{}'."
            )
        target = encode(model, fact, prepend_bos=prepend_bos).new_answer
        asked = [
            encode(model, _in_context(fact, context), prepend_bos=prepend_bos)
            for context in contexts
        ]
        last = torch.tensor([len(row.tokens) - 1 for row in asked])
        return cls(
            rows=tuple((*row.tokens.tolist(), *target[:-1]) for row in asked),
            lookups=tuple(row.subject_last for row in asked),
            target=torch.tensor(target),
            target_positions=last[:, None] + torch.arange(len(target)),
        )


def _in_context(fact: Fact, context: str) -> Fact:
    if context.count(SLOT) != 1:
        raise FactError(
            f"The context {context!r} has {context.count(SLOT)} slots {{}}, expected one for the prompt."
        )
    return Fact(context.replace(SLOT, fact.prompt), subject=fact.subject, target=fact.target)


def random_contexts(
    model: LensModel, *, prefixes: int = 20, seed: int = 0, prepend_bos: bool | None = None
) -> tuple[str, ...]:
    """The bare template and random prefixes to it, half of 5 and half of 10 tokens ("The" and what the model samples).

    Source: Meng et al. 2022, section 3.1 and appendix E.5 (prefixes of 2 to 10 random tokens; the authors' code takes
    these lengths, ten of each, starts from "The" and samples among the 5 likeliest tokens).

    Raises:
        ValueError: ``prefixes`` is not between 0 and 20; fewer are the first of each length.
        ModelError: the model has no tokenizer.
    """
    prefixes = whole_number("prefixes", prefixes, least=0, most=20)
    seed = whole_number("seed", seed)
    start = token_ids(model, "The", prepend_bos=prepend_bos)
    skipped = len(start) - len(token_ids(model, "The", prepend_bos=False))
    contexts = ["{}"]
    for length, count in ((5, (prefixes + 1) // 2), (10, prefixes // 2)):
        if not count:
            continue
        rows = sample_tokens(
            model, [start] * 10, new_tokens=length - 1, seed=seed + length, top_k=5
        )
        for row in rows[:count].tolist():
            text = model.tokenizer.decode(row[skipped:], skip_special_tokens=True)
            text = " ".join(text.replace("{", " ").replace("}", " ").split())
            contexts.append(f"{text}. {{}}")
    return tuple(contexts)
