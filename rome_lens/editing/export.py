"""Writes an edited model in transformers' format, for a model that came from there."""

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from torch import Tensor

from rome_lens.editing.edit import Edit, as_edits
from rome_lens.errors import ArgumentError
from rome_lens.models import apply_and_revert
from rome_lens.models.bridge_weights import has_processed_weights, unwrapped_names
from rome_lens.models.directory import open_directory
from rome_lens.models.door import visits_model
from rome_lens.models.lens import (
    LensModel,
    ModelError,
    w_out,
)
from rome_lens.storage import as_path, file_errors, make_directory


@visits_model
def export_hf(
    edits: Edit | Sequence[Edit],
    source: Any,
    out_directory: str | Path,
    *,
    model: LensModel,
    tokenizer: Any = None,
) -> Path:
    """Write the transformers model ``source``, with exactly these edits, into ``out_directory``.

    ``AutoModelForCausalLM.from_pretrained(out_directory)`` then gives the logits of ``model`` with
    the edits applied. The parameter of ``source`` that is ``W_out`` of a layer is found by content.
    It equals ``W_out`` or its transpose, once both are rounded to the coarser of their types.
    Neither ``source`` nor ``model`` is changed.

    Args:
        edits: one edit or several. An edit that is applied to ``model`` is only written if it is
            among them.
        source: what ``model`` was made from. It is a directory that ``from_pretrained`` reads, or a
            transformers model in memory (also ``bridge.original_model``). The weights are written
            in the types of ``source``, so half precision rounds the edit.
        out_directory: a new or empty directory. It appears only when everything is written.
        model: the model on which the edits were made.
        tokenizer: the tokenizer to save with the weights. None uses the tokenizer of the directory
            ``source``, if it has one.

    Returns:
        The path of ``out_directory``.

    Raises:
        ModelError: an edit was made on another model, or is in its weights already; not exactly one
            parameter of ``source`` equals the edited ``W_out``; or the weights in a Bridge's own
            transformers model are processed.
        ArgumentError: there is no edit; ``source`` is neither a transformers model nor a directory
            that holds one; or ``out_directory`` is not empty.
        StorageError: the system refuses to write.
    """
    listed = as_edits(edits)
    parts = tuple(part for edit in listed for part in edit.parts)
    for edit in listed:
        edit.check_addition(model)
    out = as_path(out_directory)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArgumentError(f"{out} exists and is not an empty directory: give a new one.")
    hf_model, tokenizer = _open(source, tokenizer)
    state = _plain_state(hf_model, model)
    for layer in sorted(
        {part.layer for part in parts} | set(apply_and_revert.edited_layers(model))
    ):
        name, is_transposed, carried = _parameter(state, model, layer)
        unedited = (
            apply_and_revert.unedited(model, layer).to(state[name])
            if carried
            else _oriented(state[name], is_transposed)
        )
        edited = apply_and_revert.with_edits(
            unedited, [part for part in parts if part.layer == layer]
        )
        state[name] = _oriented(edited, is_transposed).contiguous()
    _save(hf_model, state, tokenizer, out)
    return out


def _open(source: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The transformers model and the tokenizer to save. A directory is read in its own types."""
    from transformers import PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return source, tokenizer
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        raise ArgumentError(
            f"source is {str(source)[:200]!r}, expected a transformers model or a directory that "
            "holds one."
        )
    try:
        hf_model, own_tokenizer = open_directory(Path(source), dtype=None)
    except ModelError as error:
        raise ArgumentError(f"source cannot be read: {error}") from error
    return hf_model, own_tokenizer if tokenizer is None else tokenizer


def _plain_state(hf_model: Any, model: LensModel) -> dict[str, Tensor]:
    """The state dict under the names of the transformers model's own class.

    A Bridge wraps modules of the transformers model that it is given, which renames parameters.
    """
    state: dict[str, Tensor] = unwrapped_names(hf_model.state_dict())
    names = _skeleton(hf_model).state_dict().keys()
    missing = [name for name in names if name not in state]
    if missing:
        raise ModelError(
            f"The transformers model lacks {missing[0]!r} ({len(missing)} parameters in all), "
            f"which its class {type(hf_model).__name__} has. Give the directory that it came from, "
            "or load it again."
        )
    if hf_model is getattr(model, "original_model", None) and has_processed_weights(model):
        raise ModelError(
            "The Bridge has processed the weights of its transformers model (folded norms, centred "
            "weights). Give the directory that it came from, or load the transformers model again."
        )
    return {name: state[name].detach() for name in names}


def _parameter(state: Mapping[str, Tensor], model: LensModel, layer: int) -> tuple[str, bool, bool]:
    """The parameter that is ``W_out`` of a layer.

    Returns:
        Its name, whether it is stored transposed, and whether it carries the applied edits.
    """
    unedited, carried = apply_and_revert.unedited(model, layer).cpu(), w_out(model, layer).cpu()
    matches = {
        (name, is_transposed): has_edits
        for has_edits, weight in ((True, carried), (False, unedited))
        for name, value in state.items()
        for is_transposed in (False, True)
        if _equal_once_rounded(_oriented(value, is_transposed).cpu(), weight)
    }
    if len({name for name, _ in matches}) != 1:
        which = f"{sorted({name for name, _ in matches})} do" if matches else "none does"
        raise ModelError(
            f"One parameter of the transformers model should equal W_out of layer {layer}; {which}."
            " It is another model, or one of the two has processed weights (centred ones: load the "
            "model without processing), or edits of its own."
        )
    (name, is_transposed), has_edits = next(iter(matches.items()))
    return name, is_transposed, has_edits


def _oriented(value: Tensor, is_transposed: bool) -> Tensor:
    return value.T if is_transposed and value.ndim == 2 else value


def _equal_once_rounded(value: Tensor, weight: Tensor) -> bool:
    """Whether two weights are equal once both are rounded to the coarser of their types."""
    if value.shape != weight.shape or not value.is_floating_point():
        return False
    coarser = max(value.dtype, weight.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    # The first row alone rules out nearly every other parameter.
    rows = (slice(0, 1), slice(None))
    return all(torch.equal(value[some].to(coarser), weight[some].to(coarser)) for some in rows)


def _skeleton(hf_model: Any) -> Any:
    """A model of the same class and sizes, without weights."""
    with torch.device("meta"):
        return type(hf_model)(copy.deepcopy(hf_model.config))


def _save(hf_model: Any, state: dict[str, Tensor], tokenizer: Any, out: Path) -> None:
    """Write model and tokenizer into a directory that gets its name when everything is written."""
    skeleton = _skeleton(hf_model).to(hf_model.dtype)
    if getattr(hf_model, "generation_config", None) is not None:
        skeleton.generation_config = copy.deepcopy(hf_model.generation_config)
    make_directory(out.parent)
    unfinished = out.with_name(f"{out.name}.{uuid4().hex[:8]}.part")
    with file_errors(out, "written"):
        try:
            skeleton.save_pretrained(unfinished, state_dict=state)
            if tokenizer is not None:
                tokenizer.save_pretrained(unfinished)
            os.replace(unfinished, out)
        except SafetensorError as error:  # the kind of error is lost, what it says is not
            raise OSError(str(error)) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
