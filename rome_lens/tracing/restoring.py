"""The engine of a trace: corrupted runs in which single clean states are restored.

The plain method runs the whole model once for each cell. Here, all cells of one position go through
the layers together, and they share all the work that they have in common:

* A cell joins at the first layer that it restores. It starts from the residual stream of the
  corrupted run there.
* Only the positions from the restored one on are run, because the earlier ones do not change in a
  causal model.
* In the first restored layer, only the restored position is run. No other position reads it before
  the next layer.
* Cells whose windows begin together are one computation until the shorter window ends.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.forward.kv_cache import LayerPast, Past
from rome_lens.forward.module_hooks import hooks_on
from rome_lens.forward.partial import PartialForward
from rome_lens.models.hook_names import EMBED, Component, Hook, component_hook
from rome_lens.tracing.cells import Cell

State = Float[Tensor, "pos d_model"] | Float[Tensor, "pos head d_head"]


@dataclass(frozen=True, kw_only=True)
class CorruptedRun:
    """A run with a corrupted subject."""

    streams: tuple[Float[Tensor, "sample pos d_model"], ...]
    """The residual stream that enters each layer, and last the one that leaves the last layer."""
    past: Past | None
    """Its attention keys and values; None where the model cannot run later positions alone."""


def run_corrupted(
    forward: PartialForward,
    tokens: Int[Tensor, " pos"],
    embeddings: Float[Tensor, "sample pos d_model"],
    *,
    hooks: Sequence[Hook] = (),
) -> CorruptedRun:
    """Run the model on these embeddings instead of the tokens' own, with further ``hooks``."""
    with hooks_on(forward.model, [(EMBED, lambda value, hook: embeddings), *hooks]):
        streams, past = forward.run(repeat(tokens, "pos -> sample pos", sample=len(embeddings)))
    return CorruptedRun(streams=streams, past=past)


