"""ROME: one fact as a key ``k*`` and a value ``v*``, written into ``W_out`` by a rank-one update.

With ``C = E[k kT]`` the update of least disturbance that maps ``k*`` to ``v*`` is

    W_out + u vT,   u = C^-1 k* / ||C^-1 k*||,   v = (v* - k* W_out - b_out) / (u . k*)

Source: Meng et al. 2022, section 3.1 (equation 2) and appendix E.5.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from rome_lens.edits import RankOneEdit
from rome_lens.facts import Fact, FactError
from rome_lens.forward import chosen_logits, evaluating, in_float32
from rome_lens.keys import KeyStatistics, StatisticsError
from rome_lens.models import LensModel, check_layer, fingerprint, has_centred_w_out, w_out
from rome_lens.sampling import random_contexts
from rome_lens.tokens import FactTokens, encode
from rome_lens.value import EditedLayer, EditRows, OptimisationError, RomeConfig, Step, descent

VARIANTS = ("rome", "r-rome")


class ProcessedModelWarning(UserWarning):
    """ROME on weights that TransformerLens has processed, where it gives another edit than on the model as it came."""


class FirstTokenWarning(UserWarning):
    """The subject's last token is the first of all: its key there is unlike its key anywhere else."""


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

    The model itself is not changed: use ``edit.applied(model)``, ``edit.apply(model)`` or ``edit.fwd_hooks(model)``. For
    edits one after the other call it inside ``earlier.applied(model)``, or use :func:`rome_sequence`.

    ``v*`` lies at the raw output of ``W_out``: on Gemma 2 and 3 before the norm that follows. All is computed in float32
    at least; of a model in half precision a float32 copy is made for the while.

    A subject that is the very first token (one token, no BOS) has a key there like no other, and in contexts with a prefix
    another one: ``u`` then comes from their mean, and a warning says so.

    Args:
        statistics: of this model and layer; ``KeyStatistics.identity(model, layer=...)`` edits without, on purpose.
        contexts: templates with one ``{}`` for the fact's prompt, such as ``"It was raining. {}"``; None samples the
            original's 20 random prefixes from the model and adds the bare ``"{}"`` (:func:`random_contexts`: for many
            facts call it once).
        variant: ``"rome"``, the original: ``u`` from the mean of the keys over the contexts, ``k*`` and ``k* W_out`` in
            ``v`` from the bare prompt. ``"r-rome"``: the mean in all places (Gupta et al. 2024, "Rebuilding ROME").
        prepend_bos: None takes the model's default.

    Raises:
        FactError: the fact has no new target, or the model gives that already; a context has no ``{}``, or one does not
            fit the model's context.
        StatisticsError: no statistics, or those of another layer or model, or singular ones.
        ModelError: layer out of range, no dense MLP, no tokenizer.
        OptimisationError: a loss is not finite; the message names the step.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, expected one of {', '.join(map(repr, VARIANTS))}.")
    w_out(model, check_layer(model, layer))
    if fact.new_target is None:
        raise FactError(f"The fact {fact.text!r} has no new target: Fact(..., new_target='Rome').")
    if statistics is None:
        raise StatisticsError(
            "statistics is None: collect them with collect_key_statistics(model, layer=...), or say C = I on purpose with "
            "KeyStatistics.identity(model, layer=...)."
        )
    statistics.check(model, layer=layer)
    bare = encode(model, fact, prepend_bos=prepend_bos)
    _refuse_what_is_said_already(model, fact, bare)
    _warn(model, fact, bare, layer, config)
    if contexts is None:
        contexts = random_contexts(model, prepend_bos=prepend_bos)
    with torch.inference_mode(False), evaluating(model):  # inference tensors could not be differentiated through
        rows = EditRows.of(model, fact, contexts, prepend_bos)
        state = EditedLayer.of(in_float32(model), rows, layer)
        key, output = state.keys[0], state.outputs[0]
        mean_key, mean_output = state.keys[1:-1].mean(0), state.outputs[1:-1].mean(0)
        u = statistics.solve(mean_key.cpu(), ridge=config.ridge)
        u = (u / u.norm()).to(key)
        losses, last, stopped = _optimised(state, rows, config)
    value = output + last.delta
    if variant == "r-rome":
        key, output = mean_key, mean_output
    v = (value - output) / (key @ u)
    if not (torch.isfinite(u).all() and torch.isfinite(v).all()):
        raise OptimisationError(
            f"u or v is not finite: u . k* is {float(key @ u):.2g}, the key's norm {float(key.norm()):.2g}."
        )
    source = f"{statistics.source} ({statistics.count} keys)"
    return RankOneEdit(
        layer=layer,
        u=u.cpu(),
        v=v.cpu(),
        key=key.cpu(),
        value=value.cpu(),
        fact=fact,
        model_fingerprint=fingerprint(model),
        losses=losses,
        probability=last.probability,
        stopped=stopped,
        variant=variant,
        config=dataclasses.asdict(config),
        contexts=tuple(contexts),
        statistics=source,
        made_with=f"{variant}, {config}, {len(contexts)} contexts, statistics: {source}",
    )


def _optimised(state: EditedLayer, rows: EditRows, config: RomeConfig) -> tuple[Tensor, Step, str]:
    """Losses of every step ``[step, 3]``, the last step, and what stopped it."""
    losses = []
    for step in descent(state, rows, config):
        losses.append((step.nll, step.kl, step.decay))
        reached = step.stops(config)
        if reached is not None:
            break
    return torch.tensor(losses, dtype=torch.float64), step, reached or "steps"


def _refuse_what_is_said_already(model: LensModel, fact: Fact, bare: FactTokens) -> None:
    """Raise FactError where the model's own likeliest answer is the new target, token by token."""
    new = torch.tensor(bare.new_answer)
    tokens = torch.cat([bare.tokens, new[:-1]])
    positions = torch.arange(len(bare.tokens) - 1, len(tokens))
    logits = chosen_logits(model, tokens[None], torch.zeros_like(positions), positions)
    if bare.answer == bare.new_answer or bool((logits.argmax(-1).cpu() == new).all()):
        raise FactError(
            f"{fact.text!r} is already answered with the new target {fact.new_target!r}: there is nothing to edit. Give "
            "another new target."
        )


def _warn(model: LensModel, fact: Fact, bare: FactTokens, layer: int, config: RomeConfig) -> None:
    if config.norms == "plain" and has_centred_w_out(model, layer):
        warnings.warn(
            "W_out is centred, as TransformerLens' center_writing_weights leaves it: ||v_0|| in weight decay and clamp is "
            "another one than on the model as it came, and so is the edit. Published numbers come from unprocessed weights "
            "(from_pretrained_no_processing); RomeConfig(norms='centred') gives the same edit on both.",
            ProcessedModelWarning,
            stacklevel=3,
        )
    if bare.subject_last == 0:
        warnings.warn(
            f"The subject {fact.subject!r} is the first token of all: its key there is that of a position which attends to "
            "itself alone, and contexts with a prefix give it another. u is taken from the mean of the contexts' keys, v "
            "from the bare prompt's; with prepend_bos=True, or variant='r-rome', the two agree better.",
            FirstTokenWarning,
            stacklevel=3,
        )
