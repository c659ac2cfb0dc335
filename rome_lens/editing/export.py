"""Edited weights written back in transformers' format, for a model that came from there."""

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from rome_lens.editing.edit import Edit, LayerEdit
from rome_lens.errors import ArgumentError
from rome_lens.models import apply_and_revert
from rome_lens.models.bridge import has_processed_weights, unwrapped_names
from rome_lens.models.lens import (
    LensModel,
    ModelError,
    w_out,
)


def export_hf(
    edits: Edit | Sequence[Edit],
    source: Any,
    out_directory: str | Path,
    *,
    model: LensModel,
    tokenizer: Any = None,
) -> Path:
    """Write the transformers model ``source`` with these edits, and no others, into ``out_directory``.

    ``AutoModelForCausalLM.from_pretrained(out_directory)`` then gives the logits of ``model`` with the edits applied. Which
    parameter of ``source`` is ``W_out`` of a layer is found by content: the one that equals it, or its transpose, once both
    are rounded to the coarser of their types. Neither ``source`` nor ``model`` is changed.

    Args:
        edits: one edit or several; edits that happen to be applied to ``model`` count only if they are among them.
        source: what ``model`` was made from: a transformers model in memory, ``bridge.original_model`` too, or a directory
            that ``from_pretrained`` reads. The weights are written in its own types; half precision rounds the edit.
        out_directory: must be new, or empty; it appears only when it is whole.
        model: the model on which the edits were made.
        tokenizer: saved beside the weights; None takes that of the directory ``source``, where it has one.

    Raises:
        ModelError: an edit was made on another model; no parameter of ``source`` is the edited ``W_out``, or several are; the
            weights in a bridge's own transformers model are processed.
        ValueError: there is no edit; ``source`` is neither a transformers model nor a directory that holds one; the
            out_directory is not empty.
    """
    parts = _parts(edits)
    for edit in [edits] if isinstance(edits, Edit) else edits:
        edit.check(model)
    out = Path(out_directory)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArgumentError(f"{out} exists and is not an empty directory: give a new one.")
    hf_model, tokenizer = _opened(source, tokenizer)
    state = _plain_state(hf_model, model)
    for layer in sorted(
        {part.layer for part in parts} | set(apply_and_revert.edited_layers(model))
    ):
        name, is_transposed, carried = _parameter(state, model, layer)
        unedited = (
            apply_and_revert.unedited(model, layer).to(state[name])
            if carried
            else _turned(state[name], is_transposed)
        )
        edited = apply_and_revert.with_edits(
            unedited, [part for part in parts if part.layer == layer]
        )
        state[name] = _turned(edited, is_transposed).contiguous()
    _save(hf_model, state, tokenizer, out)
    return out


def _parts(edits: Edit | Sequence[Edit]) -> tuple[LayerEdit, ...]:
    parts = (
        edits.parts
        if isinstance(edits, Edit)
        else tuple(part for edit in edits for part in edit.parts)
    )
    if not parts:
        raise ArgumentError("edits is empty, expected at least one edit to write.")
    return parts


def _opened(source: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The transformers model and the tokenizer to save; of a directory, both in the types that it has them in."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return source, tokenizer
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        raise ArgumentError(
            f"source is {str(source)[:200]!r}, expected a transformers model or a directory that holds one."
        )
    try:
        hf_model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{source} does not hold a model in transformers' format: {error}"
        ) from error
    if tokenizer is None and any(Path(source).glob("tokenizer*")):
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    return hf_model, tokenizer


def _plain_state(hf_model: Any, model: LensModel) -> dict[str, Tensor]:
    """The state dict under the names of the model's own class; a bridge wraps modules of the model that it is given."""
    state: dict[str, Tensor] = unwrapped_names(hf_model.state_dict())
    names = _skeleton(hf_model).state_dict().keys()
    missing = [name for name in names if name not in state]
    if missing:
        raise ModelError(
            f"The transformers model lacks {missing[0]!r} ({len(missing)} parameters in all) of its own class "
            f"{type(hf_model).__name__}: give the directory that it came from, or load it anew."
        )
    if hf_model is getattr(model, "original_model", None) and has_processed_weights(model):
        raise ModelError(
            "The bridge has processed the weights of its transformers model (folded norms, centred weights): give the "
            "directory that it came from, or a transformers model loaded anew."
        )
    return {name: state[name].detach() for name in names}


def _parameter(state: Mapping[str, Tensor], model: LensModel, layer: int) -> tuple[str, bool, bool]:
    """The name of the parameter that is ``W_out``, whether it is stored transposed, and whether it carries applied edits."""
    unedited, carried = apply_and_revert.unedited(model, layer).cpu(), w_out(model, layer).cpu()
    found = {
        (name, is_transposed): has_edits
        for has_edits, weight in ((True, carried), (False, unedited))
        for name, value in state.items()
        for is_transposed in (False, True)
        if _agree(_turned(value, is_transposed).cpu(), weight)
    }
    if len({name for name, _ in found}) != 1:
        which = f"{sorted({name for name, _ in found})} do" if found else "none does"
        raise ModelError(
            f"One parameter of the transformers model should equal W_out of layer {layer}; {which}. It is another model, or "
            "one of the two has processed weights (centred ones: load the model without processing), or edits in its own."
        )
    (name, is_transposed), has_edits = next(iter(found.items()))
    return name, is_transposed, has_edits


def _turned(value: Tensor, is_transposed: bool) -> Tensor:
    return value.T if is_transposed and value.ndim == 2 else value


def _agree(value: Tensor, weight: Tensor) -> bool:
    """Whether two weights are equal once both are rounded to the coarser of their types."""
    if value.shape != weight.shape or not value.is_floating_point():
        return False
    coarser = max(value.dtype, weight.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    rows = (slice(0, 1), slice(None))  # the first row sorts out nearly every other parameter
    return all(torch.equal(value[some].to(coarser), weight[some].to(coarser)) for some in rows)


def _skeleton(hf_model: Any) -> Any:
    """A model of the same class and sizes without weights."""
    with torch.device("meta"):
        return type(hf_model)(copy.deepcopy(hf_model.config))


def _save(hf_model: Any, state: dict[str, Tensor], tokenizer: Any, out: Path) -> None:
    """Write model and tokenizer into a directory that takes its name when everything is there."""
    skeleton = _skeleton(hf_model).to(hf_model.dtype)
    if getattr(hf_model, "generation_config", None) is not None:
        skeleton.generation_config = copy.deepcopy(hf_model.generation_config)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{out.name}.{uuid4().hex[:8]}.part")
    try:
        skeleton.save_pretrained(unfinished, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
