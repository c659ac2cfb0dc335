"""What is loaded is what was saved, bit for bit; a file is complete or not there."""

import dataclasses
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import rome_lens as rl
from rome_lens import results
from rome_lens.results import Stored
from rome_lens.storage import StorageError, installed_versions, make_directory, whole_or_nothing

FACT = rl.Fact(
    "Is {} “in” Zürich?\nIt is in", subject="東京 🗼", target='Par"is', new_target="Rome"
)
ODD = torch.tensor([0.1, -0.0, -1e-45, 1e-45, torch.finfo(torch.float32).max])


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def a_trace() -> rl.CausalTrace:
    return rl.CausalTrace(
        fact=FACT,
        component="mlp",
        window=3,
        layers=(1, 2),
        positions=(0, 4, 5),
        labels=("<s>", " a", "$", "�", "\n", ""),
        subject=(1, 4),
        answer=' Par"',
        clean=0.1 + 0.2,
        corrupted_samples=random(2),
        sample_scores=random(2, 2, 3),
        noise="GaussianNoise(scale=3.0, seed=0, subjects=None)",
        model_fingerprint="0123",
    )


def an_edit(**changes: Any) -> rl.RankOneEdit:
    fields: dict[str, Any] = {
        "key": random(5),
        "value": random(3),
        "fact": FACT,
        "model_fingerprint": "0123",
    }
    fields |= {
        "losses": random(4, 3, dtype=torch.float64),
        "probability": 1 / 3,
        "made_with": "by hand",
    }
    return rl.RankOneEdit(**{"layer": 2, "u": ODD, "v": random(3), **fields, **changes})


def a_weight_edit() -> rl.WeightEdit:
    return rl.WeightEdit(
        layer=1, delta=random(5, 3), fact=FACT, losses=random(2), variant="ft", stopped="loss"
    )


def symmetric() -> Tensor:
    rows = random(4, 4, dtype=torch.float64)
    return rows + rows.T


def statistics(moment: Tensor | None = None) -> rl.KeyStatistics:
    moment = symmetric() if moment is None else moment
    return rl.KeyStatistics(
        layer=1, moment=moment, count=7, model_fingerprint=None, source="a test’s"
    )


RESULTS: dict[str, Stored] = {
    "trace": a_trace(),
    "fact without new target": dataclasses.replace(
        a_trace(), fact=rl.Fact("{} is in", subject="A", target="B")
    ),
    "edit": an_edit(),
    "edit with little": rl.RankOneEdit(layer=0, u=random(5), v=random(3)),
    "edit with all that made it": an_edit(
        variant="rome",
        config={"steps": 20, "lr": 0.5, "stop_probability": None, "lengths": (5, 10)},
        contexts=("{}", "Is “{}”"),
        statistics="512 samples",
        stopped="probability",
        versions={"torch": "2.0", "rome-lens": "0.0.1"},
    ),
    "dense edit": a_weight_edit(),
    "several edits": rl.Edits(
        edits=(an_edit(), a_weight_edit(), an_edit(layer=0, fact=None, losses=None))
    ),
    "one edit among several": rl.Edits(edits=(a_weight_edit(),)),
    "statistics": statistics(),
    "statistics stored by columns": statistics(symmetric().T),
    "a row of another tensor": an_edit(v=random(6, 3)[2], key=random(5, 2)[:, 0]),
    "half precision": an_edit(u=random(5).bfloat16(), v=random(3).half()),
}


