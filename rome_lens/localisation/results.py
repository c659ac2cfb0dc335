"""The result of a layer sweep: the effect of restoring each layer and the success of editing it."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import one_of
from rome_lens.errors import ArgumentError
from rome_lens.intervals import average, share
from rome_lens.localisation.variance import SuccessMeasure, VarianceExplained, explain_variance
from rome_lens.models.hook_names import Component
from rome_lens.results import Stored
from rome_lens.tracing.positions import Position

MEASURES: tuple[SuccessMeasure, ...] = get_args(SuccessMeasure)
_SHARES = ("ES", "PS", "NS", "S")
Place = Position | Literal["site"]
"""The position whose effects a sweep takes: the same for all facts, or ``"site"`` for each fact's
own, i.e. the subject's token with the largest effect."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LayerSweep(Stored):
    """The result of :func:`layer_sweep`: effects of restoring and successes of editing, by layer.

    The measures of success are those of :class:`Evaluation` for one record. A measure is NaN for a
    record that has no prompts for it.
    """

    axes: ClassVar = {"fact": "names", "layer": "layers"}
    undefined: ClassVar = frozenset(MEASURES)

    names: tuple[str, ...]
    """The ids of the records; for a bare fact, its text."""
    unknown: tuple[str, ...]
    """The ids of the records that were left out because the model gives another answer."""
    layers: tuple[int, ...]
    """The traced and edited layers, the second axis of the numbers."""
    effects: Float[Tensor, "fact layer"]
    """The indirect effects: the answer's probability restored minus corrupted."""
    total_effects: Float[Tensor, " fact"]
    """The total effects: the answer's probability clean minus corrupted."""
    EM: Float[Tensor, "fact layer"]
    """Efficacy magnitude."""
    PM: Float[Tensor, "fact layer"]
    """Paraphrase magnitude."""
    NM: Float[Tensor, "fact layer"]
    """Neighborhood magnitude."""
    ES: Float[Tensor, "fact layer"]
    """Efficacy score."""
    PS: Float[Tensor, "fact layer"]
    """Paraphrase score."""
    NS: Float[Tensor, "fact layer"]
    """Neighborhood score."""
    S: Float[Tensor, "fact layer"]
    """The harmonic mean of the three scores."""
    component: Component
    """The component whose output the traces restore."""
    window: int
    """The number of layers restored together."""
    at: Place
    """The traced position; ``"site"`` for each fact's own."""
    samples: int
    """The number of noise samples."""
    noise: str
    """The corruption, as text."""
    edits: str
    """How the edits were made, as text."""
    model_fingerprint: str
    """The fingerprint of the model."""
    relations: tuple[str, ...] = ()
    """The relation of each fact, by which intervals are clustered. Empty in a file of an older
    version: each fact is a cluster of its own."""
    tokens: tuple[str, ...] = ()
    """The token at the traced position of each fact. Empty in a file of an older version."""
    model_name: str = ""
    """The name of the model, for titles. Empty in a file of an older version."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relations and len(self.relations) != len(self.names):
            raise ArgumentError(
                f"There are {len(self.relations)} relations, expected one for each of "
                f"{len(self.names)} facts."
            )

    def __repr__(self) -> str:
        return (
            f"LayerSweep({len(self.names)} facts, {len(self.unknown)} not known, layers "
            f"{list(self.layers)}, {self.component!r}, window={self.window}, at={self.at!r})"
        )

    def success(self, measure: SuccessMeasure) -> Float[Tensor, "fact layer"]:
        """The success of every edit by one measure, such as ``"EM"``.

        It is NaN where a record has no prompts for the measure.

        Raises:
            ArgumentError: the measure is unknown.
        """
        one_of("measure", measure, SuccessMeasure)
        values: Tensor = getattr(self, measure)
        return values

    def variance_explained(
        self, measure: SuccessMeasure = "EM", *, shuffles: int = 200, seed: int = 0
    ) -> VarianceExplained:
        """How much of the success the layer explains, and how much the effect of restoring it adds.

        R^2 is taken over all cells (fact, layer) for the least-squares fits

            success = a_layer,   success = a + b effect,   success = a_layer + b effect.

        The last R^2 is never below the first. To judge what the effect adds, it is compared with
        what it adds when each fact gets the whole row of effects of a randomly drawn fact.
        Intervals come from a bootstrap over relations. The result also answers the question of a
        user with one fact: whether the layer with the fact's largest effect is as good as the
        fact's best layer.

        Args:
            measure: the measure of success.
            shuffles: how many times the effects are exchanged between facts.
            seed: the seed of the shuffles and of the bootstrap.

        Raises:
            ArgumentError: the measure is unknown, or it is known for fewer than two facts or
                layers.

        Source: Hase et al. 2023, who regress in this way.
        """
        success = self.success(measure).numpy()
        return explain_variance(
            self.effects.numpy(),
            success,
            measure=measure,
            relations=self.relations or None,
            shuffles=shuffles,
            seed=seed,
        )

    def clusters(
        self, success: Float[Tensor, "fact layer"] | None = None
    ) -> tuple[str, ...] | None:
        """The relation of each fact; given a measure, of the facts that :func:`asked` keeps."""
        if not self.relations or success is None:
            return self.relations or None
        kept = (~success.isnan().any(1)).tolist()
        return tuple(each for each, keep in zip(self.relations, kept, strict=True) if keep)

    def to_frame(self) -> pd.DataFrame:
        """One row per fact and layer: effect, total effect, and each measure of success."""
        cells = [(i, j) for i in range(len(self.names)) for j in range(len(self.layers))]
        frame = pd.DataFrame(
            {
                "fact": [self.names[i] for i, _ in cells],
                "layer": [self.layers[j] for _, j in cells],
                "effect": self.effects.flatten().tolist(),
                "total_effect": [float(self.total_effects[i]) for i, _ in cells],
            }
        )
        for measure in MEASURES:
            frame[measure] = self.success(measure).flatten().tolist()
        return frame

    def table(self) -> pd.DataFrame:
        """One row per layer: mean effect and mean success over the facts, with 95 % intervals.

        Intervals are clustered by relation.

        Measures that no record has prompts for are left out. S is the mean of the facts' own S. It
        is not the S of :class:`Scores`, which is the harmonic mean of means.
        """
        frame = pd.DataFrame(index=pd.Index(self.layers, name="layer"))
        clusters = self.clusters()
        frame["effect"] = [str(average(column.tolist(), clusters)) for column in self.effects.T]
        for measure in MEASURES:
            success = asked(self.success(measure))
            if len(success):
                mean = share if measure in _SHARES else average
                clusters = self.clusters(self.success(measure))
                frame[measure] = [str(mean(column.tolist(), clusters)) for column in success.T]
        return frame


def asked(success: Float[Tensor, "fact layer"]) -> Float[Tensor, "known layer"]:
    """The rows of the facts whose records have prompts for the measure."""
    return success[~success.isnan().any(1)]
