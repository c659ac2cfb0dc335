"""Edits of ``W_out`` as things: applied to the weights, or as hooks, or row by row of a batch; saved and loaded."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import raw_output_hooks
from rome_lens.models import apply_and_revert
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import (
    LensModel,
    ModelError,
    mlp_output,
    raw_output,
    state_entries,
    w_out,
)
from rome_lens.results import Stored
from rome_lens.storage import installed_versions


class Edit(Stored):
    """A change of ``W_out`` at one layer or several: what every kind of edit can do.

    An edit never reverts itself and never stays by surprise: ``applied`` is for the time of a ``with`` block, ``apply``
    until ``revert``, and ``rl.applied_edits(model)`` says what is in the weights now. Edits may come and go in any
    order; see :mod:`rome_lens.applying` for how the weights come back bit for bit.
    """

    @property
    def parts(self) -> "tuple[LayerEdit, ...]":
        """The edits of one layer each that it consists of, in their order."""
        raise NotImplementedError

    @contextmanager
    def applied(self, model: LensModel) -> Iterator[LensModel]:
        """Inside, the model's weights carry the edit; afterwards they are what they were, bit for bit.

        That holds also after an exception, and for what other code wrote into the edited ``W_out`` meanwhile: it is gone.
        Blocks may be nested, of the same edit too, and closed in any order. A ``copy.deepcopy`` of the model made inside
        keeps the edit; ``revert`` takes it out there.

        Raises:
            ModelError: the edit was made on another model, or other code has changed an edited ``W_out``.
        """
        self.check(model)
        with apply_and_revert.applied(model, self.parts):
            yield model

    def apply(self, model: LensModel) -> None:
        """Write the edit into the model's weights, where it stays until ``revert``; twice is there twice.

        Raises:
            ModelError: the edit was made on another model, or other code has changed an edited ``W_out``.
        """
        self.check(model)
        apply_and_revert.apply(model, self.parts)

    def revert(self, model: LensModel) -> None:
        """Take the edit out of the weights again; of one that was applied twice, once.

        Other edits stay, and the weights are then exactly theirs alone; after the last one they are the original, bit for bit.
        An edit that was saved and loaded is the same edit.

        Raises:
            ModelError: the edit is not applied, or other code has changed ``W_out`` since, which reverting would lose.
        """
        apply_and_revert.revert(model, self.parts)

    def is_applied(self, model: LensModel) -> bool:
        """Whether the model's own weights carry the edit, all parts of it."""
        return all(part.is_applied(model) for part in self.parts)

    def fwd_hooks(self, model: LensModel) -> list[Hook]:
        """The edit as hooks, for ``run_with_hooks(tokens, fwd_hooks=...)``; weights stay untouched.

        Lists of several edits can be added together. A hook that changes the keys (``mlp.hook_post``) belongs before them.

        Raises:
            ModelError: the edit was made on another model.
        """
        self.check(model)
        return [
            hook
            for part in self.parts
            for hook in raw_output_hooks(model, part.layer, part.addition)
        ]

    def state_dict(self, model: LensModel) -> dict[str, Any]:
        """``model.state_dict()`` with the edit in it; the model is untouched, and only the changed weights are copies.

        Other edits that are applied are in it too; this one is in it once, also where it is applied already.

        Raises:
            ModelError: the edit was made on another model, or no entry of the state dict is the edited weight.
        """
        self.check(model)
        state = dict(model.state_dict())
        for layer in sorted({part.layer for part in self.parts}):
            weight = w_out(model, layer)
            new = [
                part
                for part in self.parts
                if part.layer == layer and not apply_and_revert.in_weights(model, part)
            ]
            edited = apply_and_revert.with_edits(weight, new)
            for name, is_transposed in state_entries(model, state, layer).items():
                state[name] = (edited.T if is_transposed else edited).clone()
        return state

    def to_frame(self) -> pd.DataFrame:
        """One row for each part: what it changes, by how much, what made it and how that ended."""
        return pd.DataFrame(
            {
                "prompt": None if part.fact is None else part.fact.text,
                "new_target": None if part.fact is None else part.fact.new_target,
                "variant": part.variant,
                "layer": part.layer,
                "norm": part.norm,
                "probability": part.probability,
                "loss": part.loss,
                "stopped": part.stopped,
                "made_with": part.made_with,
            }
            for part in self.parts
        )

    def check(self, model: LensModel) -> None:
        """Raise ModelError unless the edit fits this model; the message says what differs, shape or fingerprint or both."""
        found = fingerprint(model)
        for part in self.parts:
            shape, differs = tuple(w_out(model, part.layer).shape), []
            if shape != part.shape:
                differs.append(
                    f"the shape of W_out at layer {part.layer}: the edit's is {part.shape}, the model's {shape}"
                )
            if part.model_fingerprint not in (None, found):
                differs.append(
                    f"the fingerprint: the edit was made on the model {part.model_fingerprint}, this one is {found} (other "
                    "weights, or the same weights processed otherwise)"
                )
            if differs:
                raise ModelError(
                    f"{part!r} does not fit this model; what differs is {', and '.join(differs)}. Make it anew on this model."
                )


