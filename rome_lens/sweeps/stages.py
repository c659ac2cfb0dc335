"""The work of a sweep: what each stage does for a fact, and what it does when that fails."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

from rome_lens.checks.limits import check_limits
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.editing.editors import edits_or_errors
from rome_lens.errors import RomeLensError
from rome_lens.evaluation.evaluating import evaluate
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored
from rome_lens.storage import StorageError
from rome_lens.stores import Store
from rome_lens.sweeps.editors import MassSetting, RomeSetting, at_layer
from rome_lens.sweeps.units import Failure, Job, Plan, Stage, Units
from rome_lens.tracing.many_facts import NotKnown, trace_facts

_Edit: TypeAlias = Callable[[Sequence[Fact]], Sequence[Stored | RomeLensError]]


def perform(model: LensModel, plan: Plan, job: Job) -> Iterator[int]:
    """Do a job, and yield after each step the number of units that it finished."""
    units = Units(plan)
    if job.layer is not None:
        yield from _perform_cells(model, units, job.records, job.layer, job.editor)
        return
    for record in job.records:
        name = units.trace(record.fact)
        if not units.is_finished("trace", name):
            units.attempt(name, partial(_trace, model, plan, record.fact))
            yield 1


def _perform_cells(
    model: LensModel, units: Units, records: tuple[Record, ...], layer: int, editor: str
) -> Iterator[int]:
    plan = units.plan
    names = [units.cell(record, layer, editor) for record in records]
    left = [units.unfinished_of_cell(each) for each in names]
    if any(not units.is_finished("edit", each["edit"]) for each in names):
        edit = partial(_edits, model, plan, layer=layer, editor=editor)
        together = isinstance(plan.editors[editor], RomeSetting | MassSetting)
        makes = _side_by_side(edit, records) if together else _one_by_one(edit, records)
        for name, make in zip(names, makes, strict=True):
            if not units.is_finished("edit", name["edit"]):
                units.attempt(name["edit"], make)
                yield 1
    later: dict[Stage, Callable[..., Stored]] = {"evaluate": _evaluate, "limits": _limits}
    for record, name, to_do in zip(records, names, left, strict=True):
        edit_or_failure = units.result("edit", name["edit"]) if to_do else None
        for stage in plan.cell_stages[1:] if to_do else ():
            if isinstance(edit_or_failure, Failure):
                yield 1
            elif not units.is_finished(stage, name[stage]):
                make = partial(later[stage], model, plan, edit_or_failure, record)
                units.attempt(name[stage], make)
                yield 1


def _side_by_side(edit: _Edit, records: Sequence[Record]) -> list[Callable[[], Stored]]:
    """For each record a function that gives its edit, or raises its error.

    All edits are made now, also where only one of them is missing: those of a batch share their
    rounding. If that fails as a whole, as for lack of memory, each is made alone.
    """
    try:
        outcomes = edit([record.fact for record in records])
    except StorageError:
        raise
    except Exception:
        return _one_by_one(edit, records)
    return [partial(_given, outcome) for outcome in outcomes]


def _one_by_one(edit: _Edit, records: Sequence[Record]) -> list[Callable[[], Stored]]:
    """The same, but each edit is made when it is asked for, and fails alone."""
    return [partial(_alone, edit, record.fact) for record in records]


def _alone(edit: _Edit, fact: Fact) -> Stored:
    return _given(edit([fact])[0])


def _given(outcome: Stored | RomeLensError) -> Stored:
    if isinstance(outcome, RomeLensError):
        raise outcome
    return outcome


def _trace(model: LensModel, plan: Plan, fact: Fact) -> Stored:
    traced = trace_facts(
        model,
        fact,
        component=plan.component,
        window=plan.window,
        noise=plan.noise,
        samples=plan.samples,
        layers=plan.layers,
        at=plan.at,
        prepend_bos=plan.prepend_bos,
    )
    return traced.traces[0] if traced.traces else NotKnown(message=traced.unknown[0][1])


def _edits(
    model: LensModel, plan: Plan, facts: Sequence[Fact], *, layer: int, editor: str
) -> Sequence[Stored | RomeLensError]:
    kept = plan.statistics.get(layer)
    its_editor = at_layer(
        plan.editors[editor],
        layer,
        statistics=None if kept is None else _statistics(plan.directory / "keys", kept[1]),
        contexts=plan.contexts,
        prepend_bos=plan.prepend_bos,
    )
    return edits_or_errors(model, its_editor, facts)


@lru_cache(maxsize=1)  # jobs come layer by layer, and statistics keep their factorisation
def _statistics(directory: Path, name: str) -> KeyStatistics:
    found = Store(directory).get(KeyStatistics, name)
    if found is None:
        raise StorageError(
            f"{directory} no longer holds the key statistics {name}: run the sweep again."
        )
    return found


def _evaluate(model: LensModel, plan: Plan, edit: Stored, record: Record) -> Stored:
    return evaluate(
        model, edit, record, generate=plan.generate, seed=plan.seed, prepend_bos=plan.prepend_bos
    )


def _limits(model: LensModel, plan: Plan, edit: Stored, record: Record) -> Stored:
    return check_limits(
        model,
        edit,
        record,
        texts=plan.texts,
        samples=plan.continuations,
        new_tokens=plan.new_tokens,
        seed=plan.seed,
        prepend_bos=plan.prepend_bos,
    )
