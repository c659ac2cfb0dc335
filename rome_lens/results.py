"""What every result can do: print briefly, show itself in a notebook, be saved and loaded.

A file is in the safetensors format. Tensors are stored as tensors, and all other fields as JSON in
the header.

Results do not import pictures. Instead, :mod:`rome_lens.viz.notebook` registers with
:func:`to_html` what a notebook shows for each type.
"""

import dataclasses
import functools
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rome_lens.storage import StorageError, installed_versions, whole_or_nothing

StoredType = TypeVar("StoredType", bound="Stored")
Plain = TypeVar("Plain", bound=type)
_LONGEST_TEXT = 60
_PLAIN: dict[frozenset[str], type] = {}


@functools.singledispatch
def to_html(result: object) -> str:
    """HTML that shows a result in a notebook: its ``repr``, unless its type registers its own."""
    return f"<pre>{html.escape(repr(result))}</pre>"


def plain_value(cls: Plain) -> Plain:
    """Class decorator for a small frozen dataclass that results hold as a field, such as ``Fact``.

    A file stores such a value as a JSON object. When the file is read, the class is recognised by
    the names of its fields.
    """
    _PLAIN[frozenset(field.name for field in dataclasses.fields(cls))] = cls
    return cls


class Result:
    """The base class of every result.

    It gives a ``repr`` of a few lines, and a picture or table in a notebook.
    """

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        brief = ", ".join(f"{field.name}={_brief(getattr(self, field.name))}" for field in fields)
        return f"{type(self).__name__}({brief})"

    def _repr_html_(self) -> str:
        return to_html(self)


def _brief(value: Any) -> str:
    """A field's value in a few words: a tensor's or collection's size, a long text's beginning."""
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, tuple | list | dict | set) and len(value) > 3:
        return f"<{len(value)} entries>"
    if isinstance(value, tuple) and value:
        return f"({', '.join(map(_brief, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_brief(each)}' for key, each in value.items())}}}"
    if isinstance(value, Result):
        return f"<{type(value).__name__}>"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = repr(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


class Stored(Result):
    """A result with ``save`` and ``load``.

    The file also names the versions of the packages that wrote it.
    """

    @classmethod
    def file_label(cls) -> str:
        """The first word in the names of a store's files that hold results of this type."""
        return cls.__name__.lower()

    def save(self, path: str | Path) -> Path:
        """Write the result to ``path`` and return the path.

        The file appears only when it is complete. It replaces a file that was there before.

        Raises:
            StorageError: the path is a directory, or one of its parents is a file.
        """
        path = Path(path)
        tensors: dict[str, Tensor] = {}
        plain = _pack(self, tensors, "")
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
        """Read a result that ``save`` wrote.

        Raises:
            StorageError: the file is damaged, or holds another type of result; the path is a
                directory.
        """
        if Path(path).is_dir():
            raise StorageError(
                f"{path} is a directory, expected the path of a file that save wrote."
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                # keys() is needed, because the file is not a mapping
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise StorageError(f"{path} is not a complete safetensors file: {error}") from error
        if header.get("type") != cls.__name__ or "fields" not in header:
            raise StorageError(
                f"{path} holds {header.get('type', 'something else')!r}, expected {cls.__name__!r}."
            )
        try:
            plain = json.loads(header["fields"])
            if "versions" in {field.name for field in dataclasses.fields(cls)}:  # type: ignore[arg-type]
                # an old file has no such field, but its header names the versions that wrote it
                plain.setdefault("versions", json.loads(header.get("versions", "{}")))
            return _build(cls, plain, tensors, "")
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise StorageError(
                f"{path} was written by another version of rome_lens, or by hand: {error}"
            ) from error


def _pack(result: Stored, tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """The fields of a result as JSON can hold them.

    Its tensors are added to ``tensors``. Those of a result inside it have a longer name, which
    says where that result stands.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(result):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(result, field.name)
        if isinstance(value, Tensor):
            tensors[name] = value.clone(memory_format=torch.contiguous_format)
        elif isinstance(value, tuple) and value and all(isinstance(item, Stored) for item in value):
            plain[field.name] = [
                {"type": type(item).__name__, "fields": _pack(item, tensors, f"{name}.{i}.")}
                for i, item in enumerate(value)
            ]
        else:
            plain[field.name] = (
                dataclasses.asdict(value) if type(value) in _PLAIN.values() else value
            )
    return plain


def _build(
    cls: type[StoredType], plain: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str
) -> StoredType:
    """The result whose fields :func:`_pack` took apart."""
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
                _build(types[item["type"]], item["fields"], tensors, f"{prefix}{name}.{i}.")
                for i, item in inner
            )
        else:
            fields[name] = _from_json(value)
    own = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    return cls(**fields, **{name: value for name, value in own.items() if "." not in name})


def _stored_types(base: type[Stored]) -> dict[str, type[Stored]]:
    """Every type of result below ``base``, by its name."""
    types = {cls.__name__: cls for cls in base.__subclasses__()}
    for cls in base.__subclasses__():
        types |= _stored_types(cls)
    return types


def _from_json(value: Any) -> Any:
    """What a field held before it was written as JSON.

    JSON has lists only, so every list becomes a tuple again. An object with the fields of a class
    that is marked with :func:`plain_value` becomes an instance of it.
    """
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    if isinstance(value, dict) and (cls := _PLAIN.get(frozenset(value))) is not None:
        return cls(**{name: _from_json(item) for name, item in value.items()})
    if isinstance(value, dict):
        return {name: _from_json(item) for name, item in value.items()}
    return value
