"""The door that every public function with a model goes through.

It checks the model argument, lets one thread at a time to the model, and sees to it that the call
leaves nothing behind. ``visits.py`` explains how.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rome_lens.models.model_argument import checked_model
from rome_lens.models.visits import Visit, is_visited

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def visits_model(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function with an argument ``model``, made safe to call from outside.

    Each call checks the model. If it is not an inner call of another such function, it waits until
    no other thread uses the model, and afterwards leaves hooks, weights and flags as they were,
    also after Ctrl-C.

    Raises:
        ModelError: the model is not a HookedTransformer or TransformerBridge.
    """
    place = list(inspect.signature(function).parameters).index("model")

    @functools.wraps(function)
    def visit(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if len(args) <= place and "model" not in kwargs:
            return function(*args, **kwargs)  # Python itself says that the argument is missing
        model = kwargs["model"] if "model" in kwargs else args[place]
        if is_visited(model):
            return function(*args, **kwargs)
        this = Visit(checked_model(model), sys._getframe())
        # One interrupt can strike only once: in the function, or in one of the two endings.
        try:
            try:
                this.begin()
                return function(*args, **kwargs)
            finally:
                this.end()
        finally:
            this.end()

    return visit
