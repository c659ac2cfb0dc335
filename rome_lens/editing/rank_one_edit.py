"""A rank-one edit: it adds ``(u . k) v`` to the MLP's output wherever a key ``k`` meets ``u``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.editing.config import Stopped, Variant
from rome_lens.editing.edit import LayerEdit
from rome_lens.models import apply_and_revert
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, raw_output
from rome_lens.storage import installed_versions

# How far from ``v*`` the weights may map ``k*``, in parts of what the edit changed there: along
# ``v`` if they have moved along ``delta`` too, and in all directions if they have not.
_NEAR, _EXACT = 0.2, 1e-2


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RankOneEdit(LayerEdit):
    """``W_out + u v^T``: the layer's MLP adds ``(u . k) v`` to its output at every key ``k``.

    Example:
        >>> import rome_lens as rl
        >>> import torch
        >>> model = rl.load_model("toy")
        >>> fact = rl.data.records(known_by="toy")[0].fact
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, fact, layer=2, statistics=identity, contexts=["{}"])
        >>> tokens = model.to_tokens(fact.text)

        The edit is in the weights inside the block, and gone afterwards:

        >>> with edit.applied(model):
        ...     logits = model(tokens)
        >>> edit.is_applied(model)
        False

        As hooks, the edit gives the same logits and leaves the weights alone:

        >>> hooked = model.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks(model))
        >>> torch.allclose(logits, hooked, rtol=1e-3, atol=1e-3)
        True

        Or it stays in the weights until it is reverted:

        >>> edit.apply(model)
        >>> rl.applied_edits(model) == (edit,)
        True
        >>> edit.revert(model)
    """

    layer: int
    """The edited layer."""
    u: Float[Tensor, " d_mlp"]
    """The left vector, in TransformerLens' orientation ``W_out [d_mlp, d_model]``."""
    v: Float[Tensor, " d_model"]
    """The right vector."""
    key: Float[Tensor, " d_mlp"] | None = None
    """``k*``. The edited weights map it to ``v*``: ``k* W_out + b_out = v*``."""
    value: Float[Tensor, " d_model"] | None = None
    """``v*``."""
    fact: Fact | None = None
    """What was edited, if the edit was made from a fact."""
    model_fingerprint: str | None = None
    """The fingerprint of the model on which the edit was made. If it is None, no model
    is refused."""
    losses: Float[Tensor, "step 3"] | None = None
    """Negative log likelihood, weighted KL and weight decay at each step of the optimisation."""
    probability: float | None = None
    """The new target's probability at the end of the optimisation.

    Each context gives the geometric mean over the target's tokens. This is the mean of these
    over the contexts.
    """
    made_with: str = ""
    """Variant, hyperparameters and statistics, in words."""
    variant: Variant | None = None
    """The variant of the method."""
    config: Mapping[str, Any] | None = None
    """The hyperparameters, as the fields of :class:`RomeConfig`."""
    contexts: tuple[str, ...] = ()
    """The templates around the prompt."""
    statistics: str = ""
    """The source of the key statistics, in words."""
    stopped: Stopped | None = None
    """What ended the optimisation."""
    prepend_bos: bool | None = None
    """Whether the prompts started with a BOS token. None in a file of an older version."""
    alignment: float | None = None
    """``<W_out, delta> / ||delta||^2`` in the weights on which the edit was made, without other
    applied edits. It tells later whether weights carry the edit. None in a file of an older version
    or for an edit made by hand."""
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    """Versions of the packages that made the edit. For an older file, those that wrote it."""

    def __repr__(self) -> str:
        what = "" if self.fact is None else f"{self.fact.text!r} -> {self.fact.new_target!r}, "
        return f"RankOneEdit({what}layer={self.layer}, d_mlp={len(self.u)}, d_model={len(self.v)})"

    @property
    def delta(self) -> Float[Tensor, "d_mlp d_model"]:  # type: ignore[override]
        """``outer(u, v)``, which is added to ``W_out``."""
        return torch.outer(self.u, self.v)

    def addition(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """``(u . k) v``, which the edit adds to the output of ``W_out`` for each key ``k``."""
        return (keys @ self.u.to(keys))[..., None] * self.v.to(keys)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.u, self.v)

    def aligned(self, weight: Float[Tensor, "d_mlp d_model"]) -> float:
        """``u^T W v / (||u|| ||v||)^2``, without the outer product."""
        u, v = self.u.double(), self.v.double()
        return float((u @ weight.to(u) @ v) / (u.square().sum() * v.square().sum()))

    @visits_model
    def is_part_of_weights(self, model: LensModel) -> bool:
        """Whether the weights carry the edit other than by ``apply``, as after loading them.

        They do if they have moved along ``delta`` since the edit was made (see the base class). If
        the edit names ``k*`` and ``v*``, they must also map ``k*`` to a value near ``v*``, because
        edits of similar subjects with one new target point in nearly the same direction. If they
        map it to ``v*`` itself, that is enough: weights with another edit of the same fact count
        too, because a second edit would move ``k*`` away from ``v*`` again. All this is tested on
        the weights without the edits that are known to be applied.
        """
        is_moved = super().is_part_of_weights(model)
        if self.key is None or self.value is None or not self.has_place_in(model):
            return is_moved
        mapped = raw_output(
            model, self.layer, self.key, apply_and_revert.unrecorded(model, self.layer)
        )
        gap = (self.key @ self.u).double() * self.v.double()
        missed = (mapped - self.value).to(gap)
        if is_moved:
            return float((missed @ gap).abs()) < _NEAR * float(gap @ gap)
        return float(missed.norm()) < _EXACT * float(gap.norm())
