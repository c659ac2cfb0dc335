"""The limits of the edits of many facts. Finished edits and checks are kept on disk."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rome_lens.checks.average import LimitsAverage, average_limits
from rome_lens.checks.claims.fidelity import Fidelity, with_each_other_as_control
from rome_lens.checks.limits import Limits, LimitsSettings, limits_of_each
from rome_lens.checks.writing import UneditedTexts
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.editors import edits_or_errors
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import encode
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel
from rome_lens.stores import Store

_EDITS_AT_ONCE = 16


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
    found = limits_or_errors(
        model, cases, editor, store, settings, unedited={}, stop_at_error=True, progress=progress
    )
    return average_limits([each for each in found if isinstance(each, Limits)])


def limits_or_errors(
    model: LensModel,
    cases: Sequence[Record],
    editor: Callable[[Any, Any], Any],
    store: Store,
    settings: LimitsSettings,
    *,
    unedited: UneditedTexts,
    stop_at_error: bool,
    progress: bool,
) -> list[Limits | FactError | OptimisationError]:
    """The limits of each record's edit, or why there is no edit. The store keeps each at once.

    With ``stop_at_error``, the error of a fact that cannot be edited is raised instead. Facts whose
    limits are in the store are not edited again. The edits of the other facts are the control of
    fidelity. Texts of the unedited model are taken from ``unedited``, and new ones are added.
    """
    stored_as = [store.name(editor, *settings.stored_as(), record) for record in cases]
    missing = [i for i, name in enumerate(stored_as) if not store.has(Limits, name)]
    facts = [cases[i].fact for i in missing]
    names = [store.name(editor, fact) for fact in facts]
    made_edits = _edits(model, editor, facts, store, names, stop_at_error, progress)
    edits = dict(zip(missing, made_edits, strict=True))
    failed = {
        i: each for i, each in edits.items() if isinstance(each, FactError | OptimisationError)
    }
    with tqdm(total=len(cases), desc="checks", disable=not progress) as bar:
        bar.update(len(cases) - len(edits) + len(failed))
        edited = [i for i in missing if i not in failed]
        for first in range(0, len(edited), _EDITS_AT_ONCE):
            some = edited[first : first + _EDITS_AT_ONCE]
            pairs = [(edits[i], cases[i]) for i in some]
            made = limits_of_each(model, pairs, settings, unedited=unedited)
            for i, limits in zip(some, made, strict=True):
                store.add(stored_as[i], limits)
                bar.update()
    found: list[Any] = [
        failed.get(i) or store.get(Limits, name) for i, name in enumerate(stored_as)
    ]
    checked = iter(_with_other_edits([each for each in found if isinstance(each, Limits)]))
    return [next(checked) if isinstance(each, Limits) else each for each in found]


def _edits(
    model: LensModel,
    editor: Callable[[Any, Any], Any],
    facts: Sequence[Fact],
    store: Store,
    names: Sequence[str],
    stop_at_error: bool,
    progress: bool,
) -> list[Any]:
    """The edit of each fact, from the store or newly made, or the error where there is none.

    Edits are made in batches, and every batch is stored as soon as it is finished.

    Only rank-one edits are kept, because not every editor's edit can be saved.
    """
    edits: list[Any] = [store.get(RankOneEdit, name) for name in names]
    with tqdm(total=len(facts), desc="edits", disable=not progress) as bar:
        at_once = _EDITS_AT_ONCE if hasattr(editor, "edit_many") else 1
        for first in range(0, len(facts), at_once):
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


def _with_other_edits(limits: Sequence[Limits]) -> list[Limits]:
    """Every fact's limits, with the other facts' edits as the control of fidelity."""
    fidelities = iter(with_each_other_as_control([each[Fidelity.name] for each in limits]))
    return [
        replace(
            each,
            results=tuple(
                next(fidelities) if result.name == Fidelity.name else result
                for result in each.results
            ),
        )
        for each in limits
    ]
