"""What a sweep of tracing and editing over the layers found, by fact and layer."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import ArgumentError
from rome_lens.intervals import average, share
from rome_lens.localisation.variance import VarianceExplained, explain_variance
from rome_lens.results import Stored

MEASURES = ("EM", "PM", "NM", "ES", "PS", "NS", "S")
_SHARES = ("ES", "PS", "NS", "S")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LayerSweep(Stored):
    """What :func:`layer_sweep` found: of each fact and layer, the effect of restoring it and the success of editing it.

    Attributes:
        names: of the facts, as the records name them; a bare fact's is its text. ``unknown`` those of the facts left out
            since the model answers otherwise.
        layers: both axes' second.
        effects: indirect effect, the answer's probability restored less corrupted; ``total_effects`` clean less corrupted.
        EM, PM, NM, ES, PS, NS, S: success, as :class:`Evaluation` has it for a record; NaN where it has no prompts for it.
        component, window, at, samples, noise: of the traces; ``model_fingerprint`` of the model.
        edits: what made the edits, as text.
    """

    names: tuple[str, ...]
    unknown: tuple[str, ...]
    layers: tuple[int, ...]
    effects: Float[Tensor, "fact layer"]
    total_effects: Float[Tensor, " fact"]
    EM: Float[Tensor, "fact layer"]
    PM: Float[Tensor, "fact layer"]
    NM: Float[Tensor, "fact layer"]
    ES: Float[Tensor, "fact layer"]
    PS: Float[Tensor, "fact layer"]
    NS: Float[Tensor, "fact layer"]
    S: Float[Tensor, "fact layer"]
    component: str
    window: int
    at: str | int
    samples: int
    noise: str
    edits: str
    model_fingerprint: str

    def __repr__(self) -> str:
        return (
            f"LayerSweep({len(self.names)} facts, {len(self.unknown)} not known, layers {list(self.layers)}, "
            f"{self.component!r}, window={self.window}, at={self.at!r})"
        )

    def success(self, measure: str) -> Float[Tensor, "fact layer"]:
        """The success of a name.

        Raises:
            ValueError: an unknown name.
        """
        if measure not in MEASURES:
            raise ArgumentError(
                f"measure is {measure!r}, expected one of {', '.join(map(repr, MEASURES))}."
            )
        found: Tensor = getattr(self, measure)
        return found

    def variance_explained(
        self, measure: str = "EM", *, shuffles: int = 200, seed: int = 0
    ) -> VarianceExplained:
        """How much of the success the layer explains, how much the effect, and what the effect adds to the layer.

        R^2 is over all cells (fact, layer), of the least squares fits

            success = a_layer,   success = a + b effect,   success = a_layer + b effect.

        The last is never below the first: what it adds is compared with what it adds when each fact has the whole row of
        effects of a fact drawn at random. Intervals are of a bootstrap over facts. Beside R^2 stands what a user of one
        fact asks: whether its layer of the largest effect is as good as its best.

        Source: Hase et al. 2023, who regress in this way and find that tracing adds next to nothing.

        Args:
            shuffles: how often effects are given to other facts.
            seed: of shuffles and bootstrap.

        Raises:
            ValueError: an unknown measure, or fewer than two facts or layers that it was asked of.
        """
        success = self.success(measure).numpy()
        return explain_variance(
            self.effects.numpy(), success, measure=measure, shuffles=shuffles, seed=seed
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each fact and layer: effect, total effect, and each measure of success."""
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
        """Layers down; mean over the facts of effect and success across, with 95 % intervals.

        What no record asked is left out. S is the mean of the facts' own, not that of :class:`Scores`, which takes the
        harmonic mean of means.
        """
        frame = pd.DataFrame(index=pd.Index(self.layers, name="layer"))
        frame["effect"] = [str(average(column.tolist())) for column in self.effects.T]
        for measure in MEASURES:
            success = asked(self.success(measure))
            if len(success):
                mean = share if measure in _SHARES else average
                frame[measure] = [str(mean(column.tolist())) for column in success.T]
        return frame


def asked(success: Float[Tensor, "fact layer"]) -> Float[Tensor, "known layer"]:
    """The rows of the facts of which the success was asked."""
    return success[~success.isnan().any(1)]
