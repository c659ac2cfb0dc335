"""Editors side by side: what an edit is compared with, each made by ``editor(model, fact)`` and scored by the same functions.

Source of the comparison: Meng et al. 2022, sections 3.2 and 3.3.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.evaluating import check_prompts, evaluate_all
from rome_lens.evaluation.scores import Evaluation, Scores, markdown, score_table
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import encode
from rome_lens.models.lens import LensModel
from rome_lens.results import Result
from rome_lens.stores import Store

_RECORDS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Result):
    """Editors by name, each with its evaluations on the same records.

    Attributes:
        evaluations: by editor, in the records' order, without those whose edit failed.
        failures: by editor, where there are any: the facts whose optimisation left the finite numbers, and its error.
        seed: of the bootstrap of S.
    """

    evaluations: Mapping[str, tuple[Evaluation, ...]]
    failures: Mapping[str, tuple[tuple[Fact, str], ...]] = field(default_factory=dict)
    seed: int = 0

    @property
    def scores(self) -> tuple[Scores, ...]:
        """The averages, one for each editor."""
        return tuple(
            Scores.of(each, editor=name, seed=self.seed, failed=len(self.failures.get(name, ())))
            for name, each in self.evaluations.items()
        )

    def table(self) -> pd.DataFrame:
        """Editors down, scores across, as text."""
        return score_table(self.scores)

    def to_markdown(self) -> str:
        """The table as Markdown."""
        return markdown(self.table())

    def to_frame(self) -> pd.DataFrame:
        """One row for each editor and score: mean, 95 % interval, number of records."""
        return pd.concat([each.to_frame() for each in self.scores], ignore_index=True)

    def prompts(self) -> pd.DataFrame:
        """One row for each editor, record and prompt, so that failures can be looked at."""
        frames = []
        for name, evaluations in self.evaluations.items():
            for evaluation in evaluations:
                frame = evaluation.to_frame()
                frame.insert(0, "editor", name)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True)


def compare_editors(
    model: LensModel,
    records: Fact | Record | Iterable[Fact | Record],
    editors: Iterable[Callable[[LensModel, Fact], Any]],
    *,
    generate: int = 0,
    seed: int = 0,
    prepend_bos: bool | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> Comparison:
    """Make each editor's edit of each record's fact and evaluate them all, several records in one forward pass.

    The model is not changed: each edit is made on it as it stands, and acts on its own record alone. What is asked before
    the edits is run once for all editors. An edit that diverges (:class:`OptimisationError`), or of a fact that the editor
    refuses (:class:`FactError`: the model says the new target already, the subject stands where a context cannot hold it),
    is no end of the comparison: it is among the result's ``failures``, in no average, and tried again by a run that goes on.

    Args:
        editors: such as :class:`Unedited`, :class:`InContext`, :class:`FineTuning`, :class:`RomeEditor`, or your own.
        generate, seed, prepend_bos: as :func:`rome_lens.evaluate_all` takes them; an editor has its own ``prepend_bos``.
        directory: where each finished evaluation is written at once; a run broken off goes on from there, with the same or
            with more editors and records.

    Raises:
        FactError: a record that the model cannot be asked, before anything is edited.
        ValueError: no record or no editor, an editor without a name, or two of one name.
    """
    cases, editors = [with_new_target(record) for record in as_records(records)], list(editors)
    names = [getattr(editor, "name", None) for editor in editors]
    if not editors or not all(isinstance(name, str) and name for name in names):
        raise ArgumentError(
            f"The editors are named {names!r}: expected at least one editor, and a name for each."
        )
    if len(set(names)) < len(names):
        raise ArgumentError(
            f"The editors' names are {names!r}, expected different ones: RomeEditor(..., name='C = I')."
        )
    for case in cases:  # what cannot be asked fails before anything is edited
        encode(model, case.fact, prepend_bos=prepend_bos)
        check_prompts(model, case, prepend_bos=prepend_bos)
    store = Store(directory, identity="" if directory is None else model_identity(model))
    settings = (generate, seed, prepend_bos)
    keys = {
        (e, r): store.name(editor, settings, record)
        for e, editor in enumerate(editors)
        for r, record in enumerate(cases)
    }
    failures: dict[str, tuple[tuple[Fact, str], ...]] = {}
    with tqdm(total=len(cases), disable=not progress, desc="records") as bar:
        for first in range(0, len(cases), _RECORDS_AT_ONCE):
            some = range(first, min(first + _RECORDS_AT_ONCE, len(cases)))
            missing = [
                (e, r)
                for e in range(len(editors))
                for r in some
                if store.get(Evaluation, keys[e, r]) is None
            ]
            edits = {}
            for e, r in missing:
                try:
                    edits[e, r] = editors[e](model, cases[r].fact)
                except (OptimisationError, FactError) as error:
                    failures[str(names[e])] = (
                        *failures.get(str(names[e]), ()),
                        (cases[r].fact, str(error)),
                    )
            if edits:
                asked = [cases[r] for _, r in edits]
                found = evaluate_all(
                    model,
                    list(edits.values()),
                    asked,
                    generate=generate,
                    seed=seed,
                    prepend_bos=prepend_bos,
                )
                for pair, evaluation in zip(edits, found, strict=True):
                    store.add(keys[pair], evaluation)
            bar.update(len(some))
    evaluations = {
        str(name): tuple(
            kept
            for r in range(len(cases))
            if (kept := store.get(Evaluation, keys[e, r])) is not None
        )
        for e, name in enumerate(names)
    }
    return Comparison(evaluations=evaluations, failures=failures, seed=seed)
