"""Constrained fine-tuning (FT+L), the simplest way to edit the ``W_out`` that ROME edits."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.arguments import real_number, templates, whole_number
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.editing.new_target import refuse_what_is_said_already
from rome_lens.editing.optimiser import OptimisationError, adam_step, gradient_of, overflow_error
from rome_lens.editing.prompts import ContextRows
from rome_lens.editing.weight_edit import WeightEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import mlp_contribution
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import differentiating, in_float32, layer_states
from rome_lens.forward.tokens import encode, pad_right
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel, check_layer, starts_with_bos, w_out

STOP_LOSS = 1e-2


@visits_model
def fine_tune(
    model: LensModel,
    fact: Fact | Record,
    *,
    layer: int,
    norm_constraint: float = 5e-4,
    steps: int = 25,
    lr: float = 5e-4,
    weight_decay: float = 0.0,
    contexts: Iterable[str] = ("{}",),
    prepend_bos: bool | None = None,
) -> WeightEdit:
    """Fine-tune ``W_out`` under a bound. ``delta`` minimises


        - mean_contexts mean_i log p(o*_i | prompt, o*_1 ... o*_i-1)
        with  max |delta| <= norm_constraint

    The model itself is not changed. Adam optimises, and every entry of ``delta`` is clamped after
    each step. A loss below 0.01 stops it. The edit's ``losses`` holds the loss before each step,
    and as its last entry the loss of the edit itself. Each step runs only the layers after the
    edited one, and unembeds only the positions that the loss reads.

    The defaults are the original's for GPT-2 XL. A small model has larger weights, and may need a
    larger learning rate and bound.

    Args:
        model: the model to edit.
        fact: the fact, with a new target.
        layer: the layer to edit.
        norm_constraint: upper bound on every entry of ``delta``.
        steps: maximum number of Adam steps.
        lr: learning rate of Adam.
        weight_decay: weight decay of Adam on ``delta``, which pulls towards the unedited weights.
        contexts: templates with one ``{}`` for the fact's prompt. The original uses the bare prompt
            alone.
        prepend_bos: whether the prompts start with a BOS token. None uses the model's default.

    Raises:
        FactError: the fact has no new target, or the model already answers with it confidently; a
            context does not have exactly one ``{}``, or does not fit into the model's context.
        ModelError: the model has no such layer, no dense MLP there, or no tokenizer.
        ArgumentError: a hyperparameter is out of range, or the contexts are of the wrong kind.
        OptimisationError: a loss is not finite. The message names the step.

    Warns:
        LikelyTargetWarning: the new target is already the model's answer, but not a confident one.

    Source: Zhu et al. 2020; Meng et al. 2022, section 3.2 and appendix E (FT+L).
    """
    layer, fact, contexts = check_layer(model, layer), as_fact(fact), templates(contexts)
    w_out(model, layer)
    steps = whole_number("steps", steps)
    lr, weight_decay = real_number("lr", lr), real_number("weight_decay", weight_decay)
    norm_constraint = real_number("norm_constraint", norm_constraint)
    if steps < 1 or not (
        0 < lr < math.inf and norm_constraint > 0 and 0 <= weight_decay < math.inf
    ):
        raise ArgumentError(
            "Expected steps >= 1, a finite lr > 0, norm_constraint > 0, a finite weight_decay >= 0;"
            f" got steps={steps}, lr={lr}, norm_constraint={norm_constraint}, "
            f"weight_decay={weight_decay}."
        )
    with differentiating(model):
        rows = ContextRows.of(model, fact, contexts, prepend_bos)
        refuse_what_is_said_already(model, fact, encode(model, fact, prepend_bos=prepend_bos))
        precise = in_float32(model)
        state = _LayerState.of(precise, pad_right(rows.rows), layer)
        delta, losses = _optimise(precise, rows, state, norm_constraint, steps, lr, weight_decay)
    bos = starts_with_bos(model, prepend_bos)
    settings = {
        "norm_constraint": norm_constraint,
        "steps": steps,
        "lr": lr,
        "weight_decay": weight_decay,
    }
    edit = WeightEdit(
        layer=layer,
        delta=delta.cpu(),
        fact=fact,
        model_fingerprint=fingerprint(model),
        losses=torch.tensor(losses, dtype=torch.float64, device="cpu"),
        made_with=f"FT+L, {settings}, {len(contexts)} contexts, prepend_bos={bos}",
        variant="FT+L",
        config=settings,
        stopped="loss" if losses[-1] < STOP_LOSS else "steps",
        prepend_bos=bos,
    )
    return replace(edit, alignment=edit.alignment_in(model))


@dataclass(frozen=True, kw_only=True)
class _LayerState:
    """Keys and raw outputs of the edited layer, and the residual stream after it."""

    layer: int
    keys: Float[Tensor, "row pos d_mlp"]
    outputs: Float[Tensor, "row pos d_model"]
    stream: Float[Tensor, "row pos d_model"]

    @classmethod
    def of(cls, model: LensModel, tokens: Int[Tensor, "row pos"], layer: int) -> "_LayerState":
        keys, outputs, stream = layer_states(model, tokens, layer)
        return cls(layer=layer, keys=keys, outputs=outputs, stream=stream)

    def with_delta(
        self, model: LensModel, delta: Float[Tensor, "d_mlp d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """The stream after the layer, with ``k delta`` added to the raw output of ``W_out``."""
        moved = _contribution(model, self.layer, self.outputs + self.keys @ delta)
        return self.stream + (moved - _contribution(model, self.layer, self.outputs)).to(
            self.stream
        )


def _contribution(model: LensModel, layer: int, raw: Float[Tensor, "row pos d_model"]) -> Tensor:
    return mlp_contribution(model, layer, raw.flatten(0, 1)).view(raw.shape)


def _optimise(
    model: LensModel,
    rows: ContextRows,
    state: _LayerState,
    norm_constraint: float,
    steps: int,
    lr: float,
    weight_decay: float,
) -> tuple[Float[Tensor, "d_mlp d_model"], list[float]]:
    """``delta``, and the loss before each step and after the last one."""
    positions = rows.target_positions
    forward = PartialForward(model, pad_right(rows.rows)[0])
    row = torch.arange(len(positions), device="cpu")[:, None].expand_as(positions)
    target = rows.target.to(state.stream.device).expand_as(positions)
    losses: list[float] = []
    with torch.enable_grad():
        shape = (state.keys.shape[-1], state.outputs.shape[-1])
        delta = state.keys.new_zeros(shape).requires_grad_()
        optimiser = torch.optim.Adam([delta], lr=lr, weight_decay=weight_decay)
        for step in range(steps + 1):
            final = forward.resume(state.with_delta(model, delta), state.layer + 1)
            log_p = forward.logits_at([(final, row.flatten(), positions.flatten())]).log_softmax(-1)
            loss = -log_p.gather(-1, target.reshape(-1, 1)).mean()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise OptimisationError(
                    f"The loss is {losses[-1]} at step {step}: lower lr or norm_constraint."
                )
            if losses[-1] < STOP_LOSS or step == steps:
                break
            adam_step(optimiser, delta, gradient_of(loss, delta), step + 1)
            if not math.isfinite(float(delta.detach().norm())):
                raise overflow_error(step + 1)
            with torch.no_grad():
                delta.clamp_(-norm_constraint, norm_constraint)
    return delta.detach(), losses
