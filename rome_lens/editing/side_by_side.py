"""Rank-one edits of several facts at one layer, optimised side by side.

:func:`rome_lens.rome` is the case of one fact. More facts in one forward pass mean larger matrices
and fewer of them, which is faster, above all on a GPU. The edits are independent of each other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from rome_lens.arguments import one_of, templates
from rome_lens.data.facts import Fact, FactError
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.edited_layer import EditedLayer, SubjectStates
from rome_lens.editing.fact_batches import batches_in_memory
from rome_lens.editing.matched import p_true_answer
from rome_lens.editing.new_target import refuse_what_is_said_already
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.prompts import EditRows, check_has_new_target
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.rank_one_update import update_vectors
from rome_lens.editing.rome_key import mapped_key, mean_key
from rome_lens.editing.value_optimisation import OptimisedValue, optimised_values
from rome_lens.forward.partial import ResumeError
from rome_lens.forward.runs import differentiable, differentiating, weights_laid_out
from rome_lens.forward.tokens import FactTokens, encode
from rome_lens.keys.statistics import KeyStatistics, StatisticsError
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import (
    LensModel,
    check_layer,
    has_centred_w_out,
    starts_with_bos,
    w_out,
)
from rome_lens.warning import warn

FactEdits: TypeAlias = "list[RankOneEdit | OptimisationError] | FactError"
"""A fact's edits, one for each choice, or the reason why the fact cannot be edited."""


class ProcessedModelWarning(UserWarning):
    """ROME on processed weights, where it gives another edit than on the model as it was loaded."""


class FirstTokenWarning(UserWarning):
    """The subject is the very first token, where its key is unlike its key anywhere else."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What may differ between edits of one fact that share the optimisation of their value."""

    statistics: KeyStatistics | None
    """Key statistics of the edited layer."""
    variant: Variant = "rome"
    """Which key the edit maps to the value."""
    stop_probability: float | None = None
    """As in :class:`RomeConfig`."""
    steps: int | None = None
    """As in :class:`RomeConfig`. None takes the config's."""

    def config(self, shared: RomeConfig) -> RomeConfig:
        """The hyperparameters of the edit, from those that all edits share."""
        steps = shared.steps if self.steps is None else self.steps
        return replace(shared, stop_probability=self.stop_probability, steps=steps)

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


@visits_model
def rank_one_edits(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    layer: int,
    choices: Sequence[Choice],
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    prepend_bos: bool | None = None,
    stop_at_error: bool = False,
    null: bool = False,
) -> list[FactEdits]:
    """For each fact, the edit that :func:`rome_lens.rome` gives for each choice.

    The choices of a fact share the optimisation of its value. Where :func:`rome_lens.rome` would
    raise an OptimisationError, that error takes the edit's place. A choice whose optimisation had
    stopped before it diverged keeps its edit. Where it would raise a FactError, that error takes
    the place of all of the fact's edits, or is raised with ``stop_at_error``.

    With ``null``, the edits are null edits: the facts' new targets are what the model says already.
    """
    layer = check_layer(model, layer)
    w_out(model, layer)
    moments = [choice.check(model, layer) for choice in choices]
    configs = [choice.config(config) for choice in choices]
    found = _facts_to_edit(model, facts, layer, config, prepend_bos, null)
    if stop_at_error:
        _raise_first(found)
    chosen = [i for i, each in enumerate(found) if each is None]
    if not chosen:
        return found
    contexts = (
        random_contexts(model, prepend_bos=prepend_bos) if contexts is None else templates(contexts)
    )
    made_from: dict[str, Any] = {
        "model_fingerprint": fingerprint(model),
        "contexts": contexts,
        "prepend_bos": starts_with_bos(model, prepend_bos),
    }
    rows: dict[int, EditRows] = {}
    for i in chosen:
        try:
            rows[i] = EditRows.of(model, facts[i], contexts, prepend_bos, config.lookup)
        except FactError as error:
            found[i] = error
    if stop_at_error:
        _raise_first(found)
    with differentiating(model):
        model = differentiable(model)
        matched: dict[int, float | None] = dict.fromkeys(rows)
        if config.stop == "matched":
            matched = {
                i: p_true_answer(model, facts[i], contexts, prepend_bos, null=null) for i in rows
            }
        with weights_laid_out(model):
            for batch in batches_in_memory(model, rows, layer):
                batch_rows, its_matched = [rows[i] for i in batch], [matched[i] for i in batch]
                optimised = _optimised(model, batch_rows, layer, moments, configs, its_matched)
                for i, (states, solved, values) in zip(batch, optimised, strict=True):
                    found[i] = [
                        _rank_one(model, layer, states, *each, fact=facts[i], **made_from)
                        for each in zip(solved, values, moments, choices, configs, strict=True)
                    ]
    return found


