"""ROME: write one fact into ``W_out`` as a key ``k*`` and a value ``v*``, by a rank-one update.

``side_by_side.py`` runs the steps for one or several facts. Each step has a module of its own:

1. ``prompts.py``: the fact's prompt in several contexts, as token rows.
2. ``edited_layer.py``: one forward pass of these rows.
3. ``rome_key.py``: the key ``k*``, which stands for the subject.
4. ``value_optimisation.py``: the value ``v*``, which makes the model say the new target.
5. ``rank_one_update.py``: the update ``W_out + u v^T`` that maps ``k*`` to ``v*``.

Source: Meng et al. 2022, section 3.1 and appendix E.5.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, overload

from rome_lens.arguments import one_of
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_fact, as_facts
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.side_by_side import Choice, rank_one_edits
from rome_lens.errors import ArgumentError
from rome_lens.keys.statistics import KeyStatistics, StatisticsError
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, check_layer

OnError = Literal["raise", "return"]


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
    run in their own precision, but the edited layer, the value and the loss are in float32.

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
    (edit,) = rome_batch(
        model,
        [as_fact(fact)],
        layer=layer,
        statistics=statistics,
        contexts=contexts,
        config=config,
        variant=variant,
        prepend_bos=prepend_bos,
    )
    return edit


@overload
def rome_batch(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layer: int,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: Variant = "rome",
    prepend_bos: bool | None = None,
    on_error: Literal["raise"] = "raise",
) -> list[RankOneEdit]: ...


@overload
def rome_batch(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layer: int,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: Variant = "rome",
    prepend_bos: bool | None = None,
    on_error: Literal["return"],
) -> list[RankOneEdit | FactError | OptimisationError]: ...


@visits_model
def rome_batch(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layer: int,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: Variant = "rome",
    prepend_bos: bool | None = None,
    on_error: OnError = "raise",
) -> Sequence[RankOneEdit | FactError | OptimisationError]:
    """The edit that :func:`rome` makes of each fact, several of them side by side.

    Each edit is made on the model as it is, and equals the one that :func:`rome` makes up to
    rounding. Facts share forward passes, which takes less time than one fact after the other. For
    edits on top of each other, use :func:`rome_sequence`.

    Args:
        facts: one or several facts or records.
        on_error: what becomes of a fact that cannot be edited. ``"raise"`` raises its error. With
            ``"return"``, the list holds the error in the place of the edit.
        model, layer, statistics, contexts, config, variant, prepend_bos: as for :func:`rome`.

    Raises:
        FactError: there is no fact; or, with ``on_error="raise"``, as for :func:`rome`. This is
            checked for all facts before the first is edited.
        OptimisationError: with ``on_error="raise"``, as for :func:`rome`. The message names the
            fact.
        ArgumentError, StatisticsError, ModelError: as for :func:`rome`.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")[:3]
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edits = rl.rome_batch(model, records, layer=2, statistics=identity, contexts=["{}"])
        >>> [edit.fact.new_target for edit in edits]
        ['Ondavel', 'Lusiba', 'Helsby']
    """
    one_of("on_error", on_error, OnError)
    layer, given, config = check_layer(model, layer), as_facts(facts), checked_config(config)
    choice = Choice(
        statistics=statistics_of(statistics, layer),
        variant=variant,
        stop_probability=config.stop_probability,
    )
    found = rank_one_edits(
        model,
        given,
        layer=layer,
        choices=[choice],
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
        stop_at_error=on_error == "raise",
    )
    edits = [each if isinstance(each, FactError) else each[0] for each in found]
    for fact, edit in zip(given, edits, strict=True):
        if on_error == "raise" and isinstance(edit, OptimisationError):
            raise edit if len(given) == 1 else OptimisationError(f"{fact.text!r}: {edit}")
    return edits


def checked_config(config: object) -> RomeConfig:
    """The config itself, if it is one.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(config, RomeConfig):
        raise ArgumentError(
            f"config is {config!r}, expected a RomeConfig, such as RomeConfig(lr=0.1)."
        )
    return config


def statistics_of(
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None, layer: int
) -> KeyStatistics | None:
    """The layer's statistics, from statistics that may come as a mapping by layer.

    Raises:
        StatisticsError: the mapping lacks the layer, or there is something else.
    """
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
