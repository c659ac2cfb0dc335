"""Edits to compare an edit with: one that rewrites nothing, and those along the optimisation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rome_lens.arguments import several, whole_number
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_fact
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.prompts import check_has_new_target
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.rome_method import checked_config, statistics_of
from rome_lens.editing.side_by_side import Choice, rank_one_edits
from rome_lens.errors import ArgumentError
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, check_layer


@visits_model
def null_edit(
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
    """The edit that :func:`rome_lens.rome` would make if the new target were the true one.

    It rewrites Paris as Paris. Whatever it changes is due to the method and not to the new fact: an
    optimisation that goes on although the model says the answer already makes the model more
    confident than it was. With ``RomeConfig(stop="matched")`` and the variant ``"rome"`` it changes
    nothing.

    The edit's ``fact`` has the two targets in the other order, because it is the true one that the
    edit writes. The checks and :func:`rome_lens.evaluate` take it together with the record itself.

    Args:
        model, layer, statistics, contexts, config, variant, prepend_bos: as for
            :func:`rome_lens.rome`.
        fact: the fact, with a new target. The edit does not write it.

    Raises:
        FactError, OptimisationError, ArgumentError, StatisticsError, ModelError: as for
            :func:`rome_lens.rome`. A fact that the model knows is not refused.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.data.records(known_by="toy")[0].fact
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.null_edit(model, fact, layer=2, statistics=C, contexts=["{}"])
        >>> fact.target, edit.fact.new_target
        ('Pralec', 'Pralec')
        >>> matched = rl.RomeConfig(stop="matched")
        >>> edit = rl.null_edit(model, fact, layer=2, statistics=C, contexts=["{}"], config=matched)
        >>> float(edit.v.norm())
        0.0
    """
    (edit,) = null_edits(
        model,
        [as_fact(fact)],
        layer=layer,
        statistics=statistics,
        contexts=contexts,
        config=config,
        variant=variant,
        prepend_bos=prepend_bos,
    )
    if isinstance(edit, Exception):
        raise edit
    return edit


def null_edits(
    model: LensModel,
    facts: Sequence[Fact],
    *,
    layer: int,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None,
    config: RomeConfig,
    variant: Variant,
    prepend_bos: bool | None,
) -> list[RankOneEdit | FactError | OptimisationError]:
    """The null edit of each fact, made side by side, or the error where there is none."""
    layer, config = check_layer(model, layer), checked_config(config)
    choice = Choice(
        statistics=statistics_of(statistics, layer),
        variant=variant,
        stop_probability=config.stop_probability,
    )
    found = rank_one_edits(
        model,
        [_with_targets_exchanged(fact) for fact in facts],
        layer=layer,
        choices=[choice],
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
        null=True,
    )
    return [each if isinstance(each, FactError) else each[0] for each in found]


def is_null_edit(edit: Any, fact: Fact) -> bool:
    """Whether an edit writes the fact's true target."""
    edited = getattr(edit, "fact", None)
    return isinstance(edited, Fact) and edited == _with_targets_exchanged(fact)


def _with_targets_exchanged(fact: Fact) -> Fact:
    check_has_new_target(fact)
    return Fact(
        fact.prompt,
        subject=fact.subject,
        target=str(fact.new_target),
        new_target=fact.target,
        joiner=fact.own_joiner,
    )


@visits_model
def rome_path(
    model: LensModel,
    fact: Fact | Record,
    *,
    layer: int,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    steps: Iterable[int] | None = None,
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: Variant = "rome",
    prepend_bos: bool | None = None,
) -> list[RankOneEdit]:
    """The edits along the optimisation of :func:`rome_lens.rome`, which are doses of one edit.

    Every step of the optimisation is an edit: the one that ``RomeConfig(steps=k)`` would make. All
    of them come from one optimisation. The first changes nothing, and the last is what
    :func:`rome_lens.rome` returns. Checks of all of them show how an effect grows with the dose,
    such as where an edit begins to be over (:func:`rome_lens.checks.overfit`).

    Args:
        model, fact, layer, statistics, contexts, config, variant, prepend_bos: as for
            :func:`rome_lens.rome`. The path ends where the config stops.
        steps: the numbers of steps whose edits are wanted, from 1 to ``config.steps``. None takes
            all.

    Returns:
        The edits by their number of steps, ``edit.config["steps"]``. Numbers after the optimisation
        has stopped would give the same edit again, so only the first of them is there.

    Raises:
        ArgumentError: a number of steps is out of range; otherwise as for :func:`rome_lens.rome`.
        FactError, OptimisationError, StatisticsError, ModelError: as for :func:`rome_lens.rome`.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.data.records(known_by="toy")[0].fact
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> options = {"layer": 2, "statistics": C, "contexts": ["{}"]}
        >>> path = rl.rome_path(model, fact, **options, steps=[1, 3, 5])
        >>> [(edit.config["steps"], round(edit.probability, 2)) for edit in path]
        [(1, 0.0), (3, 0.07), (5, 0.95)]
    """
    layer, fact, config = check_layer(model, layer), as_fact(fact), checked_config(config)
    wanted = _checked_steps(steps, config)
    of_layer = statistics_of(statistics, layer)
    choices = [
        Choice(
            statistics=of_layer,
            variant=variant,
            stop_probability=config.stop_probability,
            steps=count,
        )
        for count in wanted
    ]
    (found,) = rank_one_edits(
        model,
        [fact],
        layer=layer,
        choices=choices,
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
        stop_at_error=True,
    )
    assert not isinstance(found, FactError)
    path: list[RankOneEdit] = []
    for edit in found:
        if isinstance(edit, OptimisationError):
            raise edit
        path.append(edit)
        if edit.stopped != "steps":
            break
    return path


def _checked_steps(steps: Iterable[int] | None, config: RomeConfig) -> list[int]:
    if steps is None:
        return list(range(1, config.steps + 1))
    given = several("steps", steps, "several numbers of steps, such as [1, 5, 10]")
    counts = sorted({whole_number("A number of steps", count, least=1) for count in given})
    if not counts or counts[-1] > config.steps:
        raise ArgumentError(
            f"steps is {given}, expected numbers from 1 to {config.steps}, the config's own."
        )
    return counts
