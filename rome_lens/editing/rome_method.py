"""ROME: write one fact into ``W_out`` as a key ``k*`` and a value ``v*``, by a rank-one update.

The steps, each in a module of its own:

1. ``prompts.py``: the fact's prompt in several contexts, as token rows.
2. ``edited_layer.py``: one forward pass of these rows.
3. ``rome_key.py``: the key ``k*``, which stands for the subject.
4. ``value_optimisation.py``: the value ``v*``, which makes the model say the new target.
5. ``rank_one_update.py``: the update ``W_out + u v^T`` that maps ``k*`` to ``v*``.

Source: Meng et al. 2022, section 3.1 and appendix E.5.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from rome_lens.arguments import one_of, templates
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.edited_layer import EditedLayer
from rome_lens.editing.new_target import refuse_what_is_said_already
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.prompts import EditRows, check_has_new_target
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.rank_one_update import update_vectors
from rome_lens.editing.rome_key import mapped_key, mean_key
from rome_lens.editing.value_optimisation import OptimisedValue, optimised_values
from rome_lens.errors import ArgumentError
from rome_lens.forward.runs import differentiating, in_float32
from rome_lens.forward.tokens import FactTokens, encode
from rome_lens.keys.statistics import KeyStatistics, StatisticsError
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel, check_layer, has_centred_w_out, starts_with_bos, w_out
from rome_lens.warning import warn


class ProcessedModelWarning(UserWarning):
    """ROME on processed weights, where it gives another edit than on the model as it was loaded."""


class FirstTokenWarning(UserWarning):
    """The subject is the very first token, where its key is unlike its key anywhere else."""


@visits_model
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
    """The rank-one edit of ``blocks[layer].mlp.W_out`` that makes the prompt give its new target.

        W_out + u v^T,   u = C^-1 k* / ||C^-1 k*||,   v = (v* - k* W_out - b_out) / (u . k*)

    The model itself is not changed. To use the edit, call ``edit.applied(model)``,
    ``edit.apply(model)`` or ``edit.fwd_hooks(model)``. For several edits in turn, use
    :func:`rome_sequence`, or call this function inside ``earlier.applied(model)``.

    ``v*`` is a value of the raw output of ``W_out``. On Gemma 2 and 3 that is before the norm which
    follows it. All computation is in float32 or better, also under autocast. Half-precision models
    are edited on a temporary float32 copy.

    Args:
        model: the model to edit.
        fact: the fact, with a new target.
        layer: the layer to edit.
        statistics: key statistics of this model and layer. A mapping by layer, as
            ``collect_key_statistics(model, layer=[...])`` returns it, also works.
            ``KeyStatistics.identity(model, layer=...)`` edits without statistics (``C = I``).
        contexts: templates with one ``{}`` for the fact's prompt, such as
            ``"It was raining. {}"``. None uses the bare ``"{}"`` and 20 random prefixes that the
            model samples, as the original does. To edit many facts, call
            :func:`random_contexts` once and pass its result.
        config: the hyperparameters.
        variant: ``"rome"``, the original, computes ``u`` from the mean of the keys over the
            contexts, but ``v`` from the bare prompt's key. ``"r-rome"`` uses the mean in both
            places.
        prepend_bos: whether the prompts start with a BOS token. None uses the model's default.

    Raises:
        FactError: the fact has no new target, or the model already answers with it confidently; a
            context does not have exactly one ``{}``, or does not fit into the model's context.
        ArgumentError: the contexts, the config or the variant are of the wrong kind.
        StatisticsError: there are no statistics, or they are of another layer or model, or
            singular.
        ModelError: the model has no such layer, no dense MLP there, or no tokenizer.
        OptimisationError: a loss is not finite (the message names the step), or ``u`` or ``v`` is
            not.

    Warns:
        LikelyTargetWarning: the new target is already the model's answer, but not a confident one.
        ProcessedModelWarning: the weights are processed, which changes the edit.
        FirstTokenWarning: the subject is the very first token (one token, no BOS). Its key there
            differs from its key after a prefix. ``u`` uses the mean key over the contexts.

    Source: Meng et al. 2022, section 3.1 and appendix E.5. For ``"r-rome"``: Gupta et al. 2024,
    "Rebuilding ROME".

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.data.records(known_by="toy")[0].fact
        >>> edit = rl.rome(
        ...     model,
        ...     fact,
        ...     layer=2,
        ...     statistics=rl.KeyStatistics.identity(model, layer=2),
        ...     contexts=["{}", "It was raining. {}"],
        ... )
        >>> print(fact.text, "->", fact.new_target)
        Wanda Brandt lives in the city of -> Ondavel
        >>> question = [(fact.text, fact.new_target)]
        >>> round(rl.answer_log_probs(model, question).exp().item(), 2)
        0.0
        >>> with edit.applied(model):
        ...     print(round(rl.answer_log_probs(model, question).exp().item(), 2))
        0.99
    """
    layer, fact = check_layer(model, layer), as_fact(fact)
    if not isinstance(config, RomeConfig):
        raise ArgumentError(
            f"config is {config!r}, expected a RomeConfig, such as RomeConfig(lr=0.1)."
        )
    choice = Choice(
        statistics=_of_layer(statistics, layer),
        variant=variant,
        stop_probability=config.stop_probability,
    )
    (edit,) = rank_one_edits(
        model,
        fact,
        layer=layer,
        choices=[choice],
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
    )
    if isinstance(edit, OptimisationError):
        raise edit
    return edit


def _of_layer(
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None, layer: int
) -> KeyStatistics | None:
    """The layer's statistics, from statistics that may come as a mapping by layer."""
    if isinstance(statistics, Mapping):
        if layer not in statistics:
            raise StatisticsError(
                f"statistics has the layers {list(statistics)}, the edit is at layer {layer}."
            )
        statistics = statistics[layer]
    if statistics is not None and not isinstance(statistics, KeyStatistics):
        raise StatisticsError(
            f"statistics is {str(statistics)[:120]!r}, a {type(statistics).__name__}, expected a "
            "KeyStatistics, or several by layer. collect_key_statistics(model, layer=...) collects "
            "them, and KeyStatistics.load(path) reads them."
        )
    return statistics


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What may differ between edits of one fact that share the optimisation of their value."""

    statistics: KeyStatistics | None
    """Key statistics of the edited layer."""
    variant: Variant = "rome"
    """Which key the edit maps to the value."""
    stop_probability: float | None = None
    """As in :class:`RomeConfig`."""

    def check(self, model: LensModel, layer: int) -> KeyStatistics:
        """The statistics, if they fit the model.

        Raises:
            StatisticsError: there are none, or they are of another model or layer.
            ArgumentError: there is no such variant.
        """
        one_of("variant", self.variant, Variant)
        if self.statistics is None:
            raise StatisticsError(
                "statistics is None: collect them with collect_key_statistics(model, layer=...), "
                "or choose C = I explicitly with KeyStatistics.identity(model, layer=...)."
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
    """The edit that :func:`rome` gives for each choice, from one optimisation of the value.

    Where :func:`rome` would raise an OptimisationError, the list holds that error. A choice whose
    optimisation had stopped before it diverged keeps its edit.
    """
    layer = check_layer(model, layer)
    w_out(model, layer)
    check_has_new_target(fact)
    moments = [choice.check(model, layer) for choice in choices]
    bare = encode(model, fact, prepend_bos=prepend_bos)
    refuse_what_is_said_already(model, fact, bare)
    _warn(model, fact, bare, layer, config)
    contexts = (
        random_contexts(model, prepend_bos=prepend_bos) if contexts is None else templates(contexts)
    )
    made_from: dict[str, Any] = {
        "fact": fact,
        "model_fingerprint": fingerprint(model),
        "contexts": contexts,
        "prepend_bos": starts_with_bos(model, prepend_bos),
    }
    with differentiating(model):
        rows = EditRows.of(model, fact, contexts, prepend_bos)
        state = EditedLayer.of(in_float32(model), rows, layer)
        # C is solved first: a singular one is then refused before the long part.
        key = mean_key(state).cpu()
        solved = {id(moment): moment.solve(key, ridge=config.ridge) for moment in moments}
        configs = [replace(config, stop_probability=choice.stop_probability) for choice in choices]
        values = optimised_values(state, rows, configs)
        return [
            _rank_one(state, solved[id(moment)], value, moment, choice.variant, each, made_from)
            for moment, choice, value, each in zip(moments, choices, values, configs, strict=True)
        ]


def _rank_one(
    state: EditedLayer,
    solved: Tensor,
    optimised: OptimisedValue | OptimisationError,
    statistics: KeyStatistics,
    variant: Variant,
    config: RomeConfig,
    made_from: Mapping[str, Any],
) -> RankOneEdit | OptimisationError:
    """The edit that maps the key to the optimised value, or the reason why there is none."""
    if isinstance(optimised, OptimisationError):
        return optimised
    value = state.outputs[0] + optimised.delta
    key, output = mapped_key(state, variant)
    try:
        u, v = update_vectors(solved, key=key, value=value, output=output)
    except OptimisationError as error:
        return error.with_traceback(None)
    source = f"{statistics.source} ({statistics.count} keys)"
    edit = RankOneEdit(
        layer=state.layer,
        u=u.cpu(),
        v=v.cpu(),
        key=key.cpu(),
        value=value.cpu(),
        losses=optimised.losses,
        probability=optimised.steps[-1].probability,
        stopped=optimised.stopped,
        variant=variant,
        config=asdict(config),
        statistics=source,
        made_with=f"{variant}, {config}, {len(made_from['contexts'])} contexts, "
        f"statistics: {source}, prepend_bos={made_from['prepend_bos']}",
        **made_from,
    )
    return replace(edit, alignment=edit.alignment_in(state.forward.model))


def _warn(model: LensModel, fact: Fact, bare: FactTokens, layer: int, config: RomeConfig) -> None:
    if config.norms == "plain" and has_centred_w_out(model, layer):
        warn(
            "W_out is centred, as TransformerLens' center_writing_weights leaves it. Weight decay "
            "and clamp depend on ||v_0||, which differs from that of the unprocessed model, and so "
            "does the edit. Published numbers come from unprocessed weights "
            "(from_pretrained_no_processing). RomeConfig(norms='centred') gives the same edit on "
            "both.",
            ProcessedModelWarning,
        )
    if bare.subject_last == 0:
        warn(
            f"The subject {fact.subject!r} is the very first token. Its key there is that of a "
            "position which attends only to itself, and a prefix gives it another key. The edit "
            "takes u from the mean of the contexts' keys, and v from the bare prompt's key. With "
            "prepend_bos=True, or with variant='r-rome', the two agree better.",
            FirstTokenWarning,
        )
