"""Warnings that point to the caller's own line."""

import inspect
import traceback
import warnings

_PACKAGE = __name__.partition(".")[0]


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called into the package, however deep inside it the warning arises.

    Python shows the same message once for each such line. So a run over many facts shows a warning
    that they all share only once.
    """
    frames = enumerate(traceback.walk_stack(inspect.currentframe()), start=1)
    inside = [
        depth
        for depth, (frame, _) in frames
        if frame.f_globals["__name__"].partition(".")[0] == _PACKAGE
    ]
    warnings.warn(message, category, stacklevel=inside[-1] + 1)
