"""The entries of a file: a JSON list, or JSON lines, read one entry after another.

:func:`read_entries` knows files and nothing of facts. :func:`collect` turns the entries into facts
or records, and stops at a bad one or leaves it out.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from rome_lens.arguments import one_of
from rome_lens.data.facts import FactError
from rome_lens.data.fields import Repeated
from rome_lens.warning import warn

Entry = TypeVar("Entry")
OnError = Literal["raise", "skip"]
"""What a reader does with a bad entry: stop with an error, or leave it out."""

_PACKED = {
    b"\x1f\x8b": "packed with gzip: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"BZh": "packed with bzip2: unpack it",
    b"\xfd7zXZ": "packed with xz: unpack it",
    b"PAR1": "in the Parquet format: pandas.read_parquet(...).to_json(..., orient='records')",
}
"""How files begin that hold no text, and what to do with each."""
_MARKS_OF_ONE = {"subject", "requested_rewrite", "fact"}
"""Fields that tell a single entry from an object that wraps a list of them."""


class ReadList(list[Entry]):
    """What a file holds. It is a list; ``skipped`` names the entries that were left out."""

    skipped: tuple[tuple[int, str], ...] = ()
    """The index of every entry that was left out, with the reason."""


def collect(
    path: str | Path,
    what: str,
    read: Callable[[int, Any], list[Entry]],
    *,
    on_error: OnError,
) -> ReadList[Entry]:
    """What ``read`` makes of each entry of the file, in their order.

    Args:
        what: what the entries are, such as ``"facts"``, for messages.
        read: takes an entry's index and the entry.
        on_error: ``"raise"`` stops at the first entry that cannot be read. ``"skip"`` leaves such
            entries out, lists them in ``skipped``, and warns.

    Raises:
        FactError: the file cannot be read, or holds no entry that can be read; with ``"raise"``,
            an entry cannot be read.
    """
    one_of("on_error", on_error, OnError)
    entries = read_entries(path, what)
    found: ReadList[Entry] = ReadList()
    skipped = []
    for index, entry in enumerate(entries):
        try:
            if isinstance(entry, FactError):
                raise entry
            found += read(index, entry)
        except FactError as error:
            if on_error == "raise":
                raise
            skipped.append((index, str(error)))
    found.skipped = tuple(skipped)
    if skipped:
        reasons = " ".join(f"[{index}] {reason}" for index, reason in skipped[:3])
        message = f"{len(skipped)} of {len(entries)} {what} in {path} cannot be read"
        if not found:
            raise FactError(f"{message}, so nothing is left: {reasons}")
        warn(f"{message} and are left out; .skipped lists them all: {reasons}", UserWarning)
    return found


def read_entries(path: str | Path, what: str) -> list[Any]:
    """The entries of a JSON list, or of JSON lines, in a file that has at least one.

    A single object is one entry if it looks like a fact or a record. A line that is not JSON is an
    entry too: the :class:`FactError` that says so.

    Args:
        what: what the entries are, for messages.

    Raises:
        FactError: the file cannot be opened, is not text, is not JSON, or holds no entry.
    """
    text = _text(path)
    if not text.strip():
        raise FactError(f"{path} is empty, expected a JSON list of {what}.")
    try:
        entries = _parsed(text, str(path))
    except FactError:
        entries = _lines(text, path)
        if entries is None:
            raise
    if isinstance(entries, Mapping) and _MARKS_OF_ONE & set(entries):
        return [entries]
    if not isinstance(entries, list):
        kind = type(entries).__name__
        raise FactError(f"{path} holds no {what}: it is a {kind}, expected a list of them.")
    if not entries:
        raise FactError(f"{path} holds no {what}: the list is empty, expected at least one.")
    return entries


def _text(path: str | Path) -> str:
    """The file's text: UTF-8, or UTF-16 or UTF-32 with a byte order mark."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FactError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        raise FactError(f"{path} is a directory, expected a file.") from error
    except (OSError, ValueError, TypeError) as error:
        raise FactError(f"{path!r} cannot be read: {error}.") from error
    for beginning, advice in _PACKED.items():
        if raw.startswith(beginning):
            raise FactError(f"{path} is {advice}, and read the JSON.")
    try:
        return raw.decode(json.detect_encoding(raw))
    except UnicodeDecodeError as error:
        raise FactError(
            f"{path} is not text in UTF-8: {error}. Save it as UTF-8, or read it with its own "
            "encoding and write it again."
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise FactError(f"{where} is not read: its JSON is nested too deeply.") from error
    except ValueError as error:  # also an integer with too many digits
        raise FactError(f"{where} is not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else Repeated(fields)


def _lines(text: str, path: str | Path) -> list[Any] | None:
    """The entries of JSON lines; None if the file is not called .jsonl and does not begin so."""
    named_so = Path(path).suffix.lower() in (".jsonl", ".ndjson")
    entries: list[Any] = []
    # Not splitlines(), because a JSON text may hold U+2028 as it is.
    for number, line in enumerate(re.split(r"\r?\n", text), start=1):
        if line.strip():
            try:
                entries.append(_parsed(line, f"{path}, line {number},"))
            except FactError as error:
                if not entries and not named_so:
                    return None
                entries.append(error)
    return entries
