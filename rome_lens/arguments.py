"""Checks of arguments, each kind in one place.

Every check returns the argument as a plain Python value, whichever library's it was: results hold plain values, and files
know no others.
"""

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeVar, get_args

from rome_lens.errors import ArgumentError, RomeLensError

Chosen = TypeVar("Chosen", bound=str)
LARGEST_SEED = 2**63 - 1


def whole_number(
    name: str,
    value: object,
    *,
    least: int | None = None,
    most: int | None = None,
    error: type[RomeLensError] = ArgumentError,
) -> int:
    """The value as an ``int``. Integers of numpy and torch are taken; ``True``, ``2.0`` and ``"2"`` are not.

    Args:
        name: the argument's name, for the message.
        least, most: the bounds, both included; None for no bound.
        error: the error to raise.

    Raises:
        ArgumentError: the value is not a whole number, or is out of range.
    """
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as cause:
        raise error(
            f"{name} is {value!r}, expected a whole number{_bounds(least, most)}."
        ) from cause
    if (least is not None and number < least) or (most is not None and number > most):
        raise error(f"{name} is {number}, expected a whole number{_bounds(least, most)}.")
    return number


def real_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    most: float | None = None,
    finite: bool = False,
    error: type[RomeLensError] = ArgumentError,
) -> float:
    """The value as a ``float``, which may be infinite unless ``finite`` is set.

    Raises:
        ArgumentError: the value is not a number, is NaN, or is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise error(f"{name} is {value!r}, expected a number{_bounds(least, most)}.")
    number = float(value)
    outside = (least is not None and number < least) or (most is not None and number > most)
    if outside or (finite and math.isinf(number)):
        raise error(
            f"{name} is {value!r}, expected a {'finite ' if finite else ''}number{_bounds(least, most)}."
        )
    return number


def seed_number(name: str, value: object, *, error: type[RomeLensError] = ArgumentError) -> int:
    """The value as a seed for ``torch.Generator``: a whole number from 0 to 2^63 - 1.

    Raises:
        ArgumentError: it is not one.
    """
    return whole_number(name, value, least=0, most=LARGEST_SEED, error=error)


def whole_numbers(
    name: str, values: object, *, error: type[RomeLensError] = ArgumentError
) -> tuple[int, ...]:
    """The values as a tuple of ``int``, such as the layers ``range(4)`` or ``[0, 3]``.

    Raises:
        ArgumentError: they cannot be iterated, or one is not a whole number.
    """
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise error(f"{name} is {values!r}, expected whole numbers, such as range(4) or [0, 3].")
    try:
        return tuple(whole_number(name, value) for value in values)
    except ArgumentError as cause:
        raise error(
            f"{name} is {values!r}, expected whole numbers, such as range(4) or [0, 3]."
        ) from cause


def one_of(
    name: str, value: Any, options: Any, *, error: type[RomeLensError] = ArgumentError
) -> Any:
    """The value, if it is one of the options of a ``Literal`` type.

    Raises:
        ArgumentError: it is not; the message lists the options.
    """
    known = get_args(options)
    if not isinstance(value, str) or value not in known:
        raise error(f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}.")
    return value


def texts(
    name: str, values: object, *, error: type[RomeLensError] = ArgumentError
) -> tuple[str, ...]:
    """Several texts as a tuple.

    Raises:
        ArgumentError: there is a single text where several are expected, or an entry is not a text.
    """
    if isinstance(values, str):
        raise error(
            f"{name} is the single text {values!r}, expected a list of texts: write [{values!r}]."
        )
    if not isinstance(values, Iterable):
        raise error(f"{name} is {values!r}, expected a list of texts.")
    listed = tuple(values)
    if wrong := [value for value in listed if not isinstance(value, str)]:
        raise error(f"{name} holds {wrong[0]!r}, expected a list of texts.")
    return listed


def templates(contexts: object) -> tuple[str, ...]:
    """The contexts as a tuple, which can be read more than once.

    Raises:
        ArgumentError: they are one text, or not texts.
    """
    if isinstance(contexts, str):
        raise ArgumentError(
            f"contexts is the text {contexts!r}, expected a list of templates: write [{contexts!r}]."
        )
    listed = tuple(contexts) if isinstance(contexts, Iterable) else (contexts,)
    if not all(isinstance(context, str) for context in listed):
        raise ArgumentError(
            f"contexts is {contexts!r}, expected a list of templates such as '{{}}' or 'It rained. {{}}'."
        )
    return tuple(str(context) for context in listed)


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of at least {least}"
    return "" if most is None else f" of at most {most}"
