"""The edited layer on the rows of an edit, and the layers after it.

One forward pass of all rows gives the layer's keys and raw outputs at the lookup positions. After
that, a change ``delta`` of the raw output at the lookup positions only needs the later layers, and
only the positions from the lookup position on:

    log p(delta) = later layers( stream + mlp(W_out k + delta) - mlp(W_out k) )

Here ``mlp`` is the identity, or the norm that follows ``W_out`` on Gemma 2 and 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.editing.prompts import EditRows
from rome_lens.forward.additions import mlp_contribution
from rome_lens.forward.kv_cache import LayerPast
from rome_lens.forward.module_hooks import hooks_on
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import check_raw_output
from rome_lens.models.hook_names import capture_hooks, component_hook, key_hook
from rome_lens.models.lens import LensModel, mlp_output

# Rows whose lookup positions lie this close run together: a few positions too many cost less than
# another forward pass.
_NEAR = 3


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Rows with nearby lookup positions, from the first of these positions on."""

    stream: Float[Tensor, "row pos d_model"]
    """The residual stream after the edited layer."""
    outputs: Float[Tensor, "row d_model"]
    """The raw output of ``W_out`` at the lookup positions."""
    lookups: Int[Tensor, " row"]
    """The lookup positions, counted from the group's first position."""
    pasts: tuple[LayerPast, ...] | None
    """What attention in the later layers has cached of the positions before the group's first one.

    None where the model cannot resume from a cache. The group then starts at position 0.
    """
    reads: tuple[Tensor, Tensor, Tensor]
    """The predictions that the loss reads in this group.

    Three tensors: each prediction's number among all predictions, its row and its position in the
    group.
    """


@dataclass(frozen=True, kw_only=True)
class EditedLayer:
    """Keys and raw outputs of one layer at the lookup positions, and the later layers to run."""

    layer: int
    """The edited layer."""
    forward: PartialForward
    """Runs the later layers."""
    keys: Float[Tensor, "row d_mlp"]
    """The input of ``W_out`` at each row's lookup position, in the order of :class:`EditRows`."""
    outputs: Float[Tensor, "row d_model"]
    """The raw output of ``W_out`` there, with its bias."""
    groups: tuple[RowGroup, ...]
    """The rows that the loss reads, in groups that each run in one forward pass."""

    @classmethod
    def of(cls, model: LensModel, rows: EditRows, layer: int) -> "EditedLayer":
        """Run all rows once, and keep what the later layers resume from."""
        forward = PartialForward(model, rows.tokens[0])
        names, kept = (key_hook(layer), component_hook("mlp", layer)), dict[str, Tensor]()
        with torch.no_grad(), hooks_on(model, capture_hooks(names, kept)):
            streams, past = forward.run(rows.tokens)
        at = (torch.arange(len(rows.lookups), device="cpu"), rows.lookups)
        keys, mlp_out = (kept[name][at] for name in names)
        outputs = mlp_output(model, layer, keys)
        check_raw_output(model, layer, outputs, mlp_out)

        def pasts(start: int, some: Tensor) -> tuple[LayerPast, ...] | None:
            if past is None:
                return None
            later = range(layer + 1, model.cfg.n_layers)
            return tuple(past.at(i, before=start, rows=some) for i in later)

        groups = []
        for start, end, some in _near_rows(rows, together=past is None):
            row_in_group = torch.full((len(rows.tokens),), -1, dtype=torch.long, device="cpu")
            row_in_group[some] = torch.arange(len(some), device="cpu")
            read_rows, read_positions = rows.reads
            number = (row_in_group[read_rows] >= 0).nonzero()[:, 0]
            groups.append(
                RowGroup(
                    stream=streams[layer + 1][some, start:end],
                    outputs=outputs[some],
                    lookups=rows.lookups[some] - start,
                    pasts=pasts(start, some),
                    reads=(number, row_in_group[read_rows[number]], read_positions[number] - start),
                )
            )
        return cls(layer=layer, forward=forward, keys=keys, outputs=outputs, groups=tuple(groups))

    def log_probs(self, delta: Float[Tensor, " d_model"]) -> Float[Tensor, "read d_vocab"]:
        """Log probabilities at every prediction that the loss reads, in their order.

        ``delta`` is added to the raw output of ``W_out`` at each row's lookup position. The order
        is that of :attr:`EditRows.reads`.
        """
        order = torch.cat([group.reads[0] for group in self.groups]).argsort()
        finals = [(self._final_stream(group, delta), *group.reads[1:]) for group in self.groups]
        return self.forward.logits_at(finals)[order.to(delta.device)].log_softmax(-1)

    def _final_stream(
        self, group: RowGroup, delta: Float[Tensor, " d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        model, pasts = self.forward.model, group.pasts
        change = mlp_contribution(model, self.layer, group.outputs + delta) - mlp_contribution(
            model, self.layer, group.outputs
        )
        at = (torch.arange(len(group.lookups), device="cpu"), group.lookups)
        stream = group.stream.index_put(at, change.to(group.stream), accumulate=True)
        first = self.layer + 1
        return self.forward.resume(
            stream, first, past=None if pasts is None else lambda i: pasts[i - first]
        )


def _near_rows(rows: EditRows, *, together: bool) -> list[tuple[int, int, Int[Tensor, " row"]]]:
    """The rows that the loss reads, in groups: start, end and row numbers of each group.

    ``together`` puts all of them into one group. The first row, the bare prompt, is left out: the
    loss reads that prompt only where it is also one of the contexts.
    """
    if together:
        return [(0, rows.tokens.shape[1], torch.arange(1, len(rows.tokens), device="cpu"))]
    _, positions = rows.reads
    n_target = len(rows.target)
    last_reads = (*positions[n_target - 1 : -1 : n_target], positions[-1])
    ends = [int(position) + 1 for position in last_reads]
    by_lookup = sorted((lookup, i) for i, lookup in enumerate(rows.lookups.tolist()) if i > 0)
    groups: list[list[tuple[int, int]]] = []
    for lookup, row in by_lookup:
        if not groups or lookup - groups[-1][0][0] >= _NEAR:
            groups.append([])
        groups[-1].append((lookup, row))
    return [
        (
            group[0][0],
            max(ends[row - 1] for _, row in group),
            torch.tensor(sorted(row for _, row in group), dtype=torch.long, device="cpu"),
        )
        for group in groups
    ]
