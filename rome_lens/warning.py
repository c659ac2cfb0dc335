"""Warnings that point to the caller's own line."""

import inspect
import traceback
import warnings

_PACKAGE = __name__.partition(".")[0]


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called into the package, however many of its calls lie between.

    Python shows a message once for each such line: one that is the same for all facts, once for a run over many of them.
    """
    frames = enumerate(traceback.walk_stack(inspect.currentframe()), start=1)
    inside = [
        depth
        for depth, (frame, _) in frames
        if frame.f_globals["__name__"].partition(".")[0] == _PACKAGE
    ]
    warnings.warn(message, category, stacklevel=inside[-1] + 1)
