"""The cells of a trace: which states are restored. All options are checked before a run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rome_lens.arguments import one_of, whole_number, whole_numbers
from rome_lens.data.facts import Fact
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import Answer, FactTokens, ScoredAnswer, encode, scored_answer
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel, check_has_mlp, named_layers

Place = tuple[int, int] | tuple[int, int, int]
"""The indices of a cell in scores ``[layer, pos]`` or ``[layer, pos, head]``."""

_TOKENS_PER_BATCH = 4096
_MOST_ROWS = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A state to restore: one position in a window of layers; for ``"z"``, of a single head."""

    pos: int
    """The restored position."""
    window: range
    """The restored layers."""
    head: int | None = None
    """The restored head, for component ``"z"``."""


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
    rows: int
    """Maximum rows per forward pass."""
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

    def at(self, pos: int) -> "Grid":
        """The cells at one position."""
        return replace(self, positions=(pos,))

    def cells(self, *, causal: bool) -> dict[Place, Cell]:
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
                    cells[i, j] = Cell(pos=pos, window=window)
                else:
                    cells |= {
                        (i, j, k): Cell(pos=pos, window=window, head=head)
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
    fact: Fact,
    *,
    component: Component,
    window: int,
    layers: Iterable[int] | None,
    positions: Iterable[int] | None,
    heads: Iterable[int] | None,
    answer: Answer,
    prepend_bos: bool | None,
    batch_size: int | None,
) -> Grid:
    """The cells of a trace, from its options.

    Raises:
        ArgumentError, ModelError, FactError: an option does not fit the model or the fact.
    """
    check_options(model, component=component, window=window, batch_size=batch_size)
    chosen_layers = named_layers(model, layers)
    chosen_heads = _chosen_heads(model, component, heads)
    encoded = encode(model, fact, prepend_bos=prepend_bos)
    scored = scored_answer(model, encoded, answer)
    length = len(encoded.tokens) + len(scored.given) + len(scored.tokens) - 1
    return Grid(
        component=component,
        window=whole_number("window", window),
        encoded=encoded,
        answer=scored,
        layers=chosen_layers,
        positions=_chosen_positions(positions, len(encoded.tokens)),
        heads=chosen_heads,
        rows=(
            max(1, _TOKENS_PER_BATCH // length)
            if batch_size is None
            else min(whole_number("batch_size", batch_size), _MOST_ROWS)
        ),
        n_layers=model.cfg.n_layers,
    )


def check_options(
    model: LensModel, *, component: Component, window: int, batch_size: int | None
) -> None:
    """Refuse options that are wrong whatever the fact is.

    Raises:
        ArgumentError: the component is unknown, the window is empty or covers the whole model, or
            ``batch_size`` is below 1.
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
    if batch_size is not None:
        whole_number("batch_size", batch_size, least=1)


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
