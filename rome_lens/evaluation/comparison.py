"""Compare editors: all of them edit the same facts and are scored in the same way.

Source of the comparison: Meng et al. 2022, sections 3.2 and 3.3.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.arguments import whole_number
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.editors import edits_or_errors
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.differences import difference_table
from rome_lens.evaluation.evaluating import check_prompts, evaluate_all
from rome_lens.evaluation.results import Evaluation
from rome_lens.evaluation.scores import Scores, markdown, score_table
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import encode
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel
from rome_lens.results import Result
from rome_lens.stores import Store

_RECORDS_AT_ONCE = 16
_Editor: TypeAlias = Callable[[LensModel, Fact], Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Result):
    """The evaluations of several editors on the same records."""

    evaluations: Mapping[str, tuple[Evaluation, ...]]
    """By editor, in the order of the records, without the records whose edit failed."""
    failures: Mapping[str, tuple[tuple[Fact, str], ...]] = field(default_factory=dict)
    """By editor: each fact whose edit failed, with the error's message."""

    @property
    def scores(self) -> tuple[Scores, ...]:
        """The averages over the records, one entry for each editor."""
        return tuple(
            Scores.of(each, editor=name, failed=len(self.failures.get(name, ())))
            for name, each in self.evaluations.items()
        )

    def table(self) -> pd.DataFrame:
        """A table of text with a row for each editor and a column for each score."""
        return score_table(self.scores)

    def differences(self, baseline: str | None = None) -> pd.DataFrame:
        """Each editor's scores minus those of one editor, paired by record.

        Only records that both editors were scored on count. Their scores go up and down together,
        so the interval of the difference is mostly narrower than the intervals of the two scores
        suggest: whether two editors differ is read here, not from whether intervals overlap.

        Args:
            baseline: the name of the editor that is subtracted. None takes the first one.

        Returns:
            A table of text with a row for each other editor and a column for each score. Intervals
            are clustered by relation (:func:`rome_lens.intervals.average`). ``records`` counts the
            records of both.

        Raises:
            ArgumentError: there is no editor of this name, or no other one.
        """
        names = list(self.evaluations)
        baseline = names[0] if baseline is None else baseline
        if baseline not in names or len(names) < 2:
            raise ArgumentError(
                f"baseline is {baseline!r}, expected one of several editors; there are {names}."
            )
        return difference_table(self.evaluations, baseline)

    def to_markdown(self) -> str:
        """The table as Markdown."""
        return markdown(self.table())

    def to_frame(self) -> pd.DataFrame:
        """One row for each editor and score: mean, 95 % interval and number of records."""
        return pd.concat([each.to_frame() for each in self.scores], ignore_index=True)

    def prompts(self) -> pd.DataFrame:
        """One row for each editor, record and prompt, to see where an editor fails."""
        frames = []
        for name, evaluations in self.evaluations.items():
            for evaluation in evaluations:
                frame = evaluation.to_frame()
                frame.insert(0, "editor", name)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True)


