"""The edited layer on the rows of one or several edits, and the layers after it.

One forward pass of all rows gives the layer's keys and raw outputs at the lookup positions. After
that, a change ``delta`` of the raw output at the lookup positions only needs the later layers, and
only the positions from the lookup position on:

    log p(delta) = later layers( stream + mlp(W_out k + delta) - mlp(W_out k) )

Here ``mlp`` is the identity, or the norm that follows ``W_out`` on Gemma 2 and 3. MEMIT and its
successors look for a change of the block's output instead:

    log p(delta) = later layers( stream + delta )

The rows have different lengths, and so have the parts before their lookup positions. They run
together all the same, padded on both sides (see :class:`rome_lens.forward.kv_cache.LayerPast`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.editing.config import Site
from rome_lens.editing.prompts import EditRows
from rome_lens.editing.row_batch import RowBatch
from rome_lens.forward.additions import mlp_contribution
from rome_lens.forward.kv_cache import LayerPast
from rome_lens.forward.module_hooks import hooks_on
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import check_raw_output
from rome_lens.forward.tokens import pad_right
from rome_lens.models.hook_names import capture_hooks, component_hook, key_hook
from rome_lens.models.lens import LensModel, at_least_float32, mlp_output


@dataclass(frozen=True, kw_only=True)
class SubjectStates:
    """What the edited layer reads and writes at the lookup positions of one fact's rows.

    The rows are those of :class:`EditRows`: the bare prompt, the contexts, the KL prompt.
    """

    keys: Float[Tensor, "row d_mlp"]
    """The input of ``W_out``."""
    outputs: Float[Tensor, "row d_model"]
    """The raw output of ``W_out``, with its bias."""
    streams: Float[Tensor, "row d_model"]
    """The block's output, which is the residual stream after the layer."""


@dataclass(frozen=True, kw_only=True)
class LossRows:
    """The rows that the losses of some facts read, from their lookup positions on."""

    fact: Int[Tensor, " row"]
    """The number of each row's fact among the facts that are run."""
    stream: Float[Tensor, "row pos d_model"]
    """The residual stream after the edited layer, padded on the right."""
    outputs: Float[Tensor, "row d_model"]
    """The raw output of ``W_out`` at the lookup positions."""
    lookups: Int[Tensor, " row"]
    """The lookup positions in ``stream``."""
    pasts: tuple[LayerPast, ...] | None
    """What attention in each later layer has cached of the positions before the lookup position.

    None where the model cannot resume from a cache. ``stream`` then holds all positions.
    """
    read_rows: Int[Tensor, " read"]
    """The row of each prediction that a loss reads, fact by fact."""
    read_positions: Int[Tensor, " read"]
    """The position of each of these predictions in ``stream``."""

    def of_facts(self, facts: Sequence[int]) -> "LossRows":
        """The rows of these facts. They get new numbers, in the order given."""
        chosen = torch.tensor(facts, dtype=torch.long, device=self.fact.device)
        is_of = self.fact[:, None] == chosen
        rows, fact = is_of.nonzero(as_tuple=True)
        new_row = is_of.any(1).cumsum(0) - 1
        reads = is_of.any(1)[self.read_rows]
        return LossRows(
            fact=fact,
            stream=self.stream[rows],
            outputs=self.outputs[rows],
            lookups=self.lookups[rows],
            pasts=None if self.pasts is None else tuple(past.rows(rows) for past in self.pasts),
            read_rows=new_row[self.read_rows[reads]],
            read_positions=self.read_positions[reads],
        )


