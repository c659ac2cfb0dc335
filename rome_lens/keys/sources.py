"""The tokens of key statistics, from texts, token batches, or samples of the model itself.

Every source is read in chunks of sequences. An interrupted collection can then skip the chunks
it has already read.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar
from zlib import crc32

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.forward.sampling import sample_tokens
from rome_lens.forward.tokens import token_ids, tokenizer_fingerprint
from rome_lens.keys.statistics import UNNAMED, StatisticsError
from rome_lens.models.lens import LensModel, ModelError

CHUNK = 128  # sequences. It is part of what seeds samples, so another number gives other samples.
_UNNAMED = f"{UNNAMED} stream"
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some sequences that are read together."""

    size: int
    """The number of sequences."""
    content: bytes
    """A hash of what they are made of. It is empty if the source's name already determines it."""
    rows: Callable[[], Iterable[list[int]]]
    """Returns their token ids. The work of tokenising or sampling happens in this call."""


@dataclass(frozen=True, kw_only=True)
class KeySource:
    """A source of token sequences."""

    kind: Literal["texts", "tokens", "samples"]
    """What the source reads."""
    name: str
    """A description with everything that the tokens depend on, apart from the model."""
    named: bool = True
    """Whether the name distinguishes this source from every other one."""
    length: int | None
    """The number of sequences. None for a stream, whose length is not known."""
    chunks: Iterable[Chunk]
    """The sequences, always in the same order. They can be read once."""


def text_source(
    model: LensModel,
    texts: Iterable[Any],
    *,
    field: str,
    source: str | None,
    prepend_bos: bool | None,
    max_length: int,
) -> KeySource:
    """The source of texts, or of rows that hold a text under ``field``.

    A list is identified by its content, a stream only by the name ``source``.

    Raises:
        StatisticsError: there is a single text, or a row without a text. A stream raises the second
            while it is read.
        ModelError: the model has no tokenizer.
    """
    if isinstance(texts, str | Mapping):
        raise StatisticsError(
            f"texts is one {type(texts).__name__}, expected several texts: [text]."
        )
    if model.tokenizer is None:
        raise ModelError(
            "The model has no tokenizer, which texts need: give tokens, or load it with one."
        )
    checked: Iterable[str] = _texts(texts, field)
    if isinstance(texts, list | tuple):
        checked = list(checked)
        name = _joined(source, f"{len(checked)} texts {short_hash(checked)}")
    else:
        name = f"{source or _UNNAMED} (field {field!r})"

    def rows(group: list[str]) -> Iterator[list[int]]:
        for text in group:
            yield token_ids(model, text, prepend_bos=prepend_bos, truncate=True)[:max_length]

    bos = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    return KeySource(
        kind="texts",
        name=f"{name}, cut at {max_length} tokens, bos {bos}, tokenizer "
        f"{tokenizer_fingerprint(model)}",
        named=bool(source) or isinstance(checked, list),
        length=len(checked) if isinstance(checked, list) else None,
        chunks=_chunks(checked, rows, str.encode),
    )


def token_source(model: LensModel, tokens: Iterable[Tensor], *, source: str | None) -> KeySource:
    """The source of token batches ``[batch, pos]``: one tensor, a list of tensors, or a stream.

    ``-1`` is padding on the right.

    Raises:
        StatisticsError: a batch has the wrong form. A stream raises it while it is read.
    """
    if isinstance(tokens, Tensor):
        tokens = [tokens]
    rows: Iterable[list[int]] = _rows(model, tokens)
    if isinstance(tokens, list | tuple):
        rows = list(rows)
        name = _joined(
            source, f"{len(rows)} token sequences {short_hash([str(row) for row in rows])}"
        )
    else:
        name = f"{source or _UNNAMED} (tokens)"
    return KeySource(
        kind="tokens",
        name=name,
        named=bool(source) or isinstance(rows, list),
        length=len(rows) if isinstance(rows, list) else None,
        chunks=_chunks(rows, lambda group: group, lambda row: str(row).encode()),
    )


def sample_source(
    model: LensModel,
    *,
    openings: Sequence[str],
    sample_count: int,
    sample_length: int,
    seed: int,
    prepend_bos: bool | None,
) -> KeySource:
    """The source of sequences that the model samples, which continue the openings in turn.

    Raises:
        StatisticsError: a number is out of range, or the openings are a single text.
        ModelError: the model has no tokenizer, or its tokenizer has no BOS token.
    """
    sample_count = whole_number("sample_count", sample_count, least=1, error=StatisticsError)
    sample_length = whole_number(
        "sample_length", sample_length, least=2, most=model.cfg.n_ctx, error=StatisticsError
    )
    seed = whole_number("seed", seed, error=StatisticsError)
    if isinstance(openings, str):
        raise StatisticsError(
            f"openings is one text, {openings!r}, expected several: ({openings!r},)."
        )
    if model.tokenizer is None:
        raise ModelError(
            "The model has no tokenizer, which samples need: give tokens, or load it with one."
        )
    bos = model.tokenizer.bos_token_id
    if bos is None:
        raise ModelError("The tokenizer has no BOS token to start samples from: give texts.")
    starts = [
        token_ids(model, text, prepend_bos=prepend_bos) or [bos] for text in list(openings) or [""]
    ]
    by_length: dict[int, list[list[int]]] = {}
    for i in range(sample_count):  # the rows that are sampled together must have one length
        row = starts[i % len(starts)][: sample_length - 1]
        by_length.setdefault(len(row), []).append(row)

    def chunk(length: int, begin: int) -> Chunk:
        def rows() -> list[list[int]]:
            group = by_length[length][begin : begin + CHUNK]
            # Every chunk has its own seed: a resumed collection can then skip chunks.
            own_seed = crc32(f"{seed} {length} {begin}".encode())
            return sample_tokens(
                model, group, new_tokens=sample_length - length, seed=own_seed
            ).tolist()

        return Chunk(size=len(by_length[length][begin : begin + CHUNK]), content=b"", rows=rows)

    opened = short_hash([str(start) for start in starts])
    name = f"{sample_count} samples of {sample_length} tokens, seed {seed}, openings {opened}"
    return KeySource(
        kind="samples",
        name=f"{name}, bos {model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos}",
        length=sample_count,
        chunks=(
            chunk(length, begin)
            for length in sorted(by_length)
            for begin in range(0, len(by_length[length]), CHUNK)
        ),
    )


