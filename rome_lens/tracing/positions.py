"""A position in a prompt, by name or by number."""

from typing import Literal, get_args

from rome_lens.arguments import whole_number
from rome_lens.errors import ArgumentError

NamedPosition = Literal["subject_first", "subject_last", "last"]
Position = NamedPosition | int
"""A position in a prompt: by name, or by number. Negative numbers count from the end."""


def position_of(at: Position, subject: tuple[int, int], length: int) -> int:
    """The number of a position, counted from the start.

    Args:
        at: ``"subject_first"``, ``"subject_last"``, ``"last"``, or a number. Negative numbers count
            from the end.
        subject: the half-open span of the subject's tokens.
        length: the number of the prompt's tokens.

    Raises:
        ArgumentError: the name is unknown; the number is not a whole number, or is outside the
            prompt.
    """
    named = {"subject_first": subject[0], "subject_last": subject[1] - 1, "last": length - 1}
    if isinstance(at, str) and at not in named:
        known = ", ".join(map(repr, get_args(NamedPosition)))
        raise ArgumentError(f"at is {at!r}, expected one of {known}, a number, or None.")
    pos = named[at] if isinstance(at, str) else whole_number("at", at)
    if not -length <= pos < length:
        raise ArgumentError(
            f"Position {pos} is outside the prompt, which has {length} tokens (0 to {length - 1})."
        )
    return pos % length
