"""A dense edit, such as fine-tuning leaves: it acts on every key ``k``, by ``k delta``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.editing.config import Stopped
from rome_lens.editing.edit import LayerEdit
from rome_lens.storage import installed_versions


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WeightEdit(LayerEdit):
    """``W_out + delta`` with any ``delta``: the layer's MLP adds ``k delta`` to its output."""

    layer: int
    """The edited layer."""
    delta: Float[Tensor, "d_mlp d_model"]
    """What is added to ``W_out``, in TransformerLens' orientation."""
    fact: Fact | None = None
    """What was edited, if the edit was made from a fact."""
    model_fingerprint: str | None = None
    """The fingerprint of the model on which the edit was made. None is not checked."""
    losses: Float[Tensor, " step"] | None = None
    """The loss at each step, if there were steps."""
    made_with: str = ""
    """How the edit was made, in words."""
    variant: str | None = None
    """The name of the method."""
    config: Mapping[str, Any] | None = None
    """The hyperparameters of the method."""
    stopped: Stopped | None = None
    """What ended the optimisation."""
    prepend_bos: bool | None = None
    """Whether the prompts started with a BOS token. None where that is not known."""
    alignment: float | None = None
    """``<W_out, delta> / ||delta||^2`` in the weights on which the edit was made, without other
    applied edits. It tells later whether weights carry the edit. None in a file of an older version
    or for an edit made by hand."""
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    """Versions of the packages that made the edit."""

    def __repr__(self) -> str:
        what = "" if self.fact is None else f"{self.fact.text!r} -> {self.fact.new_target!r}, "
        return f"WeightEdit({what}layer={self.layer}, shape={tuple(self.delta.shape)})"
