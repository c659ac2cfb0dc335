"""Results as files: one safetensors file each, tensors as tensors and everything else as JSON in its header."""

import dataclasses
import json
import os
from collections.abc import Iterator
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
    """A file that does not hold what it was opened for."""


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name ``path`` when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")
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
        tensors, plain = {}, {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value.clone(memory_format=torch.contiguous_format)
            else:
                plain[field.name] = dataclasses.asdict(value) if isinstance(value, Fact) else value
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
            StorageError: the file is truncated, or holds another kind of result.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no mapping
        except SafetensorError as error:
            raise StorageError(f"{path} is not a whole safetensors file: {error}") from error
        if header.get("type") != cls.__name__ or "fields" not in header:
            raise StorageError(f"{path} holds {header.get('type', 'something else')!r}, expected {cls.__name__!r}.")
        plain = {name: _restored(value) for name, value in json.loads(header["fields"]).items()}
        try:
            return cls(**plain, **tensors)
        except TypeError as error:
            raise StorageError(f"{path} was written by another version of rome_lens, or by hand: {error}") from error


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a number can depend on."""
    return {name: metadata.version(name) for name in _VERSIONED}


def _restored(value: Any) -> Any:
    """JSON back into what results hold: tuples for lists, and facts."""
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    if isinstance(value, dict) and set(value) == {"prompt", "subject", "target", "new_target"}:
        return Fact(value.pop("prompt"), **value)
    return value
