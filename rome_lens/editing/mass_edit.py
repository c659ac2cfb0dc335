"""The edit of MEMIT, EMMET and AlphaEdit: many facts in the weights of one layer or several."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import several
from rome_lens.data.facts import Fact
from rome_lens.editing.config import Stopped
from rome_lens.editing.edit import Edit, LayerEdit
from rome_lens.editing.mass_config import Method
from rome_lens.editing.weight_edit import WeightEdit
from rome_lens.errors import ArgumentError
from rome_lens.storage import installed_versions


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MassEdit(Edit):
    """``W_out + dW`` at one layer or more, which writes many facts together.

    It can do what every edit can: ``applied``, ``apply`` and ``revert``, ``fwd_hooks``,
    ``row_hooks``, ``state_dict``, ``save`` and ``load``, :func:`export_hf`. Facts are in the order
    in which they were given. If they were edited in batches, those follow each other.

    Raises:
        ArgumentError: the numbers of edits, layers, batches and facts do not agree.
    """

    axes: ClassVar[Mapping[str, str]] = {"fact": "facts", "layer": "layers", "batch": "batches"}
    undefined: ClassVar[frozenset[str]] = frozenset({"losses"})

    edits: tuple[WeightEdit, ...]
    """``dW`` of each layer, the sum over all batches."""
    facts: tuple[Fact, ...]
    """What was edited."""
    layers: tuple[int, ...]
    """The edited layers, from the lowest on."""
    batches: tuple[int, ...]
    """The number of facts in each batch."""
    method: Method
    """The method."""
    keys: Float[Tensor, "layer fact d_mlp"]
    """The mean key of each fact, on the model with the lower layers and earlier batches edited."""
    residuals: Float[Tensor, "layer fact d_model"]
    """The change of the last layer's block output that each layer was given to make."""
    starts: Float[Tensor, "fact d_model"]
    """The last layer's block output for each bare prompt, before the edit of its batch."""
    values: Float[Tensor, "fact d_model"]
    """What the optimisation wants it to be: ``z = h + delta``."""
    losses: Float[Tensor, "fact step 3"]
    """Negative log likelihood, weighted KL and weight decay at each step of each optimisation.

    NaN after its last step.
    """
    probabilities: Float[Tensor, " fact"]
    """Each new target's probability at the end of its optimisation (see :class:`RankOneEdit`)."""
    stopped: tuple[Stopped, ...]
    """What ended each optimisation."""
    missed: Float[Tensor, " fact"]
    """How far the edit misses each value, ``||z - h after|| / ||z - h||``, for the bare prompt.

    ``h after`` is the block's output when the batch has been written. At 0 the edit does what the
    optimisation wants. At 1 it is as far from it as the unedited model. 0 if ``z = h``.
    """
    conditions: Float[Tensor, "batch layer"]
    """The condition number of each matrix that was inverted, which has a row for each fact."""
    ranks: tuple[int, ...]
    """The dimension of the space of keys in which each layer's update acts.

    It is ``d_mlp`` for MEMIT and EMMET. For AlphaEdit it is the rank of the null space.
    """
    threshold: float | None = None
    """AlphaEdit's threshold for eigenvalues of ``C``."""
    kept_keys: Float[Tensor, "layer kept d_mlp"] | None = None
    """AlphaEdit's keys that later batches keep, of this edit's facts and of earlier ones."""
    model_fingerprint: str | None = None
    """The fingerprint of the model on which the edit was made. None is not checked."""
    config: Mapping[str, Any] | None = None
    """The hyperparameters, as the fields of the method's config."""
    contexts: tuple[str, ...] = ()
    """The templates around the prompts."""
    statistics: tuple[str, ...] = ()
    """The source of each layer's key statistics, in words."""
    prepend_bos: bool | None = None
    """Whether the prompts started with a BOS token."""
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    """Versions of the packages that made the edit."""

    def __post_init__(self) -> None:
        edits = several("edits", self.edits, "the edit of each layer")
        object.__setattr__(self, "edits", tuple(edits))
        super().__post_init__()
        layers = [edit.layer for edit in self.edits]
        if layers != list(self.layers) or sum(self.batches) != len(self.facts):
            raise ArgumentError(
                f"The edits are of the layers {layers}, the batches have {self.batches} facts and "
                f"there are {len(self.facts)} facts, expected an edit for each of the layers "
                f"{self.layers}, and as many facts as in all batches."
            )

    def __repr__(self) -> str:
        what = f"{len(self.facts)} facts"
        if self.fact is not None:
            what = f"{self.fact.text!r} -> {self.fact.new_target!r}"
        return f"MassEdit({self.method}, {what}, layers={list(self.layers)})"

    @property
    def parts(self) -> tuple[LayerEdit, ...]:
        return self.edits

    @property
    def fact(self) -> Fact | None:
        """The fact, if there is only one."""
        return self.facts[0] if len(self.facts) == 1 else None

    def delta(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What the edit adds to ``W_out`` of one of its layers.

        Raises:
            ArgumentError: the edit does not change this layer.
        """
        if layer not in self.layers:
            raise ArgumentError(f"layer is {layer}, expected one of {list(self.layers)}.")
        return self.edits[self.layers.index(layer)].delta

    def to_frame(self) -> pd.DataFrame:
        """One row for each fact: its optimisation, and how far the edit misses its value."""
        batch = [number for number, size in enumerate(self.batches) for _ in range(size)]
        last = [losses[~losses.isnan().any(-1)][-1] for losses in self.losses]
        return pd.DataFrame(
            {
                "prompt": [fact.text for fact in self.facts],
                "new_target": [fact.new_target for fact in self.facts],
                "variant": self.method,
                "batch": batch,
                "change": (self.values - self.starts).norm(dim=-1).tolist(),
                "missed": self.missed.tolist(),
                "probability": self.probabilities.tolist(),
                "loss": [float(each.sum()) for each in last],
                "stopped": self.stopped,
            }
        )
