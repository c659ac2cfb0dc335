"""ROME: one fact as a key ``k*`` and a value ``v*``, written into ``W_out`` by a rank-one update.

With ``C = E[k kT]`` the update of least disturbance that maps ``k*`` to ``v*`` is

    W_out + u vT,   u = C^-1 k* / ||C^-1 k*||,   v = (v* - k* W_out - b_out) / (u . k*)

Source: Meng et al. 2022, section 3.1 (equation 2) and appendix E.5.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rome_lens.arguments import one_of, templates
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_fact
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.edit import RankOneEdit
from rome_lens.editing.new_target import refuse_what_is_said_already
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.value_optimisation import EditedLayer, EditRows, Step, descent
from rome_lens.errors import ArgumentError
from rome_lens.forward.runs import differentiating, in_float32
from rome_lens.forward.tokens import FactTokens, encode
from rome_lens.keys.statistics import KeyStatistics, StatisticsError
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel, check_layer, has_centred_w_out, starts_with_bos, w_out
from rome_lens.warning import warn

_Path: TypeAlias = tuple[Sequence[Step], str]  # the steps of an optimisation, and what stopped it


class ProcessedModelWarning(UserWarning):
    """ROME on weights that TransformerLens has processed, where it gives another edit than on the model as it came."""


class FirstTokenWarning(UserWarning):
    """The subject's last token is the first of all: its key there is unlike its key anywhere else."""


def rome(
    model: LensModel,
    fact: Fact | Record,
    *,
    layer: int,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: Variant = "rome",
    prepend_bos: bool | None = None,
) -> RankOneEdit:
    """The rank-one edit of ``blocks[layer].mlp.W_out`` after which the fact's prompt gives its new target.

    The model itself is not changed: use ``edit.applied(model)``, ``edit.apply(model)`` or ``edit.fwd_hooks(model)``. For
    edits one after the other call it inside ``earlier.applied(model)``, or use :func:`rome_sequence`.

    ``v*`` lies at the raw output of ``W_out``: on Gemma 2 and 3 before the norm that follows. All is computed in float32
    at least, under autocast too; of a model in half precision a float32 copy is made for the while.

    A new target that is the model's likeliest answer already, but no sure one, is edited all the same, with a warning.

    A subject that is the very first token (one token, no BOS) has a key there like no other, and in contexts with a prefix
    another one: ``u`` then comes from their mean, and a warning says so.

    Args:
        statistics: of this model and layer, also among several by layer, as ``collect_key_statistics(model, layer=[...])``
            gives them; ``KeyStatistics.identity(model, layer=...)`` edits without, on purpose.
        contexts: templates with one ``{}`` for the fact's prompt, such as ``"It was raining. {}"``; None samples the
            original's 20 random prefixes from the model and adds the bare ``"{}"`` (:func:`random_contexts`: for many
            facts call it once).
        variant: ``"rome"``, the original: ``u`` from the mean of the keys over the contexts, ``k*`` and ``k* W_out`` in
            ``v`` from the bare prompt. ``"r-rome"``: the mean in all places (Gupta et al. 2024, "Rebuilding ROME").
        prepend_bos: None takes the model's default.

    Raises:
        FactError: the fact is none, or has no new target, or the model is sure of it already; a context has no ``{}``, or one
            does not fit the model's context.
        ValueError: contexts or config of another kind.
        StatisticsError: no statistics, or those of another layer or model, or singular ones.
        ModelError: layer not one of the model's, no dense MLP, no tokenizer.
        OptimisationError: a loss is not finite; the message names the step.
    """
    layer, fact = check_layer(model, layer), as_fact(fact)
    if not isinstance(config, RomeConfig):
        raise ArgumentError(
            f"config is {config!r}, expected a RomeConfig, such as RomeConfig(lr=0.1)."
        )
    statistics = _of_layer(statistics, layer)
    choice = Choice(
        statistics=statistics, variant=variant, stop_probability=config.stop_probability
    )
    (found,) = rank_one_edits(
        model,
        fact,
        layer=layer,
        choices=[choice],
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
    )
    if isinstance(found, OptimisationError):
        raise found
    return found


