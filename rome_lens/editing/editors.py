"""Editors: objects that turn a fact into an edit, and the baselines that edits are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_fact
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.edit import RankOneEdit, WeightEdit
from rome_lens.editing.fine_tuning import fine_tune
from rome_lens.editing.rank_one import rome
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel


class Editor(Protocol):
    """What makes edits: called with a model and a fact it gives an edit, and it has a name for the table."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    def __call__(self, model: LensModel, fact: Fact | Record) -> Any:
        """An edit as :func:`rome_lens.evaluate` takes it."""


@dataclass(frozen=True, kw_only=True)
class Unedited:
    """No edit: the model as it stands, the control of every score."""

    name: str = "unedited"

    def __call__(self, model: LensModel, fact: Fact | Record) -> None:
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

    def __call__(self, model: LensModel, fact: Fact | Record) -> Statement:
        """The sentence."""
        fact = as_fact(fact)
        if fact.new_target is None:
            raise FactError(
                f"The fact {fact.text!r} has no new target: Fact(..., new_target='Rome')."
            )
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

    def __call__(self, model: LensModel, fact: Fact | Record) -> WeightEdit:
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
    variant: Variant = "rome"
    contexts: Sequence[str] | None = None
    layer: int | None = None
    prepend_bos: bool | None = None
    name: str = "ROME"

    def __call__(self, model: LensModel, fact: Fact | Record) -> RankOneEdit:
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
