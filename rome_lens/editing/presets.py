"""Settings for editing known models, chosen by a sweep over records."""

from dataclasses import dataclass, replace
from pathlib import Path

from rome_lens import data
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.editors import (
    Editor,
    FineTuning,
    InContext,
    NullEditor,
    RomeEditor,
)
from rome_lens.editing.mass_config import AlphaEditConfig, EmmetConfig, MassConfig, MemitConfig
from rome_lens.editing.mass_editors import MassEditor
from rome_lens.editing.mass_values import TargetMemory
from rome_lens.errors import ArgumentError
from rome_lens.keys.collecting import collect_key_statistics
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

_SMALL_STEPS = 100
_MASS_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Layer, variant, hyperparameters and texts for key statistics with which to edit one model."""

    model: str
    """The model's name for :func:`load_model`."""
    layer: int
    """The layer to edit."""
    config: RomeConfig
    """The hyperparameters."""
    variant: Variant = "rome"
    """The variant of the method."""
    prefixes: int = 6
    """How many random prefixes the optimisation uses in addition to the bare prompt.

    The original uses 20.
    """
    bound: float = 5e-4
    """Norm constraint and learning rate of the fine-tuning that the edit is compared with."""
    reads_text: bool = True
    """Whether the key statistics come from ``data.texts()`` and ``data.name_texts()``.

    Otherwise the model samples its own text. The toy needs that, because it knows no English.
    """

    prepend_bos: bool | None = None
    """Whether the model reads text after a BOS token. None uses the model's default.

    SmolLM2's BOS is ``<|im_start|>``, which opens a turn of a chat. It was not trained to read
    plain text after it, and knows facts less well there.
    """

    mass_layers: tuple[int, ...] = ()
    """The layers that MEMIT, EMMET and AlphaEdit edit. Empty takes the layer above alone."""
    mass_configs: tuple[MassConfig, ...] = (MemitConfig(), EmmetConfig(), AlphaEditConfig())
    """The hyperparameters of MEMIT, EMMET and AlphaEdit.

    Those of the real models were chosen with ``scripts/sweep_mass_presets.py``; see
    ``docs/editing.md``. The toy's are first guesses. The stop is that of ``config``, and the clamp
    the originals'. EMMET has the paper's form, where the equality is exact for several facts too,
    because in its code's form it is MEMIT with another weight.
    """

    @property
    def fine_tuning(self) -> FineTuning:
        """Constrained fine-tuning at the same layer, with the best bound on the same records."""
        return FineTuning(
            layer=self.layer,
            norm_constraint=self.bound,
            lr=self.bound,
            prepend_bos=self.prepend_bos,
        )

    @property
    def texts(self) -> list[str] | None:
        """The texts for the key statistics. None stands for samples from the model itself."""
        return [*data.texts(), *data.name_texts()] if self.reads_text else None

    @visits_model
    def statistics(
        self, model: LensModel, *, cache: str | Path | None = None, progress: bool = False
    ) -> KeyStatistics:
        """Key statistics of the preset's layer, from the preset's texts."""
        return collect_key_statistics(
            model,
            layer=self.layer,
            texts=self.texts,
            max_length=1024,
            prepend_bos=self.prepend_bos,
            cache=cache,
            progress=progress,
        )

    @visits_model
    def mass_editors(
        self,
        model: LensModel,
        *,
        stopped: bool = True,
        cache: str | Path | None = None,
        progress: bool = False,
    ) -> list[MassEditor]:
        """MEMIT, EMMET and AlphaEdit with the preset's layers and hyperparameters.

        They can follow :meth:`editors` in :func:`rome_lens.compare_limits`, and have the preset's
        contexts and texts for key statistics. They share the facts' targets. AlphaEdit edits many
        facts in batches of 100, as its code does, and so does EMMET, which cannot map more facts
        exactly than a key has entries.

        Args:
            stopped: whether the optimisation stops early, at the preset's probability of the new
                target. The originals do not stop. If False, the names are ``"MEMIT unstopped"`` and
                so on.
        """
        statistics = collect_key_statistics(
            model,
            layer=self.mass_layers or (self.layer,),
            texts=self.texts,
            max_length=1024,
            prepend_bos=self.prepend_bos,
            cache=cache,
            progress=progress,
        )
        contexts = self.contexts(model)
        configs = self.mass_configs
        if not stopped:
            configs = tuple(
                replace(config, value=replace(config.value, stop_probability=None))
                for config in configs
            )
        known = TargetMemory()
        editors = [
            MassEditor(
                config=config,
                statistics=statistics,
                contexts=contexts,
                prepend_bos=self.prepend_bos,
                batch_size=None if isinstance(config, MemitConfig) else _MASS_BATCH,
                known=known,
            )
            for config in configs
        ]
        return editors if stopped else [replace(e, name=f"{e.name} unstopped") for e in editors]

    @visits_model
    def contexts(self, model: LensModel) -> tuple[str, ...]:
        """The bare template and the preset's number of random prefixes, sampled from the model."""
        return random_contexts(model, prefixes=self.prefixes, prepend_bos=self.prepend_bos)

    @visits_model
    def editor(
        self, model: LensModel, *, cache: str | Path | None = None, progress: bool = False
    ) -> RomeEditor:
        """An editor that calls :func:`rome` with this preset, for ``editor(model, fact)``."""
        return RomeEditor(
            statistics=self.statistics(model, cache=cache, progress=progress),
            config=self.config,
            variant=self.variant,
            contexts=self.contexts(model),
            layer=self.layer,
            prepend_bos=self.prepend_bos,
            name=f"ROME, preset {self.model}",
        )

    @visits_model
    def editors(
        self, model: LensModel, *, cache: str | Path | None = None, progress: bool = False
    ) -> list[Editor]:
        """The preset and what it is compared with, for :func:`rome_lens.compare_limits`.

        All of them edit the preset's layer. Those of ROME's kind share contexts and, apart from
        ``"C = I"``, key statistics.

        * ``"preset"``: the preset itself.
        * ``"original"``: the original's hyperparameters, ``RomeConfig()``.
        * ``"matched"``: the preset, stopped where the new target is as likely as the true one was,
          with small steps, which exceed it by little.
        * ``"r-ROME"``: the preset with one key in both places.
        * ``"C = I"``: the preset without key statistics, as EasyEdit runs ROME by default.
        * ``"FT+L"``: constrained fine-tuning.
        * ``"in context"``: the new fact as a sentence before each prompt. It is the positive
          control: where even this has no effect, a check could not see one.
        * ``"null edit"``: the original's settings with the true target as the new one. What it
          changes is due to the optimisation alone. The preset's would mostly change nothing,
          because its optimisation stops at once where the true target is likely.
        """
        own = replace(self.editor(model, cache=cache, progress=progress), name="preset")
        original = replace(own, config=RomeConfig(), variant="rome", name="original")
        matched = replace(
            self.config, stop_probability=None, stop="matched", lr=0.1, steps=_SMALL_STEPS
        )
        identity = KeyStatistics.identity(model, layer=self.layer)
        return [
            own,
            original,
            replace(own, config=matched, name="matched"),
            replace(own, variant="r-rome", name="r-ROME"),
            replace(own, statistics=identity, name="C = I"),
            self.fine_tuning,
            InContext(),
            NullEditor(editor=original),
        ]


