"""An editor for MEMIT, EMMET and AlphaEdit: for one fact after the other, or for many together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_fact, as_facts
from rome_lens.editing.mass_config import CONFIGS, MassConfig, Method
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.editing.mass_editing import Plan
from rome_lens.editing.mass_facts import plan_of, write_each, write_facts
from rome_lens.editing.mass_values import TargetMemory
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.errors import ArgumentError
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

_METHODS = {kind: method for method, kind in CONFIGS.items()}


@dataclass(frozen=True, kw_only=True)
class MassEditor:
    """MEMIT, EMMET or AlphaEdit, with the arguments of :func:`rome_lens.memit`.

    The config says which: a ``MemitConfig``, ``EmmetConfig`` or ``AlphaEditConfig``.

    Raises:
        ArgumentError: the config is of another kind.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")[:2]
        >>> statistics = rl.collect_key_statistics(model, layer=[1, 2], sample_count=64)
        >>> value = rl.RomeConfig(clamp=4.0)
        >>> editor = rl.MassEditor(
        ...     config=rl.MemitConfig(value=value, statistics_weight=100.0),
        ...     statistics=statistics,
        ...     contexts=["{}"],
        ... )
        >>> editor.name, editor.layers
        ('MEMIT', (1, 2))
        >>> [rl.evaluate(model, editor(model, each), each).ES for each in records]
        [1.0, 1.0]
        >>> editor.edit_together(model, records)
        MassEdit(MEMIT, 2 facts, layers=[1, 2])
    """

    config: MassConfig
    """The hyperparameters, and with them the method."""
    statistics: Mapping[int, KeyStatistics]
    """Key statistics by layer, of the unedited model."""
    layers: Sequence[int] = ()
    """The edited layers. Empty uses all layers of the statistics."""
    contexts: Sequence[str] | None = None
    """Templates around the prompts. None samples them."""
    prepend_bos: bool | None = None
    """Whether the prompts start with a BOS token. None uses the model's default."""
    batch_size: int | None = None
    """How many facts :meth:`edit_together` edits at a time, in batches one after the other. None
    edits all at once."""
    name: str = ""
    """The name in the table. Empty uses the method's."""
    known: TargetMemory | None = field(default=None, compare=False, repr=False)
    """Facts' targets that were found before, on the same weights and without hooks.

    Editors that share such a memory optimise each fact once, if they have the last layer, the
    value's hyperparameters and the contexts in common. Which facts were optimised side by side may
    change the last digit of a target. None remembers nothing.
    """

    def __post_init__(self) -> None:
        if type(self.config) not in _METHODS:
            raise ArgumentError(
                f"config is {self.config!r}, expected one of "
                f"{', '.join(f'{kind.__name__}()' for kind in _METHODS)}."
            )
        object.__setattr__(self, "layers", tuple(self.layers or sorted(self.statistics)))
        object.__setattr__(self, "name", self.name or self.method)

    @property
    def method(self) -> Method:
        """The method."""
        return _METHODS[type(self.config)]

    @visits_model
    def __call__(self, model: LensModel, fact: Fact | Record) -> MassEdit:
        """The edit of one fact."""
        return self.edit_together(model, [as_fact(fact)])

    @visits_model
    def edit_many(
        self, model: LensModel, facts: Iterable[Fact | Record]
    ) -> list[MassEdit | FactError | OptimisationError]:
        """For each fact the edit of it alone, or the error where there is none.

        The values are optimised side by side.
        """
        return write_each(model, as_facts(facts), self._plan(model), known=self.known)

    @visits_model
    def edit_together(self, model: LensModel, facts: Iterable[Fact | Record]) -> MassEdit:
        """One edit of all facts, in one batch or in several one after the other."""
        plan = self._plan(model)
        return write_facts(model, facts, plan, batch_size=self.batch_size, known=self.known)

    @visits_model
    def check(self, model: LensModel) -> None:
        """Check that the layers and statistics fit the model.

        Raises:
            ArgumentError, StatisticsError, ModelError: they do not; see :func:`rome_lens.memit`.
        """
        self._plan(model)

    def _plan(self, model: LensModel) -> Plan:
        return plan_of(
            model,
            method=self.method,
            layers=self.layers,
            statistics=self.statistics,
            contexts=self.contexts,
            config=self.config,
            prepend_bos=self.prepend_bos,
        )
