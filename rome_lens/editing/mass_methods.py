"""MEMIT, EMMET and AlphaEdit: write many facts into the ``W_out`` of one layer or several.

``mass_facts.py`` runs the steps for all three, and ``mass_editing.py`` lists them. What differs is
the update of a layer, in ``mass_update.py``.
"""

from collections.abc import Iterable, Mapping

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.editing.mass_config import AlphaEditConfig, EmmetConfig, MemitConfig
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.editing.mass_facts import plan_of, write_facts
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel


@visits_model
def memit(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layers: Iterable[int],
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: MemitConfig = MemitConfig(),
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
) -> MassEdit:
    """MEMIT: the edit of one layer or several that gives all facts their new targets at once.

        dW = (w C + K^T K)^-1 K^T R

    The rows of ``K`` are the facts' keys, and those of ``R`` the share of ``z - h`` that the layer
    is to add (:attr:`MassEdit.residuals`). ``dW`` minimises ``||K dW - R||^2 + w tr(dW^T C dW)``.

    Unlike :func:`rome_lens.rome`, the value is optimised at the block's output of the last layer,
    and the update does not map a key to its target exactly.

    The model itself is not changed. To use the edit, call ``edit.applied(model)``,
    ``edit.apply(model)`` or ``edit.fwd_hooks(model)``. A fact that the model already answers with
    its new target is not refused, because the others need not wait for it.

    Where a norm follows ``W_out`` (Gemma 2 and 3), a layer cannot add any vector. It then adds the
    nearest one that the norm can give, which is not part of the method as published.
    :attr:`MassEdit.missed` says how far each fact ended from its ``z``.

    Args:
        model: the model to edit.
        facts: one or several facts or records, each with a new target.
        layers: the layers to edit, in ascending order. Each is edited on the model with the lower
            ones edited, and takes an equal share of what is then missing.
        statistics: key statistics of each of the layers on the *unedited* model, by layer, as
            ``collect_key_statistics(model, layer=[...])`` returns them. For one layer, its own.
        contexts: templates with one ``{}`` for the fact's prompt. None uses the bare ``"{}"`` and 5
            random prefixes of 10 tokens.
        config: the hyperparameters.
        prepend_bos: whether the prompts start with a BOS token. None uses the model's default.
        batch_size: edit this many facts at a time, each batch on the model with the earlier ones
            edited. None edits all at once.

    Raises:
        FactError: there is no fact; a fact has no new target; two are the same, or contradict each
            other; or a context does not fit.
        ArgumentError: the layers are out of order or occur twice, or an argument is of another
            kind.
        StatisticsError: statistics are missing, of another layer or model, or singular.
        ModelError: the model has no such layer, no dense MLP there, or no tokenizer.
        OptimisationError: a loss is not finite. The message names the fact and the step.

    Source: Meng et al. 2023, "Mass-Editing Memory in a Transformer", sections 4.2 and 4.3. As in
    the authors' code, keys are a weighted mean over contexts (:attr:`MassConfig.key_mean`); the
    paper's plain mean is ``key_mean="plain"``. Unlike that code, ``C`` can never be that of a
    half-edited model.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")[:3]
        >>> statistics = rl.collect_key_statistics(model, layer=[1, 2], sample_count=64)
        >>> config = rl.MemitConfig(value=rl.RomeConfig(clamp=4.0), statistics_weight=100.0)
        >>> edit = rl.memit(
        ...     model,
        ...     records,
        ...     layers=[1, 2],
        ...     statistics=statistics,
        ...     contexts=["{}"],
        ...     config=config,
        ... )
        >>> edit
        MassEdit(MEMIT, 3 facts, layers=[1, 2])
        >>> [rl.evaluate(model, edit, record).ES for record in records]
        [1.0, 1.0, 1.0]
    """
    plan = plan_of(
        model,
        method="MEMIT",
        layers=layers,
        statistics=statistics,
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
    )
    return write_facts(model, facts, plan, batch_size=batch_size)


