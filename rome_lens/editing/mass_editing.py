"""Write many facts into one layer or several: the steps that MEMIT, EMMET and AlphaEdit share.

1. ``mass_values.py``: each fact's target ``z`` for the output of the last layer's block.
2. ``mass_states.py``: the keys of a layer, and how far the block's output is from ``z`` now.
3. ``mass_solvers.py``, ``mass_update.py``: the update that closes a part of that gap.
4. The same for the next layer, on the model with this one edited.

Each layer is given the share ``(z - h) / (number of layers left)`` of what is missing then.
``through_the_norm.py`` translates it where a norm follows ``W_out``.

Source: Meng et al. 2023, section 4.3 (algorithm 1).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.mass_config import AlphaEditConfig, MassConfig, Method
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.editing.mass_solvers import Solver
from rome_lens.editing.mass_states import LookupRows, States
from rome_lens.editing.mass_values import Target, TargetSettings
from rome_lens.editing.through_the_norm import raw_change
from rome_lens.editing.weight_edit import WeightEdit
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, at_least_float32, mlp_output, w_out


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How facts are written: everything but the facts."""

    method: Method
    """The method."""
    config: MassConfig
    """Its hyperparameters."""
    solvers: Mapping[int, Solver]
    """The update of each layer, from the lowest layer on."""
    contexts: tuple[str, ...]
    """Templates around the prompts. Empty until they are sampled (``mass_facts.with_contexts``)."""
    prepend_bos: bool
    """Whether prompts start with a BOS token."""
    model_fingerprint: str
    """The fingerprint of the model."""
    statistics: tuple[str, ...]
    """The source of each layer's statistics."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to edit."""
        return tuple(self.solvers)

    @property
    def target_settings(self) -> TargetSettings:
        """What the facts' targets depend on."""
        return TargetSettings(
            layer=self.layers[-1],
            contexts=self.contexts,
            config=self.config.value,
            prepend_bos=self.prepend_bos,
        )


@dataclass(frozen=True, kw_only=True)
class Written:
    """One batch, written."""

    targets: tuple[Target, ...]
    """The facts and their targets."""
    edits: tuple[WeightEdit, ...]
    """The update of each layer."""
    keys: Float[Tensor, "layer fact d_mlp"]
    """The keys that each layer was solved for."""
    residuals: Float[Tensor, "layer fact d_model"]
    """What each layer was given to change."""
    conditions: tuple[float, ...]
    """The condition number of each layer's matrix."""
    after: States
    """Keys and block outputs on the model with all layers written."""


@visits_model
def write_batch(
    model: LensModel,
    targets: Sequence[Target],
    plan: Plan,
    kept: Mapping[int, Float[Tensor, "kept d_mlp"]],
) -> Written:
    """Write one batch, layer after layer. The weights come back bit for bit.

    Args:
        kept: by layer, the keys that AlphaEdit keeps where they are.

    Raises:
        OptimisationError: the keys depend on each other, or are too many, where the method maps
            each exactly.
    """
    layers, last = plan.layers, plan.layers[-1]
    rows = LookupRows.of([each.rows for each in targets], plan.contexts, plan.config.key_mean)
    values = torch.stack([target.value for target in targets])
    edits, keys, residuals, conditions = list[WeightEdit](), [], [], []
    with ExitStack() as lower:
        for number, layer in enumerate(layers):
            now = rows.states(model, [layer], last)
            share = (values - now.streams) / (len(layers) - number)
            outputs = mlp_output(model, layer, now.bare_keys[layer])
            change = raw_change(model, layer, outputs, share)
            solved = plan.solvers[layer](now.keys[layer].double().cpu(), kept[layer].double().cpu())
            delta = solved.adjusted.T @ change.double().cpu()
            edit = WeightEdit(
                layer=layer,
                delta=delta.to(at_least_float32(w_out(model, layer)).dtype),
                model_fingerprint=plan.model_fingerprint,
                variant=plan.method,
                config=asdict(plan.config),
                prepend_bos=plan.prepend_bos,
            )
            edits.append(edit)
            keys.append(now.keys[layer])
            residuals.append(share)
            conditions.append(solved.condition)
            lower.enter_context(edit.applied(model))
        after = rows.states(model, layers, last)
    return Written(
        targets=tuple(targets),
        edits=tuple(edits),
        keys=torch.stack(keys),
        residuals=torch.stack(residuals),
        conditions=tuple(conditions),
        after=after,
    )


def added(one: Sequence[WeightEdit], other: Sequence[WeightEdit]) -> tuple[WeightEdit, ...]:
    """The edits of some layers, and others of the same layers on top of them, as one per layer."""
    if not one:
        return tuple(other)
    return tuple(replace(b, delta=a.delta + b.delta) for a, b in zip(one, other, strict=True))


@visits_model
def mass_edit(
    model: LensModel,
    plan: Plan,
    batches: Sequence[Written],
    kept: Mapping[int, Float[Tensor, "kept d_mlp"]],
) -> MassEdit:
    """The edit that consists of some batches, written one after the other.

    Args:
        batches: the batches. The last one's edits are the sums of all batches.
        kept: by layer, the keys that AlphaEdit keeps in later batches.
    """
    targets = [target for batch in batches for target in batch.targets]
    steps = max(len(target.optimised.steps) for target in targets)
    losses = torch.full((len(targets), steps, 3), torch.nan, dtype=torch.float64, device="cpu")
    for i, target in enumerate(targets):
        losses[i, : len(target.optimised.steps)] = target.optimised.losses
    starts = torch.stack([target.start for target in targets])
    values = torch.stack([target.value for target in targets])
    left = (values - torch.cat([batch.after.streams for batch in batches])).norm(dim=-1)
    wanted = (values - starts).norm(dim=-1)
    probabilities = [target.optimised.steps[-1].probability for target in targets]
    is_alphaedit = isinstance(plan.config, AlphaEditConfig)
    return MassEdit(
        edits=tuple(
            replace(
                edit,
                fact=targets[0].fact if len(targets) == 1 else None,
                made_with=f"{plan.method}, {plan.config}, {len(targets)} facts",
                alignment=edit.alignment_in(model),
            )
            for edit in batches[-1].edits
        ),
        facts=tuple(target.fact for target in targets),
        layers=plan.layers,
        batches=tuple(len(batch.targets) for batch in batches),
        method=plan.method,
        keys=torch.cat([batch.keys for batch in batches], dim=1).cpu(),
        residuals=torch.cat([batch.residuals for batch in batches], dim=1).cpu(),
        starts=starts.cpu(),
        values=values.cpu(),
        losses=losses,
        probabilities=torch.tensor(probabilities, dtype=torch.float64, device="cpu"),
        stopped=tuple(target.optimised.stopped for target in targets),
        missed=torch.where(wanted > 0.0, left / wanted, torch.zeros_like(left)).cpu(),
        conditions=torch.tensor(
            [batch.conditions for batch in batches], dtype=torch.float64, device="cpu"
        ),
        ranks=tuple(solver.rank for solver in plan.solvers.values()),
        threshold=plan.config.threshold if isinstance(plan.config, AlphaEditConfig) else None,
        kept_keys=torch.stack([kept[layer] for layer in plan.layers]) if is_alphaedit else None,
        model_fingerprint=plan.model_fingerprint,
        config=asdict(plan.config),
        contexts=plan.contexts,
        statistics=plan.statistics,
        prepend_bos=plan.prepend_bos,
    )
