"""The value ``v*``: what the edited layer must write at the subject for the model to give the new target.

Source: Meng et al. 2022, section 3.1 (equation 4) and appendix E.5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.editing.config import RomeConfig
from rome_lens.editing.contexts import ContextRows
from rome_lens.editing.optimiser import OptimisationError, adam_step
from rome_lens.forward.additions import mlp_contribution
from rome_lens.forward.kv_cache import LayerPast
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import check_raw_output
from rome_lens.forward.tokens import encode, pad_right
from rome_lens.models.hook_names import capture_hooks, component_hook, key_hook
from rome_lens.models.lens import LensModel, mlp_output

KL_PROMPT = "{} is a"
_NEAR = 3  # rows whose lookup positions lie this close run together: a few positions too many cost less than a run more


@dataclass(frozen=True, kw_only=True)
class EditRows:
    """The token rows of one edit: the bare prompt, the contexts with the target appended, and the KL prompt.

    ``lookups`` are the positions of the subject's last token; target token ``j`` of context row ``i`` is predicted at
    ``target_positions[i, j]``.
    """

    tokens: Int[Tensor, "row pos"]
    lookups: Int[Tensor, " row"]
    target: Int[Tensor, " target"]
    target_positions: Int[Tensor, "context target"]

    @classmethod
    def of(
        cls, model: LensModel, fact: Fact, contexts: Sequence[str], prepend_bos: bool | None
    ) -> "EditRows":
        bare = encode(model, fact, prepend_bos=prepend_bos)
        essence = Fact(KL_PROMPT, subject=fact.subject, target=fact.target)
        kl = encode(model, essence, prepend_bos=prepend_bos)
        asked = ContextRows.of(model, fact, contexts, prepend_bos)
        return cls(
            tokens=pad_right([bare.tokens.tolist(), *asked.rows, kl.tokens.tolist()]),
            lookups=torch.tensor([bare.subject_last, *asked.lookups, kl.subject_last]),
            target=asked.target,
            target_positions=asked.target_positions,
        )

    @property
    def reads(self) -> tuple[Int[Tensor, " read"], Int[Tensor, " read"]]:
        """Row and position of every prediction that the loss reads: each context's targets in turn, then the KL row's."""
        n_contexts, n_target = self.target_positions.shape
        rows = torch.cat(
            [
                torch.arange(1, n_contexts + 1).repeat_interleave(n_target),
                torch.tensor([n_contexts + 1]),
            ]
        )
        return rows, torch.cat([self.target_positions.flatten(), self.lookups[-1:]])


@dataclass(frozen=True, kw_only=True)
class Later:
    """Rows with near lookup positions, from the first of these on: what a change at the lookups can reach.

    ``read`` gives, for each prediction that the loss reads off these rows, its number among all, its row here and its
    position here.
    """

    stream: Float[Tensor, "row pos d_model"]
    outputs: Float[Tensor, "row d_model"]
    lookups: Int[Tensor, " row"]
    pasts: tuple[LayerPast, ...] | None
    read: tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class EditedLayer:
    """One layer on the rows of an edit: keys and raw outputs at the lookup positions, and the later layers to run."""

    layer: int
    forward: PartialForward
    keys: Float[Tensor, "row d_mlp"]
    outputs: Float[Tensor, "row d_model"]
    later: tuple[Later, ...]

    @classmethod
    def of(cls, model: LensModel, rows: EditRows, layer: int) -> "EditedLayer":
        """One run of all rows, which also leaves the attention keys and values that later layers go on from."""
        forward = PartialForward(model, rows.tokens[0])
        names, kept = (key_hook(layer), component_hook("mlp", layer)), dict[str, Tensor]()
        with torch.no_grad(), model.hooks(fwd_hooks=capture_hooks(names, kept)):
            streams, past = forward.run(rows.tokens)
        at = (torch.arange(len(rows.lookups)), rows.lookups)
        keys, mlp_out = (kept[name][at] for name in names)
        outputs = mlp_output(model, layer, keys)
        check_raw_output(model, layer, outputs, mlp_out)

        def pasts(start: int, some: Tensor) -> tuple[LayerPast, ...] | None:
            if past is None:
                return None
            return tuple(
                past.at(i, before=start, rows=some) for i in range(layer + 1, model.cfg.n_layers)
            )

        later = []
        for start, end, some in _near_rows(rows, together=past is None):
            local = torch.full((len(rows.tokens),), -1)
            local[some] = torch.arange(len(some))
            read_rows, read_positions = rows.reads
            number = (local[read_rows] >= 0).nonzero()[:, 0]
            later.append(
                Later(
                    stream=streams[layer + 1][some, start:end],
                    outputs=outputs[some],
                    lookups=rows.lookups[some] - start,
                    pasts=pasts(start, some),
                    read=(number, local[read_rows[number]], read_positions[number] - start),
                )
            )
        return cls(layer=layer, forward=forward, keys=keys, outputs=outputs, later=tuple(later))

    def log_probs(self, delta: Float[Tensor, " d_model"]) -> Float[Tensor, "read d_vocab"]:
        """Log probabilities at every prediction read, with ``delta`` added to W_out's raw output at each lookup."""
        order = torch.cat([part.read[0] for part in self.later]).argsort()
        finals = [(self._final(part, delta), *part.read[1:]) for part in self.later]
        return self.forward.logits_at(finals)[order.to(delta.device)].log_softmax(-1)

    def _final(
        self, part: Later, delta: Float[Tensor, " d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        model, pasts = self.forward.model, part.pasts
        change = mlp_contribution(model, self.layer, part.outputs + delta) - mlp_contribution(
            model, self.layer, part.outputs
        )
        at = (torch.arange(len(part.lookups)), part.lookups)
        stream = part.stream.index_put(at, change.to(part.stream), accumulate=True)
        first = self.layer + 1
        return self.forward.resume(
            stream, first, past=None if pasts is None else lambda i: pasts[i - first]
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the optimisation: ``delta`` and what the loss says of it."""

    delta: Float[Tensor, " d_model"]
    nll: float
    kl: float
    decay: float
    probability: float

    @property
    def loss(self) -> float:
        """The whole loss."""
        return self.nll + self.kl + self.decay

    def stops(self, config: RomeConfig) -> str | None:
        """What it has reached: ``"probability"``, ``"loss"``, or None."""
        if config.stop_probability is not None and self.probability > config.stop_probability:
            return "probability"
        return "loss" if self.loss < config.stop_loss else None


def descent(state: EditedLayer, rows: EditRows, config: RomeConfig) -> Iterator[Step]:
    """Steps of Adam from ``delta = 0`` on

        mean_contexts mean_target -log p(o*)  +  kl_factor KL(p_delta || p_0) at "{subject} is a"
            +  weight_decay ||delta|| / ||v_0||^2,   ||delta|| <= clamp ||v_0||

    with ``v_0 = state.outputs[0]``, the bare prompt's. Only the layers after the edited one run, on the positions that the
    change reaches, and only those that the loss reads are unembedded.

    Raises:
        OptimisationError: the loss, or ``||delta||``, is not finite; the message names the step.
    """
    start = state.outputs[0]
    n_contexts, n_target = rows.target_positions.shape
    target = rows.target.to(start.device).repeat(n_contexts)
    initial: Tensor | None = None
    delta = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.lr)
    for step in range(config.steps):
        with torch.enable_grad():
            log_p = state.log_probs(delta)
            if initial is None:
                initial = log_p[-1].detach()
            each = log_p[torch.arange(len(target)), target].reshape(n_contexts, n_target).mean(1)
            nll = -each.mean()
            kl = config.kl_factor * (log_p[-1].exp() * (log_p[-1] - initial)).sum()
            decay = config.weight_decay * config.norm(delta) / config.norm(start) ** 2
            loss = nll + kl + decay
        terms = {"nll": nll.item(), "kl": kl.item(), "decay": decay.item()}
        if not torch.isfinite(loss):
            raise OptimisationError(
                f"The loss is {loss.item()} at step {step} ({terms}): lower lr or clamp."
            )
        yield Step(delta=delta.detach().clone(), probability=each.exp().mean().item(), **terms)
        if step < config.steps - 1:
            adam_step(optimiser, delta, loss, step + 1)
            with torch.no_grad():
                bound = config.clamp * config.norm(start)
                if config.norm(delta) > bound:
                    delta.mul_(bound / config.norm(delta))


def _near_rows(rows: EditRows, *, together: bool) -> list[tuple[int, int, Int[Tensor, " row"]]]:
    """Rows that are scored, in groups of near lookup positions: start, end and numbers of each group's rows.

    The bare row is left out: it is scored only where it is among the contexts.
    """
    _, positions = rows.reads
    n_target = len(rows.target)
    ends = [
        int(position) + 1 for position in (*positions[n_target - 1 : -1 : n_target], positions[-1])
    ]
    scored = sorted(
        (int(lookup), row) for row, lookup in enumerate(rows.lookups.tolist()) if row > 0
    )
    if together:
        return [(0, rows.tokens.shape[1], torch.arange(1, len(rows.tokens)))]
    groups: list[list[tuple[int, int]]] = []
    for lookup, row in scored:
        if not groups or lookup - groups[-1][0][0] >= _NEAR:
            groups.append([])
        groups[-1].append((lookup, row))
    return [
        (
            group[0][0],
            max(ends[row - 1] for _, row in group),
            torch.tensor(sorted(row for _, row in group)),
        )
        for group in groups
    ]