@dataclass(frozen=True, kw_only=True)
class EditedLayer:
    """Keys and raw outputs of one layer at the lookup positions, and the later layers to run."""

    layer: int
    """The edited layer."""
    forward: PartialForward
    """Runs the later layers."""
    subjects: tuple[SubjectStates, ...]
    """What the layer reads and writes at the lookup positions, for each fact."""
    rows: LossRows
    """The rows that the losses read."""
    compared: Int[Tensor, " read"]
    """The numbers of the predictions that the whole model has made too, in one of the rows."""
    site: Site = "mlp"
    """Where a change is added: to the raw output of ``W_out``, or to the block's output."""

    @property
    def starts(self) -> Float[Tensor, "fact d_model"]:
        """What each fact's bare prompt has at the site before a change."""
        at_block = self.site == "block"
        return torch.stack([(s.streams if at_block else s.outputs)[0] for s in self.subjects])

    @classmethod
    def of(
        cls,
        model: LensModel,
        rows: Sequence[EditRows],
        layer: int,
        *,
        site: Site = "mlp",
        later_positions: bool = True,
    ) -> "EditedLayer":
        """Run the rows of all facts once, and keep what the later layers resume from.

        Args:
            site: where a change is added.
            later_positions: leave out the positions before the lookup positions where that is
                possible. It is not known to be right before :meth:`check` has passed.
        """
        batch = RowBatch.of(rows)
        row, reads = batch.compared()
        read = batch.reads[1][reads]
        forward = PartialForward(model, batch.tokens[row], read=read, check="none")
        states = None
        if later_positions and forward.has_past:
            merged = batch.merged()
            if (states := _states_from_lookups(forward, merged, layer)) is not None:
                batch = merged
        states = states or _states(forward, batch, layer)
        keys = at_least_float32(states.keys)
        outputs = mlp_output(model, layer, keys)
        check_raw_output(model, layer, outputs, states.mlp_out)
        counts = [len(each.tokens) for each in rows]
        at_lookups = (torch.arange(len(batch.lookups), device="cpu"), batch.lookups - states.starts)
        streams = at_least_float32(states.stream[at_lookups])
        subjects = zip(*(each.split(counts) for each in (keys, outputs, streams)), strict=True)
        device = states.stream.device
        (of_loss,) = batch.is_read.nonzero(as_tuple=True)
        new_row = torch.full_like(batch.fact, -1)
        new_row[of_loss] = torch.arange(len(of_loss), device="cpu")
        read_rows, read_positions = batch.reads
        return cls(
            layer=layer,
            forward=forward,
            compared=reads.to(device),
            site=site,
            subjects=tuple(
                SubjectStates(keys=keys, outputs=outputs, streams=streams)
                for keys, outputs, streams in subjects
            ),
            rows=LossRows(
                fact=batch.fact[of_loss].to(device),
                stream=states.stream[of_loss.to(device)],
                outputs=outputs[of_loss.to(device)],
                lookups=(batch.lookups - states.starts)[of_loss].to(device),
                pasts=states.pasts(of_loss),
                read_rows=new_row[read_rows].to(device),
                read_positions=(read_positions - states.starts[read_rows]).to(device),
            ),
        )

    def check(self, log_p: Float[Tensor, "read d_vocab"]) -> None:
        """Compare the log probabilities of all facts at ``delta = 0`` with the model's own.

        Raises:
            ResumeError: they do not agree.
        """
        self.forward.check_log_probs(log_p[self.compared])

    def log_probs(
        self, deltas: Float[Tensor, "fact d_model"], rows: LossRows | None = None
    ) -> Float[Tensor, "read d_vocab"]:
        """Log probabilities at every prediction that the losses read, fact by fact.

        ``deltas`` holds one vector for each fact. It is added at the site, at the lookup position
        of each of the fact's rows. The order of a fact's predictions is that of
        :attr:`EditRows.reads`.

        Args:
            rows: the rows of some facts. None takes those of all facts.
        """
        rows = self.rows if rows is None else rows
        model, first = self.forward.model, self.layer + 1
        change = deltas[rows.fact]
        if self.site == "mlp":
            changed = mlp_contribution(model, self.layer, rows.outputs + change)
            change = changed - mlp_contribution(model, self.layer, rows.outputs)
        at = (torch.arange(len(rows.fact), device=rows.fact.device), rows.lookups)
        stream = rows.stream.index_put(at, change.to(rows.stream), accumulate=True)
        pasts = rows.pasts
        final = self.forward.resume(
            stream, first, past=None if pasts is None else lambda i: pasts[i - first]
        )
        return self.forward.logits_at([(final, rows.read_rows, rows.read_positions)]).log_softmax(
            -1
        )


@dataclass(frozen=True, kw_only=True)
class _States:
    """A run of all rows: the edited layer at the lookup positions, and the stream after it."""

    keys: Float[Tensor, "row d_mlp"]
    mlp_out: Float[Tensor, "row d_model"]
    """What the MLP adds to the stream."""
    stream: Float[Tensor, "row pos d_model"]
    starts: Int[Tensor, " row"]
    """The position in its row where each row of ``stream`` begins."""
    later_pasts: tuple[LayerPast, ...] | None = None
    """The past of each layer after the edited one, for all rows."""

    def pasts(self, rows: Int[Tensor, " row"]) -> tuple[LayerPast, ...] | None:
        return self.later_pasts and tuple(past.rows(rows) for past in self.later_pasts)


def _states(forward: PartialForward, rows: RowBatch, layer: int) -> _States:
    """From a run of all layers on all positions."""
    names, kept = (key_hook(layer), component_hook("mlp", layer)), dict[str, Tensor]()
    with torch.no_grad(), hooks_on(forward.model, capture_hooks(names, kept)):
        streams, _ = forward.run(rows.tokens)
    at = (torch.arange(len(rows.lookups), device="cpu"), rows.lookups)
    keys, mlp_out = (kept[name][at] for name in names)
    starts = torch.zeros_like(rows.lookups)
    return _States(keys=keys, mlp_out=mlp_out, stream=streams[layer + 1], starts=starts)


def _states_from_lookups(forward: PartialForward, rows: RowBatch, layer: int) -> _States | None:
    """The same with less work, or None where the model cannot run later positions alone.

    The positions before the lookup position run through all layers, once for all rows that begin
    alike. The positions from there on run up to the edited layer.
    """
    before = [
        tuple(row[:end])
        for row, end in zip(rows.tokens.tolist(), rows.lookups.tolist(), strict=True)
    ]
    beginnings = {beginning: i for i, beginning in enumerate(dict.fromkeys(before))}
    which = torch.tensor([beginnings[each] for each in before], dtype=torch.long, device="cpu")
    with torch.no_grad():
        _, past = forward.run(pad_right([each or (0,) for each in beginnings]))
        if past is None:
            return None
        pasts = [
            past.at(i, before=rows.lookups, rows=which) for i in range(forward.model.cfg.n_layers)
        ]
        entering = forward.embedded(rows.tokens)
        width = int((rows.ends - rows.lookups).max())
        positions = rows.lookups[:, None] + torch.arange(width, device="cpu")
        row = torch.arange(len(positions), device="cpu")[:, None]
        later = entering[row, positions.clamp(max=entering.shape[1] - 1)]
        names, kept = (key_hook(layer), component_hook("mlp", layer)), dict[str, Tensor]()
        with hooks_on(forward.model, capture_hooks(names, kept)):
            stream = forward.resume(later, 0, past=pasts.__getitem__, stop=layer + 1)
    keys, mlp_out = (kept[name][:, 0] for name in names)
    return _States(
        keys=keys,
        mlp_out=mlp_out,
        stream=stream,
        starts=rows.lookups,
        later_pasts=tuple(pasts[layer + 1 :]),
    )
