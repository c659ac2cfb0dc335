"""Checks of the package's annotations while the tests run, as cheap as each function allows.

``--jaxtyping-packages`` puts ``jaxtyping.jaxtyped`` above every function of the package. For every
call, it binds the arguments and opens a scope in which the names of axes are compared. That takes
longer than most of the functions themselves, and few of them name an axis. So the other functions
get beartype alone, which checks the same annotations. A function inside a function is decorated
again in every call of the outer one. It is checked only if it names an axis.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_jaxtyped = jaxtyping.jaxtyped
# As jaxtyping's own error. The reading of files takes a TypeError for what a file must not hold.
_checks = beartype(conf=BeartypeConf(violation_type=TypeError))
# beartype looks at a generator's arguments when it begins to run, which may be in another scope.
_whole = _jaxtyped(typechecker=_checks)


def names_axes(annotation: Any) -> bool:
    """Whether an array with axes occurs in an annotation. Text that is not evaluated counts."""
    if isinstance(annotation, str) or (
        inspect.isclass(annotation) and issubclass(annotation, AbstractArray)
    ):
        return True
    return any(map(names_axes, get_args(annotation)))


def checked(decorated: Any = None, **_typechecker: Any) -> Any:
    """What takes the place of ``jaxtyping.jaxtyped``."""
    if decorated is None:
        return checked
    if inspect.isclass(decorated):
        if dataclasses.is_dataclass(decorated) and "__init__" in vars(decorated):
            decorated.__init__ = checked(decorated.__init__)
        return decorated
    axes = any(map(names_axes, decorated.__annotations__.values()))
    if "<locals>" in decorated.__qualname__ and not axes:
        return decorated
    is_generator = inspect.isgeneratorfunction(decorated)
    checks: list[Callable[..., Any]] = []  # made in the first call, for many functions get none

    @functools.wraps(decorated)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return decorated(*args, **kwargs)
        if not checks:
            checks.append(_whole(decorated) if is_generator and axes else _checks(decorated))
        if not axes:
            return checks[0](*args, **kwargs)
        with _jaxtyped("context"):  # in which an axis has one length
            return checks[0](*args, **kwargs)

    return call


jaxtyping.jaxtyped = checked
