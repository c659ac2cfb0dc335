"""Settings with which a known model is edited, as a sweep over records found them."""

from dataclasses import dataclass
from pathlib import Path

from rome_lens import data
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.editors import FineTuning, RomeEditor
from rome_lens.errors import ArgumentError
from rome_lens.keys.collecting import collect_key_statistics
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.lens import LensModel


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Layer, variant, hyperparameters and texts for key statistics with which one model is edited.

    Attributes:
        model: its name for :func:`load_model`.
        prefixes: how many random prefixes the value is optimised over, beside the bare prompt; the original's are 20.
        bound: on each entry of the constrained fine-tuning that the edit is compared with, and its rate.
        reads_text: whether the key statistics come from ``data.texts()`` and ``data.name_texts()``; else the model samples
            text of its own, as the toy must, which knows no English.
    """

    model: str
    layer: int
    config: RomeConfig
    variant: Variant = "rome"
    prefixes: int = 6
    bound: float = 5e-4
    reads_text: bool = True

    @property
    def fine_tuning(self) -> FineTuning:
        """Constrained fine-tuning at the same layer, within the bound that did best on the same records."""
        return FineTuning(layer=self.layer, norm_constraint=self.bound, lr=self.bound)

    @property
    def texts(self) -> list[str] | None:
        """What the key statistics are collected from; None for samples from the model itself."""
        return [*data.texts(), *data.name_texts()] if self.reads_text else None

    def statistics(
        self, model: LensModel, *, cache: str | Path | None = None, progress: bool = False
    ) -> KeyStatistics:
        """Key statistics of the layer, from the preset's texts."""
        return collect_key_statistics(
            model,
            layer=self.layer,
            texts=self.texts,
            max_length=1024,
            cache=cache,
            progress=progress,
        )

    def contexts(self, model: LensModel) -> tuple[str, ...]:
        """The bare prompt and the preset's random prefixes, sampled from the model."""
        return random_contexts(model, prefixes=self.prefixes)

    def editor(
        self, model: LensModel, *, cache: str | Path | None = None, progress: bool = False
    ) -> RomeEditor:
        """:func:`rome` with this preset as ``editor(model, fact)``, with contexts and key statistics of the model."""
        return RomeEditor(
            statistics=self.statistics(model, cache=cache, progress=progress),
            config=self.config,
            variant=self.variant,
            contexts=self.contexts(model),
            layer=self.layer,
            name=f"ROME, preset {self.model}",
        )


PRESETS = {
    each.model: each
    for each in (
        Preset(
            model="gemma-3-270m",
            layer=3,
            config=RomeConfig(clamp=1.0, stop_probability=0.5),
            bound=2e-4,
        ),
        Preset(
            model="smollm2-135m",
            layer=5,
            config=RomeConfig(clamp=2.0, stop_probability=0.7),
            bound=5e-3,
        ),
        Preset(
            model="toy",
            layer=2,
            config=RomeConfig(stop_probability=0.9),
            bound=2e-2,
            reads_text=False,
        ),
    )
}


def preset(model: str) -> Preset:
    """The settings for a model, by its name for :func:`load_model`: ``"gemma-3-270m"``, ``"smollm2-135m"`` or ``"toy"``.

    ``scripts/sweep_presets.py`` finds them; ``docs/editing.md`` says how good they are, beside the original's.

    Raises:
        ValueError: there is no preset for it.
    """
    if model not in PRESETS:
        raise ArgumentError(
            f"There is no preset for {model!r}, there are {', '.join(PRESETS)}: choose a layer with sweep_edits, or take "
            "the original's hyperparameters, RomeConfig()."
        )
    return PRESETS[model]
