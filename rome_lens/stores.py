"""Finished work on disk, from which an interrupted run can be resumed.

Every long-running function keeps its results in a :class:`Store`. A result is named by a hash of
everything that made it, so a run with other settings never finds the results of this one.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from rome_lens.errors import ArgumentError, RomeLensError
from rome_lens.results import Stored
from rome_lens.storage import (
    StorageError,
    as_path,
    file_errors,
    make_directory,
    whole_or_nothing,
)
from rome_lens.version import __version__

MANIFEST = "store.json"
FORMAT = 2
_NAME = re.compile(r"[A-Za-z0-9_-]+")
Kept = TypeVar("Kept", bound=Stored)


class StoreError(RomeLensError):
    """A directory that a run cannot continue.

    Another program or another version wrote it, or its results were made with other settings.
    """


class Store:
    """Results by name: one file each in a directory, or in memory if the directory is None.

    With an identity or settings, the directory also holds a manifest, ``store.json``. It states the
    version that wrote the directory, and the settings that all of its results share.

    Args:
        directory: where the files are kept; it is created if it does not exist.
        identity: what every result depends on, such as a model's fingerprint. It is part of every
            name.
        settings: what every result in the directory must share. A directory that was made with
            other settings is refused.

    Raises:
        StoreError: another program or another version wrote the directory, or its results were
            made with other settings.
        StorageError: the directory cannot be read or written.
    """

    def __init__(
        self,
        directory: str | Path | None,
        *,
        identity: str = "",
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.directory = None if directory is None else as_path(directory)
        self._identity = identity
        self._memory: dict[tuple[type[Stored], str], Stored] = {}
        if self.directory is not None:
            make_directory(self.directory)
        # The files of a store without identity and settings say themselves what they are of, as key
        # statistics do. They may lie next to any others, and need no manifest.
        if self.directory is not None and (identity or settings is not None):
            # the file holds tuples as lists
            settings = json.loads(json.dumps(dict(settings or {})))
            others = _other_files(self.directory)
            # Asked after the files were listed, because another run may begin at the same time.
            if _exists(self.directory / MANIFEST):
                _check_manifest(self.directory, settings)
            elif others:
                raise StoreError(
                    f"{self.directory} holds {others[0]!r} but no {MANIFEST}, so it was written by "
                    "rome_lens 0.1 or by another program: give a new or an empty directory."
                )
            else:
                _write_manifest(self.directory, settings)

    def name(self, *made_with: object) -> str:
        """A hash of the identity and of everything that a result is made with.

        Args:
            made_with: each counts by its ``repr``, which must therefore state all its settings.

        Raises:
            ArgumentError: a ``repr`` shows an address in memory instead of settings.
        """
        text = "\n".join([self._identity, *map(repr, made_with)])
        if self.directory is not None and " at 0x" in text:
            unclear = next(part for part in made_with if " at 0x" in repr(part))
            raise ArgumentError(
                f"{unclear!r} does not say what its settings are, so a later run could not tell "
                "whether a stored result is the right one. Give its class a __repr__ that does "
                "(a dataclass has one), or leave out the directory."
            )
        # A text may hold half of a surrogate pair, which UTF-8 has no bytes for.
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]

    def get(self, kind: type[Kept], name: str) -> Kept | None:
        """The result of this type and name, or None if it is not finished.

        Raises:
            StorageError: its file is damaged, or was stored under another name.
        """
        result = self._memory.get((kind, name))
        path = self.path(kind, name)
        if result is None and path is not None and _exists(path):
            try:
                result = kind.load(path, of=name)
            except StorageError as error:
                raise StorageError(
                    f"{error} Remove {path} to have this result computed again."
                ) from error
            self._memory[kind, name] = result
        return result if isinstance(result, kind) else None

    def has(self, kind: type[Stored], name: str) -> bool:
        """Whether the result of this type and name is finished. Its file is not read."""
        path = self.path(kind, name)
        return (kind, name) in self._memory or (path is not None and _exists(path))

    def add(self, name: str, result: Stored) -> None:
        """Keep a finished result. If there is a directory, it is written to disk at once."""
        path = self.path(type(result), name)
        if path is not None:
            result.save(path, of=name)
        self._memory[type(result), name] = result

    def path(self, kind: type[Stored], name: str) -> Path | None:
        """The path of the result's file, whether or not it exists; None for a store in memory.

        Raises:
            ArgumentError: the name is not made of letters, digits, ``-`` and ``_`` alone. With
                others, the path might lead out of the directory.
        """
        if not _NAME.fullmatch(name):
            raise ArgumentError(f"The name is {name!r}, expected letters, digits, '-' and '_'.")
        if self.directory is None:
            return None
        return self.directory / f"{kind.file_label()}-{name}.safetensors"


def _write_manifest(directory: Path, settings: Mapping[str, object]) -> None:
    content = {"format": FORMAT, "rome_lens": __version__, "settings": settings}
    with whole_or_nothing(directory / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _other_files(directory: Path) -> list[str]:
    """Names of files that a store of this version does not read.

    Hidden files do not count: a system or an editor leaves them anywhere (.DS_Store, .gitignore).
    """
    with file_errors(directory, "read"):
        return sorted(
            file.name
            for file in directory.iterdir()
            if not file.name.startswith(".")
            and not file.name.endswith(".part")
            and not _is_still_read(file)
        )


def _exists(path: Path) -> bool:
    with file_errors(path, "read"):
        return path.exists()


def _is_still_read(path: Path) -> bool:
    """Whether rome_lens 0.1 may have written this file under the name that it has today.

    That is so for key statistics only.
    """
    return path.name.startswith("keys-") and path.suffix == ".safetensors"


def _check_manifest(directory: Path, settings: Mapping[str, object]) -> None:
    """The directory was written in today's format and with these settings.

    Raises:
        StoreError: it was not, or its manifest is damaged.
        StorageError: the manifest cannot be read.
    """
    path = directory / MANIFEST
    with file_errors(path, "read"):
        content = path.read_bytes()
    try:
        manifest = json.loads(content)
        written_format, before = manifest["format"], dict(manifest["settings"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{path} is damaged, so it is unknown what the results next to it were made with "
            f"({error!r}): give another directory."
        ) from error
    if written_format != FORMAT:
        raise StoreError(
            f"{directory} was written by rome_lens {manifest.get('rome_lens')} in format "
            f"{written_format}, but this version continues only format {FORMAT}: give another "
            "directory."
        )
    different = [
        f"{name} was {before.get(name)!r} and is now {settings.get(name)!r}"
        for name in {**before, **settings}
        if before.get(name) != settings.get(name)
    ]
    if different:
        raise StoreError(
            f"The results in {directory} were made with other settings ({'; '.join(different)}): "
            "give the settings that were used then, or another directory."
        )
