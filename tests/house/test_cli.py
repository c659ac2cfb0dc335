"""``rome-lens demo`` prints and writes what the functions it calls give, or says in one message what was wrong."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest

import rome_lens as rl
from rome_lens.cli import main
from rome_lens.data.record_type import Record
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.loading import TOY


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
    """A cache of these tests' own, and no hub."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROME_LENS_CACHE", str(directory))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield directory


@pytest.fixture(scope="module")
def demo(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One whole run on the toy model."""
    page = tmp_path_factory.mktemp("demo") / "new" / "page.html"
    return run("--model", "toy", "--out", str(page), "--quiet", page=page)


@pytest.fixture(scope="module")
def model() -> Any:
    """The model that the command takes."""
    return rl.load_model("toy")


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
    demo: Run, model: Any, toy_record: Record
) -> None:
    trace = rl.causal_trace(model, toy_record.fact)
    start, end = trace.subject
    names = [label.strip() + "*" * (start <= pos < end) for pos, label in enumerate(trace.labels)]
    rows = [
        [str(layer), *(f"{score:.2f}" for score in row)]
        for layer, row in zip(trace.layers, trace.scores.tolist(), strict=True)
    ]
    assert table(demo.out) == [["layer", *names], *rows]
    assert f"clean {trace.clean:.3f}, corrupted {trace.corrupted:.3f}" in demo.out


def test_the_layer_is_the_presets_and_that_of_the_trace_is_told(
    demo: Run, model: Any, toy_record: Record
) -> None:
    trace = rl.causal_trace(
        model, toy_record.fact, component="mlp", window=min(5, model.cfg.n_layers // 3)
    )
    assert f"most of the answer around layer {rl.choose_layer(trace)}." in demo.out
    assert f"2. Edit layer {rl.preset('toy').layer}: {toy_record.fact.target} -> " in demo.out


def test_the_edit_changes_the_answer_and_the_page_says_the_same(
    demo: Run, toy_record: Record
) -> None:
    answers = demo.out.split("3. Answers")[1].split("4. What")[0]
    cells = next(
        line.split("│")[1:-1] for line in answers.splitlines() if line.startswith("│ fact")
    )
    assert cells[3].strip().startswith(f"' {toy_record.fact.target}' 0.")
    assert cells[4].strip().startswith(f"' {toy_record.fact.new_target}' 0.")
    first = re.findall(r'<b class="hit">(.*?)</b>', demo.page.read_text(encoding="utf-8"))[:2]
    assert [token.strip() for token in first] == [
        toy_record.fact.target,
        toy_record.fact.new_target,
    ]


def test_every_check_is_read_out(demo: Run) -> None:
    limits = words(demo.out.split("4. What the edit does not do")[1])
    page = words(demo.page.read_text(encoding="utf-8"))
    names = "direction|association|description|dominance|bleed-over|consequence|essence|fidelity|localisation"
    readings = re.findall(rf"(?<!random )(?:{names}): (.*?\?) ", limits)
    assert len(readings) == 9
    assert [asks for asks in readings if asks.replace("'", "&#39;") not in page] == []


def test_statistics_are_kept_in_the_cache(demo: Run, cache: Path, model: Any) -> None:
    (kept,) = (cache / "keys").iterdir()
    statistics = rl.KeyStatistics.load(kept)
    assert statistics.model_fingerprint == fingerprint(model)
    assert f"Key statistics: {statistics.count} keys ({statistics.source})" in demo.out


def test_the_same_command_gives_the_same_text_and_page_where_nothing_else_is_said(
    demo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = run("--model", "toy", "--quiet", page=tmp_path / "rome-lens-report.html")
    assert again.out.replace(str(again.page), "") == demo.out.replace(str(demo.page), "")
    pages = [
        re.sub("circuits-vis-[0-9a-f-]+", "", one.page.read_text(encoding="utf-8"))
        for one in (demo, again)
    ]
    assert pages[0] == pages[1]


def test_a_layer_that_is_asked_for_is_the_one_that_is_edited(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = []
    monkeypatch.setattr(
        "rome_lens.editing.presets.collect_key_statistics",
        lambda model, layer, **_: rl.KeyStatistics.identity(model, layer=layer),
    )
    monkeypatch.setattr(rl, "report", lambda path, *, edit, **_: edited.append(edit.layer) or path)
    last = model.cfg.n_layers - 1
    asked = run(
        "--model",
        "toy",
        "--layer",
        str(last),
        "--out",
        str(tmp_path / "page"),
        page=tmp_path / "page",
    )
    assert (asked.status, edited) == (0, [last])
    assert "Layer to edit" not in asked.out


def test_progress_bars_are_shown_unless_it_is_quiet(
    demo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "report", lambda path, **_: path)
    loud = run("--model", "toy", "--out", str(tmp_path / "page"), page=tmp_path / "page")
    assert "trace resid" in loud.err
    assert "trace" not in demo.err


def test_a_quiet_run_writes_nothing_to_standard_error(demo: Run) -> None:
    assert demo.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model", "toy", "--layer", "99"),
            "rome-lens: Layer 99 is out of range: the model has layers 0 to ",
        ),
        (
            ("--model", "toy", "--layer=-1"),
            "rome-lens: Layer -1 is out of range: the model has layers 0 to ",
        ),
        (("--model", "no-such-model"), "rome-lens: No model 'no-such-model' could be loaded: "),
        (("--model", "no-such-model"), "'gemma-3-270m' (pip install \"rome-lens[gemma]\")"),
        (
            ("--model", "toy", "--record", "atlantis"),
            "rome-lens: There is no record 'atlantis'; there are: eiffel-tower, ",
        ),
    ],
)
def test_wrong_input_is_answered_with_a_message_before_anything_is_run(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    wrong = run(*arguments, "--out", str(tmp_path / "page.html"), page=tmp_path / "page.html")
    assert wrong.status == 2
    assert message in wrong.err
    assert wrong.out == ""
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("wrong", ["a directory as page", "a model directory without weights"])
def test_a_wrong_path_is_answered_with_a_message(
    wrong: str, toy_record: Record, tmp_path: Path
) -> None:
    model = "toy"
    if wrong == "a model directory without weights":
        model = str(tmp_path / "model")
        shutil.copytree(TOY, model, ignore=shutil.ignore_patterns("*.safetensors"))
    out = tmp_path if wrong == "a directory as page" else tmp_path / "page.html"
    failed = run("--model", model, "--record", toy_record.id, "--out", str(out), page=out)
    assert failed.status == 2
    assert failed.err.splitlines()[-1].startswith("rome-lens: ")


@pytest.fixture(scope="module")
def limits(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two of the toy's edits, questioned."""
    page = tmp_path_factory.mktemp("limits") / "page.html"
    kept = str(page.parent / "kept")
    few = ("--limit", "2", "--layer", "1", "--directory", kept, "--out", str(page), "--quiet")
    return run("--model", "toy", *few, page=page, command="limits")


def test_the_limits_of_several_edits_are_printed_and_written(limits: Run) -> None:
    assert (limits.status, limits.err) == (0, "")
    assert "What 2 edits of toy at layer 1 do not do" in limits.out
    for name in (
        "direction",
        "association",
        "description",
        "dominance",
        "bleed-over",
        "consequence",
        "essence",
        "fidelity",
    ):
        assert f"\n{name} (" in limits.out
    assert limits.page.read_text(encoding="utf-8").count("<details><summary>") >= 2
    kept = sorted(path.name.split("-")[0] for path in (limits.page.parent / "kept").iterdir())
    assert kept == ["limits", "limits", "rankoneedit", "rankoneedit"]


def test_a_second_run_goes_on_from_the_directory_and_writes_the_tables(
    limits: Run, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "rome_lens.evaluation.comparison.rome",
        lambda *_, **__: pytest.fail("an edit was made anew"),
    )
    tables = limits.page.parent / "tables.md"
    kept = str(limits.page.parent / "kept")
    few = ("--limit", "2", "--layer", "1", "--directory", kept, "--out", str(tables), "--quiet")
    again = run("--model", "toy", *few, page=tables, command="limits")
    assert again.out.replace(str(tables), "") == limits.out.replace(str(limits.page), "")
    assert "| direction |" in tables.read_text(encoding="utf-8")


def test_a_user_s_own_file_is_questioned_and_what_is_not_known_left_out(
    toy_record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fact that the model knows, without any prompts, and one that it does not."""
    fact = {
        name: getattr(toy_record.fact, name)
        for name in ("prompt", "subject", "target", "new_target")
    }
    swapped = {**fact, "target": fact["new_target"], "new_target": fact["target"]}
    file = tmp_path / "own.json"
    file.write_text(json.dumps([{"id": "mine", "fact": fact}, {"id": "wrong", "fact": swapped}]))
    monkeypatch.setattr(
        "rome_lens.editing.presets.collect_key_statistics",
        lambda model, layer, **_: rl.KeyStatistics.identity(model, layer=layer),
    )
    page = tmp_path / "page.html"
    found = run(
        "--model",
        "toy",
        "--records",
        str(file),
        "--out",
        str(page),
        "--quiet",
        page=page,
        command="limits",
    )
    assert found.status == 0, found.err
    assert "Not known to toy, left out: wrong" in found.out
    assert words("direction (0 facts) not asked") in words(found.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "atlantis"), "There is no record ['atlantis']; there are: "),
        (("--limit", "0"), "--limit is 0, expected 1 or more"),
        (("--limit", "-8"), "--limit is -8, expected 1 or more"),
        (("--every", "0"), "--every is 0, expected 1 or more"),
        (("--every", "-2"), "--every is -2, expected 1 or more"),
        (("--out", "page.pdf"), "expected a name that ends in .html"),
        (("--layer", "99"), "Layer 99 is out of range"),
        (("--records", "no-such-file.json"), "no-such-file.json"),
    ],
)
def test_wrong_limits_are_answered_with_a_message(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = run("--model", "toy", *arguments, page=tmp_path / "none", command="limits")
    assert wrong.status == 2
    assert message in wrong.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        ((), slice(None)),
        (("--every", "2"), slice(None, None, 2)),
        (("--every", "2", "--limit", "2"), slice(0, 4, 2)),
        (("--limit", "3"), slice(3)),
        (("--limit", "99"), slice(None)),
    ],
)
def test_every_so_many_records_are_taken_and_of_these_the_first(
    arguments: tuple[str, ...], taken: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Record] = []
    monkeypatch.setattr("rome_lens.cli.limits", lambda _model, records, **_: asked.extend(records))
    run("--model", "toy", *arguments, page=Path("none"), command="limits")
    own = [record.id for record in rl.data.limits() if "toy" in record.known_by]
    assert [record.id for record in asked] == own[taken]
    assert len(own) > 4


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
