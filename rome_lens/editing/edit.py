"""What every edit of ``W_out`` can do: apply and revert, act as hooks, be saved and loaded."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, equal

from rome_lens.arguments import several
from rome_lens.data.facts import Fact
from rome_lens.editing.config import Stopped
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import raw_output_hooks
from rome_lens.models import apply_and_revert
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import exact, fingerprint, same_model
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel, ModelError, state_entries, w_out
from rome_lens.results import Stored

# Other edits in the weights move them along ``delta`` too, though less, and so does rounding.
_SAME = 0.25


class Edit(Stored):
    """A change of ``W_out`` at one layer or at several. The base class of every kind of edit.

    An edit never reverts itself, and never stays by accident. ``applied`` lasts for a ``with``
    block, ``apply`` lasts until ``revert``, and ``rl.applied_edits(model)`` lists the edits that
    are in the weights now. Edits may be applied and reverted in any order.
    :mod:`rome_lens.models.apply_and_revert` explains how the weights come back bit for bit.
    """

    @property
    def parts(self) -> "tuple[LayerEdit, ...]":
        """The edits of one layer each that this edit consists of, in their order."""
        raise NotImplementedError

    @contextmanager
    def applied(self, model: LensModel) -> Iterator[LensModel]:
        """Apply the edit for a ``with`` block. Afterwards the weights are the same, bit for bit.

        That also holds after an exception. Anything that other code wrote into the edited ``W_out``
        inside the block is lost. Blocks may be nested, also of the same edit, and closed in any
        order. A ``copy.deepcopy`` of the model inside the block keeps the edit, and ``revert``
        removes it there. Other threads that call this package with the model wait until the block
        ends. A thread that calls ``model(tokens)`` itself does not, and runs edited.

        Raises:
            ModelError: the edit was made on another model; the weights carry it already, other than
                by ``apply``, or cannot hold it (see :meth:`check_addition`); or other code has
                changed an edited ``W_out``.
            ArgumentError: the edit holds NaN or infinity.
        """
        inside = apply_and_revert.applied(model, self.parts)
        self.check_addition(model)
        try:
            with inside:
                yield model
        finally:  # again, in case Ctrl-C came between the block and its clean-up
            inside.close()

    @visits_model
    def apply(self, model: LensModel) -> None:
        """Write the edit into the model's weights, where it stays until ``revert``.

        An edit that is applied twice is there twice.

        Raises:
            ModelError, ArgumentError: as for :meth:`applied`.
        """
        self.check_addition(model)
        apply_and_revert.apply(model, self.parts)

    @visits_model
    def revert(self, model: LensModel) -> None:
        """Remove the edit from the weights. An edit that was applied twice is removed once.

        Other edits stay, and the weights are then exactly what those edits alone would give. After
        the last edit the weights are the original ones, bit for bit. An edit that was saved and
        loaded counts as the same edit.

        Raises:
            ModelError: the edit is not applied, or other code has changed ``W_out`` since, which
                reverting would lose.
        """
        apply_and_revert.revert(model, self.parts)

    @visits_model
    def is_applied(self, model: LensModel) -> bool:
        """Whether the model's own weights carry the edit, with all its parts."""
        return all(part.is_applied(model) for part in self.parts)

    @visits_model
    def parts_of_weights(self, model: LensModel) -> "list[LayerEdit]":
        """The parts that the weights carry other than by ``apply``, as after loading them."""
        return [part for part in self.parts if part.is_part_of_weights(model)]

    @visits_model
    def fwd_hooks(self, model: LensModel) -> list[Hook]:
        """The edit as hooks, for ``run_with_hooks(tokens, fwd_hooks=...)``.

        The weights do not change. Lists of hooks of several edits can be added together. A hook
        that changes the keys (``mlp.hook_post``) belongs before them.

        Raises:
            ModelError, ArgumentError: see :meth:`check_addition`.
        """
        self.check_addition(model)
        return [
            hook
            for part in self.parts
            for hook in raw_output_hooks(model, part.layer, part.addition)
        ]

    @visits_model
    def state_dict(self, model: LensModel) -> dict[str, Tensor]:
        """``model.state_dict()`` with the edit in it.

        The model does not change, and only the edited weights are copies. Other edits that are
        applied to the model are included. This edit is included once, even where it is applied
        already.

        Raises:
            ModelError, ArgumentError: see :meth:`check_addition`; or no entry of the state dict is
                the edited weight.
        """
        self.check_addition(model)
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
        """One row for each part: what it edits, its norm, how it was made, and what stopped it."""
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

    @visits_model
    def check(self, model: LensModel) -> None:
        """Check that the edit fits this model.

        Raises:
            ModelError: it does not. The message says whether the shape of ``W_out``, the model's
                fingerprint, or both differ.
        """
        print_of_model = fingerprint(model)
        for part in self.parts:
            shape, differences = tuple(w_out(model, part.layer).shape), []
            if shape != part.shape:
                differences.append(
                    f"the shape of W_out at layer {part.layer}: the edit has {part.shape}, the "
                    f"model has {shape}"
                )
            made_on = part.model_fingerprint
            if made_on is not None and not same_model(made_on, print_of_model):
                differences.append(
                    f"the fingerprint: the edit was made on the model {exact(made_on)}, "
                    f"this one is {exact(print_of_model)} (other weights, or the same "
                    "weights processed otherwise)"
                )
            if differences:
                raise ModelError(
                    f"{part!r} does not fit this model. What differs is "
                    f"{', and '.join(differences)}. Make the edit again on this model."
                )

    @visits_model
    def check_addition(self, model: LensModel) -> None:
        """Check that the edit fits this model, and that adding it to the weights makes sense.

        Raises:
            ModelError: the edit was made on another model; the weights carry it already, as those
                of a model that was saved with it; or the edited weights overflow their type.
            ArgumentError: the edit holds NaN or infinity.
        """
        self.check(model)
        for part in self.parts:
            part.check_finite()
        for part in self.parts_of_weights(model):
            raise ModelError(
                f"The weights of this model carry {part!r} already: they were saved or kept "
                "with it. Applying it would add it a second time. Use the model as it is, or "
                "load the unedited weights."
            )
        for layer in sorted({part.layer for part in self.parts}):
            parts = [part for part in self.parts if part.layer == layer]
            _check_fits_type(w_out(model, layer), parts)