def short_hash(texts: Sequence[str]) -> str:
    """A hash of a list of texts, as ten hexadecimal digits."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]


def _joined(source: str | None, content: str) -> str:
    return content if source is None else f"{source}: {content}"


def _chunks(
    items: Iterable[_Item],
    rows: Callable[[list[_Item]], Iterable[list[int]]],
    content: Callable[[_Item], bytes],
) -> Iterator[Chunk]:
    iterator = iter(items)
    while group := list(islice(iterator, CHUNK)):
        digest = hashlib.sha256(b"\0".join(content(item) for item in group)).digest()
        yield Chunk(size=len(group), content=digest, rows=lambda group=group: rows(group))  # type: ignore[misc]


def _texts(items: Iterable[Any], field: str) -> Iterator[str]:
    for i, item in enumerate(items):
        if isinstance(item, Mapping) and field not in item:
            raise StatisticsError(
                f"Row {i} has no field {field!r}; it has {sorted(map(str, item))}. Name the one "
                "that holds the text with field=."
            )
        text = item[field] if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            raise StatisticsError(
                f"Row {i} holds {type(text).__name__} where a text was expected: "
                f"{str(text)[:80]!r}."
            )
        yield text


def _rows(model: LensModel, batches: Iterable[Any]) -> Iterator[list[int]]:
    """The rows of checked token batches, without padding."""
    for i, batch in enumerate(batches):
        integers = isinstance(batch, Tensor) and not (
            batch.is_floating_point() or batch.dtype == torch.bool
        )
        if not integers or batch.ndim != 2:
            description = (
                f"{batch.dtype} {list(batch.shape)}"
                if isinstance(batch, Tensor)
                else type(batch).__name__
            )
            raise StatisticsError(
                f"Token batch {i} is {description}, expected a tensor of integers [batch, pos]."
            )
        if batch.shape[1] > model.cfg.n_ctx:
            raise StatisticsError(
                f"Token batch {i} has {batch.shape[1]} positions, but the model's context only "
                f"{model.cfg.n_ctx}: split its rows."
            )
        batch = batch.cpu()
        if wrong := batch[(batch < -1) | (batch >= model.cfg.d_vocab)].tolist():
            raise StatisticsError(
                f"Token batch {i} holds {wrong[:5]}, expected ids from 0 to "
                f"{model.cfg.d_vocab - 1}, and -1 for padding."
            )
        if bool(((batch[:, 1:] >= 0) & (batch[:, :-1] < 0)).any()):
            raise StatisticsError(
                f"Token batch {i} has padding (-1) before tokens, expected padding only on the "
                "right."
            )
        _check_padding(model, batch, i)
        yield from ([id for id in row if id >= 0] for row in batch.tolist())


def _check_padding(model: LensModel, batch: Int[Tensor, "batch pos"], number: int) -> None:
    """Refuse a batch padded by ``to_tokens``, because its padding would be averaged as keys."""
    pad, bos, eos = (
        getattr(model.tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos")
    )
    if pad is None or len(batch) < 2:
        return
    pads = batch == pad
    leading = pads & (pads | (batch == (pad if bos is None else bos))).cumprod(1).bool()
    trailing = pads & (pads | (batch < 0)).flip(1).cumprod(1).flip(1).bool()
    # Many tokenizers pad with their BOS or EOS token. One of these at the end of a row belongs to
    # the row's text. Where some stand between other tokens, they separate the texts of packed rows,
    # and any number of them may be at the end of a row.
    if bool((pads & ~leading & ~trailing).any()):
        return
    own = int(pad in (bos, eos))
    for side, counts in (("left", leading.sum(1)), ("right", trailing.sum(1))):
        row = int(counts.argmax())
        if int(counts[row]) > max(own, int(counts.min())):
            raise StatisticsError(
                f"Row {row} of token batch {number} has {int(counts[row])} padding tokens ({pad}) "
                f"on the {side}, which would be averaged as keys. To leave them out, write -1 on "
                "the right instead, or give texts=. To average them, give the rows one by one."
            )
