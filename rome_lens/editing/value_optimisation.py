"""The value ``v*``: what the edited layer must write at the subject to give the new target.

``v* = v_0 + delta``, where ``v_0`` is what the layer writes at the bare prompt's lookup position
before the edit, and ``delta`` minimises

    mean_contexts mean_target -log p(o*)
        +  kl_factor * KL(p_delta || p_0) at "{subject} is a"
        +  weight_decay * ||delta|| / ||v_0||^2          with  ||delta|| <= clamp * ||v_0||

The first term makes the new target likely in every context. The second keeps the model's idea of
what the subject is. The third keeps the change small.

MEMIT and its successors optimise a change of the block's output instead, with the same loss.
``v_0`` is then the residual stream after the layer (:attr:`EditedLayer.site`).

Several facts are optimised side by side. Each has its own ``delta``, loss and last step, as if it
were alone.

Source: Meng et al. 2022, section 3.1 (equation 4) and appendix E.5.
"""

import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.config import RomeConfig, Stopped
from rome_lens.editing.edited_layer import EditedLayer
from rome_lens.editing.losses import Losses, Terms
from rome_lens.editing.optimiser import OptimisationError, adam_step, gradient_of, overflow_error
from rome_lens.editing.prompts import EditRows
from rome_lens.forward.recorded import Recorded, can_record


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
    and unembeds only the positions that the losses read. On a GPU, the second step is recorded, and
    later ones repeat its kernels. A model with a caller's hooks is not recorded, because they would
    not run.

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
    starts = state.starts
    bounds = config.clamp * config.norm(starts)
    deltas = torch.zeros_like(starts, requires_grad=True)
    optimiser = torch.optim.Adam([deltas], lr=config.lr)
    norms = torch.zeros_like(bounds)
    scale = _FLOAT16_SCALE if state.rows.stream.dtype == torch.float16 else 1.0
    losses = Losses(state, rows, config, starts)
    recordable = state.rows.pasts is not None and can_record(starts.device)
    recorded: Recorded | None = None
    failed: set[int] = set()

    def with_gradient(at: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            terms = losses(at)
        return *terms, gradient_of(terms.loss.sum(), at, scale=scale)

    for step in range(config.steps):
        going_on = [i for i in losses.facts if i not in finished and i not in failed]
        if not going_on:
            return
        # A recording serves until half of its facts need no further step.
        most = len(losses.facts) // 2 if recorded else len(losses.facts) - 1
        if len(going_on) <= most:
            losses, recorded = losses.of_facts(going_on), None
        if recordable and recorded is None and step > 0:
            try:
                recorded = Recorded(with_gradient, deltas)
            except RuntimeError:  # the model does something that only Python can repeat
                recordable = False
        gradient: Tensor | None = None
        if recorded is None:
            with torch.enable_grad():
                terms = losses(deltas)
        else:
            *found, gradient = recorded(deltas)
            terms = Terms(*found)
        outcomes = _outcomes(step, losses, terms, deltas, norms)
        outcomes = {i: outcomes[i] for i in going_on}
        failed |= {i for i, each in outcomes.items() if isinstance(each, OptimisationError)}
        yield outcomes
        if step < config.steps - 1:
            if gradient is None:
                gradient = gradient_of(terms.loss.sum(), deltas, scale=scale)
            try:
                adam_step(optimiser, deltas, gradient, step + 1)
            except OptimisationError as error:
                yield dict.fromkeys(going_on, error.with_traceback(None))
                return
            norms = _clamp(deltas, config, bounds)


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
    losses: Losses,
    terms: Terms,
    deltas: Float[Tensor, "fact d_model"],
    norms: Float[Tensor, " fact"],
) -> dict[int, Outcome]:
    """The steps of the facts. This is the one place where a step waits for the device."""
    values = torch.stack([*terms, terms.loss, norms[losses.numbers]]).tolist()
    now = deltas.detach().clone()
    outcomes: dict[int, Outcome] = {}
    for i, *values_of_fact in zip(losses.facts, *values, strict=True):
        nll, kl, decay, probability, answer, loss, norm = values_of_fact
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
