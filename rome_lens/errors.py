"""The base class of the package's errors, and the errors that belong to no wing."""


class RomeLensError(ValueError):
    """The base class of every error that this package raises on purpose.

    It is a ``ValueError``. The message says what was given, what was expected, and what to do.
    """


class ArgumentError(RomeLensError):
    """An argument of the wrong kind, or with a value out of range."""


class UnknownNameError(RomeLensError, KeyError):
    """A name that a result does not hold. It is also a ``KeyError``, as for any mapping."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the message in quotation marks
