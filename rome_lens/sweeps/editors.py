"""The editors of a sweep: settings that leave the layer open."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, get_args

from rome_lens.arguments import one_of, several
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.editors import FineTuning, RomeEditor
from rome_lens.editing.mass_config import MassConfig
from rome_lens.editing.mass_editors import MassEditor
from rome_lens.errors import ArgumentError
from rome_lens.keys.statistics import KeyStatistics


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


@dataclass(frozen=True, kw_only=True)
class MassSetting:
    """MEMIT, EMMET or AlphaEdit at a single layer, for every layer of a sweep."""

    config: MassConfig
    """The hyperparameters, and with them the method."""
    name: str = field(default="", repr=False)
    """The name in the table. ``""`` takes the method's."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", MassEditor(**self._fields, statistics={}).name)

    @property
    def _fields(self) -> dict[str, Any]:
        return {"config": self.config, "name": self.name}

    def at(self, statistics: KeyStatistics, **options: Any) -> MassEditor:
        """The editor of the layer of some statistics."""
        return MassEditor(**self._fields, statistics={statistics.layer: statistics}, **options)


SweepEditor: TypeAlias = RomeSetting | MassSetting | FineTuning


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
        elif isinstance(editor, RomeSetting | MassSetting | FineTuning):
            chosen.append(editor)
        else:
            raise ArgumentError(
                f"An editor is {editor!r}, expected {known}, a RomeSetting, a MassSetting "
                "or a FineTuning."
            )
    names = [editor.name for editor in chosen]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(
            f"The editors are named {names!r}, expected at least one editor and different names: "
            "give one, for example RomeSetting(..., name='20 steps')."
        )
    return dict(zip(names, chosen, strict=True))


def at_layer(
    editor: SweepEditor,
    layer: int,
    *,
    statistics: KeyStatistics | None,
    contexts: Sequence[str],
    prepend_bos: bool | None,
) -> RomeEditor | MassEditor | FineTuning:
    """The editor of one layer. All but fine-tuning need the layer's statistics."""
    if isinstance(editor, FineTuning):
        return replace(editor, layer=layer)
    assert statistics is not None
    if isinstance(editor, MassSetting):
        return editor.at(statistics, contexts=contexts, prepend_bos=prepend_bos)
    return RomeEditor(
        statistics=statistics,
        config=editor.config,
        variant=editor.variant,
        contexts=contexts,
        layer=layer,
        prepend_bos=prepend_bos,
    )
