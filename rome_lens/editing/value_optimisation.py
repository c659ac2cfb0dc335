"""The value ``v*``: what the edited layer must write at the subject to give the new target.

``v* = v_0 + delta``, where ``v_0`` is what the layer writes at the bare prompt's lookup position
before the edit, and ``delta`` minimises

    mean_contexts mean_target -log p(o*)
        +  kl_factor * KL(p_delta || p_0) at "{subject} is a"
        +  weight_decay * ||delta|| / ||v_0||^2          with  ||delta|| <= clamp * ||v_0||

The first term makes the new target likely in every context. The second keeps the model's idea of
what the subject is. The third keeps the change small.

Source: Meng et al. 2022, section 3.1 (equation 4) and appendix E.5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.config import RomeConfig, Stopped
from rome_lens.editing.edited_layer import EditedLayer
from rome_lens.editing.optimiser import OptimisationError, adam_step
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

    @property
    def loss(self) -> float:
        """The whole loss."""
        return self.nll + self.kl + self.decay

    def stops(self, config: RomeConfig) -> Stopped | None:
        """Which stopping rule of the config this step meets, or None."""
        if config.stop_probability is not None and self.probability > config.stop_probability:
            return "probability"
        return "loss" if self.loss < config.stop_loss else None


def descent(state: EditedLayer, rows: EditRows, config: RomeConfig) -> Iterator[Step]:
    """Steps of Adam on the loss above, from ``delta = 0``.

    The caller decides when to stop. Each step runs only the layers after the edited one, on the
    positions that the change reaches, and unembeds only the positions that the loss reads.

    Raises:
        OptimisationError: the loss or ``||delta||`` is not finite. The message names the step.
    """
    start = state.outputs[0]
    n_contexts, n_target = rows.target_positions.shape
    target = rows.target.to(start.device).repeat(n_contexts)
    kl_initial: Tensor | None = None
    delta = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.lr)
    for step in range(config.steps):
        with torch.enable_grad():
            log_p = state.log_probs(delta)
            if kl_initial is None:
                kl_initial = log_p[-1].detach()
            of_target = log_p[torch.arange(len(target), device=log_p.device), target]
            of_contexts = of_target.reshape(n_contexts, n_target).mean(1)
            nll = -of_contexts.mean()
            kl = config.kl_factor * (log_p[-1].exp() * (log_p[-1] - kl_initial)).sum()
            decay = config.weight_decay * config.norm(delta) / config.norm(start) ** 2
            loss = nll + kl + decay
        terms = {"nll": nll.item(), "kl": kl.item(), "decay": decay.item()}
        if not torch.isfinite(loss):
            raise OptimisationError(
                f"The loss is {loss.item()} at step {step} ({terms}): lower lr or clamp."
            )
        probability = of_contexts.exp().mean().item()
        yield Step(delta=delta.detach().clone(), probability=probability, **terms)
        if step < config.steps - 1:
            adam_step(optimiser, delta, loss, step + 1)
            with torch.no_grad():
                bound = config.clamp * config.norm(start)
                if config.norm(delta) > bound:
                    delta.mul_(bound / config.norm(delta))


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
    state: EditedLayer, rows: EditRows, configs: Sequence[RomeConfig]
) -> list[OptimisedValue | OptimisationError]:
    """The optimised value for each config, from one descent that all of them share.

    The configs may differ only in when they stop. Where the descent diverges, a config that had
    stopped before still has its value. The others get the error.
    """
    steps: list[Step] = []
    stopped: dict[int, OptimisedValue] = {}
    diverged: OptimisationError | None = None
    try:
        for step in descent(state, rows, configs[0]):
            steps.append(step)
            for i, config in enumerate(configs):
                reached = step.stops(config)
                if i not in stopped and reached is not None:
                    stopped[i] = OptimisedValue(steps=tuple(steps), stopped=reached)
            if len(stopped) == len(configs):
                break
    except OptimisationError as error:
        diverged = error.with_traceback(None)  # the traceback would keep the step's tensors alive
    rest = diverged or OptimisedValue(steps=tuple(steps), stopped="steps")
    return [stopped.get(i, rest) for i in range(len(configs))]
