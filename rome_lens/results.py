"""What every result can do: print briefly, show itself in a notebook, be saved and loaded.

A file is in the safetensors format. Tensors are stored as tensors, and all other fields as JSON in
the header. The header also holds a checksum over all of this, so a file that was damaged on its way
is refused instead of read as another result.

Results do not import pictures. Instead, :mod:`rome_lens.viz.notebook` registers with
:func:`to_html` what a notebook shows for each type.
"""

import dataclasses
import functools
import hashlib
import html
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rome_lens.errors import RomeLensError
from rome_lens.field_checks import check_fields
from rome_lens.storage import (
    StorageError,
    as_path,
    file_errors,
    installed_versions,
    whole_or_nothing,
)

StoredType = TypeVar("StoredType", bound="Stored")
Plain = TypeVar("Plain", bound=type)
_LONGEST_TEXT = 60
# Each class with the names that its objects must have, and all names that they may have.
_PLAIN: dict[type, tuple[frozenset[str], frozenset[str]]] = {}
_OLD_HEADER = {"type", "fields", "versions"}  # of files without a checksum


@functools.singledispatch
def to_html(result: object) -> str:
    """HTML that shows a result in a notebook: its ``repr``, unless its type registers its own."""
    return f"<pre>{html.escape(repr(result))}</pre>"


def plain_value(cls: Plain) -> Plain:
    """Class decorator for a small frozen dataclass that results hold as a field, such as ``Fact``.

    A file stores such a value as a JSON object. When the file is read, the class is recognised by
    the names of its fields. Those that have a default may be missing, as they are in a file from
    before the field was there. They then have the default that is written at the field, which says
    what was true before.

    Raises:
        TypeError: an object could be of this class or of another one, because both may have the
            same names.
    """
    parameters = inspect.signature(cls).parameters.values()
    needed = frozenset(each.name for each in parameters if each.default is each.empty)
    names = frozenset(each.name for each in parameters)
    for other, (others_needed, others_names) in _PLAIN.items():
        if needed | others_needed <= names & others_names:
            raise TypeError(f"A file could not tell {cls.__name__} from {other.__name__}.")
    _PLAIN[cls] = needed, names
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
    """A result with ``save`` and ``load``, whose fields are checked when it is made.

    The file also names the versions of the packages that wrote it.

    Raises:
        ArgumentError: a field is not what its annotation says, tensors do not agree in shape, or a
            number is not finite. :func:`rome_lens.field_checks.check_fields` has the rules.
    """

    axes: ClassVar[Mapping[str, str]] = {}
    undefined: ClassVar[frozenset[str]] = frozenset()
    unbounded: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def file_label(cls) -> str:
        """The first word in the names of a store's files that hold results of this type."""
        return cls.__name__.lower()

    def save(self, path: str | Path, *, of: str = "") -> Path:
        """Write the result to ``path`` and return the path.

        The file appears only when it is complete. It replaces a file that was there before.

        Args:
            path: the path of the file. Directories are created as needed.
            of: what the result is of, in words or as a hash. ``load`` can be told to expect it.

        Raises:
            StorageError: the path is a directory, one of its parents is a file, or the system
                refuses to write; or a field holds what a file cannot.
            ArgumentError: a tensor was changed since the result was made, and is not finite now.
        """
        path = as_path(path)
        header, tensors = _contents(self, of)
        header["checksum"] = _checksum(header, tensors)
        with whole_or_nothing(path) as unfinished:
            try:
                save_file(tensors, unfinished, metadata=header)
            except SafetensorError as error:  # the kind of error is lost, what it says is not
                raise OSError(str(error)) from error
        return path

    @classmethod
    def load(cls: type[StoredType], path: str | Path, *, of: str | None = None) -> StoredType:
        """Read a result that ``save`` wrote, after checking that it is what was written.

        A file of version 0.1, or of an early 0.2.0.dev0, has no checksum and does not say what it
        is of. It is read all the same, and only its fields are checked. So a file whose checksum
        was taken out on purpose is not noticed: the checksum is there against accidents.

        Args:
            path: the path of the file.
            of: what the result must be of, as given to ``save``; None for anything.

        Raises:
            MissingFileError: there is no such file.
            StorageError: the file is damaged, holds another type of result, or is of something
                else; a field is not what it should be; the path is a directory; or the system
                refuses to read.
        """
        path = as_path(path)
        header, tensors = _read(path)
        if "type" not in header or "fields" not in header:
            raise StorageError(f"{path} holds 'something else', expected {cls.__name__!r}.")
        is_old = set(header) <= _OLD_HEADER
        if not is_old and header.pop("checksum", None) != _checksum(header, tensors):
            raise StorageError(
                f"{path} is damaged: its content does not have its checksum. Take a copy from "
                "before, or make the result again."
            )
        if header["type"] != cls.__name__:
            raise StorageError(
                f"{path} holds {header['type']!r}, expected {cls.__name__!r}: load it with the "
                "class that it is of."
            )
        if of is not None and not is_old and header.get("of") != of:
            raise StorageError(
                f"{path} is of {header.get('of') or 'nothing that it names'!r}, expected of {of!r}:"
                " the file has the name of another one."
            )
        return _from_file(cls, path, header, tensors)