def as_edits(edits: object) -> list[Edit]:
    """A list of edits, from one edit or from several.

    Raises:
        ArgumentError: the list is empty, or an entry is not an edit.
    """
    what = "an edit, or a list of edits, such as rome(...) returns"
    listed = [edits] if isinstance(edits, Edit) else several("edits", edits, what)
    if not listed:
        raise ArgumentError("edits is empty, expected at least one edit.")
    for edit in listed:
        if not isinstance(edit, Edit):
            raise ArgumentError(f"edits holds {str(edit)[:120]!r}, expected {what}.")
    return listed


@visits_model
def applied_edits(model: LensModel) -> "tuple[LayerEdit, ...]":
    """The edits that are in the model's weights now, by layer and in the order in which they came.

    An edit that was applied twice is listed twice. Edits that came in another way, such as in
    weights loaded from a file, are not known here. ``edit.is_applied`` recognises them.

    Raises:
        ModelError: other code has changed an edited ``W_out`` since, so it is unknown what is in
            it.
    """
    return apply_and_revert.applied_edits(model)


@visits_model
def keep_edits(model: LensModel) -> "tuple[LayerEdit, ...]":
    """Make the current weights the model's own, and return the edits in them.

    These edits can no longer be reverted.

    Use it for a model that is to be trained further after an edit, or that need never be restored.
    An open ``applied`` block then has nothing to take back.
    """
    return apply_and_revert.keep_edits(model)


