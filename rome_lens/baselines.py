"""Editors side by side: what an edit is compared with, each made by ``editor(model, fact)`` and scored by the same functions.

Source of the comparison: Meng et al. 2022, sections 3.2 and 3.3.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.counterfact import CounterFactRecord
from rome_lens.data import Record
from rome_lens.edits import RankOneEdit, WeightEdit
from rome_lens.evaluation import check_prompts, evaluate_all
from rome_lens.evaluation_store import EvaluationStore
from rome_lens.facts import Fact, FactError
from rome_lens.finetuning import fine_tune
from rome_lens.keys import KeyStatistics
from rome_lens.models import Hook, LensModel
from rome_lens.rome import rome
from rome_lens.scores import Evaluation, Scores, markdown, score_table
from rome_lens.tokens import encode
from rome_lens.value import OptimisationError, RomeConfig

_RECORDS_AT_ONCE = 16


class Editor(Protocol):
    """What makes edits: called with a model and a fact it gives an edit, and it has a name for the table."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    def __call__(self, model: LensModel, fact: Fact) -> Any:
        """An edit as :func:`rome_lens.evaluate` takes it."""


@dataclass(frozen=True, kw_only=True)
class Unedited:
    """No edit: the model as it stands, the control of every score."""

    name: str = "unedited"

    def __call__(self, model: LensModel, fact: Fact) -> None:
        """None."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """An edit without a change of the model: a text that stands before every prompt, one space between."""

    prefix: str
    fact: Fact | None = None

    def fwd_hooks(self, model: LensModel) -> list[Hook]:
        """None: the model runs as it stands."""
        return []


@dataclass(frozen=True, kw_only=True)
class InContext:
    """The new fact as a sentence before each prompt: "The Eiffel Tower is located in the city of Rome."."""

    name: str = "in context"

    def __call__(self, model: LensModel, fact: Fact) -> Statement:
        """The sentence."""
        if fact.new_target is None:
            raise FactError(f"The fact {fact.text!r} has no new target: Fact(..., new_target='Rome').")
        return Statement(prefix=f"{fact.text} {fact.new_target}.", fact=fact)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Constrained fine-tuning of one ``W_out``, with the arguments of :func:`rome_lens.fine_tune`."""

    layer: int
    norm_constraint: float = 5e-4
    steps: int = 25
    lr: float = 5e-4
    weight_decay: float = 0.0
    contexts: Sequence[str] = ("{}",)
    prepend_bos: bool | None = None
    name: str = "FT+L"

    def __call__(self, model: LensModel, fact: Fact) -> WeightEdit:
        """The fine-tuned ``W_out``'s difference."""
        return fine_tune(
            model,
            fact,
            layer=self.layer,
            norm_constraint=self.norm_constraint,
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            contexts=self.contexts,
            prepend_bos=self.prepend_bos,
        )


@dataclass(frozen=True, kw_only=True)
class RomeEditor:
    """ROME with the arguments of :func:`rome_lens.rome`; with ``KeyStatistics.identity`` the rank-one update without C."""

    statistics: KeyStatistics
    config: RomeConfig = field(default_factory=RomeConfig)
    variant: str = "rome"
    contexts: Sequence[str] | None = None
    layer: int | None = None
    prepend_bos: bool | None = None
    name: str = "ROME"

    def __call__(self, model: LensModel, fact: Fact) -> RankOneEdit:
        """The rank-one edit, at the statistics' layer where no other is named."""
        return rome(
            model,
            fact,
            layer=self.statistics.layer if self.layer is None else self.layer,
            statistics=self.statistics,
            contexts=self.contexts,
            config=self.config,
            variant=self.variant,
            prepend_bos=self.prepend_bos,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
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

    def _repr_html_(self) -> str:
        return str(self.table().to_html())


def compare_editors(
    model: LensModel,
    records: Iterable[CounterFactRecord | Record],
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
    records, editors = list(records), list(editors)
    names = [getattr(editor, "name", None) for editor in editors]
    if not records or not editors or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"There are {len(records)} records and the editors {names!r}: expected some of both, and editors with a name."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"The editors' names are {names!r}, expected different ones: RomeEditor(..., name='C = I').")
    for case in map(CounterFactRecord.of, records):  # what cannot be asked fails before anything is edited
        encode(model, case.fact, prepend_bos=prepend_bos)
        check_prompts(model, case, prepend_bos=prepend_bos)
    store = EvaluationStore(directory, model)
    settings = (generate, seed, prepend_bos)
    keys = {
        (e, r): store.name((editor, settings), record)
        for e, editor in enumerate(editors)
        for r, record in enumerate(records)
    }
    failures: dict[str, tuple[tuple[Fact, str], ...]] = {}
    with tqdm(total=len(records), disable=not progress, desc="records") as bar:
        for first in range(0, len(records), _RECORDS_AT_ONCE):
            some = range(first, min(first + _RECORDS_AT_ONCE, len(records)))
            missing = [(e, r) for e in range(len(editors)) for r in some if store.get(keys[e, r]) is None]
            edits = {}
            for e, r in missing:
                try:
                    edits[e, r] = editors[e](model, records[r].fact)
                except (OptimisationError, FactError) as error:
                    failures[str(names[e])] = (*failures.get(str(names[e]), ()), (records[r].fact, str(error)))
            if edits:
                asked = [records[r] for _, r in edits]
                found = evaluate_all(
                    model, list(edits.values()), asked, generate=generate, seed=seed, prepend_bos=prepend_bos
                )
                for pair, evaluation in zip(edits, found, strict=True):
                    store.add(keys[pair], evaluation)
            bar.update(len(some))
    evaluations = {str(name): store.all([keys[e, r] for r in range(len(records))]) for e, name in enumerate(names)}
    return Comparison(evaluations=evaluations, failures=failures, seed=seed)
