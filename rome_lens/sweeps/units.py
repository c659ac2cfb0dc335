"""What a sweep is made of: its plan, its jobs, and the units that are kept once they are finished.

A unit is one stage of one cell: the trace of a fact, or the edit, the evaluation or the limits of
a fact at a layer with an editor. Each is a file of the store, named by a hash of what made it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rome_lens.checks.limits import Limits
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.editing.editors import FineTuning
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.weight_edit import WeightEdit
from rome_lens.errors import RomeLensError
from rome_lens.evaluation.results import Evaluation
from rome_lens.models.hook_names import Component
from rome_lens.results import Stored
from rome_lens.storage import StorageError
from rome_lens.stores import Store
from rome_lens.sweeps.editors import SweepEditor
from rome_lens.tracing.many_facts import NotKnown
from rome_lens.tracing.noise import Noise
from rome_lens.tracing.positions import Position
from rome_lens.tracing.results import CausalTrace

Stage = Literal["trace", "edit", "evaluate", "limits"]
KINDS: Mapping[Stage, tuple[type[Stored], ...]] = {
    "trace": (CausalTrace, NotKnown),
    "edit": (RankOneEdit, WeightEdit, MassEdit),
    "evaluate": (Evaluation,),
    "limits": (Limits,),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All settings of a sweep. It can be sent to another process."""

    directory: Path
    """The sweep's directory, as an absolute path."""
    identity: str
    """What every result depends on: the model, its tokenizer and the installed versions. It must
    be the same in every worker."""
    model_fingerprint: str
    """The fingerprint of the model, for the table."""
    stages: tuple[Stage, ...]
    """The stages, in their order."""
    layers: tuple[int, ...]
    """The layers."""
    editors: Mapping[str, SweepEditor]
    """The editors by name; none if nothing is edited."""
    statistics: Mapping[int, tuple[str, str]]
    """By layer: the statistics in words, and their name among the kept ones."""
    contexts: tuple[str, ...]
    """The contexts of the edits."""
    component: Component
    """The traced component."""
    window: int
    """The number of layers restored together."""
    at: Position
    """The traced position."""
    noise: Noise
    """The noise of the traces."""
    samples: int
    """The number of noise samples."""
    generate: int
    """How many tokens the evaluation samples after each prompt."""
    texts: tuple[str, ...] | None
    """The texts that the limits read."""
    continuations: int
    """How often the limits continue each open prompt."""
    new_tokens: int
    """How many tokens the limits write."""
    seed: int
    """The seed of evaluation and limits."""
    prepend_bos: bool | None
    """Whether prompts start with a BOS token."""

    @property
    def cell_stages(self) -> tuple[Stage, ...]:
        """The stages of a cell. The later ones need the edit."""
        later = tuple(stage for stage in self.stages if stage in ("evaluate", "limits"))
        return ("edit", *later) if later or "edit" in self.stages else ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker does at a time: some facts at one layer with one editor, or their traces.

    Which facts are together depends on their order alone, and not on what is finished. So a later
    batch of edits has the same rows, and the same rounding, after an interruption.
    """

    records: tuple[Record, ...]
    """The records."""
    layer: int | None = None
    """The layer; None for traces."""
    editor: str = ""
    """The name of the editor."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Failure(Stored):
    """Why a unit has no result."""

    error: str
    """The error's class and message."""
    final: bool
    """Whether another attempt would fail in the same way, as after a divergence, but not after a
    lack of memory."""


class Units:
    """Where the units of a sweep are kept, and under which names."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.store = self.new_store()

    def trace(self, fact: Fact) -> str:
        """The name of a fact's trace."""
        plan = self.plan
        asked = (fact.prompt, fact.subject, fact.target, fact.joiner)
        settings = (plan.component, plan.window, plan.at, plan.noise, plan.samples, plan.layers)
        return self.store.name("trace", settings, plan.prepend_bos, asked)

    def cell(self, record: Record, layer: int, editor_name: str) -> dict[Stage, str]:
        """The names of a cell's units, by stage."""
        plan, editor = self.plan, self.plan.editors[editor_name]
        if isinstance(editor, FineTuning):
            made_with: tuple[Any, ...] = (replace(editor, layer=layer),)
        else:
            made_with = (editor, layer, plan.statistics[layer][0], plan.contexts, plan.prepend_bos)
        scored = (record, plan.seed, plan.prepend_bos)
        limits = (plan.texts, plan.continuations, plan.new_tokens)
        name = self.store.name
        return {
            "edit": name("edit", made_with, record.fact),
            "evaluate": name("evaluate", made_with, scored, plan.generate),
            "limits": name("limits", made_with, scored, limits),
        }

    def is_finished(self, stage: Stage, name: str) -> bool:
        """Whether there is a result, or an error that will not go away."""
        if any(self.store.has(kind, name) for kind in KINDS[stage]):
            return True
        failure = self.store.get(Failure, name)
        return failure is not None and failure.final

    def result(self, stage: Stage, name: str) -> Stored | None:
        """The result, or else the failure, or None. It is read from its file.

        So nothing depends on whether it was made in this run. The last bit of a product can depend
        on where in memory a tensor lies.
        """
        store = self.new_store()
        found = (store.get(kind, name) for kind in (*KINDS[stage], Failure))
        return next((each for each in found if each is not None), None)

    def new_store(self) -> Store:
        """The store, which holds nothing in memory yet."""
        return Store(self.plan.directory / "units", identity=self.plan.identity)

    def attempt(self, name: str, make: Callable[[], Stored]) -> None:
        """Make a unit's result and keep it, or the reason why there is none.

        Raises:
            StorageError: a file cannot be read or written. That is no fault of the fact.
        """
        try:
            made = make()
        except StorageError:
            raise
        except Exception as error:  # whatever it is, the other facts go on
            words = f"{type(error).__name__}: {error}"
            made = Failure(error=words, final=isinstance(error, RomeLensError))
        self.store.add(name, made)

    def of_job(self, job: Job) -> int:
        """The number of a job's units, finished or not."""
        return len(job.records) * (1 if job.layer is None else len(self.plan.cell_stages))

    def unfinished(self, job: Job) -> int:
        """The number of a job's units that are to be made."""
        if job.layer is None:
            names = [self.trace(record.fact) for record in job.records]
            return sum(not self.is_finished("trace", name) for name in names)
        return sum(
            self.unfinished_of_cell(self.cell(record, job.layer, job.editor))
            for record in job.records
        )

    def unfinished_of_cell(self, names: Mapping[Stage, str]) -> int:
        """The number of a cell's units that are to be made."""
        edit = names["edit"]
        stages = self.plan.cell_stages
        if not any(self.store.has(kind, edit) for kind in KINDS["edit"]):
            return 0 if self.is_finished("edit", edit) else len(stages)
        return sum(not self.is_finished(stage, names[stage]) for stage in stages)
