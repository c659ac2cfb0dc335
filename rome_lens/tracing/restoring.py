"""The engine of a trace: runs in which single states are restored, sharing whatever work they share.

A plain trace runs the whole model for each cell. Here all cells of one position go through the layers together:

* a cell joins at the first layer that it restores, from the corrupted run's stream there;
* only positions from the restored one on are run, since in a causal model the earlier ones do not change;
* in the first restored layer only the restored position is run, since no other reads it before the next layer;
* cells whose windows begin together are one computation until the shorter window ends.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.forward.kv_cache import LayerPast, Past
from rome_lens.forward.partial import PartialForward
from rome_lens.models.hook_names import EMBED, Hook, component_hook
from rome_lens.tracing.cells import Cell

State = Float[Tensor, "pos d_model"] | Float[Tensor, "pos head d_head"]


@dataclass(frozen=True, kw_only=True)
class CorruptedRun:
    """A run with a corrupted subject: the residual stream that enters each layer, the one that leaves the last, its past."""

    streams: tuple[Float[Tensor, "sample pos d_model"], ...]
    past: Past | None


def corrupted_run(
    forward: PartialForward,
    tokens: Int[Tensor, " pos"],
    embeddings: Float[Tensor, "sample pos d_model"],
    *,
    hooks: Sequence[Hook] = (),
) -> CorruptedRun:
    """The run on these embeddings in place of the tokens' own, under further ``hooks``."""
    with forward.model.hooks(fwd_hooks=[(EMBED, lambda value, hook: embeddings), *hooks]):
        streams, past = forward.run(repeat(tokens, "pos -> sample pos", sample=len(embeddings)))
    return CorruptedRun(streams=streams, past=past)


