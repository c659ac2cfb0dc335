"""Running sums of ``k k^T`` over a source of tokens, in float64, for several layers in one pass."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from rome_lens.forward.runs import run_through
from rome_lens.forward.tokens import pad_right
from rome_lens.keys.sources import CHUNK, KeySource
from rome_lens.keys.statistics import StatisticsError
from rome_lens.models.hook_names import key_hook
from rome_lens.models.lens import LensModel, device, w_out
from rome_lens.results import Stored

# Columns per product. On a CPU, 256 is the fastest of 128, 256 and 512 for d_mlp 2048. A GPU needs
# fewer and larger products.
_BLOCK = 256
_BLOCK_ON_A_GPU = 2048
_TILE = 1024  # rows of the sum that are mirrored at once


@dataclass(kw_only=True)
class KeySum(Stored):
    """``sum_i k_i k_i^T`` at one layer over the first chunks of a source."""

    layer: int
    """The layer of the keys."""
    upper: Float[Tensor, "d_mlp d_mlp"]
    """The sum. Only the upper triangle is meaningful, which saves half of the work."""
    count: int = 0
    """The number of keys in the sum."""
    chunks: int = 0
    """The number of chunks of the source that were read."""
    digest: str = ""
    """A hash of the content of these chunks."""

    @classmethod
    def resumed(cls, model: LensModel, layer: int, path: Path | None) -> "KeySum":
        """The sum that an interrupted run left at ``path``, or an empty one."""
        d_mlp = w_out(model, layer).shape[0]
        # MPS has no float64.
        place = torch.device("cpu") if device(model).type == "mps" else device(model)
        if path is not None and path.is_file():
            partial = cls.load(path, of=path.name)
            partial.upper = partial.upper.to(place)
            return partial
        return cls(layer=layer, upper=torch.zeros(d_mlp, d_mlp, dtype=torch.float64, device=place))

    def add(self, keys: Float[Tensor, "key d_mlp"]) -> None:
        """Add ``k k^T`` of each key, in float64 whatever the type of the keys."""
        keys = keys.to(self.upper.device).double()
        block = _BLOCK if keys.device.type == "cpu" else _BLOCK_ON_A_GPU
        for start in range(0, len(self.upper), block):
            rows = slice(start, start + block)
            self.upper[rows, start:].addmm_(keys[:, rows].T, keys[:, start:])
        self.count += len(keys)

    def mean(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """``C``, exactly symmetric, on the CPU.

        It is completed where the sum is. On the way, the sum gets its lower triangle.
        """
        for start in range(0, len(self.upper), _TILE):
            rows, later = slice(start, start + _TILE), slice(start + _TILE, None)
            corner = self.upper[rows, rows].triu()
            self.upper[rows, rows] = corner + corner.triu(1).T
            self.upper[later, rows] = self.upper[rows, later].T
        return (self.upper / self.count).cpu()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read into sums."""

    batch_size: int
    """Sequences per forward pass."""
    max_tokens: int | None
    """Stop after exactly this many keys. None reads to the end."""
    checkpoint_every: int
    """Write the sums when this many keys were added since the last time."""
    progress: bool
    """Whether to show a progress bar."""
    unfinished: Mapping[int, Path] = field(default_factory=dict)
    """Files for the partial sums by layer. Empty without a cache."""


def add_source(
    model: LensModel, source: KeySource, sums: Sequence[KeySum], reading: Reading
) -> None:
    """Read into each sum the chunks that it does not hold yet, in one pass for all of them.

    Raises:
        StatisticsError: keys are not finite, or the source does not begin with the chunks that the
            sums hold.
    """
    shortest = min(sums, key=lambda one: one.chunks)
    count = saved = shortest.count
    digest, index = "", -1
    with tqdm(
        total=source.length, desc="key statistics", unit=" sequences", disable=not reading.progress
    ) as bar:
        for index, chunk in enumerate(source.chunks):
            bar.update(chunk.size)
            digest = hashlib.sha256(digest.encode() + chunk.content).hexdigest()
            if any(one.chunks == index + 1 and one.digest != digest for one in sums):
                raise _other_source(source, (index + 1) * CHUNK, reading)
            waiting = [one for one in sums if one.chunks <= index]
            if not waiting:
                continue
            left = None if reading.max_tokens is None else reading.max_tokens - count
            count += _add_chunk(
                model, list(_cut(chunk.rows(), left)), waiting, index, reading.batch_size
            )
            for one in waiting:
                one.chunks, one.digest = index + 1, digest
            bar.set_postfix(keys=count)
            if count == reading.max_tokens:
                break
            if count - saved >= reading.checkpoint_every:
                saved = count
                for one in sums:
                    if one.layer in reading.unfinished:
                        path = reading.unfinished[one.layer]
                        one.save(path, of=path.name)
    if max(one.chunks for one in sums) > index + 1:
        raise _other_source(source, max(one.chunks for one in sums) * CHUNK, reading)


