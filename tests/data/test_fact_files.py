"""Files of facts: three shapes are read, and wrong files are refused with what they lack."""

import json
from typing import Any

import pytest

import rome_lens as rl
from rome_lens.data.facts import FactError

SHAPES = {
    "ours": {"prompt": "{} is in", "subject": "Paris", "target": "France", "new_target": "Italy"},
    "known_1000": {
        "prompt": "Paris is in",
        "subject": "Paris",
        "attribute": "France",
        "known_id": 3,
    },
    "counterfact": {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "{} is in",
            "subject": "Paris",
            "target_true": {"str": "France"},
            "target_new": {"str": "Italy"},
        },
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_fact_files_are_read(tmp_path: Any, shape: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([SHAPES[shape]]))
    (fact,) = rl.read_facts(path)
    new_target = None if shape == "known_1000" else "Italy"
    assert fact == rl.Fact("{} is in", subject="Paris", target="France", new_target=new_target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("[]", "no facts"),
        ("{}", "no facts"),
        (
            '[{"prompt": "{} is in", "subject": "Paris", "target": "France"}, {"prompt": "{} is"}]',
            "Fact 1 .* lacks the fields of a fact",
        ),
        ("[3]", "Fact 0 .*: expected an object"),
        (
            '[{"prompt": "Rome is in", "subject": "Paris", "attribute": "France"}]',
            "Fact 0 .*'Paris' is not in",
        ),
        ('[{"prompt": "{} is in", "subject": "", "target": "France"}]', "Fact 0 .*is empty"),
    ],
)
def test_a_wrong_fact_file_is_refused(tmp_path: Any, content: str, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(FactError, match=message):
        rl.read_facts(path)


FACTS = [
    {"prompt": "{} is in", "subject": "Paris", "target": "France"},
    {"prompt": "{} is in", "subject": "Mūnchen – 東京", "target": "Söme\u2028where"},
]
READ = [rl.Fact(**fact) for fact in FACTS]
JSON = json.dumps(FACTS, ensure_ascii=False)
LINES = "\n".join(json.dumps(fact, ensure_ascii=False) for fact in FACTS)
READERS = [rl.read_facts, rl.read_counterfact, rl.data.read_records]

WORKS = {
    "a byte order mark": b"\xef\xbb\xbf" + JSON.encode(),
    "UTF-16": JSON.encode("utf-16"),
    "UTF-32": JSON.encode("utf-32"),
    "JSON lines": LINES.encode(),
    "JSON lines with a byte order mark": b"\xef\xbb\xbf" + LINES.encode(),
    "JSON lines with empty ones": f"\n{LINES}\n \n\n".encode().replace(b"\n", b"\n\n"),
    "JSON lines of Windows": LINES.encode().replace(b"\n", b"\r\n"),
    "JSON lines in UTF-16": LINES.encode("utf-16"),
    "white space around": f" \n\t{JSON}\r\n ".encode(),
    "NaN in a field that nobody reads": JSON.replace('"}', '", "p": NaN, "q": -Infinity}').encode(),
}


@pytest.mark.parametrize("what", WORKS)
@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl", "facts", "facts.txt"])
def test_what_people_s_files_hold_is_read(tmp_path: Any, what: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WORKS[what])
    assert rl.read_facts(path) == rl.read_facts(str(path)) == READ


def test_one_object_alone_is_read(tmp_path: Any) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(FACTS[0]), encoding="utf-8")
    assert rl.read_facts(path) == READ[:1]


DEEP = 100_000
FAILS = {
    "nothing": (b"", "is empty, expected a JSON list"),
    "white space": (b" \n\n", "is empty, expected a JSON list"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "is empty"),
    "Latin-1": (
        JSON.replace("東京", "").replace("ū", "ü").replace("–", "-").encode("latin-1", "replace"),
        "is not text in UTF-8",
    ),
    "UTF-16 that is cut": (JSON.encode("utf-16")[:-1], "is not text in UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00", "is packed with gzip: unpack it, and read the JSON"),
    "zip": (b"PK\x03\x04", "is a zip archive"),
    "Parquet": (b"PAR1\x15", r"is in the Parquet format: pandas.read_parquet"),
    "a model": (b"\x98\x02\x00\x00\x00\xff\xfe" * 9, "is not text in UTF-8|is not JSON"),
    "a page": (b"<!doctype html>", "is not JSON"),
    "a number": (b"3", "it is a int, expected a list"),
    "null": (b"null", "it is a NoneType, expected a list"),
    "deep lists": (b"[" * DEEP + b"]" * DEEP, "its JSON is nested too deeply"),
    "deep objects": (b'[{"a":' * DEEP, "its JSON is nested too deeply"),
    "a deep line": (LINES.encode() + b"\n" + b"[" * DEEP, r"line 3,.* nested too deeply"),
    "a deep field": (
        b'[{"prompt": ' + b"[" * 900 + b"]" * 900 + b', "subject": "a", "target": "b"}]',
        r"'prompt': expected words, got \[\[\[\[\.\.\.\]\]\]\]|nested too deeply",
    ),
    "a huge integer": (b'[{"case_id": ' + b"9" * 5000 + b"}]", "is not JSON: Exceeds the limit"),
    "a line that is cut": (LINES.encode()[:-3], "line 2, is not JSON"),
    "a list that is cut": (JSON.encode()[:-3], "is not JSON"),
    "NaN as subject": (b'[{"prompt": "{} is", "subject": NaN, "target": "a"}]', "got nan"),
    "a field twice": (
        b'[{"prompt": "{} is", "subject": "a", "subject": "b", "target": "c"}]',
        r"\b0\b.*: a field occurs more than once among \['prompt', 'subject', 'target'\]",
    ),
    "half a character": (
        rb'[{"prompt": "{} is", "subject": "\ud83d", "target": "c"}]',
        r"\b0\b.*subject is '\\ud83d', which holds half of a character",
    ),
}


