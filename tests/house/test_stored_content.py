"""A file that is not what was written is refused, and so is a result that cannot be right."""

import dataclasses
import json
import os
import random as py_random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from results_for_tests import EXAMPLES, as_before, read, same
from safetensors.torch import save_file

import rome_lens as rl
from rome_lens import results
from rome_lens.errors import ArgumentError, RomeLensError
from rome_lens.results import Stored, plain_value
from rome_lens.storage import StorageError
from rome_lens.stores import Store

NAN, INF = float("nan"), float("inf")
FLIPS = int(os.environ.get("ROME_LENS_FLIPS", "10"))


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def test_there_is_an_example_of_every_type_of_result() -> None:
    own = {each for each in subclasses(Stored) if each.__module__.startswith("rome_lens.")}
    bases = {"Stored", "Trace", "Edit", "LayerEdit"}
    assert {each.__name__ for each in own} - bases == set(EXAMPLES)


def refused(path: Path, cls: type[Stored]) -> str:
    """The message with which the file is refused; it names the file."""
    with pytest.raises(StorageError, match=re.escape(str(path))) as error:
        cls.load(path)
    return str(error.value)


def loaded_or_refused(path: Path, cls: type[Stored]) -> Stored | None:
    try:
        return cls.load(path)
    except StorageError as error:
        if str(path) not in str(error):
            raise
        return None


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_flipped_bit_is_noticed_unless_it_changes_nothing(name: str, tmp_path: Path) -> None:
    result, rng = EXAMPLES[name], py_random.Random(name)
    path = result.save(tmp_path / "result")
    whole = path.read_bytes()
    for i in range(FLIPS):
        # half of the flips lie in the tensors, which are short
        first = 8 + int.from_bytes(whole[:8], "little") if i % 2 else 0
        at = rng.randrange(first if first < len(whole) else 0, len(whole))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        loaded = loaded_or_refused(path, type(result))
        assert loaded is None or same(loaded, result), at


@pytest.mark.parametrize("name", EXAMPLES)
def test_other_damage_is_noticed_too(name: str, tmp_path: Path) -> None:
    """Bytes removed, repeated, zeroed or exchanged."""
    result, rng = EXAMPLES[name], py_random.Random(name)
    path = result.save(tmp_path / "result")
    whole = path.read_bytes()
    for i in range(FLIPS):
        start, end = sorted(rng.sample(range(len(whole) + 1), 2))
        part = whole[start:end]
        other = (b"", part + part, bytes(len(part)), part[::-1])[i % 4]
        path.write_bytes(whole[:start] + other + whole[end:])
        if path.read_bytes() != whole:
            refused(path, type(result))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_entry_of_the_header_is_under_the_checksum(name: str, tmp_path: Path) -> None:
    path = EXAMPLES[name].save(tmp_path / "result", of="it")
    header, tensors = read(path)
    for entry in header:
        for changed in ({**header, entry: header[entry] + " "}, {**header, "more": ""}):
            save_file(tensors, path, metadata=changed)
            refused(path, type(EXAMPLES[name]))
        save_file(tensors, path, metadata={k: v for k, v in header.items() if k != entry})
        refused(path, type(EXAMPLES[name]))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_from_before_there_were_checksums_is_read(name: str, tmp_path: Path) -> None:
    path = as_before(EXAMPLES[name], tmp_path / "result")
    assert same(type(EXAMPLES[name]).load(path), EXAMPLES[name])
    assert same(type(EXAMPLES[name]).load(path, of="anything"), EXAMPLES[name])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_with_the_name_of_another_one_is_refused(name: str, tmp_path: Path) -> None:
    store, result = Store(tmp_path, identity="model"), EXAMPLES[name]
    paths = [store.path(type(result), each) for each in ("one", "other")]
    for path, each in zip(paths, ("one", "other"), strict=True):
        store.add(each, result)
        assert path is not None
    one, other = (path for path in paths if path is not None)
    one.replace(other)
    again = Store(tmp_path, identity="model")
    assert again.get(type(result), "one") is None
    message = f"{re.escape(str(other))} is of 'one', expected of 'other'.* Remove {other}"
    with pytest.raises(StorageError, match=message):
        again.get(type(result), "other")
    assert same(type(result).load(other), result)  # its name says nothing outside a store
    result.save(other)
    with pytest.raises(StorageError, match="is of 'nothing that it names', expected of 'other'"):
        again.get(type(result), "other")


