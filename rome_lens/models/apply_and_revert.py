"""Write edits into the weights, and take them out again in any order, bit for bit.

The MLP of an edited layer keeps a record: its ``W_out`` as it was before any edit, and the edits
that it carries now. Whenever an edit comes or goes, the weight is recomputed from the record:

    W_out = ((original + delta_1) + delta_2) + ...        in at least float32, in the order in which
    the edits came

So rounding errors do not accumulate, what stays does not depend on what has gone, and without edits
the original is back bit for bit. The record is an attribute of the MLP module, on a bridge of the
one that is wrapped. ``copy.deepcopy`` of the model copies it, ``state_dict`` leaves it out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, ModelError, at_least_float32, mlp_module, w_out
from rome_lens.models.visits import Temporary

# Anything with ``layer``, ``delta`` and ``same_change(other)``. A Protocol would be the natural
# type. But a run-time check of a Protocol reads the data member ``delta``, and would compute that
# outer product at every call.
LayerEdit: TypeAlias = Any

_ATTRIBUTE = "_rome_lens_edits"


@dataclass(eq=False)
class _Entry:
    """An edit in the weights. One that was applied twice has two entries."""

    edit: LayerEdit
    in_block: bool
    """Whether an ``applied`` block made the entry, and will take it out itself."""


@dataclass(eq=False)
class _Record:
    """What the MLP of an edited layer keeps."""

    original: Float[Tensor, "d_mlp d_model"]
    entries: list[_Entry]

    @property
    def edits(self) -> list[LayerEdit]:
        return [entry.edit for entry in self.entries]


@visits_model
def apply(model: LensModel, edits: Sequence[LayerEdit]) -> None:
    """Write edits into the weights, all of them or none. They stay until :func:`revert`."""
    writing = _edits_in_weights(model, edits, in_block=False)
    with writing:
        writing.keep()


def applied(model: LensModel, edits: Sequence[LayerEdit]) -> Temporary[LensModel]:
    """Inside, the edits are in the weights.

    Afterwards they are gone, whatever else was written into the weights meanwhile.
    """
    return _edits_in_weights(model, edits, in_block=True)


@visits_model
def revert(model: LensModel, edits: Sequence[LayerEdit]) -> None:
    """Take edits out of the weights, all of them or none. Other edits stay.

    Raises:
        ModelError: an edit is not in the weights, or other code has changed the weights since.
    """
    leaving: dict[int, list[_Entry]] = {}
    for edit in edits:
        record = _record(model, edit.layer)
        going = leaving.setdefault(edit.layer, [])
        left = [] if record is None else [entry for entry in record.entries if entry not in going]
        entry = _entry_of(edit, left)
        if entry is None:
            names = ", ".join(repr(entry.edit) for entry in left) or "none"
            raise ModelError(
                f"{edit!r} is not applied, so it cannot be reverted; at its layer there are: "
                f"{names}."
            )
        going.append(entry)
    for layer in leaving:
        _refuse_foreign_changes(model, layer)
    records = {layer: record for layer in leaving if (record := _record(model, layer))}
    before = {layer: record.entries for layer, record in records.items()}

    def put() -> None:
        for layer, entries in leaving.items():
            _remove(model, layer, entries)

    def take() -> None:
        for layer, record in records.items():
            _set_entries(model, layer, record, before[layer])

    removing = Temporary(model, put=put, take=take)
    with removing:
        removing.keep()


@visits_model
def applied_edits(model: LensModel) -> tuple[LayerEdit, ...]:
    """The edits that are in the model's weights now, by layer and in the order in which they came.

    An edit that was applied twice is listed twice. Edits that came in another way, such as in
    weights loaded from a file, are not known here. ``edit.is_applied`` recognises them.

    Raises:
        ModelError: other code has changed an edited ``W_out`` since, so it is unknown what is in
            it.
    """
    edits: list[LayerEdit] = []
    for layer in edited_layers(model):
        _refuse_foreign_changes(model, layer)
        edits += _edits_at(model, layer)
    return tuple(edits)


@visits_model
def keep_edits(model: LensModel) -> tuple[LayerEdit, ...]:
    """Make the current weights the model's own, and return the edits in them.

    These edits can no longer be reverted.

    Use it for a model that is to be trained further after an edit, or that need never be restored.
    An open ``applied`` block then has nothing to take back.
    """
    kept = tuple(edit for layer in edited_layers(model) for edit in _edits_at(model, layer))
    records = {layer: _record(model, layer) for layer in edited_layers(model)}

    def put() -> None:
        for layer in records:
            _attach(model, layer, None)

    def take() -> None:
        for layer, record in records.items():
            _attach(model, layer, record)

    forgetting = Temporary(model, put=put, take=take)
    with forgetting:
        forgetting.keep()
    return kept


def in_weights(model: LensModel, edit: LayerEdit) -> bool:
    """Whether the edit was applied, and the weights are still the ones that were written then."""
    record = _record(model, edit.layer)
    return (
        record is not None
        and _entry_of(edit, record.entries) is not None
        and _intact(model, edit.layer, record)
    )


def edited_layers(model: LensModel) -> list[int]:
    """The layers whose ``W_out`` carries applied edits."""
    return [layer for layer in range(model.cfg.n_layers) if _record(model, layer) is not None]


def unedited(model: LensModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """``W_out`` as it was before the edits that are applied to it."""
    record = _record(model, layer)
    return w_out(model, layer) if record is None else record.original


def unrecorded(model: LensModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """What ``W_out`` carries other than by ``apply``.

    It is ``W_out`` without the applied edits, or as it is now if other code has changed it since
    they came.
    """
    record = _record(model, layer)
    return (
        record.original
        if record is not None and _intact(model, layer, record)
        else w_out(model, layer)
    )


def with_edits(
    original: Float[Tensor, "d_mlp d_model"], edits: Iterable[LayerEdit]
) -> Float[Tensor, "d_mlp d_model"]:
    """``original + delta_1 + delta_2 + ...``, rounded to half precision only once, at the end."""
    with torch.no_grad():
        total = at_least_float32(original)
        for edit in edits:
            total = total + edit.delta.to(total)
        return total.to(original.dtype)


def _edits_in_weights(
    model: LensModel, edits: Sequence[LayerEdit], *, in_block: bool
) -> Temporary[LensModel]:
    by_layer: dict[int, list[_Entry]] = {}
    for edit in edits:
        by_layer.setdefault(edit.layer, []).append(_Entry(edit, in_block))

    def put() -> LensModel:
        for layer in by_layer:
            _refuse_foreign_changes(model, layer)
        for layer, entries in by_layer.items():
            _add(model, layer, entries)
        return model

    def take() -> None:
        for layer, entries in by_layer.items():
            _remove(model, layer, entries)

    return Temporary(model, put=put, take=take)


def _add(model: LensModel, layer: int, entries: list[_Entry]) -> None:
    record = _record(model, layer) or _Record(w_out(model, layer).clone(), [])
    _set_entries(model, layer, record, [*record.entries, *entries])


def _remove(model: LensModel, layer: int, entries: list[_Entry]) -> None:
    """Write the weight without these entries. Entries that are no longer there are ignored."""
    record = _record(model, layer)
    if record is None or not any(entry in record.entries for entry in entries):
        return
    staying = [entry for entry in record.entries if entry not in entries]
    _set_entries(model, layer, record, staying)


def _set_entries(model: LensModel, layer: int, record: _Record, entries: list[_Entry]) -> None:
    """Write the weight with these entries alone.

    The order matters, because Ctrl-C may come between any two lines. As long as the weight may
    carry an entry, the record names it, so that :func:`_remove` takes it out.
    """
    record.entries = [*record.entries, *(each for each in entries if each not in record.entries)]
    _attach(model, layer, record)
    _write(model, layer, with_edits(record.original, [entry.edit for entry in entries]))
    if not entries:
        _attach(model, layer, None)
    record.entries = entries


def _attach(model: LensModel, layer: int, record: _Record | None) -> None:
    """Keep the record at the layer's MLP, or none."""
    state = _keeper(model, layer)
    if record is None:
        state.pop(_ATTRIBUTE, None)
    else:
        state[_ATTRIBUTE] = record


