"""Results as files: one safetensors file each, tensors as tensors and everything else as JSON in its header."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rome_lens.facts import Fact

_VERSIONED = ("rome-lens", "torch", "transformer-lens", "transformers")
StoredType = TypeVar("StoredType", bound="Stored")


class StorageError(ValueError):
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


class Stored:
    """Gives a frozen dataclass ``save`` and ``load``; the file also names the versions that wrote it."""

    def save(self, path: str | Path) -> Path:
        """Write to ``path``; the file appears only when it is whole, and replaces one that was there."""
        path = Path(path)
        tensors: dict[str, Tensor] = {}
        plain = _packed(self, tensors, "")
        header = {
            "type": type(self).__name__,
            "fields": json.dumps(plain),
            "versions": json.dumps(installed_versions()),
        }
        with whole_or_nothing(path) as unfinished:
            save_file(tensors, unfinished, metadata=header)
        return path

    @classmethod
    def load(cls: type[StoredType], path: str | Path) -> StoredType:
        """Read what ``save`` wrote.

        Raises:
            StorageError: the file is truncated, or holds another kind of result; the path is a directory.
        """
        if Path(path).is_dir():
            raise StorageError(f"{path} is a directory, expected the path of a file that save wrote.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no mapping
        except SafetensorError as error:
            raise StorageError(f"{path} is not a whole safetensors file: {error}") from error
        if header.get("type") != cls.__name__ or "fields" not in header:
            raise StorageError(f"{path} holds {header.get('type', 'something else')!r}, expected {cls.__name__!r}.")
        plain = json.loads(header["fields"])
        if "versions" in {field.name for field in dataclasses.fields(cls)}:  # type: ignore[arg-type]
            plain.setdefault("versions", json.loads(header.get("versions", "{}")))  # an old file's: those that wrote it
        try:
            return _built(cls, plain, tensors, "")
        except (TypeError, KeyError) as error:
            raise StorageError(f"{path} was written by another version of rome_lens, or by hand: {error}") from error


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a number can depend on."""
    return {name: metadata.version(name) for name in _VERSIONED}


def _packed(result: Stored, tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """A result's fields as JSON can hold them; tensors go to ``tensors``, those of results within it under longer names."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(result):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(result, field.name)
        if isinstance(value, Tensor):
            tensors[name] = value.clone(memory_format=torch.contiguous_format)
        elif isinstance(value, tuple) and value and all(isinstance(item, Stored) for item in value):
            plain[field.name] = [
                {"type": type(item).__name__, "fields": _packed(item, tensors, f"{name}.{i}.")}
                for i, item in enumerate(value)
            ]
        else:
            plain[field.name] = dataclasses.asdict(value) if isinstance(value, Fact) else value
    return plain


def _built(cls: type[StoredType], plain: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> StoredType:
    """The result whose fields :func:`_packed` took apart."""
    fields: dict[str, Any] = {}
    for name, value in plain.items():
        if (
            isinstance(value, list)
            and value
            and all(isinstance(v, dict) and set(v) == {"type", "fields"} for v in value)
        ):
            types = _stored_types(Stored)
            inner = enumerate(value)
            fields[name] = tuple(
                _built(types[item["type"]], item["fields"], tensors, f"{prefix}{name}.{i}.") for i, item in inner
            )
        else:
            fields[name] = _restored(value)
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return cls(**fields, **{name: value for name, value in own.items() if "." not in name})


def _stored_types(base: type[Stored]) -> dict[str, type[Stored]]:
    found = {cls.__name__: cls for cls in base.__subclasses__()}
    for cls in base.__subclasses__():
        found |= _stored_types(cls)
    return found


def _restored(value: Any) -> Any:
    """JSON back into what results hold: tuples for lists, and facts."""
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    if isinstance(value, dict) and set(value) == {"prompt", "subject", "target", "new_target"}:
        return Fact(value.pop("prompt"), **value)
    if isinstance(value, dict):
        return {name: _restored(item) for name, item in value.items()}
    return value
