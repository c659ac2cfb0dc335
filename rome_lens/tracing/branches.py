"""Cells that are one computation, and the rows of a batch that they take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.tracing.cells import Cell


class Branch(NamedTuple):
    """Cells that are one computation up to some layer: they have restored the same states."""

    run: int
    """The number of the fact in the corrupted run."""
    pos: int
    """The restored position."""
    head: int | None
    """The restored head, for component ``"z"``."""
    start: int
    """The first restored layer."""
    stop: int
    """The layer after the last one that has been restored so far."""

    @classmethod
    def of(cls, cell: Cell, layer: int) -> "Branch":
        """The branch that a cell belongs to when ``layer`` runs."""
        window = cell.window
        return cls(cell.run, cell.pos, cell.head, window.start, min(window.stop, layer + 1))

    def before(self, layer: int) -> "Branch":
        """The branch that this one was a part of before ``layer`` ran."""
        return self._replace(stop=min(self.stop, layer))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of some branches: one row for each noise sample of each branch's fact."""

    branches: Sequence[Branch]
    first: Int[Tensor, " branch"]
    """The first row of each branch."""
    count: Int[Tensor, " branch"]
    """The number of its rows."""
    run: Int[Tensor, " row"]
    """The row in the corrupted run that each row comes from."""
    pos: Int[Tensor, " row"]
    """The position that each row restores."""
    state: Int[Tensor, " row"]
    """The place of the clean state among all clean states of a layer."""

    def of(self, branches: Iterable[Branch]) -> Int[Tensor, " row"]:
        """The rows of some of the branches, in the order given."""
        numbers = {branch: number for number, branch in enumerate(self.branches)}
        chosen = longs([numbers[branch] for branch in branches])
        return consecutive(self.first[chosen], self.count[chosen])


def order(cell: Cell) -> tuple[int, ...]:
    """A key for sorting: cells that share most stand together, and those that join first begin."""
    head = -1 if cell.head is None else cell.head
    return (cell.window.start, cell.run, cell.pos, head, cell.window.stop)


def distinct(branches: Iterable[Branch]) -> list[Branch]:
    """Each branch once, in order of first appearance."""
    return list(dict.fromkeys(branches))


def longs(numbers: Iterable[Any]) -> Int[Tensor, " number"]:
    """Whole numbers as a tensor on the CPU, where all indices are computed."""
    return torch.tensor(list(numbers), dtype=torch.long, device="cpu")


def consecutive(firsts: Int[Tensor, " part"], counts: Int[Tensor, " part"]) -> Tensor:
    """``counts[i]`` numbers from ``firsts[i]`` on, for each ``i``."""
    starts = counts.cumsum(0) - counts
    numbers = torch.arange(int(counts.sum()), device="cpu")
    return (firsts - starts).repeat_interleave(counts) + numbers
