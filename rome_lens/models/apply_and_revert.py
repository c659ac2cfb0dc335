"""Edits in the weights: written, taken back in any order, and never there by surprise.

An edited layer's MLP keeps a record: its ``W_out`` as it was before any edit, and the edits that it carries now. Whenever
one comes or goes the weight is computed anew from these,

    W_out = ((original + delta_1) + delta_2) + ...        in float32 at least, in the order of their coming

so that no rounding piles up, what stays does not depend on what has gone, and without edits the original is back bit for
bit. The record is an attribute of the MLP module: ``copy.deepcopy`` of the model takes it along, ``state_dict`` does not.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.models.lens import LensModel, ModelError, at_least_float32, mlp_module, w_out

# Anything with ``layer``, ``delta`` and ``same_change(other)``. A Protocol would be the class to name, but a run-time check
# of a Protocol with the data member ``delta`` computes that outer product at every call.
LayerEdit: TypeAlias = Any

_ATTRIBUTE = "_rome_lens_edits"


@dataclass(eq=False)
class _Entry:
    """One coming of an edit, by ``apply`` or for the time of an ``applied`` block."""

    edit: LayerEdit
    in_block: bool


@dataclass(eq=False)
class _Record:
    original: Float[Tensor, "d_mlp d_model"]
    entries: list[_Entry]

    @property
    def edits(self) -> list[LayerEdit]:
        return [entry.edit for entry in self.entries]


def apply(model: LensModel, edits: Sequence[LayerEdit]) -> None:
    """Write edits into the weights, all or none; they stay until :func:`revert`."""
    with ExitStack() as undo:
        _enter(model, edits, undo, in_block=False)
        undo.pop_all()


@contextmanager
def applied(model: LensModel, edits: Sequence[LayerEdit]) -> Iterator[LensModel]:
    """The edits are in the weights inside, and gone afterwards, whatever was written into the weights meanwhile."""
    with ExitStack() as undo:
        _enter(model, edits, undo, in_block=True)
        yield model


def revert(model: LensModel, edits: Sequence[LayerEdit]) -> None:
    """Take edits out of the weights, all or none; those that stay are then alone there.

    Raises:
        ModelError: an edit is not there, or the weights are not those that were written.
    """
    leaving: dict[int, list[_Entry]] = {}
    for edit in edits:
        record = _record(model, edit.layer)
        gone = leaving.setdefault(edit.layer, [])
        there = [] if record is None else [entry for entry in record.entries if entry not in gone]
        entry = _entry_of(edit, there)
        if entry is None:
            names = ", ".join(repr(entry.edit) for entry in there) or "none"
            raise ModelError(
                f"{edit!r} is not applied, so that it cannot be reverted; at its layer there are: {names}."
            )
        gone.append(entry)
    for layer in leaving:
        _refuse_foreign_changes(model, layer)
    for layer, entries in leaving.items():
        _remove(model, layer, entries)


def applied_edits(model: LensModel) -> tuple[LayerEdit, ...]:
    """The edits in the model's weights now, by layer and in the order of their coming; one that came twice is there twice.

    Edits that came by other roads, as with weights loaded from a file, are not known here; ``edit.is_applied`` finds them.

    Raises:
        ModelError: other code has changed an edited ``W_out`` since, so that nobody can say what is in it.
    """
    found: list[LayerEdit] = []
    for layer in edited_layers(model):
        _refuse_foreign_changes(model, layer)
        found += _edits_at(model, layer)
    return tuple(found)


def keep_edits(model: LensModel) -> tuple[LayerEdit, ...]:
    """Make the weights, as they are now, the model's own: its edits can no longer be reverted. Returns those edits.

    For a model that is to be trained on after an edit, or never to be what it was. An open ``applied`` block then has
    nothing to take back.
    """
    kept = tuple(edit for layer in edited_layers(model) for edit in _edits_at(model, layer))
    for layer in edited_layers(model):
        del mlp_module(model, layer).__dict__[_ATTRIBUTE]
    return kept


def in_weights(model: LensModel, edit: LayerEdit) -> bool:
    """Whether the edit was applied and the weights are still those that were written then."""
    record = _record(model, edit.layer)
    return (
        record is not None
        and _entry_of(edit, record.entries) is not None
        and _intact(model, edit.layer, record)
    )


def edited_layers(model: LensModel) -> list[int]:
    """The layers that carry applied edits."""
    return [layer for layer in range(model.cfg.n_layers) if _record(model, layer) is not None]


def unedited(model: LensModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """``W_out`` without the edits that are applied to it."""
    record = _record(model, layer)
    return w_out(model, layer) if record is None else record.original


def unrecorded(model: LensModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """What ``W_out`` carries by any other road than ``apply``: without the applied edits, or as it is where other code changed
    it since."""
    record = _record(model, layer)
    return (
        record.original
        if record is not None and _intact(model, layer, record)
        else w_out(model, layer)
    )


def with_edits(
    original: Float[Tensor, "d_mlp d_model"], edits: Iterable[LayerEdit]
) -> Float[Tensor, "d_mlp d_model"]:
    """``original + delta_1 + delta_2 + ...``, rounded once at the end where the weight is of half precision."""
    with torch.no_grad():
        total = at_least_float32(original)
        for edit in edits:
            total = total + edit.delta.to(total)
        return total.to(original.dtype)


def _enter(
    model: LensModel, edits: Sequence[LayerEdit], undo: ExitStack, *, in_block: bool
) -> None:
    by_layer: dict[int, list[_Entry]] = {}
    for edit in edits:
        by_layer.setdefault(edit.layer, []).append(_Entry(edit, in_block))
    for layer in by_layer:
        _refuse_foreign_changes(model, layer)
    for layer, entries in by_layer.items():
        undo.callback(_remove, model, layer, entries)
        _add(model, layer, entries)


def _add(model: LensModel, layer: int, entries: list[_Entry]) -> None:
    record = _record(model, layer) or _Record(w_out(model, layer).clone(), [])
    values = with_edits(record.original, [*record.edits, *(entry.edit for entry in entries)])
    record.entries = [*record.entries, *entries]
    mlp_module(model, layer).__dict__[_ATTRIBUTE] = record
    _write(model, layer, values)


def _remove(model: LensModel, layer: int, entries: list[_Entry]) -> None:
    """Write the weight without these entries; those that have gone already are passed over."""
    record = _record(model, layer)
    if record is None or not any(entry in record.entries for entry in entries):
        return
    staying = [entry for entry in record.entries if entry not in entries]
    _write(model, layer, with_edits(record.original, [entry.edit for entry in staying]))
    record.entries = staying
    if not staying:
        del mlp_module(model, layer).__dict__[_ATTRIBUTE]


def _write(model: LensModel, layer: int, values: Tensor) -> None:
    weight = w_out(model, layer)
    # A tensor made in inference mode can be written only there.
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        weight.copy_(values)


def _record(model: LensModel, layer: int) -> _Record | None:
    """What the layer's MLP keeps; None where no edit is applied, or the model has no such layer."""
    if not 0 <= layer < model.cfg.n_layers:
        return None
    return getattr(mlp_module(model, layer), "__dict__", {}).get(_ATTRIBUTE)


