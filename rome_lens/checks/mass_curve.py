"""Edits of more and more facts at once: what is lost of each fact, and of everything else?

A method that edits a thousand facts has to be asked two things as their number grows: whether each
fact is still rewritten, and whether the model still reads other text as it did. Every editor edits
the same facts, and is asked the same questions.
"""

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm.auto import tqdm

from rome_lens.arguments import whole_number, whole_numbers
from rome_lens.checks.mass_curve_result import CurveBatch, MassCurve
from rome_lens.checks.mass_curve_scores import OtherTexts, scores_of
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.edit import Edit
from rome_lens.editing.mass_editors import MassEditor
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.sequences import one_matrix_per_layer
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.comparison import editors_by_name
from rome_lens.evaluation.evaluating import EvaluationError
from rome_lens.forward.identity import model_identity
from rome_lens.forward.peak_memory import PeakMemory
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import name_of
from rome_lens.models.lens import LensModel, ModelError, device
from rome_lens.stores import Store

COUNTS = (1, 10, 100, 1000)
# Errors of an edit that cannot be made, or that leaves a model which no longer answers.
_FAILURES = (FactError, OptimisationError, EvaluationError, ModelError)


@runtime_checkable
class EditsTogether(Protocol):
    """An editor that can edit many facts: ``MassEditor``, or ``RomeEditor`` in sequence."""

    @property
    def name(self) -> str:
        """The name in the table."""

    def edit_together(self, model: LensModel, facts: Iterable[Fact | Record]) -> Edit:
        """One edit of all facts."""


