"""ROME: one fact as a key ``k*`` and a value ``v*``, written into ``W_out`` by a rank-one update.

With ``C = E[k kT]`` the update of least disturbance that maps ``k*`` to ``v*`` is

    W_out + u vT,   u = C^-1 k* / ||C^-1 k*||,   v = (v* - k* W_out - b_out) / (u . k*)

Source: Meng et al. 2022, section 3.1 (equation 2) and appendix E.5.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.edits import RankOneEdit
from rome_lens.facts import SLOT, Fact, FactError
from rome_lens.forward import agreement, evaluating, layer_states
from rome_lens.keys import KeyStatistics, StatisticsError
from rome_lens.models import LensModel, ModelError, at_least_float32, check_layer, fingerprint, mlp_contribution, w_out
from rome_lens.partial import PartialForward
from rome_lens.sampling import random_contexts
from rome_lens.tokens import FactTokens, encode, pad_right

KL_PROMPT = "{} is a"


class OptimisationError(ValueError):
    """The optimisation of the value left the finite numbers."""


@dataclass(frozen=True, kw_only=True)
class RomeConfig:
    """Hyperparameters of the value's optimisation; the defaults are the original's (Meng et al. 2022, appendix E.5).

    Attributes:
        steps, lr: Adam steps (the last one only scores) and their rate.
        weight_decay: factor of ``||delta|| / ||v_0||^2``.
        clamp: bound on ``||delta|| / ||v_0||``.
        kl_factor: factor of the KL divergence at the subject of ``"{subject} is a"``.
        stop_loss: stop when the whole loss is below it.
        stop_probability: stop when the new target's probability, as in :class:`RankOneEdit`, is above it; None, as the
            original, does not look at it. Going on to 0.99 and more is what makes an edited model say the new target
            louder than it ever said anything (over-optimisation).
        ridge: added to ``C`` as ``ridge * mean(diag C) * I``; 0 inverts ``C`` itself.
    """

    steps: int = 20
    lr: float = 0.5
    weight_decay: float = 0.5
    clamp: float = 4.0
    kl_factor: float = 0.0625
    stop_loss: float = 0.05
    stop_probability: float | None = None
    ridge: float = 0.0

    def __post_init__(self) -> None:
        if self.stop_probability is not None and not 0.0 < self.stop_probability < 1.0:
            raise ValueError(
                f"stop_probability is {self.stop_probability}, expected a number between 0 and 1, or None."
            )
        if self.steps < 1 or self.lr <= 0 or self.clamp <= 0 or min(self.weight_decay, self.kl_factor, self.ridge) < 0:
            raise ValueError(f"Expected steps >= 1, lr and clamp > 0, the other factors >= 0; got {self}.")


def rome(
    model: LensModel,
    fact: Fact,
    *,
    layer: int,
    statistics: KeyStatistics | None,
    contexts: Sequence[str] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: str = "rome",
    prepend_bos: bool | None = None,
) -> RankOneEdit:
    """The rank-one edit of ``blocks[layer].mlp.W_out`` after which the fact's prompt gives its new target.

    The model itself is not changed: use ``edit.applied(model)`` or ``edit.fwd_hooks(model)``.

    ``u`` comes from the mean of the keys over the contexts, ``v`` from key and output of the bare prompt, as in the
    original. ``v*`` lies at the raw output of ``W_out``: on Gemma 2 and 3 before the norm that follows.

    Args:
        statistics: of this model and layer; ``KeyStatistics.identity(model, layer=...)`` edits without, on purpose.
        contexts: templates with one ``{}`` for the fact's prompt, such as ``"It was raining. {}"``; None samples the
            original's 20 random prefixes from the model and adds the bare ``"{}"``.
        prepend_bos: None takes the model's default.

    Raises:
        FactError: the fact has no new target, a context has no ``{}``, or one does not fit the model's context.
        StatisticsError: no statistics, or those of another layer or model, or singular ones.
        ModelError: layer out of range, no dense MLP, no tokenizer.
        OptimisationError: a loss is not finite; the message names the step.
    """
    if variant != "rome":
        raise ValueError(f"variant is {variant!r}, expected 'rome'.")
    w_out(model, check_layer(model, layer))
    if fact.new_target is None:
        raise FactError(f"The fact {fact.text!r} has no new target: Fact(..., new_target='Rome').")
    if statistics is None:
        raise StatisticsError(
            "statistics is None: collect them with collect_key_statistics(model, layer=...), or say C = I on purpose with "
            "KeyStatistics.identity(model, layer=...)."
        )
    statistics.check(model, layer=layer)
    encode(model, fact, prepend_bos=prepend_bos)  # a fact that cannot be encoded fails here, before anything is sampled
    if contexts is None:
        contexts = random_contexts(model, prepend_bos=prepend_bos)
    with torch.inference_mode(False), evaluating(model):  # inference tensors could not be differentiated through
        rows = _Rows.of(model, fact, contexts, prepend_bos)
        state = _LayerState.of(model, rows, layer)
        u = statistics.solve(state.keys[1 : 1 + len(contexts)].mean(0).cpu(), ridge=config.ridge)
        u = (u / u.norm()).to(state.keys)
        value, losses, probability = _optimise_value(model, rows, state, config)
    key, output = state.keys[0], state.outputs[0]
    v = (value - output) / (key @ u)
    if not (torch.isfinite(u).all() and torch.isfinite(v).all()):
        raise OptimisationError(
            f"u or v is not finite: u . k* is {float(key @ u):.2g}, the key's norm {float(key.norm()):.2g}."
        )
    return RankOneEdit(
        layer=layer,
        u=u.cpu(),
        v=v.cpu(),
        key=key.cpu(),
        value=value.cpu(),
        fact=fact,
        model_fingerprint=fingerprint(model),
        losses=losses,
        probability=probability,
        made_with=f"{variant}, {config}, {len(contexts)} contexts, statistics: {statistics.source} ({statistics.count} keys)",
    )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The token rows of one edit: the bare prompt, the contexts with the target appended, and the KL prompt.

    ``lookups`` are the positions of the subject's last token; target token ``j`` of context row ``i`` is predicted at
    ``target_positions[i, j]``.
    """

    tokens: Int[Tensor, "row pos"]
    lookups: Int[Tensor, " row"]
    target: Int[Tensor, " target"]
    target_positions: Int[Tensor, "context target"]

    @classmethod
    def of(cls, model: LensModel, fact: Fact, contexts: Sequence[str], prepend_bos: bool | None) -> "_Rows":
        if not contexts:
            raise FactError("The list of contexts is empty: give at least the bare ['{}'].")
        bare = encode(model, fact, prepend_bos=prepend_bos)
        asked = [encode(model, _in_context(fact, context), prepend_bos=prepend_bos) for context in contexts]
        essence = Fact(KL_PROMPT, subject=fact.subject, target=fact.target)
        kl = encode(model, essence, prepend_bos=prepend_bos)
        target = bare.new_answer
        rows = [bare.tokens.tolist(), *((*row.tokens.tolist(), *target[:-1]) for row in asked), kl.tokens.tolist()]
        last = torch.tensor([len(row.tokens) - 1 for row in asked])
        every: list[FactTokens] = [bare, *asked, kl]
        return cls(
            tokens=pad_right(rows),
            lookups=torch.tensor([row.subject_last for row in every]),
            target=torch.tensor(target),
            target_positions=last[:, None] + torch.arange(len(target))[None],
        )


