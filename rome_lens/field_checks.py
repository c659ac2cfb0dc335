"""Checks of a result's fields: what their annotations say, and that numbers are numbers.

The annotations already state what a field holds, such as ``Float[Tensor, "layer pos"]`` or
``tuple[int, ...]``. In the tests, jaxtyping and beartype enforce them. Users have neither, and a
file can hold anything, so :func:`check_fields` enforces them for every result that is made or
loaded. It also refuses NaN, infinite values, and axes that do not agree with each other.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from rome_lens.arguments import real_number, whole_number
from rome_lens.errors import ArgumentError

# Layers, positions, ranks and counts. A number with a meaning below 0 has another annotation.
_COUNTS = (int, int | None, tuple[int, ...], tuple[int, int])
_ANYTHING = (Any, object)


def check_fields(result: Any) -> None:
    """Check every field of a result, which is a dataclass, and make tuples of its lists.

    The result's class may state three things about its fields:

    * ``axes``: the field that says how long an axis is, such as ``{"layer": "layers"}``. An axis
      that begins with ``*`` is missing if that field is empty.
    * ``undefined``: the fields whose numbers may be NaN, such as a score that was not asked for.
    * ``unbounded``: the fields whose numbers may be infinite, such as a logarithm.

    Raises:
        ArgumentError: a field has another type or another number of axes than its annotation says;
            an axis is not as long as in another field; a number is NaN or infinite; or a layer,
            position or count is negative.
    """
    cls, sizes = type(result), dict[str, tuple[tuple[int, ...], str]]()
    tensors = []
    for name, annotation in _annotations(cls).items():  # type: ignore[arg-type]
        place, before = f"{cls.__name__}.{name}", getattr(result, name)
        value = _checked(place, before, annotation, least=0 if annotation in _COUNTS else None)
        if value is not before:
            object.__setattr__(result, name, value)
        _check_finite(place, value, nan=name in cls.undefined, infinite=name in cls.unbounded)
        if isinstance(value, Tensor):
            tensors.append((place, value, _axes_of(annotation)))
    for axis, name in cls.axes.items():
        length = len(getattr(result, name))
        sizes[axis] = ((length,) if length or axis[0] != "*" else (), f"{cls.__name__}.{name}")
    for place, tensor, axes in tensors:
        _check_axes(place, tuple(tensor.shape), axes, sizes)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _axes_of(annotation: Any) -> list[str]:
    """The names of the axes in a tensor's annotation, which may also allow None."""
    options = [each for each in (annotation, *get_args(annotation)) if hasattr(each, "dim_str")]
    return str(options[0].dim_str).split() if options else ["*"]


