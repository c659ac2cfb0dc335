"""What tracing found: scores, effects, peaks, and the layer that they point to."""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.errors import ArgumentError
from rome_lens.intervals import half_width
from rome_lens.results import Stored


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Trace(Stored):
    """The probability of the answer for every cell: what all traces have.

    Attributes:
        layers, positions: the traced layers and positions, the axes of the scores.
        labels: the text of every token of the prompt; ``subject`` is the half-open span of the subject's.
        answer: what is scored, the answer's first token or all of it; ``clean`` its probability in the clean run.
        corrupted_samples: its probability in each corrupted run.
        sample_scores: its probability in each corrupted run with the cell restored.
        noise: the corruption, as text; ``model_fingerprint`` of the traced model.
        answer_tokens: how many tokens of the answer are scored.
    """

    fact: Fact
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    labels: tuple[str, ...]
    subject: tuple[int, int]
    answer: str
    clean: float
    corrupted_samples: Float[Tensor, " sample"]
    sample_scores: Float[Tensor, "sample layer pos *head"]
    noise: str
    model_fingerprint: str
    answer_tokens: int = 1

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._what}, {self.fact.text!r} -> {self.answer!r}, "
            f"clean={self.clean:.3f}, corrupted={self.corrupted:.3f}, "
            f"{len(self.layers)} layers x {len(self.positions)} positions)"
        )

    @property
    def _what(self) -> str:
        return "'resid'"

    @property
    def scores(self) -> Float[Tensor, "layer pos *head"]:
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
    def indirect_effects(self) -> Float[Tensor, "layer pos *head"]:
        """``scores - corrupted`` (Meng et al. 2022, section 2.1)."""
        return self._sample_effects.mean(0)

    @property
    def half_widths(self) -> Float[Tensor, "layer pos *head"]:
        """Half the 95 % interval of each indirect effect, over the noise samples of this one fact; NaN for one sample."""
        return half_width(self._sample_effects)

    @property
    def _sample_effects(self) -> Float[Tensor, "sample layer pos *head"]:
        return self.sample_scores - self._corrupted_like(self.sample_scores)

    def _corrupted_like(self, scores: Tensor) -> Tensor:
        return self.corrupted_samples.view(-1, *(1 for _ in scores.shape[1:]))

    def peak(self, at: str | int | None = None) -> tuple[int, ...]:
        """``(layer, pos)`` of the highest score, ``(layer, pos, head)`` of a trace of ``"z"``.

        Args:
            at: a position, or ``"subject_first"``, ``"subject_last"``, ``"last"``; None looks everywhere.

        Raises:
            ValueError: an unknown name, or a position that was not traced.
        """
        wanted = None if at is None else position_of(at, self.subject, len(self.labels))
        if wanted is not None and wanted not in self.positions:
            raise ArgumentError(
                f"Position {wanted} was not traced; the traced ones are {list(self.positions)}."
            )
        columns = [i for i, pos in enumerate(self.positions) if wanted is None or pos == wanted]
        scores = self.scores[:, columns]
        layer, column, *head = (int(i) for i in torch.unravel_index(scores.argmax(), scores.shape))
        return self.layers[layer], self.positions[columns[column]], *(self._heads[i] for i in head)

    @property
    def _heads(self) -> tuple[int, ...]:
        return ()

    def to_frame(self) -> pd.DataFrame:
        """One row for each cell: layer, pos, token, (head,) score, indirect effect and half its 95 % interval."""
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
    """What :func:`causal_trace` found.

    Attributes:
        component, window: what was restored.
        heads: the traced heads, the scores' third axis, of a trace of ``"z"``; else empty.
    """

    component: str
    window: int
    heads: tuple[int, ...] = ()

    @property
    def _what(self) -> str:
        return f"{self.component!r}, window={self.window}"

    @property
    def _heads(self) -> tuple[int, ...]:
        return self.heads


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class SeveredTrace(Trace):
    """What :func:`severed_trace` found: the residual stream's trace with modules cut out, beside the ordinary one.

    Attributes:
        severed, held_layers: which modules stay corrupted, and in which layers.
        ordinary_sample_scores: the trace with nothing severed, on the same noise.
        held_noise: the corruption of the run that the held values come from, as text.
    """

    severed: str
    held_layers: str
    ordinary_sample_scores: Float[Tensor, "sample layer pos"]
    held_noise: str

    @property
    def _what(self) -> str:
        return f"severed={self.severed!r}"

    @property
    def ordinary_scores(self) -> Float[Tensor, "layer pos"]:
        """Mean over the samples of the answer's probability with the cell restored and nothing severed."""
        return self.ordinary_sample_scores.mean(0)

    @property
    def ordinary_indirect_effects(self) -> Float[Tensor, "layer pos"]:
        """Indirect effects with nothing severed."""
        return self.ordinary_scores - self.corrupted

    @property
    def lost(self) -> Float[Tensor, "layer pos"]:
        """How much of the ordinary effect the severed modules carried: ``ordinary_scores - scores``."""
        return self.ordinary_scores - self.scores

    @property
    def lost_half_widths(self) -> Float[Tensor, "layer pos"]:
        """Half the 95 % interval of ``lost``, over the noise samples; NaN for one sample."""
        return half_width(self.ordinary_sample_scores - self.sample_scores)

    def to_frame(self) -> pd.DataFrame:
        """The rows of :meth:`Trace.to_frame`, with the ordinary score, and what was lost with half its 95 % interval."""
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
    """What :func:`attribution_trace` estimated: scores to first order, from one forward and one backward pass.

    A ``score`` is the corrupted probability plus the estimated effect, and may lie outside 0 to 1.
    """

    def rank_correlation(self, exact: CausalTrace) -> float:
        """Spearman's rank correlation of the estimated indirect effects with an exact trace's, over the cells of both.

        Cells that cannot reach the answer are left out: both give exactly zero there, whatever the estimate is worth. NaN
        where fewer than two cells are left.

        Raises:
            ValueError: the exact trace is of another fact, component, window, noise or model, or has no cell in common.
        """
        names = (
            "fact",
            "component",
            "window",
            "heads",
            "labels",
            "subject",
            "answer",
            "noise",
            "model_fingerprint",
        )
        for name in names:
            if getattr(self, name) != getattr(exact, name):
                raise ArgumentError(
                    f"The exact trace has {name} {getattr(exact, name)!r}, the estimate {getattr(self, name)!r}: "
                    "a correlation compares the same cells."
                )
        layers = sorted(set(self.layers) & set(exact.layers))
        positions = sorted(set(self.positions) & set(exact.positions))
        if not layers or not positions:
            raise ArgumentError("The two traces have no cell in common.")
        ours, theirs = (
            trace._sample_effects[:, [trace.layers.index(layer) for layer in layers]][
                :, :, [trace.positions.index(pos) for pos in positions]
            ]
            for trace in (self, exact)
        )
        matters = (theirs != 0).any(0)
        if int(matters.sum()) < 2:
            return math.nan
        return float(stats.spearmanr(ours.mean(0)[matters], theirs.mean(0)[matters]).statistic)


