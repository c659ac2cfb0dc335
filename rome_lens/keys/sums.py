"""Running sums of ``k kT`` over a source of tokens: float64, several layers in one pass, resumed where they broke off."""

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

_BLOCK = 256  # columns; the fastest of 128, 256 and 512 for d_mlp 2048


@dataclass(kw_only=True)
class KeySum(Stored):
    """``sum_i k_i k_iT`` at one layer over the first chunks of a source.

    Attributes:
        upper: the sum; below its diagonal it means nothing, since a symmetric product needs half the work.
        count: the number of keys in it.
        chunks: the number of chunks of the source that were read.
        digest: a hash of what was in these.
    """

    layer: int
    upper: Float[Tensor, "d_mlp d_mlp"]
    count: int = 0
    chunks: int = 0
    digest: str = ""

    @classmethod
    def begun(cls, model: LensModel, layer: int, path: Path | None) -> "KeySum":
        """The sum that an earlier run left at ``path``, or an empty one, on the model's device."""
        d_mlp = w_out(model, layer).shape[0]
        # MPS has no float64.
        place = torch.device("cpu") if device(model).type == "mps" else device(model)
        if path is not None and path.is_file():
            found = cls.load(path)
            found.upper = found.upper.to(place)
            return found
        return cls(layer=layer, upper=torch.zeros(d_mlp, d_mlp, dtype=torch.float64, device=place))

    def add(self, keys: Float[Tensor, "key d_mlp"]) -> None:
        """Add ``k kT`` of each key, in float64 whatever the keys are in."""
        keys = keys.to(self.upper.device).double()
        for start in range(0, len(self.upper), _BLOCK):
            rows = slice(start, start + _BLOCK)
            self.upper[rows, start:].addmm_(keys[:, rows].T, keys[:, start:])
        self.count += len(keys)

    def mean(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """``C``, exactly symmetric, on the CPU."""
        upper = self.upper.cpu().triu()
        return (upper + upper.triu(1).T) / self.count


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read into sums.

    Attributes:
        batch_size: sequences in one forward.
        max_tokens: stop after exactly as many keys; None reads to the end.
        unfinished: files for the sums, by layer, while the collection runs; none without a cache.
        checkpoint_every: the sums are written when as many keys were added since the last time.
    """

    batch_size: int
    max_tokens: int | None
    checkpoint_every: int
    progress: bool
    unfinished: Mapping[int, Path] = field(default_factory=dict)


def add_source(
    model: LensModel, source: KeySource, sums: Sequence[KeySum], reading: Reading
) -> None:
    """Read what each sum has not read yet, in one pass for all of them.

    Raises:
        StatisticsError: keys are not finite; the source does not begin as it did when the sums were begun.
    """
    behind = min(sums, key=lambda one: one.chunks)
    count = saved = behind.count
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
                        one.save(reading.unfinished[one.layer])
    if max(one.chunks for one in sums) > index + 1:
        raise _other_source(source, max(one.chunks for one in sums) * CHUNK, reading)


def _add_chunk(
    model: LensModel, rows: Sequence[list[int]], sums: Sequence[KeySum], index: int, batch_size: int
) -> int:
    """Add a chunk's keys to the sums; their number. Rows of like length share a batch, so that little is padding."""
    order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: len(rows[i]))
    last = max(one.layer for one in sums)
    names = [key_hook(one.layer) for one in sums]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(rows[i]) for i in chosen])
        tokens = pad_right([rows[i] for i in chosen])
        real = (torch.arange(tokens.shape[1])[None] < lengths[:, None]).to(device(model))
        kept = run_through(model, tokens, last, names)
        found = {one.layer: kept.pop(name)[real] for one, name in zip(sums, names, strict=True)}
        for layer, keys in found.items():
            if not torch.isfinite(keys).all():
                raise _not_finite(layer, keys, [(i, rows[i]) for i in chosen], index)
        for one in sums:
            one.add(found.pop(one.layer))
    return sum(len(row) for row in rows)


def _cut(rows: Iterable[list[int]], left: int | None) -> Iterator[list[int]]:
    """The rows up to ``left`` tokens. What is cut off stands to the right and changes no key before it."""
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
    i, row, position = cells[int((~torch.isfinite(keys)).any(1).nonzero()[0])]
    return StatisticsError(
        f"The keys of layer {layer} are not finite ({keys.dtype}) at position {position} of sequence {i} in chunk {index} "
        f"(a chunk has up to {CHUNK} sequences), tokens {row[: position + 1][-8:]}: run the model in float32 or bfloat16."
    )


def _other_source(source: KeySource, read: int, reading: Reading) -> StatisticsError:
    files = ", ".join(map(str, reading.unfinished.values()))
    return StatisticsError(
        f"A collection from {source.name!r} was broken off after up to {read} sequences, and these are not the same now: "
        f"give the source from its beginning and in the same order, or remove {files} to begin anew."
    )