def _checked(place: str, value: Any, annotation: Any, *, least: int | None = None) -> Any:
    """The value if it is what the annotation says, with tuples in the place of lists."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _ANYTHING:
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(place, value, annotation, inner, least)
    if origin is Literal:
        if any(value == each and type(value) is type(each) for each in inner):
            return value
        raise _unexpected(place, value, f"one of {', '.join(map(repr, inner))}")
    if origin is tuple:
        return _checked_tuple(place, value, annotation, inner, least)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _unexpected(place, value, "a mapping")
        for key, each in value.items():
            _checked(f"a key of {place}", key, inner[0])
            _checked(f"{place}[{key!r}]", each, inner[1])
        return value
    if annotation is int:
        return whole_number(place, value, least=least)
    if annotation is float:
        if isinstance(value, float):
            return value
        is_nan = isinstance(value, Real) and value != value
        number = math.nan if is_nan else real_number(place, value)
        return value if isinstance(value, int) and math.isfinite(number) else number
    if hasattr(annotation, "dim_str"):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
        raise _unexpected(place, value, f"a tensor of floats [{annotation.dim_str.strip()}]")
    if not isinstance(value, annotation):
        raise _unexpected(place, value, f"a {annotation.__name__}")
    return value


def _first_that_fits(
    place: str, value: Any, annotation: Any, options: tuple[Any, ...], least: int | None
) -> Any:
    if value is None and types.NoneType in options:
        return None
    errors = []
    for option in (each for each in options if each is not types.NoneType):
        try:
            return _checked(place, value, option, least=least)
        except ArgumentError as error:
            errors.append(error)
    raise errors[0] if len(errors) == 1 else _unexpected(place, value, str(annotation))


def _checked_tuple(
    place: str, value: Any, annotation: Any, inner: tuple[Any, ...], least: int | None
) -> Any:
    if not isinstance(value, tuple | list):
        raise _unexpected(place, value, "a tuple")
    kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
    if len(kinds) != len(value):
        raise _unexpected(place, value, f"{len(kinds)} entries")
    entries = [
        _checked(f"{place}[{i}]", each, kind, least=least)
        for i, (each, kind) in enumerate(zip(value, kinds, strict=True))
    ]
    unchanged = isinstance(value, tuple) and all(map(lambda a, b: a is b, entries, value))
    return value if unchanged else tuple(entries)


def _check_finite(place: str, value: Any, *, nan: bool, infinite: bool) -> None:
    """Refuse NaN and infinite numbers, alone, in a tuple, or in a tensor, unless they may be."""
    if isinstance(value, tuple):
        for i, each in enumerate(value):
            if isinstance(each, float | tuple):
                _check_finite(f"{place}[{i}]", each, nan=nan, infinite=infinite)
    elif isinstance(value, float):
        if (math.isnan(value) and not nan) or (math.isinf(value) and not infinite):
            raise _unexpected(place, value, "a finite number")
    elif isinstance(value, Tensor) and value.numel() and not (nan and infinite):
        # One pass without a copy. Both ends are NaN if any entry is.
        if all(math.isfinite(end) for end in map(float, torch.aminmax(value.detach()))):
            return
        wrong = ~torch.isfinite(value)
        if nan:
            wrong &= ~torch.isnan(value)
        if infinite:
            wrong &= ~torch.isinf(value)
        if wrong.any():
            first = wrong.nonzero()[0].tolist()
            raise ArgumentError(
                f"The entries of {place} contain NaN or infinity, first at {first} "
                f"({int(wrong.sum())} of {value.numel()} entries), expected finite numbers. A "
                "model that overflows, as in float16, gives others."
            )


def _check_axes(place: str, shape: tuple[int, ...], axes: list[str], sizes: dict[str, Any]) -> None:
    """Compare a tensor's shape with its axes, whose sizes so far are in ``sizes``.

    Sizes that are new are added, each with the field that it comes from.
    """
    several = [i for i, axis in enumerate(axes) if axis[0] == "*"]
    if several:  # one axis may stand for any number of them
        before, after = several[0], len(axes) - several[0] - 1
        ends = len(shape) - after
        lengths = [(each,) for each in shape[:before]] + [shape[before:ends]]
        lengths += [(each,) for each in shape[ends:]]
        fits = ends >= before
    else:
        lengths, fits = [(each,) for each in shape], len(shape) == len(axes)
    if not fits:
        raise _wrong_shape(place, shape, axes, "")
    for axis, length in zip(axes, lengths, strict=True):
        if axis.isdigit():
            known, source = (int(axis),), ""
        else:
            known, field = sizes.setdefault(axis, (length, place))
            source = f" with {axis} = {', '.join(map(str, known))} as in {field}"
        if length != known:
            raise _wrong_shape(place, shape, axes, source)


def _wrong_shape(place: str, shape: tuple[int, ...], axes: list[str], source: str) -> ArgumentError:
    return ArgumentError(f"{place} has shape {list(shape)}, expected [{' '.join(axes)}]{source}.")


def _unexpected(place: str, value: Any, expected: str) -> ArgumentError:
    what = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:200]
    return ArgumentError(f"{place} is {what}, expected {expected}.")