class Restorer:
    """Restores cells in a corrupted run.

    A row of a batch is one noise sample of one branch. A branch is a group of cells that have been
    the same computation so far. It is represented by one of its cells, its leader.

    Args:
        forward: the model.
        component: the component whose output is restored.
        states: the clean outputs of the component, by layer.
        run: the corrupted run.
        held: for severed traces, the outputs that are held at each cell's position in the layers
            after the restored one, by hook name.
    """

    def __init__(
        self,
        forward: PartialForward,
        component: Component,
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
        # The branches in the rows of the running block, and the first position that it runs.
        self._leaders: Sequence[Cell] = []
        self._first_pos = 0

    def final_streams(
        self, cells: Sequence[Cell], *, rows: int, read: int
    ) -> Iterator[tuple[list[int], Float[Tensor, "cell sample read d_model"]]]:
        """Yield indices of cells, and their streams after the last layer at the last ``read``
        positions.

        The hooks of :meth:`hooks` must be on the model. A forward pass has at most ``rows`` rows,
        but always room for one cell.
        """
        cells_per_batch = max(1, rows // self.samples)
        order = sorted(range(len(cells)), key=lambda i: (cells[i].pos, cells[i].window.start))
        groups: dict[int, list[int]] = {}
        for i in order:
            # Where earlier positions can be left out, all cells of a batch have the same position.
            groups.setdefault(0 if self.past is None else cells[i].pos, []).append(i)
        for first_pos, members in groups.items():
            for start in range(0, len(members), cells_per_batch):
                batch = members[start : start + cells_per_batch]
                stream, sequence = self._run_layers([cells[i] for i in batch], first_pos)
                finals = rearrange(
                    stream[:, -read:],
                    "(cell sample) pos d -> cell sample pos d",
                    sample=self.samples,
                )
                yield [batch[i] for i in sequence], finals

    def _run_layers(
        self, cells: Sequence[Cell], first_pos: int
    ) -> tuple[Float[Tensor, "row pos d_model"], list[int]]:
        """Run all layers from ``first_pos`` on. At the end each branch holds one cell."""
        branches: list[list[int]] = []
        stream = self.streams[0].new_empty((0, self.length - first_pos, self.streams[0].shape[-1]))
        for layer in range(min(cell.window.start for cell in cells), self.n_layers):
            if branches:
                branches, stream = self._split(cells, branches, stream, layer)
                leaders = [cells[branch[0]] for branch in branches]
                stream = self._run_block(layer, stream, leaders, first_pos)
            joining = [i for i, cell in enumerate(cells) if cell.window.start == layer]
            if joining:
                new = _group_by([(cells[i].pos, cells[i].head) for i in joining], joining)
                leaders = [cells[branch[0]] for branch in new]
                stream = torch.cat([stream, self._joining_stream(layer, leaders, first_pos)])
                branches += new
        branches, stream = self._split(cells, branches, stream, self.n_layers, completely=True)
        return stream, [branch[0] for branch in branches]

    def _split(
        self,
        cells: Sequence[Cell],
        branches: list[list[int]],
        stream: Tensor,
        layer: int,
        *,
        completely: bool = False,
    ) -> tuple[list[list[int]], Tensor]:
        """Split branches until each restores ``layer`` in all of its cells or in none.

        With ``completely``, split them into single cells.
        """
        parts = [
            (number, part)
            for number, branch in enumerate(branches)
            for part in _group_by(
                [i if completely else layer in cells[i].window for i in branch], branch
            )
        ]
        if len(parts) > len(branches):
            by_branch = rearrange(
                stream, "(branch sample) pos d -> branch sample pos d", sample=self.samples
            )
            stream = rearrange(
                by_branch[[number for number, _ in parts]],
                "branch sample pos d -> (branch sample) pos d",
            )
        return [part for _, part in parts], stream

    def _joining_stream(
        self, layer: int, leaders: Sequence[Cell], first_pos: int
    ) -> Float[Tensor, "row pos d_model"]:
        """The stream after ``layer`` of branches that restore it as their first layer."""
        after = repeat(
            self.streams[layer + 1][:, first_pos:],
            "sample pos d -> (cell sample) pos d",
            cell=len(leaders),
        )
        if self.component == "resid":
            return self._restore(after, leaders, first_pos, layer)
        if self.past is None:
            start, end = first_pos, self.length
        else:  # all leaders share this position, and no other position reads it in this layer
            start, end = leaders[0].pos, leaders[0].pos + 1
        before = repeat(
            self.streams[layer][:, start:end],
            "sample pos d -> (cell sample) pos d",
            cell=len(leaders),
        )
        after = after.clone()
        changed = slice(start - first_pos, end - first_pos)
        after[:, changed] = self._run_block(layer, before, leaders, start)
        return after

    def _run_block(
        self, layer: int, stream: Tensor, leaders: Sequence[Cell], first_pos: int
    ) -> Tensor:
        past: LayerPast | None = None
        if self.past is not None:
            rows = torch.arange(len(stream), device=stream.device) % self.samples
            past = self.past.at(layer, before=first_pos, rows=rows)
        self._leaders, self._first_pos = leaders, first_pos
        return self.forward.block(layer, stream, past)

    def hooks(self) -> list[Hook]:
        """The hooks that restore and hold states in the rows of whatever block is running.

        Put them in once for a whole trace, because that costs more than running a block.
        """

        def restoring(layer: int) -> Hook:
            def restore(value: Tensor, hook: Any) -> Tensor:
                return self._restore(value, self._leaders, self._first_pos, layer)

            return component_hook(self.component, layer), restore

        def holding(name: str, held: Float[Tensor, "sample pos d_model"]) -> Hook:
            def hold(value: Tensor, hook: Any) -> Tensor:
                value = value.clone()
                for number, cell in enumerate(self._leaders):
                    value[self._rows(number), cell.pos - self._first_pos] = held[:, cell.pos]
                return value

            return name, hold

        return [
            *map(restoring, range(self.n_layers)),
            *(holding(name, held) for name, held in self.held.items()),
        ]

    def _restore(
        self, value: Tensor, leaders: Sequence[Cell], first_pos: int, layer: int
    ) -> Tensor:
        """``value`` with the clean state in the rows of every branch that restores the layer."""
        restoring = [number for number, cell in enumerate(leaders) if layer in cell.window]
        if restoring:
            value = value.clone()
        for number in restoring:
            pos, head = leaders[number].pos, leaders[number].head
            if head is None:
                value[self._rows(number), pos - first_pos] = self.states[layer][pos]
            else:
                value[self._rows(number), pos - first_pos, head] = self.states[layer][pos, head]
        return value

    def _rows(self, number: int) -> slice:
        """The rows of a branch."""
        return slice(number * self.samples, (number + 1) * self.samples)


def _group_by(labels: Sequence[Hashable], items: Sequence[int]) -> list[list[int]]:
    """The items in groups of equal labels, in order of first appearance."""
    groups: dict[Hashable, list[int]] = {}
    for label, item in zip(labels, items, strict=True):
        groups.setdefault(label, []).append(item)
    return list(groups.values())
