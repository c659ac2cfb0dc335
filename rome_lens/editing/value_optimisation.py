"""The value ``v*``: what the edited layer must write at the subject to give the new target.

``v* = v_0 + delta``, where ``v_0`` is what the layer writes at the bare prompt's lookup position
before the edit, and ``delta`` minimises

    mean_contexts mean_target -log p(o*)
        +  kl_factor * KL(p_delta || p_0) at "{subject} is a"
        +  weight_decay * ||delta|| / ||v_0||^2          with  ||delta|| <= clamp * ||v_0||

The first term makes the new target likely in every context. The second keeps the model's idea of
what the subject is. The third keeps the change small.

Several facts are optimised side by side. Each has its own ``delta``, loss and last step, as if it
were alone.

Source: Meng et al. 2022, section 3.1 (equation 4) and appendix E.5.
"""

import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.editing.config import RomeConfig, Stopped
from rome_lens.editing.edited_layer import EditedLayer
from rome_lens.editing.optimiser import OptimisationError, adam_step, overflow_error
from rome_lens.editing.prompts import EditRows


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the optimisation: ``delta``, and the terms of the loss at that ``delta``."""

    delta: Float[Tensor, " d_model"]
    """The change of the value."""
    nll: float
    """Negative log likelihood of the new target, mean over its tokens and over contexts."""
    kl: float
    """The weighted KL divergence."""
    decay: float
    """The weight decay."""
    probability: float
    """The new target's probability: geometric mean over its tokens, mean over contexts."""
    answer_probability: float
    """The probability of the new target as a whole answer: product over its tokens, mean over
    contexts."""

    @property
    def loss(self) -> float:
        """The whole loss."""
        return self.nll + self.kl + self.decay

    def stops(self, config: RomeConfig, matched: float | None = None) -> Stopped | None:
        """Which stopping rule of the config this step meets, or None.

        ``matched`` is the probability of the true answer before the edit, if the config asks for
        it.
        """
        if config.stop == "matched":
            assert matched is not None
            if self.answer_probability >= (1.0 - _ROUNDING) * matched:
                return "matched"
        if config.stop_probability is not None and self.probability > config.stop_probability:
            return "probability"
        return "loss" if self.loss < config.stop_loss else None


_FLOAT16_SCALE = 1024.0
# Two forward passes in float32 may differ by this part of a probability. A probability that has
# been reached up to rounding needs no further step.
_ROUNDING = 1e-4

Outcome = Step | OptimisationError
"""A fact's step, or why there is none."""


def descent(
    state: EditedLayer,
    rows: Sequence[EditRows],
    config: RomeConfig,
    finished: AbstractSet[int] = frozenset(),
) -> Iterator[dict[int, Outcome]]:
    """Steps of Adam on the loss above, from ``delta = 0``, for several facts side by side.

    Each step runs only the layers after the edited one, on the positions that the change reaches,
    and unembeds only the positions that the losses read.

    Args:
        state: the edited layer on the rows of the facts.
        rows: the rows of each fact, all in the same number of contexts.
        finished: numbers of facts that need no further step. The caller may add to it meanwhile.

    Raises:
        ResumeError: before the first step, if the later layers alone do not give what the whole
            model gives.

    Yields:
        The step of each fact, by its number. A fact whose loss or ``||delta||`` is not finite has
        an OptimisationError instead, and no further step. The message names the step.
    """
    starts = torch.stack([subject.outputs[0] for subject in state.subjects])
    bounds = config.clamp * config.norm(starts)
    deltas = torch.zeros_like(starts, requires_grad=True)
    optimiser = torch.optim.Adam([deltas], lr=config.lr)
    norms = torch.zeros_like(bounds)
    running, layer_rows, reads = list(range(len(rows))), state.rows, _Reads.of(rows, starts)
    scale = _FLOAT16_SCALE if layer_rows.stream.dtype == torch.float16 else 1.0
    initial: Tensor | None = None
    failed: set[int] = set()
    for step in range(config.steps):
        going_on = [i for i in running if i not in finished and i not in failed]
        if not going_on:
            return
        if going_on != running:
            running, layer_rows = going_on, state.rows.of_facts(going_on)
            reads = _Reads.of([rows[i] for i in running], starts)
        with torch.enable_grad():
            log_p = state.log_probs(deltas[running], layer_rows)
            if initial is None:
                state.check(log_p)
                initial = log_p[reads.of_kl].detach()
            kl = config.kl_factor * reads.kl(log_p, initial[running])
            decay = config.weight_decay * config.norm(deltas) / config.norm(starts) ** 2
            nll, probability, answer = reads.nll_and_probabilities(log_p)
            terms = _Terms(nll, kl, decay[running], probability, answer)
        outcomes = _outcomes(step, running, terms, deltas, norms)
        failed |= {i for i, each in outcomes.items() if isinstance(each, OptimisationError)}
        yield outcomes
        if step < config.steps - 1:
            try:
                adam_step(optimiser, deltas, terms.loss.sum(), step + 1, scale=scale)
            except OptimisationError as error:
                yield dict.fromkeys(running, error.with_traceback(None))
                return
            norms = _clamp(deltas, config, bounds)


