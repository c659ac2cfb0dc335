"""The cells of a trace: which states are restored. All options are checked before a run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.arguments import one_of, whole_number, whole_numbers
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import Answer, FactTokens, ScoredAnswer, scored_answer
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel, check_has_mlp, named_layers
from rome_lens.tracing.metrics import Metric, Reading, reading_of
from rome_lens.tracing.passes import PassSize

Place = tuple[int, int] | tuple[int, int, int]
"""The indices of a cell in scores ``[layer, pos]`` or ``[layer, pos, head]``."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A state to restore: one position in a window of layers; for ``"z"``, of a single head."""

    pos: int
    """The restored position."""
    window: range
    """The restored layers."""
    head: int | None = None
    """The restored head, for component ``"z"``."""
    run: int = 0
    """The number of the fact's run, where several are traced together."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of a trace: all chosen layers, positions and, for component ``"z"``, heads."""

    component: Component
    """The component whose output is restored."""
    window: int
    """The number of layers restored together."""
    encoded: FactTokens
    """The fact as the model's tokens."""
    answer: ScoredAnswer
    """The scored tokens, and those given before them."""
    layers: tuple[int, ...]
    """The chosen layers."""
    positions: tuple[int, ...]
    """The chosen positions, counted from the start."""
    heads: tuple[int, ...] | None
    """The chosen heads for component ``"z"``; None for the others."""
    size: PassSize
    """How large a forward pass may be."""
    reading: Reading
    """How runs are scored."""
    n_layers: int
    """The number of the model's layers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers of layers, positions and, for ``"z"``, heads."""
        heads = () if self.heads is None else (len(self.heads),)
        return (len(self.layers), len(self.positions), *heads)

    @property
    def count(self) -> int:
        """The number of cells."""
        return math.prod(self.shape)

    @property
    def first_read(self) -> int:
        """The first position that predicts a scored token."""
        return len(self.encoded.tokens) + len(self.answer.given) - 1

    @property
    def length(self) -> int:
        """The number of positions in a run: the prompt, and the answer before its last token."""
        return self.first_read + len(self.answer.tokens)

    @property
    def tokens(self) -> Int[Tensor, " pos"]:
        """The input: the prompt, then the answer's tokens up to the last scored one, without it."""
        continued = (*self.answer.given, *self.answer.tokens[:-1])
        ids = torch.tensor(continued, dtype=torch.long, device="cpu")
        return torch.cat([self.encoded.tokens, ids])

    @property
    def scores_whole_answer(self) -> bool:
        """Whether all tokens of the answer are scored."""
        return self.answer.tokens == self.encoded.answer

    @property
    def rows(self) -> int:
        """Maximum rows in a run of all positions."""
        return self.size.whole_rows(self.length)

    @property
    def work(self) -> int:
        """The number of tokens that one noise sample of all cells runs in a causal model."""
        return sum(self.length - cell.pos for cell in self.cells(causal=True).values())

    def at(self, pos: int) -> "Grid":
        """The cells at one position."""
        return replace(self, positions=(pos,))

    def cells(self, *, causal: bool, run: int = 0) -> dict[Place, Cell]:
        """The cells whose restoration can change the answer, by their place in the scores.

        Two kinds of cells are left out. In a causal model, states before the subject are not
        corrupted. After the last layer's attention, only the positions that predict the answer are
        read.
        """
        cells: dict[Place, Cell] = {}
        for i, layer in enumerate(self.layers):
            window = restored_layers(layer, self.window, self.n_layers)
            for j, pos in enumerate(self.positions):
                is_read = pos >= self.first_read or window.start < self.n_layers - 1
                if not is_read or (causal and pos < self.encoded.subject[0]):
                    continue
                if self.heads is None:
                    cells[i, j] = Cell(pos=pos, window=window, run=run)
                else:
                    cells |= {
                        (i, j, k): Cell(pos=pos, window=window, head=head, run=run)
                        for k, head in enumerate(self.heads)
                    }
        return cells


def restored_layers(layer: int, window: int, n_layers: int) -> range:
    """The layers of the window around layer ``l``, with the study's bounds.

    They go from ``max(0, l - window // 2)`` up to, not including,
    ``min(n_layers, l - (-window // 2))``.
    """
    return range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))


def grid(
    model: LensModel,
    encoded: FactTokens,
    *,
    component: Component,
    window: int,
    layers: Iterable[int] | None,
    positions: Iterable[int] | None,
    heads: Iterable[int] | None,
    answer: Answer,
    size: PassSize,
    metric: Metric = "probability",
) -> Grid:
    """The cells of a fact's trace, from its options.

    Raises:
        ArgumentError, ModelError, FactError: an option does not fit the model or the fact.
    """
    check_options(model, component=component, window=window)
    chosen_layers = named_layers(model, layers)
    chosen_heads = _chosen_heads(model, component, heads)
    scored = scored_answer(model, encoded, answer)
    return Grid(
        component=component,
        window=whole_number("window", window),
        encoded=encoded,
        answer=scored,
        reading=reading_of(metric, encoded, scored),
        layers=chosen_layers,
        positions=_chosen_positions(positions, len(encoded.tokens)),
        heads=chosen_heads,
        size=size,
        n_layers=model.cfg.n_layers,
    )


def check_options(model: LensModel, *, component: Component, window: int) -> None:
    """Refuse options that are wrong whatever the fact is.

    Raises:
        ArgumentError: the component is unknown, or the window is empty or covers the whole model.
        ModelError: the component is ``"mlp"`` and the model has no MLPs.
    """
    one_of("component", component, Component)
    window = whole_number("window", window)
    n_layers = model.cfg.n_layers
    if window < 1 or (n_layers > 1 and window // 2 >= n_layers - 1 and -(-window // 2) >= n_layers):
        raise ArgumentError(
            f"window is {window}, expected at least 1 and less than {2 * n_layers - 1}: from that "
            f"number on, the window around every layer is the whole model of {n_layers} layers."
        )
    if component == "z" and window > 1:
        raise ArgumentError(
            f"window is {window}, expected 1 for 'z': heads with the same number in different "
            "layers are unrelated."
        )
    if component == "mlp":
        check_has_mlp(model)


def _chosen_heads(
    model: LensModel, component: Component, heads: Iterable[int] | None
) -> tuple[int, ...] | None:
    if component != "z":
        if heads is not None:
            raise ArgumentError(
                f"heads is given for component {component!r}, but only component='z' has heads."
            )
        return None
    chosen = whole_numbers("heads", range(model.cfg.n_heads) if heads is None else heads)
    if not chosen:
        raise ArgumentError("heads is empty: name at least one, or None for all.")
    outside = [head for head in chosen if not 0 <= head < model.cfg.n_heads]
    if outside:
        raise ArgumentError(
            f"Heads {outside} are out of range: a layer has heads 0 to {model.cfg.n_heads - 1}."
        )
    return chosen


def _chosen_positions(positions: Iterable[int] | None, length: int) -> tuple[int, ...]:
    if positions is None:
        return tuple(range(length))
    chosen = whole_numbers("positions", positions)
    if not chosen:
        raise ArgumentError("positions is empty: name at least one, or None for all.")
    outside = [pos for pos in chosen if not -length <= pos < length]
    if outside:
        raise ArgumentError(
            f"Positions {outside} are outside the prompt, which has {length} tokens (0 to "
            f"{length - 1})."
        )
    return tuple(pos % length for pos in chosen)
