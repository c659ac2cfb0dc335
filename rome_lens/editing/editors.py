"""Editors: objects that turn a fact into an edit, and the baselines to compare edits with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_fact
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.fine_tuning import fine_tune
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.prompts import check_has_new_target
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.reference_edits import null_edit, null_edits
from rome_lens.editing.rome_method import rome, rome_batch
from rome_lens.editing.sequences import Edits, sequence_of_what_can_be_edited
from rome_lens.editing.weight_edit import WeightEdit
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel


@runtime_checkable
class ActsByHooks(Protocol):
    """What an editor returns: anything that acts on a model by hooks, such as an :class:`Edit`."""

    def fwd_hooks(self, model: LensModel) -> list[Hook]:
        """The hooks, for ``run_with_hooks(tokens, fwd_hooks=...)``."""


@runtime_checkable
class Editor(Protocol):
    """Makes an edit from a model and a fact, and has a name for the table of results."""

    @property
    def name(self) -> str:
        """The name in the table."""

    def __call__(self, model: LensModel, fact: Fact | Record) -> ActsByHooks | None:
        """An edit of the fact, as :func:`rome_lens.evaluate` takes it. None is the model itself."""


@dataclass(frozen=True, kw_only=True)
class Unedited:
    """Makes no edit. The unedited model is the control of every score."""

    name: str = "unedited"
    """The name in the table."""

    @visits_model
    def __call__(self, model: LensModel, fact: Fact | Record) -> None:
        """None, the model as it is."""
        as_fact(fact)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """An edit that does not change the model: text before every prompt, separated by a space."""

    prefix: str
    """The text."""
    fact: Fact | None = None
    """The fact that the text states."""

    def fwd_hooks(self, model: LensModel) -> list[Hook]:
        """No hooks: the model runs as it is."""
        return []


@dataclass(frozen=True, kw_only=True)
class InContext:
    """States the new fact before each prompt: "The Eiffel Tower is in the city of Rome."."""

    name: str = "in context"
    """The name in the table."""

    @visits_model
    def __call__(self, model: LensModel, fact: Fact | Record) -> Statement:
        """The statement of the new fact."""
        fact = as_fact(fact)
        check_has_new_target(fact)
        return Statement(prefix=fact.stated(str(fact.new_target)), fact=fact)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Constrained fine-tuning of one ``W_out``, with the arguments of :func:`fine_tune`."""

    layer: int
    """The edited layer."""
    norm_constraint: float = 5e-4
    """Upper bound on every entry of the change."""
    steps: int = 25
    """Maximum number of Adam steps."""
    lr: float = 5e-4
    """Learning rate of Adam."""
    weight_decay: float = 0.0
    """Weight decay of Adam."""
    contexts: Sequence[str] = ("{}",)
    """Templates around the prompt."""
    prepend_bos: bool | None = None
    """Whether the prompts start with a BOS token. None uses the model's default."""
    name: str = "FT+L"
    """The name in the table."""

    @visits_model
    def __call__(self, model: LensModel, fact: Fact | Record) -> WeightEdit:
        """The change of ``W_out`` that fine-tuning makes."""
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
    """ROME, with the arguments of :func:`rome_lens.rome`."""

    statistics: KeyStatistics
    """Key statistics. ``KeyStatistics.identity`` gives the rank-one update without ``C``."""
    config: RomeConfig = field(default_factory=RomeConfig)
    """The hyperparameters."""
    variant: Variant = "rome"
    """The variant of the method."""
    contexts: Sequence[str] | None = None
    """Templates around the prompt. None samples them."""
    layer: int | None = None
    """The edited layer. None uses the layer of the statistics."""
    prepend_bos: bool | None = None
    """Whether the prompts start with a BOS token. None uses the model's default."""
    name: str = "ROME"
    """The name in the table."""

    @visits_model
    def __call__(self, model: LensModel, fact: Fact | Record) -> RankOneEdit:
        """The rank-one edit."""
        return rome(model, fact, **self.options)

    @visits_model
    def edit_many(
        self, model: LensModel, facts: Iterable[Fact | Record]
    ) -> list[RankOneEdit | FactError | OptimisationError]:
        """The rank-one edit of each fact, made side by side, or the error where there is none."""
        return rome_batch(model, facts, **self.options, on_error="return")

    @visits_model
    def edit_together(self, model: LensModel, facts: Iterable[Fact | Record]) -> Edits:
        """Rank-one edits in sequence, each on the model with the earlier ones applied.

        Facts that cannot be edited are left out.

        Raises:
            OptimisationError: no fact could be edited.
        """
        return sequence_of_what_can_be_edited(model, facts, **self.options)[0]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of :func:`rome_lens.rome`."""
        return {
            "layer": self.statistics.layer if self.layer is None else self.layer,
            "statistics": self.statistics,
            "contexts": self.contexts,
            "config": self.config,
            "variant": self.variant,
            "prepend_bos": self.prepend_bos,
        }


@dataclass(frozen=True, kw_only=True)
class NullEditor:
    """Rewrites each fact's true target as itself, with the settings of another editor.

    The scores and checks of its edits show what the method changes even if the fact does not.
    """

    editor: RomeEditor
    """The editor whose settings are taken."""
    name: str = "null edit"
    """The name in the table."""

    @visits_model
    def __call__(self, model: LensModel, fact: Fact | Record) -> RankOneEdit:
        """The null edit (:func:`rome_lens.null_edit`)."""
        return null_edit(model, fact, **self.editor.options)

    @visits_model
    def edit_many(
        self, model: LensModel, facts: Iterable[Fact | Record]
    ) -> list[RankOneEdit | FactError | OptimisationError]:
        """The null edit of each fact, made side by side, or the error where there is none."""
        return null_edits(model, [as_fact(fact) for fact in facts], **self.editor.options)


def edits_or_errors(
    model: LensModel, editor: Callable[[Any, Any], Any], facts: Sequence[Fact]
) -> list[Any]:
    """What an editor makes of each fact, or the FactError or OptimisationError that it raises.

    An editor with a method ``edit_many(model, facts)``, as :class:`RomeEditor` has, makes all of
    them together. Any other editor is called for one fact after the other.
    """
    together = getattr(editor, "edit_many", None)
    if together is not None:
        return list(together(model, facts)) if facts else []
    found: list[Any] = []
    for fact in facts:
        try:
            found.append(editor(model, fact))
        except (FactError, OptimisationError) as error:
            found.append(error)
    return found