@dataclass(frozen=True, kw_only=True)
class _LayerState:
    """What the edited layer gives on every row: its output stream, and keys and raw outputs at the lookup positions."""

    layer: int
    stream: Float[Tensor, "row pos d_model"]
    keys: Float[Tensor, "row d_mlp"]
    outputs: Float[Tensor, "row d_model"]

    @classmethod
    def of(cls, model: LensModel, rows: _Rows, layer: int) -> "_LayerState":
        keys, outputs, mlp_out, stream = layer_states(model, rows.tokens, layer)
        at = (torch.arange(len(rows.lookups)), rows.lookups)
        with torch.no_grad():
            expected = mlp_contribution(model, layer, outputs[at])
        error = float((mlp_out[at] - expected).abs().max())
        if not error <= agreement(mlp_out.dtype) * max(1.0, float(expected.abs().max())):
            raise ModelError(
                f"Layer {layer}'s MLP output is not W_out's output (after its norm, where it has one), but differs by "
                f"{error:.2g}: this architecture does something that is not known here."
            )
        return cls(layer=layer, stream=stream, keys=at_least_float32(keys[at]), outputs=at_least_float32(outputs[at]))

    def with_delta(
        self, model: LensModel, lookups: Tensor, delta: Float[Tensor, " d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """The stream after the layer when ``delta`` is added to W_out's raw output at each row's lookup position."""
        change = mlp_contribution(model, self.layer, self.outputs + delta) - mlp_contribution(
            model, self.layer, self.outputs
        )
        at = (torch.arange(len(lookups)), lookups)
        return self.stream.index_put(at, change.to(self.stream), accumulate=True)


def _optimise_value(
    model: LensModel, rows: _Rows, state: _LayerState, config: RomeConfig
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "step 3"], float]:
    """``v* = v_0 + delta``, with ``delta`` minimising by Adam

        mean_contexts mean_target -log p(o*)  +  kl_factor KL(p_delta || p_0) at "{subject} is a"
            +  weight_decay ||delta|| / ||v_0||^2,   ||delta|| <= clamp ||v_0||

    Only the layers after the edited one run, and only the positions that the loss reads are unembedded.
    """
    forward = PartialForward(model, rows.tokens[0])
    start, kept = state.outputs[0], slice(1, None)  # the bare row is scored only where it is among the contexts
    stream = dataclasses.replace(state, stream=state.stream[kept], keys=state.keys[kept], outputs=state.outputs[kept])
    lookups = rows.lookups[kept]
    n_contexts, n_target = rows.target_positions.shape
    read_rows = torch.cat([torch.arange(n_contexts).repeat_interleave(n_target), torch.tensor([n_contexts])])
    read_positions = torch.cat([rows.target_positions.flatten(), lookups[-1:]])
    target = rows.target.to(start.device).repeat(n_contexts)
    losses: list[tuple[float, float, float]] = []
    initial: Tensor | None = None
    with torch.enable_grad():
        delta = torch.zeros_like(start, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=config.lr)
        for step in range(config.steps):
            final = forward.resume(stream.with_delta(model, lookups, delta), state.layer + 1)
            log_p = forward.logits(final[read_rows, read_positions]).log_softmax(-1)
            if initial is None:
                initial = log_p[-1].detach()
            each = log_p[torch.arange(len(target)), target].reshape(n_contexts, n_target).mean(1)
            nll = -each.mean()
            kl = config.kl_factor * (log_p[-1].exp() * (log_p[-1] - initial)).sum()
            decay = config.weight_decay * delta.norm() / start.norm() ** 2
            loss = nll + kl + decay
            losses.append((nll.item(), kl.item(), decay.item()))
            if not torch.isfinite(loss):
                raise OptimisationError(f"The loss is {loss.item()} at step {step} ({losses[-1]}): lower lr or clamp.")
            probability = each.exp().mean().item()
            sure = config.stop_probability is not None and probability > config.stop_probability
            if sure or loss.item() < config.stop_loss or step == config.steps - 1:
                break
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            optimiser.step()
            with torch.no_grad():
                bound = config.clamp * start.norm()
                if delta.norm() > bound:
                    delta.mul_(bound / delta.norm())
    return (start + delta).detach(), torch.tensor(losses, dtype=torch.float64), probability


def _in_context(fact: Fact, context: str) -> Fact:
    if context.count(SLOT) != 1:
        raise FactError(f"The context {context!r} has {context.count(SLOT)} slots {{}}, expected one for the prompt.")
    prompt = context.replace(SLOT, fact.prompt)
    return Fact(prompt, subject=fact.subject, target=fact.target, new_target=fact.new_target)
