"""HookedTransformers in a directory, whose weights are mapped into memory instead of read.

Weights that are mapped take no memory of their own: all processes that load a model share the pages
of its file. The mapping is private. So the first write to a page, such as that of an edit, copies
this page for its process, and neither the file nor another process changes.

A transformers model's weights are mapped by transformers itself. HookedTransformer keeps other
matrices (Gemma's scaled embedding beside the unembedding), so these are stored once, in the layout
that its linear layers want.
"""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from rome_lens.models.convert import from_memory, hooked_transformer_without_weights, in_memory
from rome_lens.models.goldens import WeightsError
from rome_lens.models.lens import LensModel
from rome_lens.models.stored_tokenizer import tokenizer_that_adds_bos

_WEIGHTS = "hooked.safetensors"
LAYOUT = "layout-2"
"""The order of the weights' axes in memory. Directories of other layouts have other names."""


def store_hooked(model: LensModel, converted: Path, directory: Path) -> None:
    """Write the weights of a HookedTransformer that was made from a converted directory.

    What else the model needs, its config and tokenizer, is copied from there.
    """
    for path in converted.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "manifest.json":
            shutil.copyfile(path, directory / path.name)
    stored = {name: in_memory(name, weight.detach()) for name, weight in model.named_parameters()}
    save_file(stored, directory / _WEIGHTS)


def open_hooked(directory: Path) -> LensModel:
    """The HookedTransformer in a directory of :func:`store_hooked`, on the CPU.

    Raises:
        WeightsError: the installed TransformerLens makes a model with other parameters.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    model = hooked_transformer_without_weights(config, tokenizer_that_adds_bos(directory))
    stored = load_file(directory / _WEIGHTS)
    weights = {name: from_memory(name, weight) for name, weight in stored.items()}
    made = {name: weight.shape for name, weight in model.named_parameters()}
    if made != {name: weight.shape for name, weight in weights.items()}:
        raise WeightsError(
            f"The weights in {directory} are not those of the HookedTransformer that is made from "
            "its config. Delete the directory; the next load_model makes it again."
        )
    model.load_state_dict(weights, strict=False, assign=True)
    return model