def _add_chunk(
    model: LensModel, rows: Sequence[list[int]], sums: Sequence[KeySum], index: int, batch_size: int
) -> int:
    """Add the keys of a chunk to the sums, and return their number.

    Rows of similar length share a batch, to keep the padding small.
    """
    order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: len(rows[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    layers = [one.layer for one in sums]
    finite: list[Tensor] = []
    for batch in batches:
        keys_by_layer = _keys(model, [rows[i] for i in batch], layers)
        for one in sums:
            keys = keys_by_layer.pop(one.layer)
            finite.append(torch.isfinite(keys).all())
            one.add(keys)
    # Asked once for all batches, because each answer makes the host wait for a GPU.
    if finite and not bool(torch.stack(finite).all()):
        number, which = divmod(torch.stack(finite).tolist().index(False), len(layers))
        batch, layer = batches[number], layers[which]
        keys = _keys(model, [rows[i] for i in batch], layers)[layer]
        raise _not_finite(layer, keys, [(i, rows[i]) for i in batch], index)
    return sum(len(row) for row in rows)


def _keys(
    model: LensModel, rows: Sequence[list[int]], layers: Sequence[int]
) -> dict[int, Float[Tensor, "key d_mlp"]]:
    """The keys of every token of some rows, by layer."""
    kept = run_through(model, pad_right(rows), max(layers), [key_hook(layer) for layer in layers])
    lengths = [len(row) for row in rows]
    return {layer: _without_padding(kept.pop(key_hook(layer)), lengths) for layer in layers}


def _without_padding(
    keys: Float[Tensor, "row pos d_mlp"], lengths: Sequence[int]
) -> Float[Tensor, "key d_mlp"]:
    """The keys at the first positions of each row, as many as its length says.

    The places are counted on the CPU. A GPU would have to report how many there are.
    """
    width = keys.shape[1]
    if min(lengths) == width:
        return keys.flatten(0, 1)
    cells = [row * width + pos for row, length in enumerate(lengths) for pos in range(length)]
    return keys.flatten(0, 1)[torch.tensor(cells, dtype=torch.long, device="cpu").to(keys.device)]


def _cut(rows: Iterable[list[int]], left: int | None) -> Iterator[list[int]]:
    """The rows up to ``left`` tokens in all.

    What is cut off is to the right of the rest, so it changes no key before it.
    """
    for row in rows:
        if left is None:
            yield row
            continue
        yield row[:left]
        left -= len(row)
        if left <= 0:
            return


def _not_finite(
    layer: int, keys: Float[Tensor, "key d_mlp"], rows: Sequence[tuple[int, list[int]]], index: int
) -> StatisticsError:
    cells = [(i, row, position) for i, row in rows for position in range(len(row))]
    i, row, position = cells[int((~torch.isfinite(keys)).any(1).int().argmax())]
    return StatisticsError(
        f"The keys of layer {layer} are not finite ({keys.dtype}) at position {position} of "
        f"sequence {i} in chunk {index} (a chunk has up to {CHUNK} sequences), tokens "
        f"{row[: position + 1][-8:]}: run the model in float32 or bfloat16."
    )


def _other_source(source: KeySource, read: int, reading: Reading) -> StatisticsError:
    files = ", ".join(map(str, reading.unfinished.values()))
    return StatisticsError(
        f"An interrupted collection from {source.name!r} had read up to {read} sequences, and "
        "these are not the same now. Give the source from its beginning and in the same order, or "
        f"remove {files} to start again."
    )
