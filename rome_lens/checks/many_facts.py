"""The limits of the edits of many facts. Finished edits and checks are kept on disk."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from tqdm.auto import tqdm

from rome_lens.checks.average import LimitsAverage, average_limits
from rome_lens.checks.check import UneditedModel
from rome_lens.checks.claims.fidelity import Fidelity, with_each_other_as_control
from rome_lens.checks.limits import Limits, LimitsSettings, limits_of_each
from rome_lens.checks.result import CheckResult
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.editors import edits_or_errors
from rome_lens.editing.mass_editors import MassEditor
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import encode
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel
from rome_lens.stores import Store

_EDITS_AT_ONCE = 16
_FAILURES = (FactError, OptimisationError)
_Found: TypeAlias = Limits | FactError | OptimisationError


@visits_model
def check_records(
    model: LensModel,
    records: Fact | Record | Iterable[Fact | Record],
    editor: Callable[[Any, Any], Any],
    *,
    texts: Sequence[str] | None = None,
    samples: int = 1,
    new_tokens: int = 20,
    seed: int = 0,
    prepend_bos: bool | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> LimitsAverage:
    """The limits of each record's edit, and their averages.

    Each fact is edited on its own and checked with :func:`rome_lens.check_limits`. The edits of the
    other records are the control of fidelity.

    Args:
        records: the records, or facts, to edit.
        editor: makes an edit from ``(model, fact)``, such as ``rl.preset(...).editor(model)``.
        texts, samples, new_tokens, seed: as for :func:`rome_lens.check_limits`.
        prepend_bos: whether the questions start with a BOS token. The editor has its own setting.
        directory: where each finished edit and each finished check is written at once. An
            interrupted run resumes from there.
        progress: whether to show progress bars.

    Raises:
        FactError: there is no record, or an entry is neither a record nor a fact.
        ArgumentError: the editor cannot be called, or does not say what its settings are although
            there is a directory.
        RecordError: a fact has no new target.

    Errors of :func:`rome_lens.check_limits` are raised too, before the first edit where possible.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")[:2]
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> def edit(model, fact):
        ...     fewer = rl.RomeConfig(steps=5)
        ...     return rl.rome(model, fact, layer=2, statistics=C, contexts=["{}"], config=fewer)
        >>> average = rl.check_records(model, records, edit, samples=0, new_tokens=0)
        >>> average.effect("description").count
        2
    """
    cases = [with_new_target(record) for record in as_records(records)]
    if not callable(editor):
        raise ArgumentError(
            f"The editor is of type {type(editor).__name__}, expected a function that makes an "
            "edit from (model, fact), such as rl.preset(...).editor(model)."
        )
    for record in cases:
        encode(model, record.fact, prepend_bos=prepend_bos)
    settings = LimitsSettings(
        texts=texts, samples=samples, new_tokens=new_tokens, seed=seed, prepend_bos=prepend_bos
    )
    store = Store(directory, identity="" if directory is None else model_identity(model))
    (found,) = limits_or_errors(
        model, cases, {"": editor}, store, settings, stop_at_error=True, progress=progress
    ).values()
    return average_limits([each for each in found if isinstance(each, Limits)])


def limits_or_errors(
    model: LensModel,
    cases: Sequence[Record],
    editors: Mapping[str, Callable[[Any, Any], Any]],
    store: Store,
    settings: LimitsSettings,
    *,
    stop_at_error: bool,
    progress: bool,
) -> dict[str, list[_Found]]:
    """For each editor and record, the limits of the edit, or the error if it cannot be made.

    The store keeps each at once, and facts whose limits are in it are not edited again. With
    ``stop_at_error``, the error of a fact that cannot be edited is raised instead. The edits of the
    other facts are the control of fidelity.

    All editors edit a few facts before the next ones. So the unedited model answers the questions
    about each fact only once.
    """
    for editor in editors.values():
        if isinstance(editor, MassEditor):
            editor.check(model)  # before the first edit of any
    unedited = UneditedModel()
    found: dict[str, list[_Found]] = {name: [] for name in editors}
    total = len(cases) * len(editors)
    with (
        tqdm(total=total, desc="edits", disable=not progress) as edits_bar,
        tqdm(total=total, desc="checks", disable=not progress) as checks_bar,
    ):
        for first in range(0, len(cases), _EDITS_AT_ONCE):
            some = cases[first : first + _EDITS_AT_ONCE]
            for name, editor in editors.items():
                found[name] += _of_some(
                    model,
                    some,
                    editor,
                    store,
                    settings,
                    unedited=unedited,
                    stop_at_error=stop_at_error,
                    bars=(edits_bar, checks_bar),
                )
            unedited.forget_answers()
    return {name: _with_other_edits(its) for name, its in found.items()}


def _of_some(
    model: LensModel,
    cases: Sequence[Record],
    editor: Callable[[Any, Any], Any],
    store: Store,
    settings: LimitsSettings,
    *,
    unedited: UneditedModel,
    stop_at_error: bool,
    bars: tuple[Any, Any],
) -> list[_Found]:
    """For each of a few facts, the limits of one editor's edit, or the error if it cannot be made.

    Args:
        bars: the progress bars of edits and of checks.
    """
    edits_bar, checks_bar = bars
    stored_as = [store.name(editor, *settings.stored_as(), each) for each in cases]
    missing = [i for i, name in enumerate(stored_as) if not store.has(Limits, name)]
    edits_bar.update(len(cases) - len(missing))
    facts = [cases[i].fact for i in missing]
    made = _edits(model, editor, facts, store, stop_at_error, edits_bar)
    edits = dict(zip(missing, made, strict=True))
    failed = {i: each for i, each in edits.items() if isinstance(each, _FAILURES)}
    edited = [i for i in missing if i not in failed]
    checks_bar.update(len(cases) - len(edited))
    pairs = [(edits[i], cases[i]) for i in edited]
    checked = limits_of_each(model, pairs, settings, unedited=unedited)
    for i, limits in zip(edited, checked, strict=True):
        store.add(stored_as[i], limits)
        checks_bar.update()
    return [failed[i] if i in failed else _kept(store, name) for i, name in enumerate(stored_as)]


def _kept(store: Store, name: str) -> Limits:
    limits = store.get(Limits, name)
    assert limits is not None
    return limits


def _edits(
    model: LensModel,
    editor: Callable[[Any, Any], Any],
    facts: Sequence[Fact],
    store: Store,
    stop_at_error: bool,
    bar: Any,
) -> list[Any]:
    """The edit of each fact, from the store or newly made, or the error where there is none.

    Where the editor makes one edit at a time, each is stored as soon as it is finished.
    Only rank-one edits are stored, because not every editor's edit can be saved.
    """
    names = [store.name(editor, fact) for fact in facts]
    edits: list[Any] = [store.get(RankOneEdit, name) for name in names]
    at_once = len(facts) if hasattr(editor, "edit_many") else 1
    for first in range(0, len(facts), max(1, at_once)):
        batch = range(first, min(first + at_once, len(facts)))
        missing = [i for i in batch if edits[i] is None]
        made = edits_or_errors(model, editor, [facts[i] for i in missing])
        for i, edit in zip(missing, made, strict=True):
            if isinstance(edit, RankOneEdit):
                store.add(names[i], edit)
            edits[i] = edit
        for edit in made:
            if stop_at_error and isinstance(edit, Exception):
                raise edit  # once the others are kept
        bar.update(len(batch))
    return edits


def _with_other_edits(found: Sequence[_Found]) -> list[_Found]:
    """Every fact's limits, with the other facts' edits as the control of fidelity."""
    limits = [each for each in found if isinstance(each, Limits)]
    controlled = iter(with_each_other_as_control([each[Fidelity.name] for each in limits]))
    return [
        _with_fidelity(each, next(controlled)) if isinstance(each, Limits) else each
        for each in found
    ]


def _with_fidelity(limits: Limits, fidelity: CheckResult) -> Limits:
    results = [fidelity if each.name == Fidelity.name else each for each in limits.results]
    return replace(limits, results=tuple(results))