def _of_layer(statistics: Any, layer: int) -> KeyStatistics | None:
    """The statistics of the layer, where they are given by layer."""
    if isinstance(statistics, Mapping):
        if layer not in statistics:
            raise StatisticsError(
                f"statistics has the layers {list(statistics)}, the edit is at layer {layer}."
            )
        statistics = statistics[layer]
    if statistics is not None and not isinstance(statistics, KeyStatistics):
        raise StatisticsError(
            f"statistics is {str(statistics)[:120]!r}, a {type(statistics).__name__}, expected a KeyStatistics, or several by "
            "layer: collect_key_statistics(model, layer=...) gives them, KeyStatistics.load(path) reads them."
        )
    return statistics


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What several edits of one fact may differ in while the optimisation of their value is one and the same."""

    statistics: KeyStatistics | None
    variant: Variant = "rome"
    stop_probability: float | None = None

    def check(self, model: LensModel, layer: int) -> KeyStatistics:
        """The statistics, where they fit the model; ValueError where they or the variant do not."""
        one_of("variant", self.variant, Variant)
        if self.statistics is None:
            raise StatisticsError(
                "statistics is None: collect them with collect_key_statistics(model, layer=...), or say C = I on purpose "
                "with KeyStatistics.identity(model, layer=...)."
            )
        self.statistics.check(model, layer=layer)
        return self.statistics


def rank_one_edits(
    model: LensModel,
    fact: Fact,
    *,
    layer: int,
    choices: Sequence[Choice],
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    prepend_bos: bool | None = None,
) -> list[RankOneEdit | OptimisationError]:
    """One edit for each choice, as :func:`rome` gives it, from one optimisation of the value that all of them share.

    In place of an edit stands the error that :func:`rome` raises: where the optimisation diverges, the choices that had
    stopped before keep their edits.
    """
    layer = check_layer(model, layer)
    w_out(model, layer)
    if fact.new_target is None:
        raise FactError(f"The fact {fact.text!r} has no new target: Fact(..., new_target='Rome').")
    moments = [choice.check(model, layer) for choice in choices]
    bare = encode(model, fact, prepend_bos=prepend_bos)
    refuse_what_is_said_already(model, fact, bare)
    _warn(model, fact, bare, layer, config)
    contexts = (
        random_contexts(model, prepend_bos=prepend_bos) if contexts is None else templates(contexts)
    )
    known: dict[str, Any] = {
        "fact": fact,
        "model_fingerprint": fingerprint(model),
        "contexts": contexts,
    }
    known["prepend_bos"] = starts_with_bos(model, prepend_bos)
    with differentiating(model):
        rows = EditRows.of(model, fact, contexts, prepend_bos)
        state = EditedLayer.of(in_float32(model), rows, layer)
        mean_key = state.keys[1:-1].mean(0).cpu()
        left = {
            id(c): c.solve(mean_key, ridge=config.ridge) for c in moments
        }  # refused, if so, before the long part
        configs = [replace(config, stop_probability=choice.stop_probability) for choice in choices]
        paths = _descended(state, rows, configs)
        return [
            _rank_one(state, left[id(c)], path, c, choice.variant, each, known)
            for c, choice, path, each in zip(moments, choices, paths, configs, strict=True)
        ]


def _descended(
    state: EditedLayer, rows: EditRows, configs: Sequence[RomeConfig]
) -> list[_Path | OptimisationError]:
    """For each config, of which all descend alike, the steps up to where it stops, and what stopped it."""
    steps: list[Step] = []
    stopped: dict[int, _Path] = {}
    end: _Path | OptimisationError = (steps, "steps")
    try:
        for step in descent(state, rows, configs[0]):
            steps.append(step)
            for i, config in enumerate(configs):
                reached = step.stops(config)
                if i not in stopped and reached is not None:
                    stopped[i] = tuple(steps), reached
            if len(stopped) == len(configs):
                break
    except OptimisationError as error:
        end = error.with_traceback(None)  # which would hold the tensors of the step
    return [stopped.get(i, end) for i in range(len(configs))]


def _rank_one(
    state: EditedLayer,
    left: Tensor,
    path: _Path | OptimisationError,
    statistics: KeyStatistics,
    variant: str,
    config: RomeConfig,
    known: Mapping[str, Any],
) -> RankOneEdit | OptimisationError:
    """``u = C^-1 k / ||C^-1 k||`` and ``v = (v* - k* W_out - b_out) / (u . k*)``, or why there is none."""
    if isinstance(path, OptimisationError):
        return path
    steps, stopped = path
    key, output = state.keys[0], state.outputs[0]
    value = output + steps[-1].delta
    if variant == "r-rome":
        key, output = state.keys[1:-1].mean(0), state.outputs[1:-1].mean(0)
    u = (left / left.norm()).to(key)
    v = (value - output) / (key @ u)
    if not (torch.isfinite(u).all() and torch.isfinite(v).all()):
        return OptimisationError(
            f"u or v is not finite: u . k* is {float(key @ u):.2g}, the key's norm {float(key.norm()):.2g}."
        )
    source = f"{statistics.source} ({statistics.count} keys)"
    return RankOneEdit(
        layer=state.layer,
        u=u.cpu(),
        v=v.cpu(),
        key=key.cpu(),
        value=value.cpu(),
        losses=torch.tensor(
            [(step.nll, step.kl, step.decay) for step in steps], dtype=torch.float64
        ),
        probability=steps[-1].probability,
        stopped=stopped,
        variant=variant,
        config=asdict(config),
        statistics=source,
        made_with=f"{variant}, {config}, {len(known['contexts'])} contexts, statistics: {source}, "
        f"prepend_bos={known['prepend_bos']}",
        **known,
    )


def _warn(model: LensModel, fact: Fact, bare: FactTokens, layer: int, config: RomeConfig) -> None:
    if config.norms == "plain" and has_centred_w_out(model, layer):
        warn(
            "W_out is centred, as TransformerLens' center_writing_weights leaves it: ||v_0|| in weight decay and clamp is "
            "another one than on the model as it came, and so is the edit. Published numbers come from unprocessed weights "
            "(from_pretrained_no_processing); RomeConfig(norms='centred') gives the same edit on both.",
            ProcessedModelWarning,
        )
    if bare.subject_last == 0:
        warn(
            f"The subject {fact.subject!r} is the first token of all: its key there is that of a position which attends to "
            "itself alone, and contexts with a prefix give it another. u is taken from the mean of the contexts' keys, v "
            "from the bare prompt's; with prepend_bos=True, or variant='r-rome', the two agree better.",
            FirstTokenWarning,
        )