def _edits_at(model: LensModel, layer: int) -> list[LayerEdit]:
    record = _record(model, layer)
    return [] if record is None else record.edits


def _entry_of(edit: LayerEdit, entries: Sequence[_Entry]) -> _Entry | None:
    """The edit's entry: one that ``apply`` made before one that a block will take back itself."""
    same = [entry for entry in entries if entry.edit is edit or entry.edit.same_change(edit)]
    return next((entry for entry in same if not entry.in_block), same[0] if same else None)


def _intact(model: LensModel, layer: int, record: _Record) -> bool:
    """Whether the weight is, bit for bit, the one that was written."""
    weight = w_out(model, layer)
    if weight.dtype != record.original.dtype:
        return False
    written = with_edits(record.original.to(weight.device), record.edits)
    return bool(((weight == written) | (weight.isnan() & written.isnan())).all())


def _refuse_foreign_changes(model: LensModel, layer: int) -> None:
    record = _record(model, layer)
    if record is not None and not _intact(model, layer, record):
        raise ModelError(
            f"Since {', '.join(map(repr, record.edits))} came into the weights, other code has changed W_out of layer {layer} "
            "(training, load_state_dict, another dtype), and edits cannot come or go without losing that change. Undo the "
            "change, or make the weights as they are the model's own with rl.keep_edits(model)."
        )