class Restorer:
    """Runs cells from one corrupted run.

    Args:
        component: what is restored, with its clean ``states`` by layer.
        held: for severed traces, by hook name the outputs that every cell's position keeps in the layers after the
            restored one.
    """

    def __init__(
        self,
        forward: PartialForward,
        component: str,
        states: Mapping[int, State],
        run: CorruptedRun,
        *,
        held: Mapping[str, Float[Tensor, "sample pos d_model"]] | None = None,
    ) -> None:
        self.forward, self.component, self.states = forward, component, states
        self.streams, self.past = run.streams, run.past
        self.held = held or {}
        self.samples, self.length, _ = run.streams[0].shape
        self.n_layers = len(run.streams) - 1
        self._running: tuple[Sequence[Cell], int] = (
            [],
            0,
        )  # what the rows of the block that runs now are

    def finals(
        self, cells: Sequence[Cell], *, rows: int, read: int
    ) -> Iterator[tuple[list[int], Float[Tensor, "cell sample read d_model"]]]:
        """Indices of cells, and their streams after the last layer at the last ``read`` positions; run under :meth:`hooks`.

        No forward has more than ``rows`` rows, or one cell's where that is more.
        """
        at_once = max(1, rows // self.samples)
        order = sorted(range(len(cells)), key=lambda i: (cells[i].pos, cells[i].window.start))
        groups: dict[int, list[int]] = {}
        for (
            i
        ) in order:  # where earlier positions can be left out, a batch begins at its one position
            groups.setdefault(0 if self.past is None else cells[i].pos, []).append(i)
        for skipped, members in groups.items():
            for start in range(0, len(members), at_once):
                chunk = members[start : start + at_once]
                stream, sequence = self._sweep([cells[i] for i in chunk], skipped)
                finals = rearrange(
                    stream[:, -read:],
                    "(cell sample) pos d -> cell sample pos d",
                    sample=self.samples,
                )
                yield [chunk[i] for i in sequence], finals

    def _sweep(
        self, cells: Sequence[Cell], skipped: int
    ) -> tuple[Float[Tensor, "row pos d_model"], list[int]]:
        """All layers, on the positions from ``skipped`` on; a row is one sample of one branch.

        A branch is a list of cells that are one computation so far; at the end each holds one.
        """
        branches: list[list[int]] = []
        stream = self.streams[0].new_empty((0, self.length - skipped, self.streams[0].shape[-1]))
        for layer in range(min(cell.window.start for cell in cells), self.n_layers):
            if branches:
                branches, stream = self._part(cells, branches, stream, layer)
                stream = self._block(
                    layer, stream, [cells[branch[0]] for branch in branches], skipped
                )
            joining = [i for i, cell in enumerate(cells) if cell.window.start == layer]
            if joining:
                new = _together([(cells[i].pos, cells[i].head) for i in joining], joining)
                stream = torch.cat(
                    [stream, self._joined(layer, [cells[branch[0]] for branch in new], skipped)]
                )
                branches += new
        branches, stream = self._part(cells, branches, stream, self.n_layers, apart=True)
        return stream, [branch[0] for branch in branches]

    def _part(
        self,
        cells: Sequence[Cell],
        branches: list[list[int]],
        stream: Tensor,
        layer: int,
        *,
        apart: bool = False,
    ) -> tuple[list[list[int]], Tensor]:
        """Branches of which each restores ``layer`` in all its cells or in none (or that hold one cell each)."""
        parts = [
            [
                (number, part)
                for part in _together(
                    [i if apart else layer in cells[i].window for i in branch], branch
                )
            ]
            for number, branch in enumerate(branches)
        ]
        flat = [pair for group in parts for pair in group]
        if len(flat) > len(branches):
            by_branch = rearrange(
                stream, "(branch sample) pos d -> branch sample pos d", sample=self.samples
            )
            stream = rearrange(
                by_branch[[number for number, _ in flat]],
                "branch sample pos d -> (branch sample) pos d",
            )
        return [part for _, part in flat], stream

    def _joined(
        self, layer: int, leaders: Sequence[Cell], skipped: int
    ) -> Float[Tensor, "row pos d_model"]:
        """The stream after the first restored layer."""
        after = repeat(
            self.streams[layer + 1][:, skipped:],
            "sample pos d -> (cell sample) pos d",
            cell=len(leaders),
        )
        if self.component == "resid":
            return self._restored(after, leaders, skipped, layer)
        if self.past is None:
            start, end = skipped, self.length
        else:  # one position for all of them, which nothing but itself reads in this layer
            start, end = leaders[0].pos, leaders[0].pos + 1
        before = repeat(
            self.streams[layer][:, start:end],
            "sample pos d -> (cell sample) pos d",
            cell=len(leaders),
        )
        after = after.clone()
        after[:, start - skipped : end - skipped] = self._block(layer, before, leaders, start)
        return after

    def _block(self, layer: int, stream: Tensor, leaders: Sequence[Cell], skipped: int) -> Tensor:
        past: LayerPast | None = None
        if self.past is not None:
            rows = torch.arange(len(stream), device=stream.device) % self.samples
            past = self.past.at(layer, before=skipped, rows=rows)
        self._running = (leaders, skipped)
        return self.forward.block(layer, stream, past)

    def hooks(self) -> list[Hook]:
        """The hooks that restore and hold. They act on the rows of whatever block runs, and are put in once for a whole
        trace, since that costs more than a block."""

        def restoring(layer: int) -> Hook:
            def restore(value: Tensor, hook: Any) -> Tensor:
                return self._restored(value, *self._running, layer)

            return component_hook(self.component, layer), restore

        def holding(name: str, held: Float[Tensor, "sample pos d_model"]) -> Hook:
            def hold(value: Tensor, hook: Any) -> Tensor:
                leaders, skipped = self._running
                value = value.clone()
                for number, cell in enumerate(leaders):
                    value[self._rows(number), cell.pos - skipped] = held[:, cell.pos]
                return value

            return name, hold

        return [
            *map(restoring, range(self.n_layers)),
            *(holding(name, held) for name, held in self.held.items()),
        ]

    def _restored(self, value: Tensor, leaders: Sequence[Cell], skipped: int, layer: int) -> Tensor:
        """``value`` with the clean state in every row whose window holds the layer."""
        restored = [number for number, cell in enumerate(leaders) if layer in cell.window]
        if restored:
            value = value.clone()
        for number in restored:
            pos, head = leaders[number].pos, leaders[number].head
            if head is None:
                value[self._rows(number), pos - skipped] = self.states[layer][pos]
            else:
                value[self._rows(number), pos - skipped, head] = self.states[layer][pos, head]
        return value

    def _rows(self, number: int) -> slice:
        return slice(number * self.samples, (number + 1) * self.samples)


def _together(keys: Sequence[Any], items: Sequence[int]) -> list[list[int]]:
    """Items of equal keys as one list each, in order of first appearance."""
    groups: dict[Any, list[int]] = {}
    for key, item in zip(keys, items, strict=True):
        groups.setdefault(key, []).append(item)
    return list(groups.values())
