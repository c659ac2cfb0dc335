"""Finished work is found again by everything that made it, and by nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from results_for_tests import as_before

import rome_lens as rl
from rome_lens.editing.config import RomeConfig
from rome_lens.errors import ArgumentError
from rome_lens.storage import StorageError
from rome_lens.stores import FORMAT, MANIFEST, Store, StoreError

SETTINGS = {"window": 3, "layers": (0, 1), "noise": None}


def statistics(layer: int = 1) -> rl.KeyStatistics:
    return rl.KeyStatistics(layer=layer, moment=torch.eye(2, dtype=torch.float64), count=7)


def edit() -> rl.RankOneEdit:
    return rl.RankOneEdit(layer=1, u=torch.ones(2), v=torch.ones(3))


def test_a_result_is_found_by_a_later_run(tmp_path: Path) -> None:
    name = Store(tmp_path / "new", identity="model").name("part", 3)
    Store(tmp_path / "new", identity="model").add(name, statistics())
    found = Store(tmp_path / "new", identity="model").get(rl.KeyStatistics, name)
    assert found is not None
    assert torch.equal(found.moment, statistics().moment)
    assert (found.layer, found.count) == (1, 7)
    assert Store(tmp_path / "new", identity="model").get(rl.RankOneEdit, name) is None


def test_results_of_two_types_may_have_one_name(tmp_path: Path) -> None:
    for directory in (None, tmp_path):
        store = Store(directory)
        store.add("name", statistics())
        store.add("name", edit())
        assert isinstance(store.get(rl.KeyStatistics, "name"), rl.KeyStatistics)
        assert isinstance(store.get(rl.RankOneEdit, "name"), rl.RankOneEdit)


def test_a_name_holds_everything_that_made_the_result() -> None:
    fact = rl.Fact("{} is in", subject="A", target="B", new_target="C")
    made_with: list[tuple[Any, ...]] = [
        (RomeConfig(), fact),
        (RomeConfig(steps=3), fact),
        (RomeConfig(), fact.about("D")),
        (RomeConfig(), rl.data.Record(id=1, fact=fact)),
        (RomeConfig(), rl.data.Record(id=1, fact=fact, aliases=("D",))),
        (RomeConfig(), fact, None),
        (RomeConfig(), fact, "None"),
        (fact, RomeConfig()),
        (statistics(),),
        (statistics(2),),
    ]
    names = [Store(None, identity=model).name(*parts) for model in "ab" for parts in made_with]
    assert len(set(names)) == 2 * len(made_with)
    assert names == [Store(None, identity=m).name(*parts) for m in "ab" for parts in made_with]


def test_a_part_that_does_not_say_its_settings_is_refused_on_disk_only(tmp_path: Path) -> None:
    part = object()
    assert Store(None).name(part)
    with pytest.raises(ArgumentError, match=r"<object object at 0x.* Give its class a __repr__"):
        Store(tmp_path).name("a", part)


def test_without_a_directory_results_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store, result = Store(None, settings=SETTINGS), statistics()
    assert store.get(rl.KeyStatistics, "name") is None
    store.add("name", result)
    assert store.get(rl.KeyStatistics, "name") is result
    assert Store(None, settings=SETTINGS).get(rl.KeyStatistics, "name") is None
    assert store.path(rl.KeyStatistics, "name") is None
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_says_version_and_settings(tmp_path: Path) -> None:
    Store(tmp_path, settings=SETTINGS)
    manifest = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    settings = {"window": 3, "layers": [0, 1], "noise": None}
    assert manifest == {"format": FORMAT, "rome_lens": rl.__version__, "settings": settings}
    Store(tmp_path, settings=SETTINGS)
    assert json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8")) == manifest


def refusal(directory: Path, **settings: Any) -> str:
    """The message with which a store in the directory is refused; the directory stays as it was."""
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    with pytest.raises(StoreError) as error:
        Store(directory, settings=settings)
    after = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    assert after == before
    return str(error.value)


def test_other_settings_are_refused_with_each_difference(tmp_path: Path) -> None:
    Store(tmp_path, settings=SETTINGS)
    found = refusal(tmp_path, window=4, layers=(0, 1), at="last")
    assert found.startswith(f"The results in {tmp_path} were made with other settings (")
    assert "window was 3 and is now 4; at was None and is now 'last')" in found
    assert "layers" not in found
    assert "noise" not in found  # left out and None are the same


def test_a_directory_of_another_program_or_version_is_refused_in_one_sentence(
    tmp_path: Path,
) -> None:
    files = {  # those of rome_lens 0.1, and somebody else's
        "settings.json": "{}",
        "003ac2c70df203ef6ac9.safetensors": "",
        "39be9f056cbd6fe42b786331.json": "{}",
        "limits-a5e8910ba8b7b3b306254afb.safetensors": "",
        "notes.txt": "",
    }
    for name, content in files.items():
        directory = tmp_path / name.replace(".", "-")
        directory.mkdir()
        (directory / name).write_text(content)
        assert refusal(directory) == (
            f"{directory} holds {name!r} but no {MANIFEST}, so it was written by rome_lens 0.1 or "
            "by another program: give a new or an empty directory."
        )
    later = tmp_path / "later"
    later.mkdir()
    manifest = {"format": 3, "rome_lens": "0.4.0", "settings": {}}
    (later / MANIFEST).write_text(json.dumps(manifest))
    assert refusal(later) == (
        f"{later} was written by rome_lens 0.4.0 in format 3, but this version continues only "
        f"format {FORMAT}: give another directory."
    )


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    for content in ("", "{", "[]", "3", '{"format": 2}', '{"format": 2, "settings": 3}'):
        (tmp_path / MANIFEST).write_text(content)
        assert refusal(tmp_path).startswith(f"{tmp_path / MANIFEST} is damaged, so ")
    for damaged in (b"\xff\xfe{", b"[" * 10_000, b'{"format": "\xe9"}', b"9" * 5000):
        (tmp_path / MANIFEST).write_bytes(damaged)
        assert refusal(tmp_path).startswith(f"{tmp_path / MANIFEST} is damaged, so ")
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(StorageError, match=f"{tmp_path / MANIFEST} could not be read"):
        Store(tmp_path, settings=SETTINGS)


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("name", statistics())
    path = store.path(rl.KeyStatistics, "name")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    message = f"{path} is not a complete safetensors file.* Remove {path} to have this result"
    with pytest.raises(StorageError, match=message):
        Store(tmp_path).get(rl.KeyStatistics, "name")
    path.unlink()
    assert Store(tmp_path).get(rl.KeyStatistics, "name") is None


def test_what_a_killed_run_left_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / f"{MANIFEST}.0123abcd.part").write_text("{")
    (tmp_path / "keys-name.safetensors.0123abcd.part").write_text("half")
    assert Store(tmp_path).get(rl.KeyStatistics, "name") is None
    Store(tmp_path).add("name", statistics())
    assert Store(tmp_path).get(rl.KeyStatistics, "name") is not None


def test_key_statistics_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    """They had the name that they have today, and lay in a directory without a manifest."""
    path = tmp_path / "keys-41cd89ceb5f163d8-l1-texts-1ce8b97106.safetensors"
    as_before(statistics(), path)
    found = Store(tmp_path).get(rl.KeyStatistics, "41cd89ceb5f163d8-l1-texts-1ce8b97106")
    assert found is not None
    assert found.count == 7


def test_a_file_in_the_directory_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path / 'file'} is not a directory")):
        Store(tmp_path / "file")


def test_hidden_files_do_not_make_a_directory_another_program_s(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").touch()
    Store(tmp_path, identity="model")
    assert (tmp_path / MANIFEST).is_file()


def test_a_run_that_begins_at_the_same_time_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.iterdir

    def other_run_writes_first(path: Path) -> Any:
        monkeypatch.setattr(Path, "iterdir", listed)
        Store(path, settings={"window": 3})
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", other_run_writes_first)
    Store(tmp_path / "same", settings={"window": 3})
    monkeypatch.setattr(Path, "iterdir", other_run_writes_first)
    with pytest.raises(StoreError, match="window was 3 and is now 5"):
        Store(tmp_path / "other", settings={"window": 5})


def test_a_store_without_identity_and_settings_lies_next_to_any_files(tmp_path: Path) -> None:
    """Such as the cache of key statistics, which took any directory in version 0.1, too."""
    (tmp_path / "README.md").write_text("mine")
    for _ in range(2):
        store = Store(tmp_path)
        store.add("name", statistics())
        assert Store(tmp_path).get(rl.KeyStatistics, "name") is not None
    assert not (tmp_path / MANIFEST).exists()
    with pytest.raises(StoreError, match="README"):
        Store(tmp_path, identity="model")


def test_a_name_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("../../etc", "a/b", "/etc/passwd", "..", "", "a\0b", "a\n"):
        for use in (store.get, store.path):
            with pytest.raises(ArgumentError, match=re.escape(f"The name is {name!r}")):
                use(rl.KeyStatistics, name)
        with pytest.raises(ArgumentError, match="expected letters, digits"):
            store.add(name, statistics())
    assert list(tmp_path.rglob("*")) == [tmp_path / "store"]


def test_half_of_a_surrogate_pair_has_a_name_of_its_own() -> None:
    names = {Store(None).name(text) for text in ("a", "a\ud800", "a\udc00")}
    assert len(names) == 3
    assert Store(None, identity="\ud800").name("a") not in names


def test_a_directory_in_a_result_s_place_is_named_before_the_result_is_made(tmp_path: Path) -> None:
    path = Store(tmp_path).path(rl.KeyStatistics, "name")
    assert path is not None
    path.mkdir()
    with pytest.raises(StorageError, match=re.escape(f"{path} is a directory")):
        Store(tmp_path).get(rl.KeyStatistics, "name")


@pytest.mark.parametrize("path", [3, "a\0b", b"a"])
def test_what_is_no_directory_is_refused(path: Any, unchecked: Any) -> None:
    with pytest.raises(StorageError, match=re.escape(f"The path is {path!r}")):
        Store(path, identity="model")


def test_a_directory_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for name in ("iterdir", "mkdir", "exists", "write_text"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, denied)
            with pytest.raises(StorageError, match=f"{re.escape(str(tmp_path))}.*could not be"):
                Store(tmp_path, identity="model")
        assert list(tmp_path.iterdir()) == []