@visits_model
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
    """Edit the fact of each record with each editor, and score all of the edits.

    The model is not changed. Every edit is made on the model as it is and is scored on its own
    record. Several records share a forward pass, and their prompts run only once before the edits.

    A failed edit does not stop the comparison. It is listed in ``failures``, is in no average, and
    is tried again when the run resumes. An edit fails if its optimisation diverges
    (:class:`OptimisationError`), or if the editor refuses the fact (:class:`FactError`), for
    example because the model gives the new target already.

    Args:
        records: facts or records with a new target.
        editors: such as :class:`Unedited`, :class:`InContext`, :class:`FineTuning` and
            :class:`RomeEditor`, or your own: a function ``editor(model, fact)`` with a ``name``.
        generate, seed, prepend_bos: as for :func:`rome_lens.evaluate_all`. They concern the scores
            only; an editor has a ``prepend_bos`` of its own.
        directory: where each evaluation is written as soon as it is finished. An interrupted run
            resumes from there, also with more editors or records.
        progress: whether to show a progress bar.

    Raises:
        FactError: the model cannot be asked a record's prompts. This is checked before any edit.
        ArgumentError: there is no record or no editor, an editor has no name, or two have the same.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")[:3]
        >>> statistics = rl.KeyStatistics.identity(model, layer=2)
        >>> editors = [rl.Unedited(), rl.RomeEditor(statistics=statistics, contexts=["{}"])]
        >>> comparison = rl.compare_editors(model, records, editors)
        >>> {scores.editor: round(scores.ES.mean, 2) for scores in comparison.scores}
        {'unedited': 0.0, 'ROME': 1.0}
    """
    generate, seed = whole_number("generate", generate, least=0), whole_number("seed", seed)
    cases = [with_new_target(record) for record in as_records(records)]
    by_name = editors_by_name(editors)
    for case in cases:
        encode(model, case.fact, prepend_bos=prepend_bos)
        check_prompts(model, case, prepend_bos=prepend_bos)
    store = Store(directory, identity="" if directory is None else model_identity(model))
    stored_as = {
        (name, r): store.name(editor, (generate, seed, prepend_bos), case)
        for name, editor in by_name.items()
        for r, case in enumerate(cases)
    }
    failures: dict[str, tuple[tuple[Fact, str], ...]] = {}
    with tqdm(total=len(cases), disable=not progress, desc="records") as bar:
        for first in range(0, len(cases), _RECORDS_AT_ONCE):
            batch = range(first, min(first + _RECORDS_AT_ONCE, len(cases)))
            missing = [
                (name, r)
                for name in by_name
                for r in batch
                if store.get(Evaluation, stored_as[name, r]) is None
            ]
            edits, failed = _make_edits(model, by_name, cases, missing)
            for (name, r), message in failed.items():
                failures[name] = (*failures.get(name, ()), (cases[r].fact, message))
            if edits:
                evaluations = evaluate_all(
                    model,
                    list(edits.values()),
                    [cases[r] for _, r in edits],
                    generate=generate,
                    seed=seed,
                    prepend_bos=prepend_bos,
                )
                for pair, evaluation in zip(edits, evaluations, strict=True):
                    store.add(stored_as[pair], evaluation)
            bar.update(len(batch))
    return Comparison(
        evaluations={
            name: finished_evaluations(store, [stored_as[name, r] for r in range(len(cases))])
            for name in by_name
        },
        failures=failures,
    )


def _make_edits(
    model: LensModel,
    by_name: Mapping[str, _Editor],
    cases: Sequence[Record],
    pairs: Sequence[tuple[str, int]],
) -> tuple[dict[tuple[str, int], Any], dict[tuple[str, int], str]]:
    """The edits of some pairs of an editor and a record, and the errors of those that failed."""
    edits: dict[tuple[str, int], Any] = {}
    failed: dict[tuple[str, int], str] = {}
    for name, editor in by_name.items():
        numbers = [r for other, r in pairs if other == name]
        found = edits_or_errors(model, editor, [cases[r].fact for r in numbers])
        for r, each in zip(numbers, found, strict=True):
            if isinstance(each, FactError | OptimisationError):
                failed[name, r] = str(each)
            else:
                edits[name, r] = each
    return edits, failed


def finished_evaluations(store: Store, names: Sequence[str]) -> tuple[Evaluation, ...]:
    """The evaluations of these names, without those that are not in the store."""
    found = (store.get(Evaluation, name) for name in names)
    return tuple(each for each in found if each is not None)


def editors_by_name(editors: Iterable[_Editor]) -> dict[str, _Editor]:
    """The editors by their names in a table.

    Raises:
        ArgumentError: there is none, one has no name, or two have the same.
    """
    listed = list(editors)
    names = [getattr(editor, "name", None) for editor in listed]
    if not listed or not all(isinstance(name, str) and name for name in names):
        raise ArgumentError(
            f"The editors are named {names!r}, expected at least one editor, and a name for each."
        )
    if len(set(names)) < len(names):
        raise ArgumentError(
            f"The editors are named {names!r}, expected different names. Give one, for example "
            "RomeEditor(..., name='C = I')."
        )
    return {str(name): editor for name, editor in zip(names, listed, strict=True)}
