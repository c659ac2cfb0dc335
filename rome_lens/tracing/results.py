"""What traces return: scores, effects, peaks, and the layer that they point to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import pandas as pd
import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import Answer
from rome_lens.intervals import half_width
from rome_lens.models.hook_names import Component
from rome_lens.results import Stored
from rome_lens.tracing.positions import Position, position_of

Direction = Literal["denoising", "noising"]
"""Which state is put into which run. Denoising restores a clean state in a corrupted run: is it
sufficient? Noising puts a corrupted state into the clean run: is it necessary?"""
Severed = Literal["mlp", "attn", "both"]
"""The modules that a severed trace keeps corrupted."""
HeldLayers = Literal["later", "all"]
"""The layers in which it does: those after the restored one, or all."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Trace(Stored):
    """The score of the answer for every cell. All kinds of trace have these fields.

    The score is the answer's probability, unless ``metric`` names another one.
    """

    axes: ClassVar[Mapping[str, str]] = {"layer": "layers", "pos": "positions"}

    fact: Fact
    """The traced fact."""
    layers: tuple[int, ...]
    """The traced layers, the first axis of the scores."""
    positions: tuple[int, ...]
    """The traced positions, the second axis of the scores."""
    labels: tuple[str, ...]
    """The text of every token of the prompt."""
    subject: tuple[int, int]
    """The half-open span of the subject's tokens."""
    answer: str
    """What is scored: one token of the answer, or the whole answer."""
    clean: float
    """The score of the clean run."""
    corrupted_samples: Float[Tensor, " sample"]
    """The score of each corrupted run."""
    sample_scores: Float[Tensor, "sample layer pos *head"]
    """The score of each run with the cell restored or, in noising, corrupted."""
    noise: str
    """The corruption, as text."""
    model_fingerprint: str
    """The fingerprint of the traced model."""
    answer_tokens: int = 1
    """The number of the answer's tokens that are scored."""
    given: str = ""
    """The part of the answer that stands before the scored tokens. It follows the prompt."""
    scoring: Answer | None = None
    """The option ``answer`` of the trace. None in a file of an older version."""
    metric: str = "probability"
    """What the scores are, by the name of the metric or of its function."""
    direction: Direction = "denoising"
    """Whether a clean state was put into corrupted runs, or a corrupted one into the clean run."""
    model_name: str = ""
    """The name of the traced model, for titles. Empty in a file of an older version."""

    def __post_init__(self) -> None:
        super().__post_init__()
        length, (start, end) = len(self.labels), self.subject
        if not all(position < length for position in self.positions):
            raise ArgumentError(f"positions are {self.positions}, but there are {length} labels.")
        if not start < end <= length:
            raise ArgumentError(f"subject is {self.subject}, but there are {length} labels.")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._what}{self._how}, {self.fact.text!r} -> "
            f"{self.answer!r}, "
            f"clean={self.clean:.3f}, corrupted={self.corrupted:.3f}, "
            f"{len(self.layers)} layers x {len(self.positions)} positions)"
        )

    @property
    def _what(self) -> str:
        return "'resid'"

    @property
    def _how(self) -> str:
        metric = "" if self.metric == "probability" else f", {self.metric}"
        return metric + ("" if self.direction == "denoising" else f", {self.direction}")

    @property
    def scores(self) -> Float[Tensor, "layer pos *head"]:
        """The score with the cell restored or corrupted, averaged over the samples."""
        return self.sample_scores.mean(0)

    @property
    def corrupted(self) -> float:
        """The score of the corrupted run, averaged over the samples."""
        return float(self.corrupted_samples.mean())

    @property
    def total_effect(self) -> float:
        """``clean - corrupted`` (Meng et al. 2022, section 2.1)."""
        return self.clean - self.corrupted

    @property
    def indirect_effects(self) -> Float[Tensor, "layer pos *head"]:
        """``scores - corrupted`` (Meng et al. 2022, section 2.1); in noising, ``clean - scores``.

        In both directions it is the part of the total effect that the cell accounts for.
        """
        return self._sample_effects.mean(0)

    @property
    def half_widths(self) -> Float[Tensor, "layer pos *head"]:
        """Half the width of each indirect effect's 95 % interval over the noise samples of this one
        fact.

        NaN for a single sample.
        """
        return half_width(self._sample_effects)

    @property
    def _sample_effects(self) -> Float[Tensor, "sample layer pos *head"]:
        if self.direction == "noising":
            return self.clean - self.sample_scores
        corrupted = self.corrupted_samples.view(-1, *(1 for _ in self.sample_scores.shape[1:]))
        return self.sample_scores - corrupted

    @property
    def intervals(self) -> Float[Tensor, "end layer pos *head"]:
        """The low and the high end of each indirect effect's 95 % interval over the noise samples.

        They say how far the effect depends on the draw of the noise, not how far it holds for other
        facts. NaN for a single sample.
        """
        effects, half = self.indirect_effects, self.half_widths
        return torch.stack([effects - half, effects + half])

    def peak(self, at: Position | None = None) -> tuple[int, ...]:
        """``(layer, pos)`` of the cell that matters most; ``(layer, pos, head)`` for ``"z"``.

        It has the highest score or, in noising, the lowest.

        Args:
            at: look at this position only: a number, ``"subject_first"``, ``"subject_last"`` or
                ``"last"``. None looks at all traced positions.

        Raises:
            ArgumentError: the name is unknown, or the position was not traced.
        """
        wanted = None if at is None else position_of(at, self.subject, len(self.labels))
        if wanted is not None and wanted not in self.positions:
            raise ArgumentError(
                f"Position {wanted} was not traced. The traced positions are "
                f"{list(self.positions)}."
            )
        columns = [i for i, pos in enumerate(self.positions) if wanted is None or pos == wanted]
        sign = -1.0 if self.direction == "noising" else 1.0
        scores = sign * self.scores[:, columns]
        layer, column, *head = (int(i) for i in torch.unravel_index(scores.argmax(), scores.shape))
        return self.layers[layer], self.positions[columns[column]], *(self._heads[i] for i in head)

    @property
    def _heads(self) -> tuple[int, ...]:
        return ()

    def to_frame(self) -> pd.DataFrame:
        """One row per cell: layer, pos, token, (head,) score, indirect effect, half width."""
        places = torch.ones_like(self.scores).nonzero()
        frame = pd.DataFrame(
            {
                "layer": [self.layers[i] for i in places[:, 0]],
                "pos": [self.positions[j] for j in places[:, 1]],
            }
        )
        frame["token"] = [self.labels[pos] for pos in frame["pos"]]
        if self._heads:
            frame["head"] = [self._heads[k] for k in places[:, 2]]
        frame["score"] = self.scores.flatten().tolist()
        frame["indirect_effect"] = self.indirect_effects.flatten().tolist()
        frame["half_width"] = self.half_widths.flatten().tolist()
        return frame


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class CausalTrace(Trace):
    """The result of :func:`causal_trace`."""

    axes: ClassVar[Mapping[str, str]] = {**Trace.axes, "*head": "heads"}

    component: Component
    """The component whose output was restored."""
    window: int
    """The number of layers restored together."""
    heads: tuple[int, ...] = ()
    """The traced heads of a trace of ``"z"``, the third axis of its scores; empty otherwise."""

    @property
    def _what(self) -> str:
        return f"{self.component!r}, window={self.window}"

    @property
    def _heads(self) -> tuple[int, ...]:
        return self.heads


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class SeveredTrace(Trace):
    """The result of :func:`severed_trace`: the trace with modules severed, and the ordinary one."""

    severed: Severed
    """The modules that stay corrupted."""
    held_layers: HeldLayers
    """The layers in which they stay corrupted."""
    ordinary_sample_scores: Float[Tensor, "sample layer pos"]
    """The scores with nothing severed, on the same noise."""
    held_noise: str
    """The corruption of the run that the held values come from, as text."""

    @property
    def _what(self) -> str:
        return f"severed={self.severed!r}"

    @property
    def ordinary_scores(self) -> Float[Tensor, "layer pos"]:
        """The mean probability of the answer with the cell restored and nothing severed."""
        return self.ordinary_sample_scores.mean(0)

    @property
    def ordinary_indirect_effects(self) -> Float[Tensor, "layer pos"]:
        """The indirect effects of the same restorations without severing."""
        if self.direction == "noising":
            return self.clean - self.ordinary_scores
        return self.ordinary_scores - self.corrupted

    @property
    def lost(self) -> Float[Tensor, "layer pos"]:
        """``ordinary_scores - scores``: the part of the effect that the severed modules carried.

        In noising, ``scores - ordinary_scores``.
        """
        return self._lost_samples.mean(0)

    @property
    def _lost_samples(self) -> Float[Tensor, "sample layer pos"]:
        sign = -1.0 if self.direction == "noising" else 1.0
        return sign * (self.ordinary_sample_scores - self.sample_scores)

    @property
    def lost_half_widths(self) -> Float[Tensor, "layer pos"]:
        """Half the width of the 95 % interval of ``lost`` over the samples; NaN for one sample."""
        return half_width(self._lost_samples)

    def to_frame(self) -> pd.DataFrame:
        """The rows of :meth:`Trace.to_frame`, with ordinary score, ``lost`` and its half width."""
        frame = super().to_frame()
        for name, values in (
            ("ordinary_score", self.ordinary_scores),
            ("lost", self.lost),
            ("lost_half_width", self.lost_half_widths),
        ):
            frame[name] = values.flatten().tolist()
        return frame


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class AttributionTrace(CausalTrace):
    """The result of :func:`attribution_trace`: scores estimated to first order.

    A score is that of the corrupted run plus the estimated effect or, in noising, that of the clean
    run minus it. A probability may lie outside the range from 0 to 1.
    """

    def rank_correlation(self, exact: CausalTrace) -> float:
        """Spearman's rank correlation of the estimated indirect effects with an exact trace's, over
        their common cells.

        Cells that cannot reach the answer are left out: both traces give exactly zero there,
        however good the estimate is. The correlation is NaN where fewer than two cells are left.

        Raises:
            ArgumentError: the exact trace is of another fact, component, window, noise or model, or
                the two traces have no cell in common.
        """
        self._check_comparable(exact)
        layers = sorted(set(self.layers) & set(exact.layers))
        positions = sorted(set(self.positions) & set(exact.positions))
        if not layers or not positions:
            raise ArgumentError("The two traces have no cell in common.")
        estimated, expected = (
            trace._sample_effects[:, [trace.layers.index(layer) for layer in layers]][
                :, :, [trace.positions.index(pos) for pos in positions]
            ]
            for trace in (self, exact)
        )
        matters = (expected != 0).any(0)
        if int(matters.sum()) < 2:
            return math.nan
        return float(
            scipy.stats.spearmanr(estimated.mean(0)[matters], expected.mean(0)[matters]).statistic
        )

    def _check_comparable(self, exact: CausalTrace) -> None:
        for name in (
            "fact",
            "component",
            "window",
            "heads",
            "labels",
            "subject",
            "answer",
            "noise",
            "metric",
            "direction",
            "model_fingerprint",
        ):
            if getattr(self, name) != getattr(exact, name):
                raise ArgumentError(
                    f"The exact trace has {name} {getattr(exact, name)!r}, but the estimate has "
                    f"{getattr(self, name)!r}. A correlation compares the same cells: trace both "
                    "with the same options."
                )


def choose_layer(trace: CausalTrace) -> int:
    """The layer with the largest score over all tokens of the subject, in a trace of MLP outputs.

    The paper reads the layer off the last subject token, averaged over many facts (section 2.2).
    With a single fact, this function looks at the whole subject, because models differ in which of
    its tokens gathers the fact. The result is a layer to try, not a proof: whether tracing tells
    where an edit succeeds is itself in question (Hase et al. 2023).

    Raises:
        ArgumentError: the trace is not of MLP outputs, or no token of the subject was traced.
    """
    if trace.component != "mlp":
        raise ArgumentError(
            f"The trace is of {trace.component!r}, but a layer to edit is chosen from a trace with "
            "component='mlp'."
        )
    columns = [
        i for i, pos in enumerate(trace.positions) if trace.subject[0] <= pos < trace.subject[1]
    ]
    if not columns:
        raise ArgumentError(
            f"The traced positions {list(trace.positions)} include no token of the subject, which "
            f"is at {trace.subject}."
        )
    return trace.layers[int(trace.indirect_effects[:, columns].amax(1).argmax())]