class LayerEdit(Edit):
    """``W_out + delta`` at one layer: what rank-one and dense edits have in common."""

    layer: int
    fact: Fact | None
    model_fingerprint: str | None
    delta: Float[Tensor, "d_mlp d_model"]
    losses: Tensor | None
    made_with: str
    variant: str | None
    stopped: Stopped | None
    probability: float | None = None
    alignment: float | None = None

    @property
    def parts(self) -> "tuple[LayerEdit, ...]":
        return (self,)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors whose product is ``delta``."""
        return (self.delta,)

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_mlp, d_model)``."""
        return (self.tensors[0].shape[0], self.tensors[-1].shape[-1])

    @property
    def norm(self) -> float:
        """``||delta||``, which for a rank-one edit is ``||u|| ||v||``."""
        return math.prod(float(tensor.norm()) for tensor in self.tensors)

    def check_finite(self) -> None:
        """Check that the edit can be added to anything.

        Raises:
            ArgumentError: it holds NaN or infinity.
        """
        if wrong := sum(int((~torch.isfinite(tensor)).sum()) for tensor in self.tensors):
            raise ArgumentError(
                f"{self!r} holds {wrong} numbers that are NaN or infinite, so it would break the "
                "model. Make the edit again: with a lower lr, another layer, or RomeConfig(ridge="
                "1e-3) if its statistics are nearly singular."
            )

    @visits_model
    def is_part_of_weights(self, model: LensModel) -> bool:
        """Whether the weights carry the edit other than by ``apply``, as after loading them.

        The weights without the applied edits have moved along ``delta`` by its whole length since
        the edit was made, by ``<W_out, delta> / ||delta||^2`` in place of :attr:`alignment`. Other
        edits in the weights are nearly orthogonal to this one. An edit that does not name its
        alignment, or whose ``delta`` is 0, is not recognised.
        """
        if self.alignment is None or not self.has_place_in(model):
            return False
        now = self.alignment_in(model)
        return now is not None and abs(now - self.alignment - 1.0) < _SAME

    @visits_model
    def alignment_in(self, model: LensModel) -> float | None:
        """``<W_out, delta> / ||delta||^2`` without the applied edits; None if ``delta`` is 0."""
        along = self.aligned(apply_and_revert.unrecorded(model, self.layer))
        return along if math.isfinite(along) else None

    def aligned(self, weight: Float[Tensor, "d_mlp d_model"]) -> float:
        """``<W, delta> / ||delta||^2``: how far a weight points along ``delta``; NaN for 0."""
        delta = self.delta.double()
        return float((weight.to(delta) * delta).sum() / delta.square().sum())

    @property
    def loss(self) -> float | None:
        """The whole loss at the last step."""
        return None if self.losses is None else float(self.losses[-1].sum())

    def addition(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """``k delta``, which the edit adds to the output of ``W_out`` for each key ``k``."""
        return keys @ self.delta.to(keys)

    def same_change(self, other: "LayerEdit") -> bool:
        """Whether the other edit makes the same change, bit for bit, such as a loaded copy."""
        if type(other) is not type(self) or other.layer != self.layer:
            return False
        pairs = list(zip(self.tensors, other.tensors, strict=True))
        return all(a.dtype == b.dtype and a.shape == b.shape and equal(a, b) for a, b in pairs)

    @visits_model
    def is_applied(self, model: LensModel) -> bool:
        """Whether the weights carry the edit, by ``apply``, by ``applied`` or in another way.

        "In another way" are weights that were saved with the edit and loaded again
        (:meth:`is_part_of_weights`).
        """
        return apply_and_revert.in_weights(model, self) or self.is_part_of_weights(model)

    @visits_model
    def has_place_in(self, model: LensModel) -> bool:
        """Whether the model has a ``W_out`` at the edit's layer, with the edit's shape."""
        try:
            return tuple(w_out(model, self.layer).shape) == self.shape
        except ModelError:
            return False


def _check_fits_type(weight: Float[Tensor, "d_mlp d_model"], parts: Sequence[LayerEdit]) -> None:
    """Check that the edits of one layer, and the weight with them, are finite in its type.

    Raises:
        ModelError: they are not.
    """
    if not torch.isfinite(weight).all():
        raise ModelError(
            f"W_out of layer {parts[0].layer} holds NaN or infinity before the edit: load the "
            "model again."
        )
    tensors = [tensor for part in parts for tensor in part.tensors]
    fits = all(torch.isfinite(tensor.to(weight.dtype)).all() for tensor in tensors)
    if not fits or not torch.isfinite(apply_and_revert.with_edits(weight, parts)).all():
        largest = max(part.norm for part in parts)
        raise ModelError(
            f"{', '.join(map(repr, parts))} does not fit into {weight.dtype}, the type of W_out: "
            f"the edited weight overflows (||delta|| is {largest:.3g}). Use the model in float32 "
            "or bfloat16, or make a smaller edit (RomeConfig(clamp=...), a ridge)."
        )