def _write(model: LensModel, layer: int, values: Tensor) -> None:
    weight = w_out(model, layer)
    # A tensor that was made in inference mode can be written only in inference mode.
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        weight.copy_(values)


def _record(model: LensModel, layer: int) -> _Record | None:
    """The layer's record, or None if no edit is applied or the model has no such layer."""
    if not 0 <= layer < model.cfg.n_layers:
        return None
    return _keeper(model, layer).get(_ATTRIBUTE)


def _keeper(model: LensModel, layer: int) -> dict[str, Any]:
    """The attributes of the module that keeps the record of a layer.

    Two bridges around one transformers model share its weights, so a bridge's record is kept by the
    innermost module that it wraps: the second bridge may wrap modules of the first.
    """
    mlp = mlp_module(model, layer)
    while (wrapped := getattr(mlp, "original_component", None)) is not None:
        mlp = wrapped
    return getattr(mlp, "__dict__", {})


def _edits_at(model: LensModel, layer: int) -> list[LayerEdit]:
    record = _record(model, layer)
    return [] if record is None else record.edits


def _entry_of(edit: LayerEdit, entries: Sequence[_Entry]) -> _Entry | None:
    """The edit's entry, if possible one made by ``apply``, because a block takes out its own."""
    same = [entry for entry in entries if entry.edit is edit or entry.edit.same_change(edit)]
    return next((entry for entry in same if not entry.in_block), same[0] if same else None)


def _intact(model: LensModel, layer: int, record: _Record) -> bool:
    """Whether the weight is bit for bit the one that was written."""
    weight = w_out(model, layer)
    if weight.dtype != record.original.dtype:
        return False
    written = with_edits(record.original.to(weight.device), record.edits)
    return bool(((weight == written) | (weight.isnan() & written.isnan())).all())


def _refuse_foreign_changes(model: LensModel, layer: int) -> None:
    record = _record(model, layer)
    if record is not None and not _intact(model, layer, record):
        raise ModelError(
            f"Since {', '.join(map(repr, record.edits))} came into the weights, other code has "
            f"changed W_out of layer {layer} (training, load_state_dict, another dtype). Edits "
            "cannot come or go without losing that change. Undo the change, or make the current "
            "weights the model's own with rl.keep_edits(model)."
        )