@visits_model
def mass_edit_curve(
    model: LensModel,
    records: Iterable[Fact | Record],
    editors: Iterable[EditsTogether],
    *,
    counts: Iterable[int] | None = None,
    repeats: int = 10,
    scored: int = 50,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> MassCurve:
    """Scores of each editor as the number of facts that it edits together grows.

    The records are shuffled once. For a count ``n``, the first ``n`` are one edit, the next ``n``
    are another, and so on: up to ``repeats`` edits, which have no fact in common. So a small count
    is not the fate of one fact. All editors edit the same facts in the same order.

    The scores of an edit are those of its own facts, with all others of its batch edited too:
    CounterFact's ES, PS, NS and S; whether the new target is written after the fact's own prompt
    and after paraphrases (:func:`rome_lens.checks.generalisation`); and how far predictions about
    the subject have moved (:func:`rome_lens.checks.essence`). Neighbours are left out where another
    edit of the same relation names their subject, because it is meant to change their answer. A
    fact without any neighbour left has no NS. Fidelity is the change of other texts' nats
    per token, without the texts that name an edited subject.

    The model is not changed. An edit that cannot be made or scored is counted, with its error.

    Args:
        model: the model to edit.
        records: records or facts with a new target. No two may be the same or contradict each
            other.
        editors: such as :class:`MassEditor`, and :class:`RomeEditor`, which edits in sequence.
        counts: the numbers of facts. None takes 1, 10, 100 and 1000 as far as there are records,
            and all records.
        repeats: the most edits for a count.
        scored: the most facts that are scored for a count, spread over its edits and over the
            order in which an edit's facts are edited. All facts of an edit are edited in any case.
        texts: the texts for fidelity. None takes those of ``rl.data.held_texts()`` that fit the
            model's context.
        seed: of the shuffling.
        prepend_bos: whether questions start with a BOS token. An editor has a setting of its own.
        directory: where each finished edit's scores are written. An interrupted run resumes there.
        progress: whether to show a progress bar.

    Raises:
        ArgumentError: there is no editor, or one that cannot edit several facts together; two have
            the same name; two records have the same id; or a count is out of range.
        RecordError: a fact has no new target.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.toy_people()[:4]
        >>> statistics = rl.collect_key_statistics(model, layer=2, sample_count=64)
        >>> value = rl.RomeConfig(stop_probability=0.9)
        >>> memit = rl.MassEditor(
        ...     config=rl.MemitConfig(value=value, statistics_weight=10.0),
        ...     statistics={2: statistics},
        ...     contexts=["{}"],
        ... )
        >>> curve = rl.mass_edit_curve(model, records, [memit], counts=[1, 4], repeats=2)
        >>> [round(curve.mean("MEMIT", count, "ES").mean, 1) for count in curve.counts]
        [1.0, 1.0]
    """
    listed: list[Any] = list(editors)
    by_name = editors_by_name(listed)
    for name, editor in by_name.items():
        if not isinstance(editor, EditsTogether):
            raise ArgumentError(
                f"The editor {name!r} is {editor!r}, expected one with edit_together(model, "
                "facts), such as a MassEditor or a RomeEditor."
            )
    cases = _cases(records)
    random.Random(whole_number("seed", seed)).shuffle(cases)
    chosen = _counts(counts, len(cases))
    others = OtherTexts.of(model, texts, prepend_bos)
    scored = whole_number("scored", scored, least=1)
    repeats = whole_number("repeats", repeats, least=1)
    store = Store(directory, identity="" if directory is None else model_identity(model))
    jobs = [
        (name, count, repeat)
        for name in by_name
        for count in chosen
        for repeat in range(min(repeats, len(cases) // count))
    ]
    batches = []
    for name, count, repeat in tqdm(jobs, desc="edits", disable=not progress):
        editor, batch = by_name[name], cases[repeat * count : (repeat + 1) * count]
        each = max(1, scored // min(repeats, len(cases) // count))
        settings = (count, repeat, each, others.texts, prepend_bos)
        stored_as = store.name(editor, *settings, "unedited neighbours", *batch)
        found = store.get(CurveBatch, stored_as)
        if found is None:
            found = _edited(model, editor, batch, _spread(batch, each), others, repeat)
            store.add(stored_as, found)
        batches.append(found)
    return MassCurve(
        editors=tuple(by_name),
        counts=chosen,
        batches=tuple(batches),
        model_name=name_of(model),
    )


def _cases(records: object) -> list[Record]:
    cases = [with_new_target(record) for record in as_records(records)]
    ids = [str(case.id) for case in cases]
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise ArgumentError(f"Several records have the id {', '.join(twice)}: give each its own.")
    return cases


def _spread(batch: Sequence[Record], most: int) -> list[Record]:
    """At most so many records of a batch, evenly spread over it.

    The first ones alone would be those that an editor in sequence has edited first, and so those
    that it has had most time to spoil.
    """
    number = min(most, len(batch))
    return [batch[i * len(batch) // number] for i in range(number)]


def _counts(counts: Iterable[int] | None, available: int) -> tuple[int, ...]:
    """The counts in ascending order, each once.

    Raises:
        ArgumentError: there is none, or one is below 1 or above the number of records.
    """
    if counts is None:
        return (*(count for count in COUNTS if count < available), available)
    chosen = tuple(sorted(set(whole_numbers("counts", counts))))
    if not chosen or chosen[0] < 1 or chosen[-1] > available:
        raise ArgumentError(
            f"counts is {list(chosen)}, expected numbers from 1 to {available}, the number of "
            "records."
        )
    return chosen


def _edited(
    model: LensModel,
    editor: Any,
    batch: Sequence[Record],
    scored: Sequence[Record],
    others: OtherTexts,
    repeat: int,
) -> CurveBatch:
    """One edit, made and scored, or why that is not possible."""
    peak, start = PeakMemory(device(model)), time.perf_counter()
    found: dict[str, Any] = {"edited": 0, "error": ""}
    seconds: float | None = None
    peak_bytes: float | None = None
    if isinstance(editor, MassEditor):
        editor = replace(editor, known=None)  # the time is that of a whole edit
    try:
        edit = editor.edit_together(model, batch)
        seconds, peak_bytes = time.perf_counter() - start, peak.bytes()
        found |= {"edited": len(getattr(edit, "facts", edit.parts))}
        found |= scores_of(model, one_matrix_per_layer(edit), batch, scored, others)
    except _FAILURES as error:
        found["error"] = f"{type(error).__name__}: {error}"
    nothing = torch.zeros(0, dtype=torch.float64, device="cpu")
    names = ("exact", "paraphrases", "essence", "fidelity")
    return CurveBatch(
        editor=editor.name,
        count=len(batch),
        repeat=repeat,
        seconds=time.perf_counter() - start if seconds is None else seconds,
        peak_bytes=peak_bytes,
        **{"evaluations": (), **dict.fromkeys(names, nothing), **found},
    )