class _Terms(NamedTuple):
    """The terms of each fact's loss, and the new target's two probabilities (see Step)."""

    nll: Float[Tensor, " fact"]
    kl: Float[Tensor, " fact"]
    decay: Float[Tensor, " fact"]
    probability: Float[Tensor, " fact"]
    answer_probability: Float[Tensor, " fact"]

    @property
    def loss(self) -> Float[Tensor, " fact"]:
        return self.nll + self.kl + self.decay


@torch.no_grad()
def _clamp(
    deltas: Float[Tensor, "fact d_model"], config: RomeConfig, bounds: Float[Tensor, " fact"]
) -> Float[Tensor, " fact"]:
    """Shorten each ``delta`` to its bound. Returns the norms before that.

    An infinite norm would not be seen afterwards.
    """
    lengths = config.norm(deltas)
    norms = deltas.norm(dim=-1)
    deltas.mul_(torch.where(lengths > bounds, bounds / lengths, 1.0)[:, None])
    return norms


@torch.no_grad()
def _outcomes(
    step: int,
    facts: Sequence[int],
    terms: _Terms,
    deltas: Float[Tensor, "fact d_model"],
    norms: Float[Tensor, " fact"],
) -> dict[int, Outcome]:
    """The steps of the facts. This is the one place where a step waits for the device."""
    values = torch.stack([*terms, terms.loss, norms[list(facts)]]).tolist()
    now = deltas.detach().clone()
    outcomes: dict[int, Outcome] = {}
    for i, nll, kl, decay, probability, answer, loss, norm in zip(facts, *values, strict=True):
        if not math.isfinite(norm):
            outcomes[i] = overflow_error(step)
        elif not math.isfinite(loss):
            of_loss = {"nll": nll, "kl": kl, "decay": decay}
            outcomes[i] = OptimisationError(
                f"The loss is {loss} at step {step} ({of_loss}): lower lr or clamp."
            )
        else:
            outcomes[i] = Step(
                delta=now[i],
                nll=nll,
                kl=kl,
                decay=decay,
                probability=probability,
                answer_probability=answer,
            )
    return outcomes