def _optimised(
    model: LensModel,
    rows: Sequence[EditRows],
    layer: int,
    moments: Sequence[KeyStatistics],
    configs: Sequence[RomeConfig],
    matched: Sequence[float | None],
    *,
    later_positions: bool = True,
) -> list[tuple[SubjectStates, list[Tensor], list[OptimisedValue | OptimisationError]]]:
    """For each fact, the layer's states, and ``C^-1 k*`` and the value for each choice."""
    state = EditedLayer.of(model, rows, layer, later_positions=later_positions)
    # C is solved first: a singular one is then refused before the long part.
    solved = [_solved(states, moments, configs[0]) for states in state.subjects]
    try:
        values = optimised_values(state, rows, configs, matched)
    except ResumeError:
        if state.rows.pasts is None:
            raise
        return _optimised(model, rows, layer, moments, configs, matched, later_positions=False)
    return list(zip(state.subjects, solved, values, strict=True))


def _facts_to_edit(
    model: LensModel,
    facts: Sequence[Fact],
    layer: int,
    config: RomeConfig,
    prepend_bos: bool | None,
    null: bool,
) -> list[Any]:
    """None for each fact that can be edited, and the error for any other one."""
    found: list[FactError | None] = []
    for fact in facts:
        try:
            check_has_new_target(fact)
            bare = encode(model, fact, prepend_bos=prepend_bos)
            if not null:
                refuse_what_is_said_already(model, fact, bare)
            _warn(model, fact, bare, layer, config)
            found.append(None)
        except FactError as error:
            found.append(error)
    return found


def _raise_first(found: Iterable[object]) -> None:
    for each in found:
        if isinstance(each, FactError):
            raise each


def _solved(
    states: SubjectStates, moments: Sequence[KeyStatistics], config: RomeConfig
) -> list[Tensor]:
    """``C^-1 k*`` of a fact for each choice's ``C``. Choices with the same ``C`` share it."""
    key = mean_key(states).cpu()
    solved = {id(moment): moment.solve(key, ridge=config.ridge) for moment in moments}
    return [solved[id(moment)] for moment in moments]


def _rank_one(
    model: LensModel,
    layer: int,
    states: SubjectStates,
    solved: Tensor,
    optimised: OptimisedValue | OptimisationError,
    statistics: KeyStatistics,
    choice: Choice,
    config: RomeConfig,
    **made_from: Any,
) -> RankOneEdit | OptimisationError:
    """The edit that maps the key to the optimised value, or the reason why there is none."""
    if isinstance(optimised, OptimisationError):
        return optimised
    value = states.outputs[0] + optimised.delta
    key, output = mapped_key(states, choice.variant)
    try:
        u, v = update_vectors(solved, key=key, value=value, output=output)
    except OptimisationError as error:
        return error.with_traceback(None)
    source = f"{statistics.source} ({statistics.count} keys)"
    edit = RankOneEdit(
        layer=layer,
        u=u.cpu(),
        v=v.cpu(),
        key=key.cpu(),
        value=value.cpu(),
        losses=optimised.losses,
        probability=optimised.steps[-1].probability,
        stopped=optimised.stopped,
        variant=choice.variant,
        config=asdict(config),
        statistics=source,
        made_with=f"{choice.variant}, {config}, {len(made_from['contexts'])} contexts, "
        f"statistics: {source}, prepend_bos={made_from['prepend_bos']}",
        **made_from,
    )
    return replace(edit, alignment=edit.alignment_in(model))


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
    if bare.subject[1] + config.lookup == 0:
        warn(
            f"The subject {fact.subject!r} is looked up at the very first token. Its key there is "
            "that of a position which attends only to itself, and a prefix gives it another key. "
            "The edit takes u from the mean of the contexts' keys, and v from the bare prompt's "
            "key. With prepend_bos=True, or with variant='r-rome', the two agree better.",
            FirstTokenWarning,
        )
