"""A model that was converted or loaded wrongly is refused, and is never kept in the cache."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models_for_tests import CLASSES
from safetensors.torch import load_file, save_file

import rome_lens as rl
from rome_lens.models import gguf, goldens, loading
from rome_lens.models.fingerprints import weights_fingerprint
from rome_lens.models.gguf import SOURCES, WeightsError, transformers_directory
from rome_lens.models.loading import TOY, load_model
from rome_lens.models.manifest import write_manifest

Damage = Callable[[Path], None]


def without_merges(directory: Path) -> None:
    """What a version of transformers made of a GGUF file's tokenizer."""
    path = directory / "tokenizer.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    words["model"]["merges"] = []
    path.write_text(json.dumps(words), encoding="utf-8")


def with_another_end(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "eos_token": "the"}), encoding="utf-8")


def changed(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    return damage


@changed
def with_a_scaled_matrix(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.h.2.mlp.c_fc.weight"] *= 1.5


@changed
def with_nan(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.ln_f.weight"][0] = torch.nan


WRONG: dict[str, tuple[Damage, str]] = {
    "no merges": (
        without_merges,
        r"the text 'Wanda .*' becomes \d+ tokens \[.*\], expected \d+ tokens",
    ),
    "another EOS": (with_another_end, r"BOS and EOS are \(0, \d+\), expected \(0, 0\)"),
    "a scaled matrix": (
        with_a_scaled_matrix,
        r"the log probability of token \d of .* is -?[\d.]+,",
    ),
    "NaN": (with_nan, r"the log probability of token \d of .* is nan, expected"),
}
each_fault = pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG.keys())


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gguf.GGUFSource:
    """A source whose conversion gives the toy model, and whose stored values are the toy's."""
    monkeypatch.setattr(gguf, "locate_parts", lambda source: [])
    monkeypatch.setattr(gguf, "join_parts", lambda parts, joined, sha256: joined)
    monkeypatch.setattr(gguf, "_convert", convert_to())
    known = {**goldens.goldens(), "fake": goldens.goldens()["toy"]}
    monkeypatch.setattr(goldens, "goldens", lambda: known)
    made = dataclasses.replace(SOURCES["smollm2-135m"], name="fake")
    monkeypatch.setitem(SOURCES, "fake", made)
    return made


def convert_to(damage: Damage = lambda directory: None) -> Callable[..., None]:
    """A conversion that writes the toy model with some damage."""

    def convert(joined: Path, directory: Path, source: gguf.GGUFSource) -> None:
        shutil.copytree(TOY, directory, dirs_exist_ok=True)
        damage(directory)

    return convert


@each_fault
def test_a_wrong_conversion_is_refused_and_not_kept(
    damage: Damage,
    message: str,
    source: gguf.GGUFSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_convert", convert_to(damage))
        with pytest.raises(WeightsError, match=message):
            transformers_directory(source, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    transformers_directory(source, cache_dir=tmp_path)


@each_fault
@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_that_loads_wrongly_is_refused(
    damage: Damage,
    message: str,
    model_class: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "TOY", shutil.copytree(TOY, tmp_path / "toy"))
    damage(tmp_path / "toy")
    with pytest.raises(WeightsError, match=message):
        load_model("toy", model_class=model_class)


def test_the_refusal_names_what_is_installed_and_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "TOY", shutil.copytree(TOY, tmp_path / "toy"))
    without_merges(tmp_path / "toy")
    with pytest.raises(WeightsError) as error:
        load_model("toy")
    for package in ("transformers", "tokenizers", "gguf"):
        assert f"{package} {goldens.version(package)}" in str(error.value)
    assert goldens.WORKING in str(error.value)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


ALTERED: dict[str, Damage] = {
    "a flipped bit": lambda directory: flip_a_bit(directory / "model.safetensors"),
    "a file cut short": lambda directory: (directory / "tokenizer.json").write_text("{"),
    "an edited tokenizer": without_merges,
    "a missing file": lambda directory: (directory / "tokenizer.json").unlink(),
    "a file more": lambda directory: (directory / "adapter_config.json").write_text("{}") and None,
    "a damaged list": lambda directory: (directory / "manifest.json").write_text("[") and None,
}


@pytest.mark.parametrize("damage", ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_directory_in_the_cache_is_refused_with_the_file_and_a_remedy(
    damage: Damage, source: gguf.GGUFSource, tmp_path: Path
) -> None:
    directory = transformers_directory(source, cache_dir=tmp_path)
    load_model("fake", cache_dir=tmp_path, model_class="TransformerBridge")
    damage(directory)
    with pytest.raises(WeightsError, match="was altered after it was converted") as error:
        load_model("fake", cache_dir=tmp_path, model_class="TransformerBridge")
    assert f"Delete the directory {directory};" in str(error.value)
    shutil.rmtree(directory)
    load_model("fake", cache_dir=tmp_path, model_class="TransformerBridge")


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_from_the_cache_is_the_converted_one_bit_for_bit(
    model_class: Any, source: gguf.GGUFSource, tmp_path: Path
) -> None:
    expected = load_model(TOY, model_class=model_class)
    for _ in ("the first time", "from the cache"):
        model = load_model("fake", cache_dir=tmp_path, model_class=model_class)
        for tensors in (torch.nn.Module.named_parameters, torch.nn.Module.named_buffers):
            pairs = list(zip(tensors(expected), tensors(model), strict=True))
            for (name, one), (other_name, other) in pairs:
                assert name == other_name
                assert torch.equal(one, other), name
                assert one.stride() == other.stride(), name
                assert one.requires_grad == other.requires_grad, name
        tokens = expected.to_tokens("Wanda Brandt lives in")
        assert torch.equal(model.to_tokens("Wanda Brandt lives in"), tokens)
        with torch.no_grad():
            assert torch.equal(model(tokens), expected(tokens))


@pytest.mark.parametrize("model_class", CLASSES)
def test_writing_into_weights_from_the_cache_changes_neither_the_file_nor_another_model(
    model_class: Any, source: gguf.GGUFSource, tmp_path: Path, toy_edits: list[rl.RankOneEdit]
) -> None:
    load_model("fake", cache_dir=tmp_path, model_class=model_class)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model, other = (
        load_model("fake", cache_dir=tmp_path, model_class=model_class) for _ in range(2)
    )
    toy_edits[0].apply(model)
    for weight in model.parameters():
        weight.data.mul_(1.5)
    assert weights_fingerprint(other) == weights_fingerprint(
        load_model(TOY, model_class=model_class)
    )
    assert weights_fingerprint(model) != weights_fingerprint(other)
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.skipif("HookedTransformer" not in CLASSES, reason="it has weights of its own to store")
def test_stored_weights_of_a_hooked_transformer_are_checked_as_the_converted_ones_are(
    source: gguf.GGUFSource, tmp_path: Path
) -> None:
    load_model("fake", cache_dir=tmp_path)
    [file] = tmp_path.glob("*/hooked.safetensors")
    assert f"transformer-lens-{goldens.version('transformer-lens')}" in file.parent.name
    weights = load_file(file)
    flip_a_bit(file)
    with pytest.raises(WeightsError, match=r"hooked\.safetensors was altered after it was conv"):
        load_model("fake", cache_dir=tmp_path)
    for damaged, message in (
        (dict(list(weights.items())[1:]), "are not those of the HookedTransformer that is made"),
        ({**weights, "embed.W_E": weights["embed.W_E"] * 2}, "does not come out as it should"),
    ):
        save_file(damaged, file)
        write_manifest(file.parent)
        with pytest.raises(WeightsError, match=message):
            load_model("fake", cache_dir=tmp_path)


@pytest.mark.parametrize("package", ["transformers", "gguf"])
def test_what_one_version_converted_is_not_read_by_another(
    package: str, source: gguf.GGUFSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = transformers_directory(source, cache_dir=tmp_path)
    assert f"{package}-{goldens.version(package)}" in first.name
    real = goldens.version
    monkeypatch.setattr(gguf, "version", lambda name: "5.99.0" if name == package else real(name))
    assert transformers_directory(source, cache_dir=tmp_path) != first


def test_every_model_that_has_a_name_here_has_stored_values() -> None:
    assert goldens.goldens().keys() == {"toy", *SOURCES}


def test_the_range_of_transformers_is_stated_the_same_everywhere() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert f'    "{goldens.WORKING}",\n' in project.read_text(encoding="utf-8")


@pytest.mark.real
@pytest.mark.parametrize("name", SOURCES)
def test_a_real_cache_with_a_flipped_bit_is_refused(name: str, tmp_path: Path) -> None:
    directory = transformers_directory(SOURCES[name])
    copy = tmp_path / directory.name
    copy.mkdir()
    for path in directory.iterdir():
        (copy / path.name).hardlink_to(path)
    tokenizer = copy / "tokenizer.json"
    content = tokenizer.read_bytes()
    tokenizer.unlink()
    tokenizer.write_bytes(re.sub(rb"The", rb"thE", content, count=1))
    with pytest.raises(WeightsError, match=r"tokenizer\.json was altered"):
        rl.load_model(name, cache_dir=tmp_path, model_class="TransformerBridge")
