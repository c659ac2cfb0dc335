"""Checks of arguments, each kind in one place.

Every check returns its argument as a plain Python value, because results hold plain values and
files can store nothing else. Integers and floats of other libraries are converted.
"""

import math
import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, get_args

from rome_lens.errors import ArgumentError, RomeLensError

LARGEST = 2**63 - 1


def whole_number(
    name: str,
    value: object,
    *,
    least: int | None = None,
    most: int | None = None,
    error: type[RomeLensError] = ArgumentError,
) -> int:
    """The value as an ``int``.

    Integers of numpy and torch are accepted; ``True``, ``2.0`` and ``"2"`` are not.

    Args:
        name: the argument's name, for the message.
        least, most: the bounds, both inclusive; None for no bound but that of 64 bits.
        error: the class of error to raise.

    Raises:
        ArgumentError: the value is not a whole number, or is out of range.
    """
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")) in _BOOLEAN_TYPES:
            raise TypeError("a truth value")
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as cause:
        raise error(
            f"{name} is {value!r}, expected a whole number{_bounds(least, most)}."
        ) from cause
    if abs(number) > LARGEST:  # torch takes no larger one
        most = LARGEST if most is None else most
        least = -LARGEST if least is None else least
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
    """The value as a ``float``. It may be infinite unless ``finite`` is set, but not NaN.

    Raises:
        ArgumentError: the value is not a number, is NaN, or is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise error(f"{name} is {value!r}, expected a number{_bounds(least, most)}.")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of floats
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if math.isnan(number):
        raise error(f"{name} is {value!r}, expected a number{_bounds(least, most)}.")
    outside = (least is not None and number < least) or (most is not None and number > most)
    if outside or (finite and math.isinf(number)):
        kind = "finite number" if finite else "number"
        raise error(f"{name} is {value!r}, expected a {kind}{_bounds(least, most)}.")
    return number


def seed_number(name: str, value: object, *, error: type[RomeLensError] = ArgumentError) -> int:
    """The value as a seed for ``torch.Generator``: a whole number from 0 to 2^63 - 1.

    Raises:
        ArgumentError: the value is not such a number.
    """
    return whole_number(name, value, least=0, most=LARGEST, error=error)


def whole_numbers(
    name: str, values: object, *, error: type[RomeLensError] = ArgumentError
) -> tuple[int, ...]:
    """The values as a tuple of ``int``, such as the layers ``range(4)`` or ``[0, 3]``.

    Raises:
        ArgumentError: the values are not several, or one of them is not a whole number.
    """
    try:
        return tuple(whole_number(name, value) for value in _entries(values))
    except (ArgumentError, TypeError) as cause:
        raise error(
            f"{name} is {values!r}, expected whole numbers, such as range(4) or [0, 3]."
        ) from cause


def one_of(
    name: str, value: Any, options: Any, *, error: type[RomeLensError] = ArgumentError
) -> Any:
    """The value, if it is one of the options of a ``Literal`` type.

    Raises:
        ArgumentError: the value is not an option; the message lists the options.
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
        ArgumentError: ``values`` is a single text rather than several, or an entry is not a text.
    """
    if isinstance(values, str):
        raise error(
            f"{name} is the single text {values!r}, expected a list of texts: write [{values!r}]."
        )
    try:
        entries = tuple(_entries(values))
    except TypeError as cause:
        raise error(f"{name} is {values!r}, expected a list of texts.") from cause
    for entry in entries:
        if not isinstance(entry, str):
            raise error(f"{name} holds {entry!r}, expected a list of texts.")
        check_characters(f"A text of {name}", entry, error=error)
    return entries


def several(
    name: str, values: object, expected: str, *, error: type[RomeLensError] = ArgumentError
) -> list[Any]:
    """The values as a list. A text or a mapping is not several values.

    Args:
        expected: what the values should be, for the message.

    Raises:
        ArgumentError: ``values`` cannot be iterated, or is a text or a mapping.
    """
    try:
        if isinstance(values, Mapping):
            raise TypeError("a mapping")
        return list(_entries(values))
    except TypeError as cause:
        raise error(f"{name} is {str(values)[:120]!r}, expected {expected}.") from cause


def check_characters(what: str, text: str, *, error: type[RomeLensError] = ArgumentError) -> None:
    """Check that a text holds no half of a surrogate pair, which no tokenizer and no file takes.

    Such halves come from JSON with a lone ``\\ud83d``, and from bytes that are not UTF-8.

    Args:
        what: what the text is, for the message, such as ``"The prompt"``.
        error: the class of error to raise.

    Raises:
        ArgumentError: the text cannot be encoded as UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise error(
            f"{what} is {text!r}, which holds half of a character ({text[cause.start]!r}, a lone "
            "surrogate). Repair the text, or remove it: text.encode('utf-8', 'ignore').decode()."
        ) from cause


def text_pairs(
    name: str, values: object, *, error: type[RomeLensError] = ArgumentError
) -> tuple[tuple[str, str], ...]:
    """Several pairs of texts as a tuple, such as prompts with their answers.

    Raises:
        ArgumentError: the values are not several, or an entry is not a pair of texts. A text of two
            letters is not a pair.
    """
    expected = "expected a list of pairs of texts, such as [('The sky is', 'blue')]"
    try:
        entries = [tuple(_entries(entry)) for entry in _entries(values)]
    except TypeError as cause:
        raise error(f"{name} is {values!r}, {expected}.") from cause
    for entry in entries:
        if len(entry) != 2 or not all(isinstance(text, str) for text in entry):
            raise error(f"{name} holds {entry!r}, {expected}.")
    return tuple(entries)


def templates(contexts: object) -> tuple[str, ...]:
    """The contexts of a prompt, such as ``"{}"`` or ``"It rained. {}"``, as a tuple.

    Raises:
        ArgumentError: ``contexts`` is a single text rather than several, or an entry is not a text.
    """
    if isinstance(contexts, str):
        raise ArgumentError(
            f"contexts is the text {contexts!r}, expected a list of templates: write "
            f"[{contexts!r}]."
        )
    try:
        entries = tuple(_entries(contexts))
    except TypeError:
        entries = (contexts,)
    if not all(isinstance(entry, str) for entry in entries):
        raise ArgumentError(
            f"contexts is {contexts!r}, expected a list of templates such as '{{}}' or "
            "'It rained. {}'."
        )
    return entries


_BOOLEAN_TYPES = ("bool", "torch.bool")  # torch lets a truth value pass as an index


def _entries(values: Any) -> Iterable[Any]:
    """An iterator over several values; a single text is not several.

    Raises:
        TypeError: the values cannot be iterated, as a tensor or an array without axes.
    """
    if isinstance(values, str | bytes):
        raise TypeError("a text")
    return iter(values)


def _bounds(least: float | int | None, most: float | int | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of at least {least}"
    return "" if most is None else f" of at most {most}"
