"""Where a worker gets its model from: a few words that can be sent to another process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from rome_lens.models.lens import LensModel, ModelError
from rome_lens.models.loading import ModelClass, load_model
from rome_lens.models.model_argument import checked_model


@runtime_checkable
class Source(Protocol):
    """What can load a model, or has it."""

    def load(self) -> LensModel:
        """The model."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The arguments of :func:`rome_lens.load_model`, with which each worker loads the model."""

    name: str | Path
    """A name or a directory."""
    model_class: ModelClass | None = None
    """The class of TransformerLens. None takes the default of ``load_model``."""
    device: str = "cpu"
    """The device."""

    def load(self) -> LensModel:
        """The model."""
        return load_model(self.name, model_class=self.model_class, device=self.device)

    def __str__(self) -> str:
        return str(self.name)


@dataclass(frozen=True)
class _Function:
    """A function that loads a model."""

    function: Callable[[], LensModel]

    def load(self) -> LensModel:
        return checked_model(self.function())

    def __str__(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that is loaded already. Other processes load theirs again, if there is a source."""

    model: LensModel
    """The model."""
    again: ModelSource | None = None
    """Where other processes load it from."""

    def load(self) -> LensModel:
        """The model."""
        return self.model

    def __str__(self) -> str:
        # The model's own name may be that of a temporary directory, another one in each process.
        return str(self.again or f"a loaded {type(self.model).__name__}")

    def __reduce__(self) -> Any:
        if self.again is None:
            raise ModelError(
                "A model that is loaded already cannot be sent to another process, because each "
                "would get a copy of the weights. Give its name, a ModelSource, or a function of a "
                "module that loads it."
            )
        return _same, (self.again,)


def _same(source: ModelSource) -> ModelSource:
    return source


def as_source(model: Any) -> Source:
    """A source for a model's name, for a function that loads it, or for the model itself.

    Raises:
        ModelError: it is none of these.
    """
    if isinstance(model, ModelSource | Loaded):
        return model
    if isinstance(model, str | Path):
        return ModelSource(name=model)
    if isinstance(model, torch.nn.Module):
        return Loaded(checked_model(model))
    if callable(model) and not isinstance(model, type) and hasattr(model, "__qualname__"):
        return _Function(model)
    raise ModelError(
        f"The source of the model is {str(model)[:120]!r}, a {type(model).__name__}, expected a "
        "name for load_model, a ModelSource, a function that loads a model, or a loaded model."
    )
