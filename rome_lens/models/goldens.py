"""Compare a converted or loaded model with stored values that are known to be right.

Between a file of weights and a number of this package stand transformers, tokenizers, gguf and
TransformerLens. A version of one of them that reads the file wrongly gives a model that runs, and
answers worse. So for each model with a name here, ``data/goldens.json`` stores the tokens of some
texts, and the log probability of each token of one text, given the tokens before it.
``scripts/make_goldens.py`` made it.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.errors import RomeLensError
from rome_lens.models.lens import LensModel

FILE = Path(__file__).parents[1] / "data" / "goldens.json"
# Stated in pyproject.toml too.
WORKING = "transformers>=5.18,<5.25"
# In float32, both model classes and different CPUs agree to about 1e-4. Weights rounded to half
# precision, the mildest fault of a conversion, are further off.
TOLERANCE = 0.02
_MADE_WITH = ("transformers", "tokenizers", "gguf", "transformer-lens", "torch")


class WeightsError(RomeLensError):
    """Weights are missing, truncated, or not the ones that this package was tested with."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What is known of a model."""

    bos: int
    eos: int
    starts_with_bos: bool
    """Whether the model's ``to_tokens`` begins with BOS by default."""
    tokens: dict[str, list[int]]
    """Tokens of some texts, without BOS."""
    log_probs: list[float]
    """Log probability of each token of the first text, given BOS and the tokens before it."""


@functools.cache
def goldens() -> dict[str, Golden]:
    """The stored values, by the names that ``load_model`` knows."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Golden(**values) for name, values in stored.items()}


def check_directory(name: str, directory: Path) -> None:
    """Check what was saved in transformers' format, if the name is known here.

    The tokens are compared without those that a tokenizer adds to every text. TransformerLens
    decides about these itself.

    Raises:
        WeightsError: the tokens or the log probabilities are not the stored ones.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    golden = goldens().get(name)
    if golden is None:
        return
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    _check_special(name, golden, tokenizer)
    for text, expected in golden.tokens.items():
        _check_tokens(name, text, tokenizer(text, add_special_tokens=False).input_ids, expected)
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )
    _check_log_probs(name, golden, lambda tokens: model.eval()(tokens).logits)


def check_loaded(name: str, model: LensModel) -> None:
    """Check the tokens and the log probabilities of a loaded model, if its name is known here.

    Raises:
        WeightsError: they are not the stored ones.
    """
    golden = goldens().get(name)
    if golden is None:
        return
    _check_special(name, golden, model.tokenizer)
    start = [golden.bos] if golden.starts_with_bos else []
    for text, expected in golden.tokens.items():
        _check_tokens(name, text, model.to_tokens(text)[0].tolist(), [*start, *expected])
    _check_log_probs(name, golden, model)


def _check_log_probs(
    name: str,
    golden: Golden,
    logits_of: Callable[[Int[Tensor, "1 pos"]], Float[Tensor, "1 pos d_vocab"]],
) -> None:
    text, expected = (
        next(iter(golden.tokens)),
        torch.tensor(golden.log_probs, dtype=torch.float32, device="cpu"),
    )
    actual = log_probs_of(logits_of, [golden.bos, *golden.tokens[text]])
    off = (actual - expected).abs()
    if not bool((off <= TOLERANCE).all()):
        worst = int(off.nan_to_num(torch.inf).argmax())
        raise _not_as_stored(
            name,
            f"the log probability of token {worst + 1} of {text!r} is {float(actual[worst]):.4f}, "
            f"expected {float(expected[worst]):.4f}",
        )


def log_probs_of(
    logits_of: Callable[[Int[Tensor, "1 pos"]], Float[Tensor, "1 pos d_vocab"]], tokens: list[int]
) -> Float[Tensor, " later"]:
    """Log probability of each token but the first, given those before it, in full precision."""
    row = torch.tensor([tokens], dtype=torch.long, device="cpu")
    with torch.no_grad():
        logits = logits_of(row)[0, :-1].float().cpu()
    chosen = logits.gather(-1, row[0, 1:, None])[:, 0]
    return chosen - logits.logsumexp(-1)


def _check_special(name: str, golden: Golden, tokenizer: Any) -> None:
    actual = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if actual != (golden.bos, golden.eos):
        raise _not_as_stored(
            name,
            f"its tokenizer's BOS and EOS are {actual}, expected {(golden.bos, golden.eos)}",
        )


def _check_tokens(name: str, text: str, actual: list[int], expected: list[int]) -> None:
    if actual != expected:
        raise _not_as_stored(
            name,
            f"the text {text!r} becomes {len(actual)} tokens {actual}, expected {len(expected)} "
            f"tokens {expected}",
        )


def _not_as_stored(name: str, difference: str) -> WeightsError:
    installed = ", ".join(f"{package} {version(package)}" for package in _MADE_WITH)
    return WeightsError(
        f"The model {name!r} does not come out as it should: {difference}. Numbers from it would "
        f"be wrong. One of the installed packages converts or loads it in another way: {installed}."
        f' Versions that work: pip install "{WORKING}", or those in this project\'s '
        "constraints.txt."
    )


def version(package: str) -> str:
    """The installed version of a package, or ``"none"``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
