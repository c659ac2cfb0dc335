"""Arguments as Python's own numbers and lists, whichever library's they are: results hold them, and files know no others."""

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import SupportsIndex


def whole_number(name: str, value: SupportsIndex) -> int:
    """The value as an ``int``.

    Raises:
        ValueError: it is no whole number; a truth value is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} is {value!r}, expected a whole number.") from error


def real_number(name: str, value: object) -> float:
    """The value as a ``float``, which may be infinite.

    Raises:
        ValueError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise ValueError(f"{name} is {value!r}, expected a number.")
    return float(value)


def templates(contexts: Iterable[str]) -> tuple[str, ...]:
    """The contexts as a tuple, so that they can be read more than once.

    Raises:
        ValueError: they are one text, or no texts.
    """
    if isinstance(contexts, str):
        raise ValueError(f"contexts is the text {contexts!r}, expected a list of templates: write [{contexts!r}].")
    listed = tuple(contexts) if isinstance(contexts, Iterable) else (contexts,)
    if not all(isinstance(context, str) for context in listed):
        raise ValueError(f"contexts is {contexts!r}, expected a list of templates such as '{{}}' or 'It rained. {{}}'.")
    return listed


def whole_numbers(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """The values as Python's own numbers, whichever library's they are."""
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError as error:
        raise ValueError(f"{name} is {values!r}, expected whole numbers, such as range(4) or [0, 3].") from error