@dataclass(frozen=True, kw_only=True)
class _Reads:
    """What the losses take from the log probabilities that :meth:`EditedLayer.log_probs` returns.

    Those of a fact are the predictions of the target's tokens, context by context, and then that of
    the KL prompt.
    """

    of_target: Int[Tensor, " read"]
    """The numbers of the predictions of a target token."""
    target: Int[Tensor, " read"]
    """The token that each of them predicts."""
    context: Int[Tensor, " read"]
    """The context of each of them, counted over all facts."""
    weight: Float[Tensor, " read"]
    """One over the number of tokens of its target."""
    length: Float[Tensor, " fact"]
    """The number of tokens of each fact's target."""
    of_kl: Int[Tensor, " fact"]
    """The number of each fact's prediction at the KL prompt."""
    n_contexts: int
    """The number of contexts of each fact."""

    @classmethod
    def of(cls, rows: Sequence[EditRows], like: Tensor) -> "_Reads":
        """For the predictions of these facts, on the device and in the precision of ``like``."""
        n_contexts = len(rows[0].target_positions)
        of_target, target, lengths, of_kl = [list[int]() for _ in range(4)]
        for each in rows:
            first, count = len(of_target) + len(of_kl), each.target_positions.numel()
            of_target += range(first, first + count)
            target += each.target.tolist() * n_contexts
            lengths += [len(each.target)] * n_contexts
            of_kl.append(first + count)

        def on_device(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long, device=like.device)

        context = [i for i, length in enumerate(lengths) for _ in range(length)]
        return cls(
            of_target=on_device(of_target),
            target=on_device(target),
            context=on_device(context),
            weight=1 / on_device(lengths).to(like)[on_device(context)],
            length=on_device(lengths[::n_contexts]).to(like),
            of_kl=on_device(of_kl),
            n_contexts=n_contexts,
        )

    def nll_and_probabilities(
        self, log_p: Float[Tensor, "read d_vocab"]
    ) -> tuple[Float[Tensor, " fact"], Float[Tensor, " fact"], Float[Tensor, " fact"]]:
        """``mean_contexts mean_target -log p``, and the mean over contexts of both probabilities.

        The first is ``exp mean_target log p``, the second ``exp sum_target log p``.
        """
        weighted = self.weight * log_p[self.of_target, self.target]
        contexts = weighted.new_zeros(self.n_contexts * len(self.of_kl))
        contexts = contexts.index_add(0, self.context, weighted).view(-1, self.n_contexts)
        whole = self.length[:, None] * contexts
        return -contexts.mean(1), contexts.exp().mean(1), whole.exp().mean(1)

    def kl(
        self, log_p: Float[Tensor, "read d_vocab"], initial: Float[Tensor, "fact d_vocab"]
    ) -> Float[Tensor, " fact"]:
        """``KL(p || p_0)`` at the KL prompts, in nats, from ``log p_0``."""
        at_kl = log_p[self.of_kl]
        return (at_kl.exp() * (at_kl - initial)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class OptimisedValue:
    """The steps of an optimisation up to where it stopped. The last step holds the result."""

    steps: Sequence[Step]
    """The steps, in their order."""
    stopped: Stopped
    """What ended the optimisation."""

    @property
    def delta(self) -> Float[Tensor, " d_model"]:
        """``v* - v_0``."""
        return self.steps[-1].delta

    @property
    def losses(self) -> Float[Tensor, "step 3"]:
        """Negative log likelihood, weighted KL and weight decay at each step, in float64."""
        terms = [(step.nll, step.kl, step.decay) for step in self.steps]
        return torch.tensor(terms, dtype=torch.float64, device="cpu")


def optimised_values(
    state: EditedLayer,
    rows: Sequence[EditRows],
    configs: Sequence[RomeConfig],
    matched: Sequence[float | None],
) -> list[list[OptimisedValue | OptimisationError]]:
    """For each fact, its optimised value for each config, from one descent that all of them share.

    The configs may differ only in when they stop, which includes the number of steps. Where the
    descent diverges, a config that had stopped before still has its value. The others get the
    error.

    Args:
        matched: for each fact, the probability of its true answer before the edit, if a config
            stops there.
    """
    longest = max(configs, key=lambda config: config.steps)
    steps: list[list[Step]] = [[] for _ in rows]
    values: list[dict[int, OptimisedValue | OptimisationError]] = [{} for _ in rows]
    finished: set[int] = set()
    for outcomes in descent(state, rows, longest, finished):
        for fact, outcome in outcomes.items():
            found = values[fact]
            if isinstance(outcome, OptimisationError):
                values[fact] = {i: found.get(i, outcome) for i in range(len(configs))}
                continue
            steps[fact].append(outcome)
            for i, config in enumerate(configs):
                stopped = outcome.stops(config, matched[fact])
                if stopped is None and len(steps[fact]) == config.steps:
                    stopped = "steps"
                if i not in found and stopped is not None:
                    found[i] = OptimisedValue(steps=tuple(steps[fact]), stopped=stopped)
        finished |= {fact for fact, found in enumerate(values) if len(found) == len(configs)}
    return [[found[i] for i in range(len(configs))] for found in values]