def position_of(at: str | int, subject: tuple[int, int], length: int) -> int:
    """A position by its name: ``"subject_first"``, ``"subject_last"``, ``"last"``, or a number, if negative from the end.

    Raises:
        ValueError: an unknown name, or a number outside the prompt.
    """
    named = {"subject_first": subject[0], "subject_last": subject[1] - 1, "last": length - 1}
    if isinstance(at, str) and at not in named:
        raise ArgumentError(f"at is {at!r}, expected a position, one of {sorted(named)}, or None.")
    pos = named[at] if isinstance(at, str) else at
    if not -length <= pos < length:
        raise ArgumentError(
            f"Position {pos} is outside the prompt, which has {length} tokens (0 to {length - 1})."
        )
    return pos % length


def choose_layer(trace: CausalTrace) -> int:
    """The layer whose restored MLP outputs bring back most of the answer at any token of the subject.

    The paper reads the site off the last subject token, over the average of many facts (section 2.2); of a single fact
    the whole subject is looked at, since models differ in which of its tokens gathers the fact. This is a place to try,
    not a proof: what tracing tells about where an edit succeeds is itself in question (Hase et al. 2023).

    Raises:
        ValueError: the trace is not of MLP outputs, or no token of the subject was traced.
    """
    if trace.component != "mlp":
        raise ArgumentError(
            f"The trace is of {trace.component!r}; a layer to edit is chosen from component='mlp'."
        )
    columns = [
        i for i, pos in enumerate(trace.positions) if trace.subject[0] <= pos < trace.subject[1]
    ]
    if not columns:
        raise ArgumentError(
            f"The traced positions {list(trace.positions)} hold no token of the subject {trace.subject}."
        )
    return trace.layers[int(trace.scores[:, columns].amax(1).argmax())]
