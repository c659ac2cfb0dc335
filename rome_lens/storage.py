"""Results as files: one safetensors file each, tensors as tensors and everything else as JSON in its header."""

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
    """A file that does not hold what it was opened for, or a path at which there can be none."""


def made_directory(path: Path) -> Path:
    """The directory, made where it is not there yet.

    Raises:
        StorageError: a file stands in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(
            f"{path} is no directory: a file stands at it or above it ({error}). Give another one."
        ) from error
    return path


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name ``path`` when the block ends well, and is removed when it does not.

    Raises:
        StorageError: ``path`` is a directory, or a file stands in its directory's place.
    """
    if path.is_dir():
        raise StorageError(f"{path} is a directory, expected the path of a file.")
    unfinished = made_directory(path.parent) / f"{path.name}.{uuid4().hex[:8]}.part"
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a number can depend on."""
    return {"rome-lens": __version__, **{name: metadata.version(name) for name in _VERSIONED}}
