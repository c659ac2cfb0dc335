"""The engine of a trace: corrupted runs in which single clean states are restored.

The plain method runs the whole model once for each cell. Here, the cells of all facts that are
traced together share the work that they have in common:

* A cell joins at the first layer that it restores. It starts from the residual stream of the
  corrupted run there.
* Only the positions from the restored one on are run, because the earlier ones do not change in a
  causal model. Attention reads the keys and values of the corrupted run there.
* In the first restored layer, only the restored position is run. No other position reads it before
  the next layer. So each layer needs a single call for all cells that it is the first layer of.
* Cells whose windows begin together are one computation until the shorter window ends.
* Cells of any position of any fact may share a call. Each row begins with its own restored
  position, and rows with fewer later positions are padded on the right, where causality hides it.
  Cells with the same number of later positions need no padding. ``passes.py`` decides where padding
  costs less than another call.

A model that cannot run later positions alone runs all of them, and one fact at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.forward.call_costs import merged_widths
from rome_lens.forward.kv_cache import LayerPast
from rome_lens.forward.memory import on_device
from rome_lens.forward.partial import PartialForward
from rome_lens.models.hook_names import Component, Hook, component_hook
from rome_lens.tracing.branches import Branch, Rows, consecutive, distinct, longs, order
from rome_lens.tracing.cells import Cell
from rome_lens.tracing.corrupted_run import CorruptedRun
from rome_lens.tracing.passes import PassSize, packed


class Restorer:
    """Restores cells in a corrupted run.

    Args:
        forward: the model.
        component: the component whose output is restored.
        run: the corrupted run.
        held: for severed traces, the outputs that are held at each cell's position in the layers
            after the restored one, by hook name.
    """

    def __init__(
        self,
        forward: PartialForward,
        component: Component,
        run: CorruptedRun,
        *,
        held: Mapping[str, Float[Tensor, "row pos d_model"]] | None = None,
    ) -> None:
        self.forward, self.component, self.run = forward, component, run
        self.held = held or {}
        self.n_layers = len(run.streams) - 1
        self._device = run.streams[0].device
        self._lengths = [len(fact.tokens) for fact in run.facts]
        lengths, self._counts = longs(self._lengths), longs(run.samples)
        self._first_state = lengths.cumsum(0) - lengths
        self._first_row = self._counts.cumsum(0) - self._counts
        # The clean states of all facts in one tensor for each layer, one fact after the other.
        self._states = {
            layer: torch.cat([fact.states[layer] for fact in run.facts])
            for layer in range(self.n_layers)
        }
        self._running = self._rows([])  # what the hooks act on: the rows of the running block
        self._alone: dict[int, tuple[Rows, Float[Tensor, "row d_model"]]] = {}

    def final_streams(
        self, cells: Sequence[Cell], *, size: PassSize, read: int
    ) -> Iterator[tuple[list[int], Float[Tensor, "row read d_model"]]]:
        """Yield indices of cells, and their streams after the last layer at the last ``read``
        positions of each.

        A cell has one row for each noise sample of its fact. The hooks of :meth:`hooks` must be on
        the model. A forward pass always has room for one cell.
        """
        if self.component != "resid" and self.run.past is not None:
            self._run_alone(cells, size)
        for width, members in self._groups(cells, size).items():
            members.sort(key=lambda i: order(cells[i]))
            past = 0 if self.run.past is None else max(cells[i].pos for i in members)
            most = size.rows_of(width, past)
            for batch in packed(members, [self._samples(cells[i]) for i in members], most):
                yield batch, self._run_layers([cells[i] for i in batch], read)

    def _groups(self, cells: Sequence[Cell], size: PassSize) -> dict[int, list[int]]:
        """The cells that may share a pass, by the number of positions that it runs."""
        work: dict[int, int] = {}
        for cell in cells:
            layers = self.n_layers - 1 - cell.window.start
            later = self._later(cell)
            work[later] = work.get(later, 0) + layers * self._samples(cell)
        widths = merged_widths(work, self.n_layers * size.call)
        groups: dict[int, list[int]] = {}
        for i, cell in enumerate(cells):
            groups.setdefault(widths[self._later(cell)], []).append(i)
        return groups

    def _run_layers(self, cells: Sequence[Cell], read: int) -> Float[Tensor, "row read d_model"]:
        """Run each cell's later positions through all layers, and return the last ``read``."""
        width = max(map(self._later, cells))
        stream = self.run.streams[0].new_empty((0, width, self.run.streams[0].shape[-1]))
        rows = self._rows([])
        for layer in range(min(cell.window.start for cell in cells), self.n_layers):
            branches = distinct(
                Branch.of(cell, layer) for cell in cells if cell.window.start <= layer
            )
            old = [branch for branch in branches if branch.start < layer]
            if old:
                if len(old) > len(rows.branches):
                    parents = rows.of(branch.before(layer) for branch in old)
                    stream = stream[on_device(parents, self._device)]
                stream = self._run_block(layer, stream, self._rows(old))
            new = [branch for branch in branches if branch.start == layer]
            if new:
                stream = torch.cat([stream, self._joining_stream(layer, self._rows(new), width)])
            rows = self._rows([*old, *new])
        own = rows.of(Branch.of(cell, self.n_layers) for cell in cells)
        return self._last_positions(stream, cells, own, read)

    def _joining_stream(
        self, layer: int, rows: Rows, width: int
    ) -> Float[Tensor, "row pos d_model"]:
        """The stream after ``layer`` of branches that restore it as their first layer."""
        if self.component != "resid" and self.run.past is None:
            before = self._from_first_position(self.run.streams[layer], rows, width)
            return self._run_block(layer, before, rows)
        after = self._from_first_position(self.run.streams[layer + 1], rows, width)
        if self.component == "resid":
            self._running = rows
            return self._restore(after, layer)
        alone, states = self._alone[layer]
        after[:, 0] = states[on_device(alone.of(rows.branches), self._device)]
        return after

    def _run_alone(self, cells: Sequence[Cell], size: PassSize) -> None:
        """Run the first restored layer of each cell, at the restored position alone."""
        for layer in sorted({cell.window.start for cell in cells}):
            branches = distinct(
                Branch.of(cell, layer) for cell in cells if cell.window.start == layer
            )
            after = []
            most = size.rows_of(1, past=max(branch.pos for branch in branches))
            for batch in packed(branches, [self._samples(branch) for branch in branches], most):
                rows = self._rows(batch)
                before = self._from_first_position(self.run.streams[layer], rows, 1)
                after.append(self._run_block(layer, before, rows)[:, 0])
            self._alone[layer] = self._rows(branches), torch.cat(after)

    def _run_block(
        self, layer: int, stream: Float[Tensor, "row pos d_model"], rows: Rows
    ) -> Float[Tensor, "row pos d_model"]:
        """Run a layer, in which the hooks restore what the rows' branches restore there."""
        self._running = rows
        past: LayerPast | None = None
        if self.run.past is not None:
            first = self._shared_first(rows, stream.shape[1])
            before = rows.pos if first is None else first
            past = self.run.past.at(layer, before=before, rows=rows.run)
        return self.forward.block(layer, stream, past)

    def hooks(self) -> list[Hook]:
        """The hooks that restore and hold states in the rows of whatever block is running.

        Put them in once for a whole trace, because that costs more than running a block.
        """

        def restoring(layer: int) -> Hook:
            def restore(value: Tensor, hook: Any) -> Tensor:
                return self._restore(value, layer)

            return component_hook(self.component, layer), restore

        def holding(name: str, held: Float[Tensor, "row pos d_model"]) -> Hook:
            def hold(value: Tensor, hook: Any) -> Tensor:
                rows = self._running
                value = value.clone()
                every = torch.arange(len(value), device="cpu")
                value[self._place(every)] = held[self._moved(rows.run, rows.pos)]
                return value

            return name, hold

        return [
            *map(restoring, range(self.n_layers)),
            *(holding(name, held) for name, held in self.held.items()),
        ]

    def _restore(self, value: Tensor, layer: int) -> Tensor:
        """``value`` with the clean state in the rows of every branch that restores the layer."""
        rows = self._running
        branches = [branch for branch in rows.branches if branch.stop > layer]
        if not branches:
            return value
        own = rows.of(branches)
        place, (state,) = self._place(own), self._moved(rows.state[own])
        value = value.clone()
        if self.component == "z":
            heads = longs([branch.head for branch in rows.branches]).repeat_interleave(rows.count)
            (head,) = self._moved(heads[own])
            at_head = (*place, head)
            value[at_head] = self._states[layer][state, head]
        else:
            value[place] = self._states[layer][state]
        return value

    def _place(self, rows: Int[Tensor, " row"]) -> tuple[Tensor, ...]:
        """Indices of the restored position of these rows, in what the running block computes."""
        pos = self._running.pos[rows]
        return self._moved(rows, pos if self.run.past is None else torch.zeros_like(pos))

    def _from_first_position(
        self, stream: Float[Tensor, "run_row all_pos d_model"], rows: Rows, width: int
    ) -> Float[Tensor, "row width d_model"]:
        """A stream of the corrupted run at the first ``width`` positions that each row runs."""
        first = self._shared_first(rows, width)
        if first is not None:
            return stream[self._moved(rows.run)[0], first : first + width]
        # Padding repeats the last position.
        positions = (rows.pos[:, None] + longs(range(width))).clamp(max=stream.shape[1] - 1)
        return stream[self._moved(rows.run[:, None], positions)]

    def _shared_first(self, rows: Rows, width: int) -> int | None:
        """The first of ``width`` positions that the rows run, if it is the same and none is padding
        in all of them."""
        firsts = {branch.pos for branch in rows.branches} if self.run.past is not None else {0}
        first = firsts.pop()
        return first if not firsts and first + width <= self.run.streams[0].shape[1] else None

    def _last_positions(
        self,
        stream: Float[Tensor, "row pos d_model"],
        cells: Sequence[Cell],
        rows: Int[Tensor, " cell_row"],
        read: int,
    ) -> Float[Tensor, "cell_row read d_model"]:
        """The last ``read`` positions of each cell's fact, in the rows of each cell."""
        ends = [self._later(cell) for cell in cells]
        counts = longs([self._samples(cell) for cell in cells])
        last = longs(ends).repeat_interleave(counts)[:, None]
        columns = (last - read + longs(range(read))).clamp(min=0)
        return stream[self._moved(rows[:, None], columns)]

    def _later(self, cell: Cell) -> int:
        """The number of positions that are run for a cell."""
        length = self._lengths[cell.run]
        return length if self.run.past is None else length - cell.pos

    def _samples(self, cell: Cell | Branch) -> int:
        """The number of noise samples of the cell's fact."""
        return self.run.samples[cell.run]

    def _rows(self, branches: Sequence[Branch]) -> Rows:
        run = longs([branch.run for branch in branches])
        pos, count = longs([branch.pos for branch in branches]), self._counts[run]
        return Rows(
            branches=branches,
            first=count.cumsum(0) - count,
            count=count,
            run=consecutive(self._first_row[run], count),
            pos=pos.repeat_interleave(count),
            state=(self._first_state[run] + pos).repeat_interleave(count),
        )

    def _moved(self, *indices: Int[Tensor, "..."]) -> tuple[Tensor, ...]:
        """Indices, which are computed on the CPU, on the model's device."""
        return tuple(on_device(index, self._device) for index in indices)
