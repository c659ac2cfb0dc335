"""The run of one or several facts with corrupted subjects, from which cells are restored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from rome_lens.forward.kv_cache import Past
from rome_lens.forward.module_hooks import hooks_on
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.tokens import pad_right
from rome_lens.models.hook_names import EMBED, Hook
from rome_lens.tracing.branches import longs
from rome_lens.tracing.clean_run import CleanRun


@dataclass(frozen=True, kw_only=True)
class CorruptedRun:
    """A run of one or several facts with corrupted subjects, padded on the right."""

    facts: tuple[CleanRun, ...]
    """The clean run of each fact. A fact may occur several times, with different noise."""
    samples: tuple[int, ...]
    """The number of each fact's noise samples. Each is a row, and the facts follow each other."""
    streams: tuple[Float[Tensor, "row pos d_model"], ...]
    """The residual stream that enters each layer, and last the one that leaves the last layer."""
    past: Past | None
    """Its attention keys and values; None where the model cannot run later positions alone."""


def run_corrupted(
    forward: PartialForward,
    facts: Sequence[CleanRun],
    embeddings: Sequence[Float[Tensor, "_sample _pos d_model"]],
    *,
    hooks: Sequence[Hook] = (),
) -> CorruptedRun:
    """Run the facts on these embeddings instead of their tokens' own, with further ``hooks``."""
    samples = tuple(map(len, embeddings))
    one_each = pad_right([fact.tokens.tolist() for fact in facts])
    tokens = one_each.repeat_interleave(longs(samples), dim=0)
    width = tokens.shape[1]
    padded = torch.cat([pad(each, (0, 0, 0, width - each.shape[1])) for each in embeddings])
    with hooks_on(forward.model, [(EMBED, lambda value, hook: padded), *hooks]):
        streams, past = forward.run(tokens)
    return CorruptedRun(facts=tuple(facts), samples=samples, streams=streams, past=past)


def clean_rows(
    forward: PartialForward,
    cleans: Sequence[CleanRun],
    names: Sequence[str],
    states: Mapping[str, Float[Tensor, "row pos ..."]],
    *,
    hooks: Sequence[Hook] = (),
) -> CorruptedRun:
    """The clean run as the one that states are put into, a row for each corrupted run.

    Each row is a fact of its own, whose states are those of its corrupted run.

    Args:
        names: the hook of the states, by layer.
        states: the states of the corrupted runs, by hook name.
        hooks: hooks that the clean rows run with.
    """
    rows = [
        replace(
            clean,
            states={
                layer: states[name][row, : len(clean.tokens)] for layer, name in enumerate(names)
            },
        )
        for row, clean in enumerate(cleans)
    ]
    return run_corrupted(forward, rows, [clean.embeddings[None] for clean in cleans], hooks=hooks)
