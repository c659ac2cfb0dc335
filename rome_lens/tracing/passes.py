"""How much is computed in one forward pass of a trace.

The call of a block has a price of its own: Python, kernel launches, reading the weights. Each token
in the call has another. So small work is gathered into one call, even if rows of different lengths
must be padded for it, and large work is cut into pieces that fit the memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rome_lens.arguments import whole_number
from rome_lens.forward.call_costs import tokens_per_call
from rome_lens.forward.memory import bytes_per_batch
from rome_lens.models.lens import LensModel, device

Item = TypeVar("Item")

_MOST_ROWS = 1 << 32
# A pass on a CPU takes as long as so many calls would. Larger ones gain little, and tokens cost up
# to a third more once they leave the caches.
_CALLS_PER_PASS = 16


@dataclass(frozen=True, kw_only=True)
class PassSize:
    """How large a forward pass may be, and what the call of a block costs.

    A row is one sequence. Its size is the largest number of values that a tensor of a block holds
    for it.
    """

    rows: int
    """Maximum rows."""
    values: int
    """Maximum values in one tensor."""
    call: int
    """The number of tokens that take as long to run as the call of a block itself."""
    per_token: int
    """Values for each token that is run: the width of the MLP."""
    per_pair: int
    """Values for each pair of tokens, one of which attends to the other: the number of heads."""
    per_past: int
    """Values for each earlier token: its keys and values in attention."""
    kept: int
    """Maximum values that are kept of one corrupted run, in all layers together."""
    per_kept_token: int
    """Values that are kept of each token: the stream, keys and values of all layers."""

    @property
    def tokens(self) -> int:
        """How many tokens fit one pass, in rows that attend to little else."""
        return max(1, self.values // self.per_token)

    def rows_of(self, later: int, past: int = 0) -> int:
        """How many rows fit one pass if each runs ``later`` tokens that follow ``past`` others."""
        pairs = later * (later + past)
        size = max(later * self.per_token, pairs * self.per_pair, past * self.per_past)
        return max(1, min(self.rows, self.values // size))

    def whole_rows(self, length: int) -> int:
        """How many rows of ``length`` tokens fit a run of all layers that is kept."""
        return max(1, min(self.rows_of(length), self.kept // (length * self.per_kept_token)))


def pass_size(
    model: LensModel, *, batch_size: int | None, batch_bytes: int | None = None
) -> PassSize:
    """The size of a trace's forward passes on the model's device.

    Args:
        batch_size: maximum rows; None means that only memory bounds them.
        batch_bytes: bytes that the largest tensor of a pass may take; None chooses them by the
            device. On a CPU, passes are smaller in any case, because larger ones leave its caches.

    Raises:
        ArgumentError: one of them is below 1.
    """
    cfg, on = model.cfg, device(model)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, least=1)
    if batch_bytes is not None:
        batch_bytes = whole_number("batch_bytes", batch_bytes, least=1)
    most = bytes_per_batch(on) if batch_bytes is None else batch_bytes
    values = most // next(model.blocks[0].parameters()).element_size()
    call = tokens_per_call(model)
    per_token = max(cfg.d_model, cfg.d_mlp or 0)
    heads = cfg.n_heads or 1  # a state space model has none
    per_past = 2 * (getattr(cfg, "n_key_value_heads", None) or heads) * (cfg.d_head or 0)
    at_once = _CALLS_PER_PASS * call * per_token if on.type == "cpu" else values
    return PassSize(
        rows=_MOST_ROWS if batch_size is None else min(batch_size, _MOST_ROWS),
        values=min(values, at_once),
        call=call,
        per_token=per_token,
        per_pair=heads,
        per_past=per_past,
        kept=2 * values,
        per_kept_token=cfg.n_layers * (cfg.d_model + per_past),
    )


def packed(items: Sequence[Item], sizes: Sequence[int], most: int) -> Iterator[list[Item]]:
    """The items in order, in lists whose sizes add up to at most ``most``.

    An item that is larger is alone in its list.
    """
    pack: list[Item] = []
    filled = 0
    for item, size in zip(items, sizes, strict=True):
        if pack and filled + size > most:
            yield pack
            pack, filled = [], 0
        pack.append(item)
        filled += size
    if pack:
        yield pack