BAD: list[tuple[str, str, Any]] = [
    ("RankOneEdit", "u", torch.tensor([0.0, NAN, 0.0, 0.0, 0.0])),
    ("RankOneEdit", "v", torch.tensor([0.0, INF, 0.0])),
    ("RankOneEdit", "u", torch.ones(5, dtype=torch.int64)),
    ("RankOneEdit", "u", torch.ones(5, 1)),
    ("RankOneEdit", "u", torch.ones(4)),
    ("RankOneEdit", "value", torch.ones(4)),
    ("RankOneEdit", "losses", torch.ones(4, 2)),
    ("RankOneEdit", "layer", "../../etc"),
    ("RankOneEdit", "layer", -1),
    ("RankOneEdit", "layer", 2.0),
    ("RankOneEdit", "layer", True),
    ("RankOneEdit", "layer", None),
    ("RankOneEdit", "u", None),
    ("RankOneEdit", "u", [1.0, 2.0]),
    ("RankOneEdit", "fact", "Paris"),
    ("RankOneEdit", "stopped", "somewhere"),
    ("RankOneEdit", "probability", NAN),
    ("RankOneEdit", "probability", 10**310),
    ("RankOneEdit", "contexts", "{}"),
    ("RankOneEdit", "contexts", [1]),
    ("RankOneEdit", "versions", ["torch"]),
    ("RankOneEdit", "versions", {"torch": 2}),
    ("WeightEdit", "delta", torch.full((5, 3), NAN)),
    ("WeightEdit", "layer", "../../etc"),
    ("KeyStatistics", "layer", "../../etc"),
    ("KeyStatistics", "layer", -1),
    ("KeyStatistics", "count", -1),
    ("KeyStatistics", "moment", torch.full((3, 3), NAN)),
    ("KeyStatistics", "moment", torch.ones(3, 2)),
    ("KeyStatistics", "source", 3),
    ("KeySum", "layer", "../../etc"),
    ("KeySum", "upper", torch.full((3, 3), INF)),
    ("CausalTrace", "layers", ["../../etc", 1]),
    ("CausalTrace", "layers", [1]),
    ("CausalTrace", "positions", [0, 4]),
    ("CausalTrace", "positions", [0, 4, 6]),
    ("CausalTrace", "positions", [0, 4, -1]),
    ("CausalTrace", "subject", [4, 4]),
    ("CausalTrace", "subject", [4, 7]),
    ("CausalTrace", "subject", [4]),
    ("CausalTrace", "clean", NAN),
    ("CausalTrace", "clean", "0.5"),
    ("CausalTrace", "corrupted_samples", torch.ones(3)),
    ("CausalTrace", "sample_scores", torch.full((2, 2, 3), NAN)),
    ("CausalTrace", "sample_scores", torch.ones(2, 2, 3, 4)),
    ("CausalTrace", "heads", [1]),
    ("CausalTrace", "component", "hidden"),
    ("CausalTrace", "fact", None),
    ("SeveredTrace", "ordinary_sample_scores", torch.ones(2, 2, 4)),
    ("SeveredTrace", "ordinary_sample_scores", torch.full((2, 2, 3), INF)),
    ("AttributionTrace", "heads", [0, 1, 2]),
    ("AttributionTrace", "window", -1),
    ("TraceAverage", "subjects", ["A", "B"]),
    ("TraceAverage", "roles", ["last", "first"]),
    ("TraceAverage", "fact_effects", torch.full((1, 2, 2), INF)),
    ("TraceAverage", "clean_scores", torch.full((1,), NAN)),
    ("LayerSweep", "names", ["1"]),
    ("LayerSweep", "layers", [0, 1]),
    ("LayerSweep", "effects", torch.full((2, 3), NAN)),
    ("LayerSweep", "EM", torch.full((2, 3), INF)),
    ("LayerSweep", "at", "nowhere"),
    ("EditFiring", "labels", ["a"]),
    ("EditFiring", "scale", NAN),
    ("PromptScore", "new_after", NAN),
    ("Evaluation", "GE", INF),
    ("Evaluation", "edited", "yes"),
    ("Evaluation", "rows", [1]),
    ("CheckRow", "before", NAN),
    ("CheckRow", "known", 1),
    ("CheckRow", "rank_after", -1),
    ("Measure", "values", ["a"]),
    ("Measure", "interval", [0.1]),
    ("LimitsAverage", "limits", []),
    ("Edits", "edits", []),
]


@pytest.mark.parametrize(("name", "field", "value"), BAD)
def test_what_cannot_be_right_is_neither_made_nor_loaded(
    name: str, field: str, value: Any, tmp_path: Path, unchecked: Any
) -> None:
    result = EXAMPLES[name]
    given = tuple(value) if isinstance(value, list) else value
    with pytest.raises(RomeLensError, match=field):
        dataclasses.replace(result, **{field: given})  # type: ignore[type-var]
    found = refused(as_before(result, tmp_path / "result", **{field: value}), type(result))
    assert field in found


def test_lists_and_numbers_of_other_libraries_become_plain(unchecked: Any) -> None:
    from numpy import float32, int64

    edit = dataclasses.replace(EXAMPLES["RankOneEdit"], layer=int64(2), contexts=["{}"])
    assert (edit.layer, type(edit.layer), edit.contexts) == (2, int, ("{}",))
    row = dataclasses.replace(EXAMPLES["PromptScore"], new_after=float32(0.5))
    assert (row.new_after, type(row.new_after)) == (0.5, float)