class LayerEdit(Edit):
    """``W_out + delta`` at one layer: what a rank-one and a dense edit have in common."""

    layer: int
    fact: Fact | None
    model_fingerprint: str | None
    delta: Float[Tensor, "d_mlp d_model"]
    losses: Tensor | None
    made_with: str
    variant: str | None
    stopped: str | None
    probability: float | None = None

    @property
    def parts(self) -> "tuple[LayerEdit, ...]":
        return (self,)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What ``delta`` is made of."""
        return (self.delta,)

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_mlp, d_model)``."""
        return (self.tensors[0].shape[0], self.tensors[-1].shape[-1])

    @property
    def norm(self) -> float:
        """``||delta||``, which of a rank-one edit is ``||u|| ||v||``."""
        return math.prod(float(tensor.norm()) for tensor in self.tensors)

    @property
    def loss(self) -> float | None:
        """The last step's whole loss."""
        return None if self.losses is None else float(self.losses[-1].sum())

    def addition(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """``k delta``: what the edit adds to the output of ``W_out`` for each key."""
        return keys @ self.delta.to(keys)

    def same_change(self, other: "LayerEdit") -> bool:
        """Whether another edit does the same, bit for bit, as one loaded from a file does."""
        if type(other) is not type(self) or other.layer != self.layer:
            return False
        pairs = list(zip(self.tensors, other.tensors, strict=True))
        return all(
            a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs
        )

    def is_applied(self, model: LensModel) -> bool:
        """Whether the edit is in the model's weights by ``apply`` or ``applied``."""
        return apply_and_revert.in_weights(model, self)

    def _has_place_in(self, model: LensModel) -> bool:
        """Whether the model has a ``W_out`` of the edit's layer and shape."""
        try:
            return tuple(w_out(model, self.layer).shape) == self.shape
        except ModelError:
            return False


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
        prepend_bos: whether BOS stood before the prompts; None in a file of a version that did not say.
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
    prepend_bos: bool | None = None
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def __repr__(self) -> str:
        what = "" if self.fact is None else f"{self.fact.text!r} -> {self.fact.new_target!r}, "
        return f"RankOneEdit({what}layer={self.layer}, d_mlp={len(self.u)}, d_model={len(self.v)})"

    @property
    def delta(self) -> Float[Tensor, "d_mlp d_model"]:  # type: ignore[override]
        """``outer(u, v)``, what is added to ``W_out``."""
        return torch.outer(self.u, self.v)

    def addition(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """``(u . k) v``."""
        return (keys @ self.u.to(keys))[..., None] * self.v.to(keys)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.u, self.v)

    def is_applied(self, model: LensModel) -> bool:
        """Whether the edit is in the weights by ``apply`` or ``applied``, or they map ``k*`` to ``v*`` by another road.

        The second is asked only where the edit names ``k*`` and ``v*``, and of the weights without the edits that were
        applied: another edit of the same fact, which maps ``k*`` to ``v*`` as well, is not this one.
        """
        if super().is_applied(model):
            return True
        if self.key is None or self.value is None or not self._has_place_in(model):
            return False
        mapped = raw_output(
            model, self.layer, self.key, apply_and_revert.unrecorded(model, self.layer)
        )
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
        made_with: how it was made, in words; ``variant``, ``config``, ``stopped``, ``prepend_bos``: the same one by
            one.
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
    prepend_bos: bool | None = None
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def __repr__(self) -> str:
        what = "" if self.fact is None else f"{self.fact.text!r} -> {self.fact.new_target!r}, "
        return f"WeightEdit({what}layer={self.layer}, shape={tuple(self.delta.shape)})"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Edits(Edit):
    """Edits that come and go together, in this order: ``W_out + delta_1 + delta_2 + ...`` at each layer.

    What one edit can do, several can: ``applied``, ``apply`` and ``revert``, ``fwd_hooks``, ``row_hooks`` (all of
    them on one row), ``state_dict``, ``save`` and ``load`` (one file).

    Attributes:
        edits: the edits, each of one layer; of several given as one, its parts.
    """

    edits: tuple[LayerEdit, ...]

    def __post_init__(self) -> None:
        edits = tuple(self.edits)
        for edit in edits:
            if not isinstance(edit, Edit):
                raise ArgumentError(
                    f"edits holds {edit!r}, expected edits, such as what rome(...) gives."
                )
        object.__setattr__(self, "edits", tuple(part for edit in edits for part in edit.parts))
        if not self.edits:
            raise ArgumentError("edits is empty, expected at least one edit.")

    def __repr__(self) -> str:
        return f"Edits({len(self.edits)} at layers {sorted({edit.layer for edit in self.edits})})"

    @property
    def parts(self) -> tuple[LayerEdit, ...]:
        return self.edits

    def kept(self, model: LensModel) -> Float[Tensor, " edit"]:
        """How far the weights with all the edits miss each edit's own mapping, relative to what that edit had changed.

            || k_i* W_out + b_out - v_i* ||  /  || (u_i . k_i*) v_i ||

        0: ``k_i*`` is still mapped to ``v_i*``. Later edits at the same layer add ``(u_j . k_i*) v_j`` to what it is mapped
        to, so that the last edit of a layer has 0 and the earlier ones, in general, not; at 1 the disturbance is as large as
        the edit itself was. ``k_i*`` is the key at the time of the edit: that edits at earlier layers also move the
        keys which the model then computes is not in this number.

        Raises:
            ValueError: an edit does not name its key and value.
            ModelError: as :meth:`applied` says.
        """
        gaps = []
        with ExitStack() as stack:
            for edit in self.edits:
                if not apply_and_revert.in_weights(model, edit):
                    stack.enter_context(edit.applied(model))
            for edit in self.edits:
                if not isinstance(edit, RankOneEdit) or edit.key is None or edit.value is None:
                    raise ArgumentError(
                        f"{edit!r} does not name its key k* and value v*: there is no mapping to keep."
                    )
                missed = mlp_output(model, edit.layer, edit.key) - edit.value
                gaps.append(missed.norm() / ((edit.u @ edit.key) * edit.v).norm())
        return torch.stack(gaps)
