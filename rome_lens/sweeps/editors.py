"""The editors of a sweep: settings that leave the layer open."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, get_args

from rome_lens.arguments import one_of, several
from rome_lens.data.facts import Fact, FactError
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.editors import FineTuning
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.rome_method import rome_batch
from rome_lens.editing.weight_edit import WeightEdit
from rome_lens.errors import ArgumentError, RomeLensError
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.lens import LensModel


@dataclass(frozen=True, kw_only=True)
class RomeSetting:
    """A variant of ROME and its hyperparameters, for every layer of a sweep."""

    variant: Variant = "rome"
    """The variant of the method."""
    config: RomeConfig = field(default_factory=RomeConfig)
    """The hyperparameters."""
    name: str = field(default="", repr=False)
    """The name in the table. ``""`` takes the variant's."""

    def __post_init__(self) -> None:
        one_of("variant", self.variant, Variant)
        if not isinstance(self.config, RomeConfig):
            raise ArgumentError(
                f"config is {self.config!r}, expected a RomeConfig, such as RomeConfig(lr=0.1)."
            )
        object.__setattr__(self, "name", self.name or self.variant)


SweepEditor: TypeAlias = RomeSetting | FineTuning


def editors_by_name(
    editors: Iterable[str | SweepEditor], config: RomeConfig
) -> Mapping[str, SweepEditor]:
    """The editors by their names in the table.

    Raises:
        ArgumentError: there is none, one is unknown, or two have the same name.
    """
    known = ", ".join(map(repr, get_args(Variant)))
    listed: list[Any] = several("editors", editors, f"a list of editors, such as [{known}]")
    chosen: list[SweepEditor] = []
    for editor in listed:
        if isinstance(editor, str):
            variant = one_of("An editor", editor, Variant)
            chosen.append(RomeSetting(variant=variant, config=config))
        elif isinstance(editor, RomeSetting | FineTuning):
            chosen.append(editor)
        else:
            raise ArgumentError(
                f"An editor is {editor!r}, expected {known}, a RomeSetting or a FineTuning."
            )
    names = [editor.name for editor in chosen]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(
            f"The editors are named {names!r}, expected at least one editor and different names: "
            "give one, for example RomeSetting(..., name='20 steps')."
        )
    return dict(zip(names, chosen, strict=True))


def edit_facts(
    model: LensModel,
    facts: Sequence[Fact],
    editor: SweepEditor,
    *,
    layer: int,
    statistics: KeyStatistics | None,
    contexts: Sequence[str],
    prepend_bos: bool | None,
) -> list[RankOneEdit | WeightEdit | RomeLensError]:
    """The edit that an editor makes of each fact at a layer, or the error in its place."""
    if isinstance(editor, FineTuning):
        return [_fine_tuned(model, fact, replace(editor, layer=layer)) for fact in facts]
    edits = rome_batch(
        model,
        facts,
        layer=layer,
        statistics=statistics,
        contexts=contexts,
        config=editor.config,
        variant=editor.variant,
        prepend_bos=prepend_bos,
        on_error="return",
    )
    return list(edits)


def _fine_tuned(model: LensModel, fact: Fact, editor: FineTuning) -> WeightEdit | RomeLensError:
    try:
        return editor(model, fact)
    except (FactError, OptimisationError) as error:
        return error
