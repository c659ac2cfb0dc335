"""Writing and reading files safely: whole or not at all, with errors that name the file.

Whatever the system refuses (a full disk, a directory without permission, a name that is no name)
becomes a :class:`StorageError` here, so no other module needs to know the kinds of ``OSError``.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal
from uuid import uuid4

from filelock import FileLock, Timeout

from rome_lens.errors import RomeLensError
from rome_lens.version import __version__

_VERSIONED = ("torch", "transformer-lens", "transformers")


class StorageError(RomeLensError):
    """A file that does not hold what was expected, or a path that cannot be read or written."""


class FileAccessError(StorageError, OSError):
    """What the system refuses, such as to write to a full disk. It is also an ``OSError``."""


class InUseError(StorageError):
    """A directory that another run is writing to."""


class MissingFileError(FileAccessError, FileNotFoundError):
    """A file that is not there. It is also a ``FileNotFoundError``."""


_ADVICE = {
    "read": "Make sure that you have the permission to read it, or give another path.",
    "written": "Make sure that the disk has room and that you have the permission to write there, "
    "or give another path.",
}


def as_path(path: object) -> Path:
    """The argument as a path.

    Raises:
        StorageError: it is no path, or no system could have a file of this name.
    """
    try:
        given = Path(path)  # type: ignore[arg-type]
        os.fsencode(given)
    except (TypeError, UnicodeEncodeError) as error:
        raise StorageError(
            f"The path is {path!r}, expected a str or a pathlib.Path, such as 'edit.safetensors'."
        ) from error
    if "\0" in str(given):
        raise StorageError(f"The path is {path!r}, expected one without a NUL character.")
    return given


@contextmanager
def file_errors(path: Path, done: Literal["read", "written"]) -> Iterator[None]:
    """Turn every ``OSError`` of the block into a ``StorageError`` that names the path.

    Raises:
        MissingFileError: a file that was to be read is not there.
        FileAccessError: the system refuses to read or write. The message says why.
    """
    try:
        yield
    except FileAccessError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and done == "read":
            named: FileAccessError = MissingFileError(f"There is no file {path}.")
        else:
            named = FileAccessError(f"{path} could not be {done} ({error}). {_ADVICE[done]}")
        named.errno = error.errno
        raise named from error


def make_directory(path: Path) -> Path:
    """Create the directory, and its parents, unless it exists; returns ``path``.

    Raises:
        StorageError: ``path`` or one of its parents is a file, or the system refuses.
    """
    with file_errors(path, "written"):
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
    A process that is killed inside the block leaves its temporary file, whose name ends in
    ``.part``. Nothing reads such a file, and it may be removed.

    Raises:
        StorageError: ``path`` is a directory, one of its parents is a file, or the system refuses
            to write.
    """
    with file_errors(path, "written"):
        if path.is_dir():
            raise StorageError(f"{path} is a directory, expected the path of a file.")
        unfinished = make_directory(path.parent) / f"{path.name}.{uuid4().hex[:8]}.part"
        try:
            yield unfinished
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def sole_use(directory: Path) -> Iterator[None]:
    """Hold a directory, which is created if needed, so that no other run can hold it.

    The system releases the lock when the process ends, however it ends. The hidden file ``.lock``
    stays, and holds nothing.

    Raises:
        InUseError: another run holds the directory.
        StorageError: it cannot be created or written.
    """
    lock = FileLock(make_directory(directory) / ".lock", timeout=0)
    with file_errors(directory, "written"):
        try:
            lock.acquire()
        except Timeout as error:
            raise InUseError(
                f"Another run is writing to {directory}: wait for it, stop it, or give another "
                "directory."
            ) from error
    try:
        yield
    finally:
        lock.release()


@functools.cache
def _version_of(package: str) -> str:
    return metadata.version(package)


def installed_versions() -> dict[str, str]:
    """The versions of this package and of the installed packages that a number can depend on."""
    return {"rome-lens": __version__, **{name: _version_of(name) for name in _VERSIONED}}
