"""The token rows of several edits as one batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rome_lens.editing.prompts import EditRows
from rome_lens.forward.tokens import pad_right


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """The rows of all facts as one batch."""

    tokens: Int[Tensor, "row pos"]
    """Token ids, padded on the right."""
    fact: Int[Tensor, " row"]
    """The number of each row's fact."""
    lookups: Int[Tensor, " row"]
    """The lookup position of each row."""
    is_read: Bool[Tensor, " row"]
    """Whether the loss reads the row. It reads the bare prompt only where that is a context too."""
    reads: tuple[Int[Tensor, " read"], Int[Tensor, " read"]]
    """Row and position of every prediction that a loss reads, fact by fact."""
    ends: Int[Tensor, " row"]
    """The end of the positions that matter in each row: after the last one that is read."""

    def compared(self) -> tuple[int, Int[Tensor, " read"]]:
        """A row that the whole model runs too, and the numbers of the predictions in it.

        It is the one with the earliest lookup position among those with the most positions after
        it, so it is padded on the left.
        """
        number = torch.arange(len(self.lookups), device="cpu")
        later = self.ends - self.lookups
        widest = number[self.is_read & (later == later[self.is_read].max())]
        row = int(widest[self.lookups[widest].argmin()])
        return row, (self.reads[0] == row).nonzero()[:, 0]

    def merged(self) -> "RowBatch":
        """The same predictions, each read in the first row where it is the same one.

        That is a row of the fact with the same lookup position and the same tokens so far. The KL
        prompt of "{} lives in" begins as the bare prompt does, for example.
        """
        tokens = self.tokens.tolist()
        subjects = list(zip(self.fact.tolist(), self.lookups.tolist(), strict=True))
        rows_of: dict[tuple[int, int], list[int]] = {}
        for row in self.is_read.nonzero()[:, 0].tolist():
            rows_of.setdefault(subjects[row], []).append(row)
        read_rows = [
            next(
                i
                for i in rows_of[subjects[row]]
                if tokens[i][: position + 1] == tokens[row][: position + 1]
            )
            for row, position in zip(*(each.tolist() for each in self.reads), strict=True)
        ]
        rows = torch.tensor(read_rows, dtype=torch.long, device="cpu")
        return self._reading(rows, self.reads[1])

    def _reading(self, rows: Int[Tensor, " read"], positions: Int[Tensor, " read"]) -> "RowBatch":
        """The same rows, with other predictions that are read."""
        is_read = torch.zeros_like(self.lookups, dtype=torch.bool)
        is_read[rows] = True
        ends = (self.lookups + 1).scatter_reduce(0, rows, positions + 1, "amax")
        return replace(self, reads=(rows, positions), is_read=is_read, ends=ends)

    @classmethod
    def of(cls, rows: Sequence[EditRows]) -> "RowBatch":
        """The rows of these facts, in their order."""
        counts = torch.tensor([len(each.tokens) for each in rows], dtype=torch.long, device="cpu")
        firsts = counts.cumsum(0) - counts
        read_rows = torch.cat(
            [each.reads[0] + first for each, first in zip(rows, firsts, strict=True)]
        )
        read_positions = torch.cat([each.reads[1] for each in rows])
        lookups = torch.cat([each.lookups for each in rows])
        batch = cls(
            tokens=pad_right([row for each in rows for row in each.tokens.tolist()]),
            fact=torch.arange(len(rows), device="cpu").repeat_interleave(counts),
            lookups=lookups,
            is_read=torch.ones_like(lookups, dtype=torch.bool),
            reads=(read_rows, read_positions),
            ends=lookups + 1,
        )
        return batch._reading(read_rows, read_positions)