def _contents(result: Stored, of: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a result's file.

    Raises:
        StorageError: a field holds what JSON cannot hold.
        ArgumentError: a field is not what it should be.
    """
    kind = type(result).__name__
    if not dataclasses.is_dataclass(result):
        raise StorageError(f"A {kind} cannot be saved: it is a base class and has no fields.")
    check_fields(result)
    tensors: dict[str, Tensor] = {}
    try:
        fields = json.dumps(_pack(result, tensors, ""))
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageError(
            f"The {kind} cannot be saved, because a field holds what a file cannot ({error}). "
            "Fields hold texts, numbers, truth values, None, and tuples and dicts of these."
        ) from error
    return {
        "type": kind,
        "fields": fields,
        "versions": json.dumps(installed_versions()),
        "of": of,
    }, tensors


def _checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything in a file: the header, and each tensor's name, type, shape and bytes.

    It costs about as much as writing the file: 0.3 s for the 270 MB of a second moment of width
    8192 in float32, twice that in float64. BLAKE2 takes longer on processors that have instructions
    for SHA, and a CRC of 32 bits does not suffice to tell many files apart.
    """
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a safetensors file.

    The tensors are copies, because safetensors maps the file into memory. The mapped values change
    with the file, and their alignment differs from that of new tensors, on which the last bit of a
    product depends.
    """
    with file_errors(path, "read"):
        if path.is_dir():
            raise StorageError(
                f"{path} is a directory, expected the path of a file that save wrote."
            )
        try:
            with safe_open(path, framework="pt") as file:
                # keys() is needed, because the file is not a mapping
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return file.metadata() or {}, tensors
        except SafetensorError as error:
            raise StorageError(f"{path} is not a complete safetensors file: {error}") from error


def _from_file(
    cls: type[StoredType], path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> StoredType:
    """The result that a file's header and tensors describe.

    Raises:
        StorageError: they describe no result of this class.
    """
    try:
        plain = json.loads(header["fields"])
        versions = json.loads(header.get("versions", "{}"))
        if "versions" in {field.name for field in dataclasses.fields(cls)}:  # type: ignore[arg-type]
            # an old file has no such field, but its header names the versions that wrote it
            plain.setdefault("versions", versions)
        return _build(cls, plain, tensors, "")
    except RomeLensError as error:
        raise StorageError(f"{path} does not hold a {cls.__name__}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{path} was written by another version of rome_lens, or by hand: {error!r}"
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
            plain[field.name] = _plain(value)
    return plain


def _plain(value: Any) -> Any:
    """A value with the small dataclasses in it as mappings, which JSON can hold."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return dataclasses.asdict(value) if type(value) in _PLAIN else value


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


def _defaults(cls: type) -> dict[str, Any]:
    """The defaults that are written at the fields of a dataclass."""
    fields = dataclasses.fields(cls)
    return {each.name: each.default for each in fields if each.default is not dataclasses.MISSING}


def _from_json(value: Any) -> Any:
    """What a field held before it was written as JSON.

    JSON has lists only, so every list becomes a tuple again. An object with the fields of a class
    that is marked with :func:`plain_value` becomes an instance of it.
    """
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    if isinstance(value, dict):
        fields = {name: _from_json(item) for name, item in value.items()}
        for cls, (needed, names) in _PLAIN.items():
            if needed <= set(fields) <= names:
                return cls(**{**_defaults(cls), **fields})
        return fields
    return value
