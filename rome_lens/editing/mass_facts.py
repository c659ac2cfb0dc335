"""Writes many facts in batches, and refuses facts that cannot be written together."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from rome_lens.arguments import templates, whole_number, whole_numbers
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import as_facts
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.mass_config import CONFIGS, MassConfig, Method
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.editing.mass_editing import Plan, Written, added, mass_edit, write_batch
from rome_lens.editing.mass_solvers import solver_of
from rome_lens.editing.mass_values import Found, Target, TargetMemory, optimised_targets
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.prompts import check_has_new_target
from rome_lens.editing.rome_method import statistics_of
from rome_lens.editing.weight_edit import WeightEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import encode
from rome_lens.keys.statistics import KeyStatistics, StatisticsError
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel, check_layer, starts_with_bos, w_out

_PREFIXES = 5


@visits_model
def plan_of(
    model: LensModel,
    *,
    method: Method,
    layers: Iterable[int],
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None,
    config: MassConfig,
    prepend_bos: bool | None,
) -> Plan:
    """How a method writes facts into a model, with all arguments but the facts checked.

    Raises:
        ArgumentError, StatisticsError, ModelError: as for :func:`rome_lens.memit`.
    """
    if not isinstance(config, CONFIGS[method]):
        raise ArgumentError(
            f"config is {config!r}, expected a config of {method}, {CONFIGS[method].__name__}()."
        )
    chosen = checked_layers(model, layers)
    by_layer = {layer: _statistics_at(model, statistics, layer) for layer in chosen}
    return Plan(
        method=method,
        config=config,
        solvers={layer: solver_of(config, each) for layer, each in by_layer.items()},
        contexts=() if contexts is None else templates(contexts),
        prepend_bos=starts_with_bos(model, prepend_bos),
        model_fingerprint=fingerprint(model),
        statistics=tuple(f"{each.source} ({each.count} keys)" for each in by_layer.values()),
    )


def checked_layers(model: LensModel, layers: Iterable[int]) -> tuple[int, ...]:
    """The layers as a tuple of ``int``.

    Raises:
        ArgumentError: there is none, or they are not in ascending order, or one occurs twice.
        ModelError: the model has no such layer, or no dense MLP there.
    """
    chosen = whole_numbers("layers", layers)
    if not chosen or any(a >= b for a, b in pairwise(chosen)):
        raise ArgumentError(
            f"layers is {list(chosen)}, expected different layers in ascending order, such as "
            "[4, 5, 6]: each layer is edited on the model with the lower ones edited."
        )
    for layer in chosen:
        w_out(model, check_layer(model, layer))
    return chosen


def _statistics_at(
    model: LensModel, statistics: KeyStatistics | Mapping[int, KeyStatistics] | None, layer: int
) -> KeyStatistics:
    found = statistics_of(statistics, layer)
    if found is None:
        raise StatisticsError(
            "statistics is None: collect them with collect_key_statistics(model, layer=[...]), on "
            "the unedited model."
        )
    found.check(model, layer=layer)
    return found


@visits_model
def mass_contexts(model: LensModel, prepend_bos: bool | None) -> tuple[str, ...]:
    """The bare prompt and five prefixes of 10 tokens.

    The original has as many, of the same length. Its prefixes start with "The", "Therefore",
    "Because", "I" and "You". These are the first ones of :func:`random_contexts`, which all start
    with "The".
    """
    bare, *prefixed = random_contexts(model, prefixes=2 * _PREFIXES, prepend_bos=prepend_bos)
    return (bare, *prefixed[_PREFIXES:])


def with_contexts(model: LensModel, plan: Plan) -> Plan:
    """The plan with sampled contexts, if it has none yet.

    Sampling takes seconds on a real model. Call this once the facts are checked.
    """
    if plan.contexts:
        return plan
    return replace(plan, contexts=mass_contexts(model, plan.prepend_bos))


@visits_model
def checked_facts(model: LensModel, facts: object, plan: Plan) -> list[Fact]:
    """The facts, if they can be written together.

    Raises:
        FactError: there is no fact; one has no new target, or its true target as the new one; two
            are the same; or two contradict each other.
    """
    given = as_facts(facts)
    new: dict[tuple[int, ...], tuple[int, Fact]] = {}
    for i, fact in enumerate(given):
        check_has_new_target(fact)
        encoded = encode(model, fact, prepend_bos=plan.prepend_bos)
        if encoded.answer == encoded.new_answer:
            raise FactError(
                f"Fact {i}, {fact.text!r}: the new target {fact.new_target!r} is the true one. "
                "There is nothing to edit. Give another new target."
            )
        place = tuple(encoded.tokens.tolist())
        if place in new:
            j, other = new[place]
            if other.new_target == fact.new_target:
                raise FactError(
                    f"Facts {j} and {i} are the same, {fact.text!r} -> {fact.new_target!r}, and "
                    "would count twice. Give each fact once."
                )
            raise FactError(
                f"Facts {j} and {i} contradict each other: {fact.text!r} is to say "
                f"{other.new_target!r} and {fact.new_target!r}. Give one of them, or edit them one "
                "after the other."
            )
        new[place] = (i, fact)
    return given


@visits_model
def write_facts(
    model: LensModel,
    facts: object,
    plan: Plan,
    *,
    batch_size: int | None = None,
    earlier: MassEdit | None = None,
    known: TargetMemory | None = None,
) -> MassEdit:
    """The edit of all facts, in one batch or in several batches one after the other.

    Targets are taken from ``known`` where it has them, and new ones are added.

    Raises:
        FactError, OptimisationError, ArgumentError: as for :func:`rome_lens.memit`.
    """
    given = checked_facts(model, facts, plan)
    size = len(given) if batch_size is None else whole_number("batch_size", batch_size, least=1)
    for solver in plan.solvers.values():
        solver.check_count(min(size, len(given)))
    kept = _kept_keys(model, plan, earlier)
    plan = with_contexts(model, plan)
    batches: list[Written] = []
    total: tuple[WeightEdit, ...] = ()
    for first in range(0, len(given), size):
        with ExitStack() as earlier_batches:
            for edit in total:
                earlier_batches.enter_context(edit.applied(model))
            # With earlier batches in its weights, it is another model.
            own = None if total else known
            targets = _targets(model, given[first : first + size], plan, own)
            written = write_batch(model, targets, plan, kept)
        kept, total = _with_keys(kept, written), added(total, written.edits)
        batches = [*(replace(each, edits=()) for each in batches), replace(written, edits=total)]
    return mass_edit(model, plan, batches, kept)


@visits_model
def write_each(
    model: LensModel, facts: Sequence[Fact], plan: Plan, *, known: TargetMemory | None = None
) -> list[MassEdit | FactError | OptimisationError]:
    """For each fact the edit of this fact alone, or the error where there is none.

    The values are optimised side by side. They are taken from ``known`` where it has them, and new
    ones are added.
    """
    found: list[MassEdit | FactError | OptimisationError | None] = []
    for fact in facts:
        try:
            checked_facts(model, [fact], plan)
            found.append(None)
        except FactError as error:
            found.append(error)
    chosen = [i for i, each in enumerate(found) if each is None]
    if chosen:
        plan = with_contexts(model, plan)
    targets = _found(model, [facts[i] for i in chosen], plan, known)
    nothing = _kept_keys(model, plan, None)
    for i, target in zip(chosen, targets, strict=True):
        if not isinstance(target, Target):
            found[i] = target
            continue
        try:
            written = write_batch(model, [target], plan, nothing)
            found[i] = mass_edit(model, plan, [written], _with_keys(nothing, written))
        except OptimisationError as error:
            found[i] = error.with_traceback(None)
    return [each for each in found if each is not None]


def _found(
    model: LensModel, facts: Sequence[Fact], plan: Plan, known: TargetMemory | None
) -> list[Found]:
    """The target of each fact, or the error where there is none."""
    find = optimised_targets if known is None else known.targets
    return find(model, facts, plan.target_settings)


def _targets(
    model: LensModel, facts: Sequence[Fact], plan: Plan, known: TargetMemory | None
) -> list[Target]:
    """The targets of a batch.

    Raises:
        FactError, OptimisationError: a fact has none. The message names the fact.
    """
    targets = []
    for fact, each in zip(facts, _found(model, facts, plan, known), strict=True):
        if isinstance(each, OptimisationError):
            raise each if len(facts) == 1 else OptimisationError(f"{fact.text!r}: {each}")
        if isinstance(each, FactError):
            raise each
        targets.append(each)
    return targets


def _kept_keys(model: LensModel, plan: Plan, earlier: MassEdit | None) -> dict[int, Tensor]:
    """By layer, the keys that were edited before.

    Raises:
        ArgumentError: the earlier edit is not of AlphaEdit and the same layers, or not applied.
    """
    if earlier is None:
        return {
            layer: torch.zeros(0, w_out(model, layer).shape[0], dtype=torch.float32, device="cpu")
            for layer in plan.layers
        }
    if not isinstance(earlier, MassEdit) or earlier.kept_keys is None:
        raise ArgumentError(f"earlier is {earlier!r}, expected an edit that alphaedit returned.")
    if earlier.layers != plan.layers:
        raise ArgumentError(
            f"earlier has the layers {list(earlier.layers)}, this edit {list(plan.layers)}: keys "
            "that were edited before can be kept at the same layers only."
        )
    if not earlier.is_applied(model):
        raise ArgumentError(
            f"{earlier!r} is given as earlier, but the model does not carry it: call "
            "alphaedit inside earlier.applied(model)."
        )
    return dict(zip(plan.layers, earlier.kept_keys, strict=True))


def _with_keys(kept: Mapping[int, Tensor], written: Written) -> dict[int, Tensor]:
    """The keys that were edited before, and those of a batch on the model as edited with it."""
    after = {layer: keys.cpu() for layer, keys in written.after.keys.items()}
    return {layer: torch.cat([keys.to(after[layer]), after[layer]]) for layer, keys in kept.items()}
