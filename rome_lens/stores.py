"""Finished work on disk, so that an interrupted run can be resumed.

Every long-running function keeps its results in a :class:`Store`. A result is named by a hash of everything that made it, so a
run with other settings never finds the results of this one.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from rome_lens.errors import ArgumentError, RomeLensError
from rome_lens.results import Stored
from rome_lens.storage import StorageError, made_directory, whole_or_nothing
from rome_lens.version import __version__

MANIFEST = "store.json"
FORMAT = 2
Kept = TypeVar("Kept", bound=Stored)


class StoreError(RomeLensError):
    """A directory that cannot be continued: another version wrote it, or it was made with other settings."""


class Store:
    """Results by name, in a directory as one file each, or in memory where the directory is None.

    The directory holds a manifest, ``store.json``: the version that wrote it, and the settings that all of its results share.

    Args:
        directory: where the files lie; it is created where there is none.
        identity: what every result depends on, such as a model's fingerprint. It is part of every name.
        settings: what every result in the directory must share. A directory with other settings is refused.

    Raises:
        StoreError: the directory holds other files, was written by another version, or was made with other settings.
    """

    def __init__(
        self,
        directory: str | Path | None,
        *,
        identity: str = "",
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.directory = None if directory is None else Path(directory)
        self._identity = identity
        self._memory: dict[tuple[type[Stored], str], Stored] = {}
        if self.directory is not None:
            made_directory(self.directory)
            plain = json.loads(
                json.dumps(dict(settings or {}))
            )  # tuples as the lists that the file holds
            self._check_manifest(self.directory / MANIFEST, plain)

    def name(self, *made_with: object) -> str:
        """A hash of the identity and of everything that makes a result, each by its ``repr``.

        Raises:
            ArgumentError: the ``repr`` of a part is an address in memory, which says nothing about its settings.
        """
        words = "\n".join([self._identity, *map(repr, made_with)])
        if self.directory is not None and " at 0x" in words:
            unclear = next(part for part in made_with if " at 0x" in repr(part))
            raise ArgumentError(
                f"{unclear!r} does not say what its settings are, so a later run could not tell whether a stored result is the "
                "right one. Give its class a __repr__ that does (a dataclass has one), or leave out the directory."
            )
        return hashlib.sha256(words.encode()).hexdigest()[:24]

    def get(self, kind: type[Kept], name: str) -> Kept | None:
        """The result of this kind and name, or None where it is not finished.

        Raises:
            StorageError: its file is damaged.
        """
        found = self._memory.get((kind, name))
        path = self.path(kind, name)
        if found is None and path is not None and path.is_file():
            try:
                found = kind.load(path)
            except StorageError as error:
                raise StorageError(
                    f"{error} Remove {path} to have this result computed again."
                ) from error
            self._memory[kind, name] = found
        return found if isinstance(found, kind) else None

    def add(self, name: str, result: Stored) -> None:
        """Keep a finished result, on disk at once where there is a directory."""
        path = self.path(type(result), name)
        if path is not None:
            result.save(path)
        self._memory[type(result), name] = result

    def path(self, kind: type[Stored], name: str) -> Path | None:
        """Where the result of this kind and name lies, or will lie; None in memory."""
        return (
            None
            if self.directory is None
            else self.directory / f"{kind.file_label()}-{name}.safetensors"
        )

    def _check_manifest(self, path: Path, settings: Mapping[str, object]) -> None:
        if not path.exists():
            others = [
                each.name
                for each in path.parent.iterdir()
                if not each.name.endswith(".part") and not _is_read_still(each)
            ]
            if others:
                raise StoreError(
                    f"{path.parent} holds {others[0]!r} and no {MANIFEST}: its files are of rome_lens 0.1, or of another program. "
                    "Give an empty or a new directory."
                )
            written = {"format": FORMAT, "rome_lens": __version__, "settings": settings}
            with whole_or_nothing(path) as unfinished:
                unfinished.write_text(json.dumps(written, indent=1), encoding="utf-8")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            form, before = found["format"], dict(found["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} does not say what the results beside it were made with: {error!r}."
            ) from error
        if form != FORMAT:
            raise StoreError(
                f"{path.parent} was written by rome_lens {found.get('rome_lens')} in format {form}, which this version cannot "
                f"continue (it writes format {FORMAT}). Give another directory."
            )
        different = [
            f"{name} was {before.get(name)!r} and is {settings.get(name)!r}"
            for name in {**before, **settings}
            if before.get(name) != settings.get(name)
        ]
        if different:
            raise StoreError(
                f"The results in {path.parent} were made with other settings: {'; '.join(different)}. Give the settings of then, "
                "or another directory."
            )


def _is_read_still(path: Path) -> bool:
    """Whether a file of rome_lens 0.1 has the name and form that it would have today, as key statistics do."""
    return path.name.startswith("keys-") and path.suffix == ".safetensors"