@visits_model
def emmet(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layers: Iterable[int],
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: EmmetConfig = EmmetConfig(),
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
) -> MassEdit:
    """EMMET: ROME's equality constraint for many facts at once.

        dW = A^-1 K^T (K A^-1 K^T + mu I)^-1 R,     A = w C + m I

    With ``mu = 0``, ``k_i dW = r_i`` for every fact, and of all such updates this one changes other
    keys the least. For one fact it is ROME's update: ``w`` then cancels. What differs from
    :func:`rome_lens.rome` is the value, which is optimised at the block's output. With ``mu = 1``
    and ``m = 0`` it is MEMIT's.

    The authors' code relaxes the equality for more than one fact and not for one. That is the
    default. :attr:`EmmetConfig.relaxed` has the paper's form. With several layers, the equality
    holds for each layer's share.

    Args:
        model, facts, layers, statistics, contexts, prepend_bos, batch_size: as for
            :func:`rome_lens.memit`.
        config: the hyperparameters.

    Raises:
        OptimisationError: the equality is not relaxed, and the keys depend on each other, or there
            are more facts in a batch than a key has entries; otherwise as for
            :func:`rome_lens.memit`.
        ArgumentError, FactError, StatisticsError, ModelError: as for :func:`rome_lens.memit`.

    Source: Gupta et al. 2024, "A Unified Framework for Model Editing".

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")[:3]
        >>> statistics = rl.collect_key_statistics(model, layer=2, sample_count=64)
        >>> config = rl.EmmetConfig(relaxed="never")
        >>> edit = rl.emmet(
        ...     model, records, layers=[2], statistics=statistics, contexts=["{}"], config=config
        ... )
        >>> mapped = edit.keys[0] @ edit.delta(2)
        >>> mapped.allclose(edit.residuals[0], atol=1e-4)
        True
    """
    plan = plan_of(
        model,
        method="EMMET",
        layers=layers,
        statistics=statistics,
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
    )
    return write_facts(model, facts, plan, batch_size=batch_size)


@visits_model
def alphaedit(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layers: Iterable[int],
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: AlphaEditConfig = AlphaEditConfig(),
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    earlier: MassEdit | None = None,
) -> MassEdit:
    """AlphaEdit: edits that act only where other keys hardly reach, batch after batch.

        dW = (P (K^T K + S) + l2 I)^-1 P K^T R

    ``P`` projects on the null space of ``C``: the eigenvectors whose eigenvalue is below
    :attr:`AlphaEditConfig.threshold`. ``S`` is the sum of ``k k^T`` over the keys of earlier
    batches, on the model as edited with them, so that they keep their new values. The rank of ``P``
    at each layer is in :attr:`MassEdit.ranks`.

    Args:
        model, facts, layers, statistics, contexts, prepend_bos, batch_size: as for
            :func:`rome_lens.memit`. Statistics may be singular.
        config: the hyperparameters.
        earlier: what an earlier call returned, applied to the model. Its keys count as edited
            before. The result does not contain the earlier edit.

    Raises:
        StatisticsError: no eigenvalue of ``C`` is below the threshold; otherwise as for
            :func:`rome_lens.memit`.
        ArgumentError: the earlier edit is of another method or of other layers, or is not applied;
            otherwise as for :func:`rome_lens.memit`.
        FactError, OptimisationError, ModelError: as for :func:`rome_lens.memit`.

    Source: Fang et al. 2025, "AlphaEdit: Null-Space Constrained Knowledge Editing for Language
    Models", section 3. As in the authors' code, ``l2 I`` stands in the place of the paper's
    identity (``AlphaEditConfig(l2=1.0)``), and the keys' mean is weighted. The code solves in
    float32, this function in float64.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")[:4]
        >>> statistics = rl.collect_key_statistics(model, layer=[1, 2], sample_count=64)
        >>> config = rl.AlphaEditConfig(value=rl.RomeConfig(clamp=4.0), l2=0.01)
        >>> edit = rl.alphaedit(
        ...     model,
        ...     records,
        ...     layers=[1, 2],
        ...     statistics=statistics,
        ...     contexts=["{}"],
        ...     config=config,
        ...     batch_size=2,
        ... )
        >>> edit.batches, edit.kept_keys.shape[1]
        ((2, 2), 4)
    """
    plan = plan_of(
        model,
        method="AlphaEdit",
        layers=layers,
        statistics=statistics,
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
    )
    return write_facts(model, facts, plan, batch_size=batch_size, earlier=earlier)
