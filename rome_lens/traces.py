"""What a causal trace found: scores, effects, peaks, and the layer that they point to."""

from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rome_lens.facts import Fact
from rome_lens.intervals import half_width
from rome_lens.storage import Stored


@dataclass(frozen=True, kw_only=True, repr=False)
class CausalTrace(Stored):
    """The probability of the answer for every restored cell.

    Attributes:
        component, window: what was restored; see :func:`causal_trace`.
        layers, positions: the traced layers and positions, the axes of the scores.
        labels: the text of every token of the prompt; ``subject`` is the half-open span of the subject's.
        answer: the scored token; ``clean`` its probability in the clean run.
        corrupted_samples: its probability in each corrupted run.
        sample_scores: its probability in each corrupted run with the cell restored.
        model_fingerprint: of the traced model.
    """

    fact: Fact
    component: str
    window: int
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    labels: tuple[str, ...]
    subject: tuple[int, int]
    answer: str
    clean: float
    corrupted_samples: Float[Tensor, " sample"]
    sample_scores: Float[Tensor, "sample layer pos"]
    noise: str
    model_fingerprint: str

    def __repr__(self) -> str:
        return (
            f"CausalTrace({self.component!r}, window={self.window}, {self.fact.text!r} -> {self.answer!r}, "
            f"clean={self.clean:.3f}, corrupted={self.corrupted:.3f}, "
            f"{len(self.layers)} layers x {len(self.positions)} positions)"
        )

    @property
    def scores(self) -> Float[Tensor, "layer pos"]:
        """Mean over the samples of the answer's probability with the cell restored."""
        return self.sample_scores.mean(0)

    @property
    def corrupted(self) -> float:
        """Mean over the samples of the answer's probability in the corrupted run."""
        return float(self.corrupted_samples.mean())

    @property
    def total_effect(self) -> float:
        """``clean - corrupted`` (Meng et al. 2022, section 2.1)."""
        return self.clean - self.corrupted

    @property
    def indirect_effects(self) -> Float[Tensor, "layer pos"]:
        """``scores - corrupted`` (Meng et al. 2022, section 2.1)."""
        return (self.sample_scores - self.corrupted_samples[:, None, None]).mean(0)

    @property
    def half_widths(self) -> Float[Tensor, "layer pos"]:
        """Half the 95 % interval of each indirect effect, over the noise samples of this one fact."""
        return half_width(self.sample_scores - self.corrupted_samples[:, None, None])

    def peak(self, at: str | int | None = None) -> tuple[int, int]:
        """``(layer, pos)`` of the highest score.

        Args:
            at: a position, or ``"subject_first"``, ``"subject_last"``, ``"last"``; None looks everywhere.

        Raises:
            ValueError: an unknown name, or a position that was not traced.
        """
        named = {"subject_first": self.subject[0], "subject_last": self.subject[1] - 1, "last": len(self.labels) - 1}
        if isinstance(at, str) and at not in named:
            raise ValueError(f"at is {at!r}, expected a position, one of {sorted(named)}, or None.")
        wanted = named[at] if isinstance(at, str) else at
        if wanted is not None and wanted not in self.positions:
            raise ValueError(f"Position {wanted} was not traced; the traced ones are {list(self.positions)}.")
        columns = [i for i, pos in enumerate(self.positions) if wanted is None or pos == wanted]
        best = int(self.scores[:, columns].argmax())
        return self.layers[best // len(columns)], self.positions[columns[best % len(columns)]]

    def to_frame(self) -> pd.DataFrame:
        """One row for each cell: layer, pos, token, score, indirect effect and half its 95 % interval."""
        effects, halves, scores = self.indirect_effects, self.half_widths, self.scores
        return pd.DataFrame(
            {
                "layer": layer,
                "pos": pos,
                "token": self.labels[pos],
                "score": float(scores[i, j]),
                "indirect_effect": float(effects[i, j]),
                "half_width": float(halves[i, j]),
            }
            for i, layer in enumerate(self.layers)
            for j, pos in enumerate(self.positions)
        )

    def _repr_html_(self) -> str:
        from rome_lens import viz

        return viz.figure_html(viz.trace(self))


def choose_layer(trace: CausalTrace) -> int:
    """The layer whose restored MLP outputs bring back most of the answer at any token of the subject.

    The paper reads the site off the last subject token, over the average of many facts (section 2.2); of a single fact
    the whole subject is looked at, since models differ in which of its tokens gathers the fact. This is a place to try,
    not a proof: what tracing tells about where an edit succeeds is itself in question (Hase et al. 2023).

    Raises:
        ValueError: the trace is not of MLP outputs, or no token of the subject was traced.
    """
    if trace.component != "mlp":
        raise ValueError(f"The trace is of {trace.component!r}; a layer to edit is chosen from component='mlp'.")
    columns = [i for i, pos in enumerate(trace.positions) if trace.subject[0] <= pos < trace.subject[1]]
    if not columns:
        raise ValueError(f"The traced positions {list(trace.positions)} hold no token of the subject {trace.subject}.")
    return trace.layers[int(trace.scores[:, columns].amax(1).argmax())]
