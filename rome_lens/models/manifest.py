"""A list of a directory's files with their sizes and checksums, to notice that one was altered.

The checksum is CRC-32. The list guards against damage (a flipped bit, a file cut short, another
program's file), for which CRC-32 is enough. It is no defence against somebody who can write into
the directory, because they could write a new list. On weights of a gigabyte it takes about a second
where SHA-256 takes two to three, and it is computed at every load.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from rome_lens.models.goldens import WeightsError

NAME = "manifest.json"
_BLOCK = 1 << 20


def write_manifest(directory: Path) -> None:
    """List the files of a directory in its ``manifest.json``."""
    text = json.dumps({path.name: _sums(path) for path in _files(directory)}, indent=1)
    (directory / NAME).write_text(text, encoding="utf-8")


def check_manifest(directory: Path) -> None:
    """Check that the files of a directory are the ones in its ``manifest.json``.

    Raises:
        WeightsError: one is missing, was added, or was altered.
    """
    try:
        expected = json.loads((directory / NAME).read_text(encoding="utf-8"))
        if not isinstance(expected, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise _altered(directory / NAME, f"it cannot be read ({error})") from error
    present = {path.name: path for path in _files(directory)}
    for name in sorted(expected.keys() | present.keys()):
        path = directory / name
        if name not in present:
            raise _altered(path, "it is missing")
        if name not in expected:
            raise _altered(path, "it was added")
        # The sizes alone tell a file that was cut short, without reading it.
        if not isinstance(expected[name], dict) or (
            expected[name].get("bytes") != path.stat().st_size or expected[name] != _sums(path)
        ):
            raise _altered(path, "its content is not what was written")


def _files(directory: Path) -> list[Path]:
    """The files that transformers could read. Hidden ones are left by file managers."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.name != NAME and not path.name.startswith(".") and path.is_file()
    )


def _sums(path: Path) -> dict[str, Any]:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return {"bytes": path.stat().st_size, "crc32": f"{crc:08x}"}


def _altered(path: Path, how: str) -> WeightsError:
    return WeightsError(
        f"{path} was altered after it was converted: {how}. Delete the directory {path.parent}; "
        "the next load_model converts the weights again."
    )