def test_what_was_changed_since_it_was_made_is_not_saved(tmp_path: Path) -> None:
    edit = dataclasses.replace(EXAMPLES["RankOneEdit"], u=torch.ones(5))
    edit.u[3] = NAN
    with pytest.raises(ArgumentError, match=r"RankOneEdit.u contain NaN .* at \[3\]"):
        edit.save(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_cannot_hold_is_not_saved(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), {1, 2}, deep):
        edit = dataclasses.replace(EXAMPLES["RankOneEdit"], config={"more": value})
        with pytest.raises(StorageError, match="The RankOneEdit cannot be saved"):
            edit.save(tmp_path / "edit")
    for base in (Stored(), rl.Edit()):
        with pytest.raises(StorageError, match="it is a base class"):
            base.save(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


def test_a_base_class_loads_nothing_and_says_which_class_does(tmp_path: Path) -> None:
    path = EXAMPLES["RankOneEdit"].save(tmp_path / "edit")
    for cls in (Stored, rl.Edit, rl.WeightEdit, rl.Edits):
        message = f"holds 'RankOneEdit', expected '{cls.__name__}'"
        assert message in refused(path, cls)


NOT_JSON_OR_NOT_FIELDS = ["", "{", "nonsense", "[]", "[1]", "3", "null", '"text"', "[" * 10_000]


@pytest.mark.parametrize("entry", ["type", "fields", "versions"])
@pytest.mark.parametrize("text", [*NOT_JSON_OR_NOT_FIELDS, "9" * 5000, '{"a": ' * 500 + "1"])
def test_a_damaged_entry_of_a_header_is_named(entry: str, text: str, tmp_path: Path) -> None:
    header, tensors = read(EXAMPLES["RankOneEdit"].save(tmp_path / "new"))
    header = {name: header[name] for name in ("type", "fields", "versions")}
    fields = json.loads(header["fields"])
    header["fields"] = json.dumps({k: v for k, v in fields.items() if k != "versions"})
    path = tmp_path / "old"
    save_file(tensors, path, metadata={**header, entry: text})
    refused(path, rl.RankOneEdit)


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "Nothing", "fields": {}}],
        [{"type": "RankOneEdit", "fields": []}],
        [{"type": "Stored", "fields": {}}],
        [{"type": ["RankOneEdit"], "fields": {}}],
        [{"type": "Measure", "fields": {"name": "a", "values": [1.0]}}],
        [{"type": "RankOneEdit", "fields": {"layer": "1"}}],
        {"type": "RankOneEdit"},
        "RankOneEdit",
    ],
)
def test_a_damaged_part_of_a_result_is_named(parts: Any, tmp_path: Path) -> None:
    refused(as_before(EXAMPLES["Edits"], tmp_path / "old", edits=parts), rl.Edits)


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__": {"type": 3}}',
        b'{"__metadata__": []}',
        b"[]",
        b"\xff\xfe{}",
        b'{"__metadata__": {"type": "\xff"}}',
        b'{"__metadata__":' * 5000,
        b'{"u": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 399999999996]}}',
    ],
)
def test_a_header_that_is_not_one_is_named(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "result"
    for size in (len(header), len(header) + 1, 2**40, 2**63):
        path.write_bytes(size.to_bytes(8, "little") + header)
        refused(path, rl.RankOneEdit)


def test_a_value_from_before_it_had_all_its_fields_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = rl.Fact("{} is in", subject="A", target="B")
    edit = dataclasses.replace(EXAMPLES["RankOneEdit"], fact=fact)
    before = {"prompt": "{} is in", "subject": "A", "target": "B"}
    assert rl.RankOneEdit.load(as_before(edit, tmp_path / "old", fact=before)).fact == fact
    incomplete = as_before(edit, tmp_path / "old", fact={"prompt": "{} is in", "subject": "A"})
    assert "fact" in refused(incomplete, rl.RankOneEdit)
    monkeypatch.setattr(results, "_PLAIN", dict(results._PLAIN))

    @dataclass(frozen=True)
    class Point:
        x: int
        y: int
        z: int = 0

    @dataclass(frozen=True)
    class Pair:
        x: int
        y: int

    @dataclass(frozen=True)
    class Triple:
        x: int
        y: int
        z: int
        t: int = 0

    @dataclass(frozen=True)
    class Quadruple:
        x: int
        y: int
        z: int
        t: int

    plain_value(Point)
    for ambiguous in (Pair, Triple):
        with pytest.raises(TypeError, match=f"could not tell {ambiguous.__name__} from Point"):
            plain_value(ambiguous)
    plain_value(Quadruple)
    for value in (Point(1, 2), Point(1, 2, 3), Quadruple(1, 2, 3, 4)):
        assert results._from_json(dataclasses.asdict(value)) == value
    assert results._from_json({"x": 1, "y": 2}) == Point(1, 2)


def test_a_fact_of_an_older_file_is_asked_as_it_was_then() -> None:
    """Before facts had a joiner, one space was put before every answer."""
    fact = rl.Fact("{}的首都是", subject="法国", target="巴黎")
    old = {"prompt": fact.prompt, "subject": "法国", "target": "巴黎", "new_target": None}
    assert results._from_json(old).joiner == " "
    assert results._from_json({**old, "joiner": fact.joiner}) == fact