def _mass_configs(
    value: RomeConfig, *, weight: float, threshold: float = 2e-2
) -> tuple[MassConfig, ...]:
    """MEMIT's, EMMET's and AlphaEdit's, with the value optimised with the same settings."""
    return (
        MemitConfig(value=value, statistics_weight=weight),
        EmmetConfig(value=value, relaxed="never"),
        AlphaEditConfig(value=value, threshold=threshold, l2=0.1),
    )


PRESETS = {
    each.model: each
    for each in (
        Preset(
            model="gemma-3-270m",
            layer=2,
            config=RomeConfig(clamp=1.0, stop_probability=0.5),
            bound=2e-4,
            mass_layers=(1, 2, 3),
            mass_configs=_mass_configs(
                RomeConfig(clamp=0.75, stop_probability=0.5), weight=1000.0, threshold=4.3e-2
            ),
        ),
        Preset(
            model="smollm2-135m",
            layer=3,
            config=RomeConfig(clamp=2.0, stop_probability=0.8),
            bound=5e-3,
            prepend_bos=False,
            mass_layers=(3, 4, 5),
            mass_configs=_mass_configs(RomeConfig(clamp=0.75, stop_probability=0.8), weight=1000.0),
        ),
        Preset(
            model="toy",
            layer=2,
            config=RomeConfig(stop_probability=0.9),
            bound=2e-2,
            reads_text=False,
            mass_layers=(1, 2),
            mass_configs=_mass_configs(RomeConfig(stop_probability=0.9), weight=10.0),
        ),
    )
}


def preset(model: str) -> Preset:
    """The settings for a model: ``"gemma-3-270m"``, ``"smollm2-135m"`` or ``"toy"``.

    ``scripts/sweep_presets.py`` chose them. ``docs/editing.md`` compares them with the original's
    settings.

    Args:
        model: the model's name for :func:`load_model`.

    Raises:
        ArgumentError: there is no preset for the model.
    """
    if model not in PRESETS:
        raise ArgumentError(
            f"There is no preset for {model!r}, there are {', '.join(PRESETS)}. Choose a layer "
            "with sweep_edits, or use the original's hyperparameters, RomeConfig()."
        )
    return PRESETS[model]
