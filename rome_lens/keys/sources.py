"""Where the tokens of key statistics come from: texts, token batches, or the model itself; all read in chunks."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from zlib import crc32

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.forward.sampling import sample_tokens
from rome_lens.forward.tokens import token_ids, tokenizer_fingerprint
from rome_lens.keys.statistics import UNNAMED, StatisticsError
from rome_lens.models.lens import LensModel, ModelError

CHUNK = 128  # sequences; a part of what seeds samples, so that another number gives other samples
_UNNAMED = f"{UNNAMED} stream"
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some sequences that are read together.

    Attributes:
        size: how many they are.
        content: a hash of what they are made of; empty where the source's name already says it.
        rows: gives their token ids, and does the work for it: tokenises, or samples.
    """

    size: int
    content: bytes
    rows: Callable[[], Iterable[list[int]]]


@dataclass(frozen=True, kw_only=True)
class KeySource:
    """A source of token sequences.

    Attributes:
        kind: ``"texts"``, ``"tokens"`` or ``"samples"``.
        name: in words, with all that the tokens depend on beside the model.
        named: whether the name tells this source from every other one.
        length: the number of sequences, None where a stream does not tell.
        chunks: what it holds, in an order that is always the same; to be read once.
    """

    kind: str
    name: str
    named: bool = True
    length: int | None
    chunks: Iterable[Chunk]


def text_source(
    model: LensModel,
    texts: Iterable[Any],
    *,
    field: str,
    source: str | None,
    prepend_bos: bool | None,
    max_length: int,
) -> KeySource:
    """Texts, or rows that hold a text under ``field``: a list, known by its content, or a stream, known by ``source`` alone."""
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
        name=f"{name}, cut at {max_length} tokens, bos {bos}, tokenizer {tokenizer_fingerprint(model)}",
        named=bool(source) or isinstance(checked, list),
        length=len(checked) if isinstance(checked, list) else None,
        chunks=_chunks(checked, rows, str.encode),
    )


def token_source(model: LensModel, tokens: Iterable[Tensor], *, source: str | None) -> KeySource:
    """Token batches ``[batch, pos]``, ``-1`` standing for padding on the right; a list or tensor of them, or a stream."""
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
    """Sequences that the model samples, in continuation of the openings in turn."""
    sample_count = whole_number("sample_count", sample_count, least=1, error=StatisticsError)
    sample_length = whole_number(
        "sample_length", sample_length, least=2, most=model.cfg.n_ctx, error=StatisticsError
    )
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
    for i in range(sample_count):  # rows of a forward have one length
        row = starts[i % len(starts)][: sample_length - 1]
        by_length.setdefault(len(row), []).append(row)

    def chunk(length: int, begin: int) -> Chunk:
        def rows() -> list[list[int]]:
            group = by_length[length][begin : begin + CHUNK]
            own_seed = crc32(
                f"{seed} {length} {begin}".encode()
            )  # of each chunk, so that chunks can be left out
            return sample_tokens(
                model, group, new_tokens=sample_length - length, seed=own_seed
            ).tolist()

        return Chunk(size=len(by_length[length][begin : begin + CHUNK]), content=b"", rows=rows)

    begun = short_hash([str(start) for start in starts])
    name = f"{sample_count} samples of {sample_length} tokens, seed {seed}, openings {begun}"
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
    """Ten hexadecimal digits that tell lists of texts apart."""
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
                f"Row {i} has no field {field!r}; it has {sorted(map(str, item))}: give field=."
            )
        text = item[field] if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            raise StatisticsError(
                f"Row {i} holds {type(text).__name__} where a text was expected: {str(text)[:80]!r}."
            )
        yield text


def _rows(model: LensModel, batches: Iterable[Any]) -> Iterator[list[int]]:
    """The rows of checked token batches, without padding."""
    for i, batch in enumerate(batches):
        integers = isinstance(batch, Tensor) and not (
            batch.is_floating_point() or batch.dtype == torch.bool
        )
        if not integers or batch.ndim != 2:
            given = (
                f"{batch.dtype} {list(batch.shape)}"
                if isinstance(batch, Tensor)
                else type(batch).__name__
            )
            raise StatisticsError(
                f"Token batch {i} is {given}, expected a tensor of integers [batch, pos]."
            )
        if batch.shape[1] > model.cfg.n_ctx:
            raise StatisticsError(
                f"Token batch {i} has {batch.shape[1]} positions, the model's context only {model.cfg.n_ctx}."
            )
        batch = batch.cpu()
        if wrong := batch[(batch < -1) | (batch >= model.cfg.d_vocab)].tolist():
            raise StatisticsError(
                f"Token batch {i} holds {wrong[:5]}, expected ids from 0 to {model.cfg.d_vocab - 1}, and -1 for padding."
            )
        if bool(((batch[:, 1:] >= 0) & (batch[:, :-1] < 0)).any()):
            raise StatisticsError(
                f"Token batch {i} has padding (-1) before tokens, expected it on the right alone."
            )
        _check_padding(model, batch, i)
        yield from ([id for id in row if id >= 0] for row in batch.tolist())


def _check_padding(model: LensModel, batch: Int[Tensor, "batch pos"], number: int) -> None:
    """Refuse a batch as ``to_tokens`` pads texts of unlike length: its padding would be averaged as keys."""
    pad, bos, eos = (
        getattr(model.tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos")
    )
    if pad is None or len(batch) < 2:
        return
    pads = batch == pad
    leading = pads & (pads | (batch == (pad if bos is None else bos))).cumprod(1).bool()
    trailing = pads & (pads | (batch < 0)).flip(1).cumprod(1).flip(1).bool()
    # Many tokenizers pad with their BOS or EOS. One of these at a row's end belongs to its text, and where some stand
    # between other tokens, they part the texts of packed rows, of which any number may come to stand at an end.
    if bool((pads & ~leading & ~trailing).any()):
        return
    own = int(pad in (bos, eos))
    for side, counts in (("left", leading.sum(1)), ("right", trailing.sum(1))):
        row = int(counts.argmax())
        if int(counts[row]) > max(own, int(counts.min())):
            raise StatisticsError(
                f"Row {row} of token batch {number} has {int(counts[row])} padding tokens ({pad}) on the {side}, which would "
                "be averaged as keys: write -1 on the right in their place, or give texts=. If they are meant, give the rows "
                "one by one."
            )