def assert_same(found: Any, expected: Any) -> None:
    """Equal fields of equal types, tensors down to the sign of zero."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert (
            found.contiguous().view(torch.uint8).tolist()
            == expected.contiguous().view(torch.uint8).tolist()
        )
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    else:
        assert found == expected


def write_half(tensors: Any, path: Path, metadata: Any = None) -> None:
    """A ``save_file`` that the disk stops in the middle."""
    Path(path).write_bytes(b"half")
    raise OSError("disk full")


@pytest.mark.parametrize("name", RESULTS)
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    result = RESULTS[name]
    assert_same(type(result).load(result.save(tmp_path / "result.safetensors")), result)


def test_a_result_prints_on_a_few_lines() -> None:
    assert [name for name, result in RESULTS.items() if len(repr(result)) > 400] == []
    large = dataclasses.replace(statistics(), moment=torch.eye(2000, dtype=torch.float64))
    assert len(repr(large)) < 200


def test_tensors_that_share_memory_do_not_after_a_round_trip(tmp_path: Path) -> None:
    shared = random(2, 5)
    edit = an_edit(u=shared[0], key=shared[1])
    assert_same(rl.RankOneEdit.load(edit.save(tmp_path / "edit.safetensors")), edit)


def test_an_edit_whose_u_is_its_key_can_be_saved(tmp_path: Path) -> None:
    key = random(5)
    edit = an_edit(u=key, key=key)
    assert_same(rl.RankOneEdit.load(edit.save(tmp_path / "edit.safetensors")), edit)


def test_saving_again_gives_the_same_content(tmp_path: Path) -> None:
    first = a_trace().save(tmp_path / "first")
    again = rl.CausalTrace.load(first).save(tmp_path / "again")
    assert_same(rl.CausalTrace.load(again), a_trace())


def test_save_makes_the_directory_and_returns_the_path_that_was_given(tmp_path: Path) -> None:
    path = tmp_path / "new" / "one" / "edit.safetensors"
    assert an_edit().save(str(path)) == path
    assert path.is_file()


def test_a_loaded_result_does_not_change_when_its_file_does(tmp_path: Path) -> None:
    path = statistics().save(tmp_path / "statistics")
    loaded = rl.KeyStatistics.load(path)
    statistics(torch.zeros(4, 4, dtype=torch.float64)).save(path)
    assert_same(loaded, statistics())


def test_the_file_names_the_versions_that_wrote_it(tmp_path: Path) -> None:
    with safe_open(a_trace().save(tmp_path / "trace"), framework="pt") as file:
        versions = json.loads(file.metadata()["versions"])
    assert versions == installed_versions()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_an_edit_keeps_the_versions_of_its_making(tmp_path: Path) -> None:
    assert an_edit().versions == installed_versions()
    edit = an_edit(versions={"torch": "1.0"})
    again = rl.RankOneEdit.load(
        rl.RankOneEdit.load(edit.save(tmp_path / "edit")).save(tmp_path / "again")
    )
    assert again.versions == {"torch": "1.0"}


def test_a_file_from_before_the_fields_were_there_is_loaded(tmp_path: Path) -> None:
    """An edit as 0.1 wrote it: its versions are those of the file's header."""
    new = ("variant", "config", "contexts", "statistics", "stopped", "versions")
    edit = an_edit()
    with safe_open(edit.save(tmp_path / "new"), framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fields = {
        name: value for name, value in json.loads(header["fields"]).items() if name not in new
    }
    header = {
        "type": header["type"],
        "fields": json.dumps(fields),
        "versions": json.dumps({"rome-lens": "0.1.0"}),
    }
    save_file(tensors, tmp_path / "old", metadata=header)
    loaded = rl.RankOneEdit.load(tmp_path / "old")
    assert_same(loaded, dataclasses.replace(edit, versions={"rome-lens": "0.1.0"}))
    assert (loaded.variant, loaded.config, loaded.contexts, loaded.stopped) == (
        None,
        None,
        (),
        None,
    )


def test_a_part_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with safe_open(RESULTS["several edits"].save(tmp_path / "new"), framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fields = header["fields"].replace("WeightEdit", "CubicEdit")
    header = {"type": header["type"], "fields": fields, "versions": header["versions"]}
    save_file(tensors, tmp_path / "future", metadata=header)
    with pytest.raises(StorageError, match=r"another version of rome_lens.*CubicEdit"):
        rl.Edits.load(tmp_path / "future")


def test_a_file_of_another_type_is_refused_with_both_names(tmp_path: Path) -> None:
    path = statistics().save(tmp_path / "result")
    with pytest.raises(StorageError, match="holds 'KeyStatistics', expected 'RankOneEdit'"):
        rl.RankOneEdit.load(path)


def test_a_file_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    save_file({"moment": torch.eye(2)}, tmp_path / "other")
    with pytest.raises(StorageError, match="holds 'something else', expected 'KeyStatistics'"):
        rl.KeyStatistics.load(tmp_path / "other")


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    path = statistics().save(tmp_path / "result")
    whole = path.read_bytes()
    message = re.escape(f"{path} is not a complete safetensors file")
    for kept in (0, 1, 8, 100, len(whole) // 2, -1):
        path.write_bytes(whole[:kept])
        with pytest.raises(StorageError, match=message):
            rl.KeyStatistics.load(path)
    path.write_text("This is a text and not a result.")
    with pytest.raises(StorageError, match=message):
        rl.KeyStatistics.load(path)


def test_a_header_that_is_not_json_is_refused_by_name(tmp_path: Path) -> None:
    header = {"type": "KeyStatistics", "fields": "{"}
    save_file({"moment": torch.eye(2)}, tmp_path / "result", metadata=header)
    message = re.escape(f"{tmp_path / 'result'} was written by another version of rome_lens")
    with pytest.raises(StorageError, match=message):
        rl.KeyStatistics.load(tmp_path / "result")


def test_a_directory_is_neither_read_nor_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path} is a directory")):
        rl.KeyStatistics.load(tmp_path)
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path} is a directory")):
        statistics().save(tmp_path)
    path = statistics().save(tmp_path / "result")
    for place in (path, path / "deeper"):
        with pytest.raises(StorageError, match=re.escape(f"{place} is not a directory")):
            statistics().save(place / "result")
        with pytest.raises(StorageError, match=re.escape(f"{place} is not a directory")):
            make_directory(place)


def test_a_failing_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = statistics().save(tmp_path / "result")
    before = path.read_bytes()
    monkeypatch.setattr(results, "save_file", write_half)
    for place in (path, tmp_path / "first"):
        with pytest.raises(
            StorageError, match=re.escape(f"{place} could not be written (disk full)")
        ):
            statistics(torch.zeros(2, 2, dtype=torch.float64)).save(place)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_takes_its_name_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_text("old")
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_text("old")

    def interrupt(error: BaseException) -> None:
        with whole_or_nothing(path) as unfinished:
            unfinished.write_text("new")
            raise error

    for error in (ValueError("broken"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            interrupt(error)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
NO_PERMISSION = PermissionError(errno.EACCES, "Permission denied")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


def refuse(error: Exception) -> Any:
    """A function that raises the error, whatever it is given."""

    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize("error", [NO_SPACE, NO_PERMISSION, READ_ONLY])
@pytest.mark.parametrize("place", [(os, "replace"), (results, "save_file"), (Path, "mkdir")])
def test_what_the_system_refuses_to_write_is_named_and_nothing_stays(
    place: tuple[Any, str], error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = statistics().save(tmp_path / "result")
    before = path.read_bytes()
    monkeypatch.setattr(*place, refuse(error))
    message = f"{re.escape(str(tmp_path))}.* could not be written .*{error.strerror}"
    with pytest.raises(StorageError, match=message) as refused:
        statistics(torch.zeros(2, 2, dtype=torch.float64)).save(path)
    assert isinstance(refused.value, OSError)
    assert refused.value.errno == error.errno
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_really_is_full_is_named(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = statistics().save(tmp_path / "result")
    large = statistics(torch.eye(200, dtype=torch.float64))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=re.escape(f"{path} could not be written")):
            large.save(path)
        with pytest.raises(StorageError, match=re.escape(f"{path} could not be written")):
            with whole_or_nothing(path) as unfinished:
                unfinished.write_text("a" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same(rl.KeyStatistics.load(path), statistics())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [NO_PERMISSION, OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("place", [(results, "safe_open"), (Path, "is_dir")])
def test_what_the_system_refuses_to_read_is_named(
    place: tuple[Any, str], error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = statistics().save(tmp_path / "result")
    monkeypatch.setattr(*place, refuse(error))
    message = re.escape(f"{path} could not be read ({error})")
    with pytest.raises(StorageError, match=message):
        rl.KeyStatistics.load(path)


def test_a_missing_file_is_named_and_is_what_python_calls_it(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "no" / "directory"):
        for kind in (StorageError, FileNotFoundError, ValueError):
            with pytest.raises(kind, match=re.escape(f"There is no file {path}.")):
                rl.KeyStatistics.load(path)


@pytest.mark.parametrize("path", [None, 3, b"result", ["a"], "a\0b", "a\ud800b"])
def test_what_is_no_path_is_refused_before_anything_is_written(
    path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (statistics().save, rl.KeyStatistics.load):
        with pytest.raises(StorageError, match=re.escape(f"The path is {path!r}, expected")):
            use(path)
    for place in ("x" * 5000, "x" * 300):
        with pytest.raises(StorageError, match="could not be written"):
            statistics().save(place)
        with pytest.raises(StorageError, match="could not be read"):
            rl.KeyStatistics.load(place)
    assert list(tmp_path.iterdir()) == []
