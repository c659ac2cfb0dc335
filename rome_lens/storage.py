"""Writing files and directories safely, and naming the versions that wrote them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from uuid import uuid4

from rome_lens.errors import RomeLensError
from rome_lens.version import __version__

_VERSIONED = ("torch", "transformer-lens", "transformers")


class StorageError(RomeLensError):
    """A file that does not hold what was expected, or a path that cannot be written to."""


def make_directory(path: Path) -> Path:
    """Create the directory, and its parents, unless it exists; returns ``path``.

    Raises:
        StorageError: ``path`` or one of its parents is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(
            f"{path} is not a directory: it, or one of its parents, is a file ({error}). Give "
            "another directory."
        ) from error
    return path


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which is renamed to ``path`` when the block succeeds.

    If the block raises, the temporary file is removed and a file that was at ``path`` before stays.

    Raises:
        StorageError: ``path`` is a directory, or one of its parents is a file.
    """
    if path.is_dir():
        raise StorageError(f"{path} is a directory, expected the path of a file.")
    unfinished = make_directory(path.parent) / f"{path.name}.{uuid4().hex[:8]}.part"
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def installed_versions() -> dict[str, str]:
    """The versions of this package and of the installed packages that a number can depend on."""
    return {"rome-lens": __version__, **{name: metadata.version(name) for name in _VERSIONED}}
