"""Open a directory in transformers' format, without running any code that it holds.

transformers answers much of what can be wrong with a directory by doing something else: it gives
random values to weights that the file lacks, makes a tokenizer without a vocabulary, and asks on
the terminal whether it may run code from the directory. Here each of these is an error.
"""

import json
from pathlib import Path
from typing import Any

import torch

from rome_lens.models.lens import ModelError

_SETTINGS = ("config.json", "tokenizer_config.json")
_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model")


def open_directory(
    directory: Path, *, dtype: torch.dtype | None, with_tokenizer: bool = True
) -> tuple[Any, Any]:
    """The transformers model and the tokenizer in a directory. No hub is asked.

    Args:
        dtype: the type of the weights, or None for the type that they are stored in.
        with_tokenizer: whether to load the tokenizer too.

    Returns:
        The model in evaluation mode, and the tokenizer, or None if the directory does not hold the
        vocabulary of one.

    Raises:
        ModelError: the directory does not hold a model in transformers' format, it is damaged, or
            it needs code of its own.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    refuse_custom_code(directory)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or "auto", output_loading_info=True, **options
        )
        tokenizer = (
            AutoTokenizer.from_pretrained(directory, **options)
            if with_tokenizer and any(any(directory.glob(name)) for name in _TOKENIZER_FILES)
            else None
        )
    # Parsers of damaged files raise whatever they meet: SafetensorError, UnpicklingError, KeyError,
    # RuntimeError, huggingface_hub's errors, ImportError where quantised weights need a package.
    except Exception as error:
        raise ModelError(
            f"{directory} does not hold a model in transformers' format (config.json, weights, "
            f"tokenizer), or is damaged: {type(error).__name__}: {error}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"The weights in {directory} lack {missing[0]!r} ({len(missing)} parameters in all), "
            "which config.json asks for. transformers would give them random values."
        )
    return model.eval(), tokenizer if tokenizer is not None and _has_vocabulary(tokenizer) else None


def _has_vocabulary(tokenizer: Any) -> bool:
    """Whether a tokenizer has more than special tokens. Others turn every text into nothing."""
    return len(tokenizer) > len(set(tokenizer.all_special_ids))


def refuse_custom_code(directory: Path) -> None:
    """Check that a directory's settings can be read, and name no code to run (``auto_map``).

    Raises:
        ModelError: they do, or a file of settings is not a JSON object.
    """
    for path in (directory / name for name in _SETTINGS):
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(settings, dict):
            raise ModelError(f"{path} holds a {type(settings).__name__}, expected a JSON object.")
        if settings.get("auto_map"):
            raise ModelError(
                f"{path} names code of its own ('auto_map': {str(settings['auto_map'])[:200]}), "
                "which is never run here. If transformers has this architecture itself, and the "
                "weights fit that one, delete the entry 'auto_map'."
            )