@pytest.mark.parametrize("what", FAILS)
def test_what_cannot_be_read_is_refused_with_the_file_and_the_place(
    tmp_path: Any, what: str
) -> None:
    content, message = FAILS[what]
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(FactError, match=message) as refusal:
        rl.read_facts(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    for read in READERS:
        with pytest.raises(FactError) as refusal:
            read(path)
        assert str(path) in str(refusal.value)


@pytest.mark.parametrize("read", READERS)
def test_a_path_that_is_no_file_is_refused(tmp_path: Any, unchecked: None, read: Any) -> None:
    missing = tmp_path / "none.json"
    for path, message in (
        (tmp_path, "is a directory, expected a file"),
        (missing, "There is no file .*none.json"),
        (missing / "deeper", "There is no file|cannot be read"),
        ("a\0b", "'a.x00b' cannot be read"),
        ("a" * 5000, "cannot be read"),
        (None, "None cannot be read"),
        ([], r"\[\] cannot be read"),
    ):
        with pytest.raises(FactError, match=message):
            read(path)


SKIPPED = [
    FACTS[0],
    3,
    {**FACTS[0], "subject": None},
    {"concept": "Paris"},
    FACTS[1],
    {**FACTS[0], "prompt": "Paris and Paris are in"},
]


def test_a_first_line_that_is_broken_is_left_out_on_request(tmp_path: Any) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(f'{{"subject": "Pa\n{LINES}', encoding="utf-8")
    with pytest.raises(FactError, match="line 1, is not JSON"):
        rl.read_facts(path)
    with pytest.warns(UserWarning, match="line 1, is not JSON"):
        assert rl.read_facts(path, on_error="skip") == READ


@pytest.mark.parametrize("lines", [True, False])
def test_bad_entries_are_left_out_on_request_and_listed(tmp_path: Any, lines: bool) -> None:
    path = tmp_path / "facts.json"
    entries = [*map(json.dumps, SKIPPED), *(['{"subject": "Pa'] if lines else [])]
    path.write_text("\n".join(entries) if lines else f"[{','.join(entries)}]", encoding="utf-8")
    reasons = ["got 3", "'subject': expected words", "lacks the fields", "stands 2 times"]
    reasons += ["line 7, is not JSON"] if lines else []
    for read, whole in ((rl.read_facts, READ), (rl.data.read_records, None)):
        with pytest.warns(UserWarning, match=rf"^{len(reasons)} of {len(entries)} .*\[1\] .*got 3"):
            found = read(path, on_error="skip")
        assert whole is None or found == whole
        assert len(found) == 2
        assert [index for index, _ in found.skipped] == [1, 2, 3, 5, 6][: len(reasons)]
        for (_, reason), words in zip(found.skipped, reasons, strict=True):
            assert words in reason
        with pytest.raises(FactError, match="got 3"):
            read(path)


def test_a_file_of_good_entries_skips_none_and_one_of_bad_entries_is_refused(
    tmp_path: Any, unchecked: None
) -> None:
    path = tmp_path / "facts.json"
    path.write_text(JSON, encoding="utf-8")
    assert rl.read_facts(path, on_error="skip").skipped == ()
    assert rl.read_facts(path).skipped == ()
    with pytest.raises(ValueError, match="on_error is 'ignore', expected one of 'raise', 'skip'"):
        rl.read_facts(path, on_error="ignore")
    path.write_text("[3, 4]", encoding="utf-8")
    for read in READERS:
        with pytest.raises(FactError, match=r"2 of 2 .* nothing is left: .0. .*got 3"):
            read(path, on_error="skip")


def test_a_second_record_of_one_id_is_left_out_on_request(tmp_path: Any) -> None:
    path = tmp_path / "records.json"
    entry = SHAPES["counterfact"]
    path.write_text(json.dumps([entry, entry, {**entry, "case_id": 2}]), encoding="utf-8")
    for read in READERS[1:]:
        with pytest.warns(UserWarning, match="1 of 3 records"):
            records = read(path, on_error="skip")
        assert [record.id for record in records] == [1, 2]
        assert records.skipped[0][0] == 1
