"""Edits of ``W_out`` as things: applied to the weights, or as hooks, or row by row of a batch; saved and loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.facts import Fact
from rome_lens.models import Hook, LensModel, ModelError, fingerprint, mlp_output, raw_output_hooks, w_out
from rome_lens.storage import Stored, installed_versions


class LayerEdit(Stored):
    """``W_out + delta`` at one layer: what a rank-one and a dense edit have in common."""

    layer: int
    fact: Fact | None
    model_fingerprint: str | None
    delta: Float[Tensor, "d_mlp d_model"]

    def addition(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """``k delta``: what the edit adds to the output of ``W_out`` for each key."""
        raise NotImplementedError

    @contextmanager
    def applied(self, model: LensModel) -> Iterator[LensModel]:
        """Inside, the model's weights carry the edit; afterwards they are what they were, bit for bit.

        Raises:
            ModelError: the edit was made on another model.
        """
        self.check(model)
        weight = w_out(model, self.layer)
        before = weight.clone()
        try:
            weight.add_(self.delta.to(weight))
            yield model
        finally:
            weight.copy_(before)

    def fwd_hooks(self, model: LensModel) -> list[Hook]:
        """The edit as hooks, for ``run_with_hooks(tokens, fwd_hooks=...)``; weights stay untouched.

        Lists of several edits can be added together. A hook that changes the keys (``mlp.hook_post``) belongs before them.

        Raises:
            ModelError: the edit was made on another model.
        """
        self.check(model)
        return raw_output_hooks(model, self.layer, self.addition)

    def check(self, model: LensModel) -> None:
        """Raise ModelError unless the edit fits this model."""
        shape = tuple(w_out(model, self.layer).shape)
        if shape != tuple(self.delta.shape):
            raise ModelError(
                f"The edit is for a W_out of shape {tuple(self.delta.shape)}, layer {self.layer} of this model has {shape}."
            )
        if self.model_fingerprint not in (None, fingerprint(model)):
            raise ModelError(
                f"The edit was made on the model {self.model_fingerprint}, this one is {fingerprint(model)} (other weights, "
                "or the same weights processed otherwise): make it anew on this model."
            )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RankOneEdit(LayerEdit):
    """``W_out + u vT``: wherever the key ``k`` meets ``u``, the layer's MLP adds ``(u . k) v`` to its output.

    Attributes:
        layer: the edited layer.
        u, v: left and right vector in TransformerLens' orientation ``W_out [d_mlp, d_model]``.
        key, value: ``k*`` and ``v*``, which the edited weights map one to the other: ``k* W_out + b_out = v*``.
        fact: what was edited, where it came from a fact.
        model_fingerprint: of the model that it was made on; None is not checked.
        losses: at each step of the optimisation of ``v*``: negative log likelihood, weighted KL, weight decay.
        probability: of the new target at the end of that optimisation, geometric mean over its tokens, mean over contexts.
        made_with: variant, hyperparameters and statistics, in words.
        variant, config, contexts, statistics: the same one by one: the name of the method's variant, its hyperparameters,
            the templates around the prompt, and the source of the statistics in words.
        stopped: what ended the optimisation: ``"loss"``, ``"probability"`` or ``"steps"``.
        versions: of the packages that it was made with; of an old file, those that wrote it.
    """

    layer: int
    u: Float[Tensor, " d_mlp"]
    v: Float[Tensor, " d_model"]
    key: Float[Tensor, " d_mlp"] | None = None
    value: Float[Tensor, " d_model"] | None = None
    fact: Fact | None = None
    model_fingerprint: str | None = None
    losses: Float[Tensor, "step 3"] | None = None
    probability: float | None = None
    made_with: str = ""
    variant: str | None = None
    config: Mapping[str, Any] | None = None
    contexts: tuple[str, ...] = ()
    statistics: str = ""
    stopped: str | None = None
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def __repr__(self) -> str:
        what = "" if self.fact is None else f"{self.fact.text!r} -> {self.fact.new_target!r}, "
        return f"RankOneEdit({what}layer={self.layer}, d_mlp={len(self.u)}, d_model={len(self.v)})"

    @property
    def delta(self) -> Float[Tensor, "d_mlp d_model"]:  # type: ignore[override]
        """``outer(u, v)``, what is added to ``W_out``."""
        return torch.outer(self.u, self.v)

    @property
    def loss(self) -> float | None:
        """The last step's whole loss."""
        return None if self.losses is None else float(self.losses[-1].sum())

    def addition(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """``(u . k) v``."""
        return (keys @ self.u.to(keys))[..., None] * self.v.to(keys)

    def is_applied(self, model: LensModel) -> bool:
        """Whether the model's own weights map ``k*`` to ``v*`` already; False where the edit does not name them."""
        if self.key is None or self.value is None:
            return False
        mapped = mlp_output(model, self.layer, self.key)
        gap = float((self.key @ self.u).abs() * self.v.norm())
        return float((mapped - self.value).norm()) < 1e-2 * gap


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WeightEdit(LayerEdit):
    """``W_out + delta`` with any ``delta``, such as fine-tuning leaves: it acts on every key, ``k delta``.

    Attributes:
        layer: the edited layer.
        delta: what is added to ``W_out``, in TransformerLens' orientation.
        fact: what was edited, where it came from a fact.
        model_fingerprint: of the model that it was made on; None is not checked.
        losses: at each step, where there were steps.
        made_with: how it was made, in words; ``variant``, ``config``, ``stopped``: the same one by one.
        versions: of the packages that it was made with.
    """

    layer: int
    delta: Float[Tensor, "d_mlp d_model"]
    fact: Fact | None = None
    model_fingerprint: str | None = None
    losses: Float[Tensor, " step"] | None = None
    made_with: str = ""
    variant: str | None = None
    config: Mapping[str, Any] | None = None
    stopped: str | None = None
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def __repr__(self) -> str:
        what = "" if self.fact is None else f"{self.fact.text!r} -> {self.fact.new_target!r}, "
        return f"WeightEdit({what}layer={self.layer}, shape={tuple(self.delta.shape)})"

    def addition(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """``k delta``."""
        return keys @ self.delta.to(keys)
