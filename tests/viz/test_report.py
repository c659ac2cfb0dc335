"""The page says what the results say, opens without a network, and is complete or not there."""

import dataclasses
import html
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures_for_tests import with_few_prompts
from test_viz import Page

import rome_lens as rl
from rome_lens import viz
from rome_lens.checks import CheckResult, CheckRow, Measure
from rome_lens.checks.limits import Limits
from rome_lens.data.record_type import Record
from rome_lens.errors import ArgumentError
from rome_lens.models.hook_names import COMPONENTS
from rome_lens.storage import installed_versions
from rome_lens.viz.axes import NAMES
from rome_lens.viz.overview import readings

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def results(one_toy: Any, toy_record: Record, toy_edit: rl.RankOneEdit) -> dict[str, Any]:
    """What a report is made of, one check not asked."""
    fact = toy_record.fact
    prompts = [fact.text, toy_record.neighborhood[0].prompt]
    before = rl.top_answers(one_toy, prompts, count=2)
    after = rl.top_answers(one_toy, prompts, count=2, fwd_hooks=toy_edit.fwd_hooks(one_toy))
    record = dataclasses.replace(with_few_prompts(toy_record), aliases=())
    return {
        "model_name": "toy",
        "traces": [
            rl.causal_trace(one_toy, fact, component=c, samples=2) for c in ("resid", "mlp")
        ],
        "edit": toy_edit,
        "answers": [
            rl.BeforeAfter(kind=kind, expected=expected, before=b, after=a)
            for kind, expected, b, a in zip(
                ("fact", "neighbour"), (fact.target, "none"), before, after, strict=True
            )
        ],
        "limits": rl.check_limits(one_toy, toy_edit, record, samples=1, new_tokens=5),
        "firing": [rl.edit_firing(one_toy, toy_edit, prompt) for prompt in prompts],
    }


@pytest.fixture(scope="module")
def source(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page about all of the results."""
    return rl.report(tmp_path_factory.mktemp("page") / "page.html", **results).read_text(
        encoding="utf-8"
    )


@pytest.fixture
def hostile(results: dict[str, Any]) -> dict[str, Any]:
    """Results with HTML wherever a user's words stand, each after a letter of its own."""
    fact = rl.Fact(
        f"{SCRIPT} {{}} is", subject=f"S{SCRIPT}", target=f"T{SCRIPT}", new_target=f"N{SCRIPT}"
    )
    before = dataclasses.replace(
        results["answers"][0].before, prompt=f"P{SCRIPT}", tokens=(f"A{SCRIPT}", "</div>")
    )
    names = {
        "kind": f"r{SCRIPT}",
        "prompt": f"Q{SCRIPT}",
        "control_prompt": f'"{SCRIPT}',
        "fires_at": f"F{SCRIPT}",
    }
    row = CheckRow(answer="", before=0.0, after=1.0, effect=1.0, control=0.5, firing=0.5, **names)
    letters = {
        "name": "C",
        "asks": "K",
        "measured": "M",
        "effect_is": "e",
        "control_is": "c",
        "reading": "R",
    }
    further = (Measure(name=f"f{SCRIPT}", values=(1.0,)),)
    check = CheckResult(
        rows=(row,), further=further, **{name: f"{c}{SCRIPT}" for name, c in letters.items()}
    )
    trace = dataclasses.replace(
        results["traces"][0], fact=fact, answer=f"a{SCRIPT}", noise=f"n{SCRIPT}"
    )
    return {
        "model_name": f"m{SCRIPT}",
        "traces": [trace],
        "edit": dataclasses.replace(results["edit"], fact=fact, made_with=f"W{SCRIPT}"),
        "answers": [
            rl.BeforeAfter(kind=f"k{SCRIPT}", expected=f"E{SCRIPT}", before=before, after=before)
        ],
        "limits": Limits(record_id="hostile", relation="", results=(check,)),
    }


def written(path: Path, **results: Any) -> Page:
    return Page(rl.report(path, **results).read_text(encoding="utf-8"))


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_page_is_written_where_it_was_asked_for(
    results: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "page.html"
    assert rl.report(str(path), **results) == path
    assert [found.name for found in path.parent.iterdir()] == ["page.html"]


def test_the_page_loads_nothing_and_closes_what_it_opens(source: str) -> None:
    page = Page(source)
    page.assert_loads_nothing()
    assert re.findall(r"url\(|@import", source.split("</style>")[0]) == []
    for tag in [
        "html",
        "head",
        "body",
        "div",
        "span",
        "style",
        "table",
        "tr",
        "td",
        "p",
        "h2",
        "h3",
    ]:
        assert page.names().count(tag) == page.closed.count(tag) > 0, tag


def test_every_trace_has_its_picture_in_the_page(source: str, results: dict[str, Any]) -> None:
    pictures = [attrs for tag, attrs in Page(source).opened if tag == "img"]
    assert [attrs["alt"] for attrs in pictures] == [
        *(f"{t.component} trace of: {t.fact.text}" for t in results["traces"]),
        "Every check with its control, on one scale",
    ]
    assert len({attrs["src"] for attrs in pictures}) == len(pictures)


def test_the_page_says_what_every_check_asks_and_reads(
    source: str, results: dict[str, Any]
) -> None:
    text = flat(Page(source).text)
    assert len(results["limits"].results) == 11
    for check in results["limits"].results:
        assert flat(check.asks) in text
        assert flat(check.reading) in text


def test_every_row_of_a_check_is_a_row_of_the_page(source: str, results: dict[str, Any]) -> None:
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        for row in re.findall(r"<tr>.*?</tr>", source, re.DOTALL)
    ]
    found = [[html.unescape(cell) for cell in row] for row in rows if len(row) == 7]
    expected = [
        [
            *(r.kind, r.prompt, r.answer, f"{r.before:.4f}", f"{r.after:.4f}"),
            "" if r.control is None else f"{r.control:.4f}",
            "" if r.firing is None else f"{r.firing:+.2f} {r.fires_at}",
        ]
        for check in results["limits"].results
        for r in check.rows
    ]
    assert found == expected != []


def test_a_check_that_was_not_asked_says_so_and_has_no_numbers(
    results: dict[str, Any], tmp_path: Path
) -> None:
    limits = Limits(record_id="one", relation="", results=(results["limits"]["association"],))
    page = written(tmp_path / "page.html", **{**results, "limits": limits, "answers": ()})
    assert "Not asked: the record has no aliases." in page.text
    assert page.names().count("table") == 0


def test_every_answer_stands_with_its_probability(source: str, results: dict[str, Any]) -> None:
    text = flat(Page(source).text)
    for row in results["answers"]:
        assert f"true answer: {row.expected}" in text
        for side in (row.before, row.after):
            for token, probability in zip(side.tokens, side.probabilities, strict=True):
                assert f"{token.strip()} {probability:.3f}" in text


def test_the_summary_marks_what_the_edit_changed_and_links_to_every_check(
    source: str, results: dict[str, Any]
) -> None:
    summary, rest = source.split('<ul class="contents">')
    marked = re.findall(r"<mark>(.*?)</mark>", summary)
    assert [token.strip() for token in marked] == [results["edit"].fact.new_target]
    drawn = [reading.name for reading in readings(results["limits"])]
    assert re.findall(r'<a href="#([^"]+)">', summary) == drawn
    assert [name for name in drawn if f'<h3 id="{name}">' not in rest] == []
    assert [
        verdict.verdict for verdict in readings(results["limits"]) if verdict.verdict not in summary
    ] == []
    assert "-0.00 of" not in summary


def test_the_contents_lead_to_the_parts_that_are_there(source: str) -> None:
    contents = source.split('<ul class="contents">')[1].split("</ul>")[0]
    places = re.findall(r'<a href="#([^"]+)">(.*?)</a>', contents)
    assert [heading for _, heading in places] == re.findall(r"<h2>(.*?)</h2>", source)
    assert [place for place, _ in places if f' id="{place}"' not in source] == []


def test_the_page_names_edit_model_and_versions(source: str, results: dict[str, Any]) -> None:
    fact = results["edit"].fact
    assert f"<title>{fact.text} {fact.target} → {fact.new_target} (toy)</title>" in source
    assert f"W_out at layer {results['edit'].layer}." in source
    text = flat(Page(source).text)
    assert results["edit"].made_with in text
    assert [
        name for name, version in installed_versions().items() if f"{name} {version}" not in text
    ] == []


def test_what_is_not_given_is_not_shown(results: dict[str, Any], tmp_path: Path) -> None:
    least = {name: results[name] for name in ("model_name", "traces", "edit")}
    headings = re.findall(
        r"<h2>(.*?)</h2>", rl.report(tmp_path / "page.html", **least).read_text(encoding="utf-8")
    )
    assert headings == ["Where the fact is read out", "The edit"]


def test_html_in_a_users_words_is_shown_and_not_obeyed(
    hostile: dict[str, Any], tmp_path: Path
) -> None:
    page = written(tmp_path / "page.html", **hostile)
    assert page.scripts == []
    assert page.names().count("div") == page.closed.count("div")
    assert [
        letter for letter in "STNPAQCKMRanmWkErFecf" if f"{letter}{SCRIPT}" not in page.text
    ] == []
    quoted = [attrs["title"] for tag, attrs in page.opened if tag == "td" and attrs.get("title")]
    assert quoted == [f'"{SCRIPT}']


def test_a_prompt_that_holds_html_can_be_traced_and_reported(
    one_toy: Any, results: dict[str, Any], tmp_path: Path
) -> None:
    fact = rl.Fact(f"{SCRIPT} {{}} is", subject="The Louvre", target=results["edit"].fact.target)
    trace = rl.causal_trace(one_toy, fact, samples=1, layers=[0], require_correct=False)
    firing = [rl.edit_firing(one_toy, results["edit"], fact.text)]
    page = written(tmp_path / "page.html", **{**results, "traces": [trace], "firing": firing})
    assert page.scripts == []
    pictures = [attrs["alt"] for tag, attrs in page.opened if tag == "img"]
    assert pictures[0] == f"resid trace of: {fact.text}"


def test_an_empty_list_of_traces_is_refused(results: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="report needs at least one trace"):
        rl.report(tmp_path / "page.html", **{**results, "traces": []})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def every_trace(one_toy: Any, toy_record: Record) -> dict[str, rl.CausalTrace]:
    """A trace of every component, whole and of a part, with one sample and with several."""
    options: dict[str, dict[str, Any]] = {
        "all": {"samples": 2},
        "one cell": {"samples": 1, "layers": [1], "positions": [3]},
    }
    return {
        f"{component}, {part}": rl.causal_trace(
            one_toy, toy_record, component=component, **options[part]
        )
        for component in COMPONENTS
        for part in options
    }


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not drawn. Drawing them takes most of a page's time."""
    monkeypatch.setattr(viz, "figure_html", lambda figure, *, alt="": f'<img alt="{len(alt)}">')


def test_a_page_is_made_of_traces_of_every_kind_in_every_order(
    results: dict[str, Any],
    every_trace: dict[str, rl.CausalTrace],
    tmp_path: Path,
    quick_pictures: None,
) -> None:
    least = {"model_name": "toy", "edit": results["edit"]}
    for name, first in every_trace.items():
        others = [trace for other, trace in every_trace.items() if other != name]
        for traces in ([first], (first, others[-1])):
            page = written(tmp_path / "page.html", **least, traces=traces)
            assert f"largest indirect effect of the {NAMES[first.component]} at any" in page.text
            assert page.names().count("img") == len(traces)


def test_a_trace_of_single_heads_is_drawn_first_on_a_page(
    results: dict[str, Any], every_trace: dict[str, rl.CausalTrace], tmp_path: Path
) -> None:
    traces = [every_trace["z, one cell"], results["traces"][0]]
    page = written(tmp_path / "page.html", **{**results, "traces": traces})
    assert "attention head's z at any layer and head:" in page.text


def test_a_page_is_made_of_any_of_its_parts(
    results: dict[str, Any],
    every_trace: dict[str, rl.CausalTrace],
    tmp_path: Path,
    quick_pictures: None,
) -> None:
    no_check = Limits(record_id="one", relation="", results=())
    not_asked = Limits(record_id="one", relation="", results=(results["limits"]["association"],))
    parts: dict[str, list[Any]] = {
        "limits": [None, no_check, not_asked, results["limits"]],
        "answers": [(), results["answers"][:1]],
        "firing": [[], results["firing"][:1]],
    }
    traces = [every_trace["z, one cell"]]
    for chosen in itertools.product(*parts.values()):
        given = dict(zip(parts, chosen, strict=True))
        page = rl.report(tmp_path / "page.html", **{**results, "traces": traces, **given})
        headings = re.findall(r"<h2>(.*?)</h2>", page.read_text(encoding="utf-8"))
        shown = ["Where the fact is read out", "The edit"]
        shown += ["Before and after"] if given["answers"] else []
        shown += ["Where the edit fires"] if given["firing"] else []
        shown += ["What the edit does not do"] if given["limits"] else []
        assert headings == shown


def test_one_result_is_a_list_of_one_and_an_iterator_is_a_list(
    results: dict[str, Any], tmp_path: Path, unchecked: None, quick_pictures: None
) -> None:
    lists = ("traces", "answers", "firing")
    first = {name: results[name][:1] for name in lists}
    results = {**results, "limits": None}
    expected = written(tmp_path / "page.html", **{**results, **first}).text
    for change in (lambda values: values[0], iter, tuple):
        given = {name: change(first[name]) for name in lists}
        assert written(tmp_path / "page.html", **{**results, **given}).text == expected


def test_a_result_of_another_type_is_refused_by_name(
    one_toy: Any, results: dict[str, Any], toy_record: Record, tmp_path: Path, unchecked: None
) -> None:
    severed = rl.severed_trace(one_toy, toy_record, samples=1)
    check = results["limits"]["direction"]
    cases: list[tuple[str, Any, str]] = [
        (
            "traces",
            [results["traces"][0], severed],
            r"traces\[1\] is of type SeveredTrace, expected",
        ),
        ("traces", severed, "traces is of type SeveredTrace, expected a list of CausalTrace"),
        ("traces", None, "traces is of type NoneType, expected a list of CausalTrace"),
        ("traces", "trace", "traces is of type str, expected a list of CausalTrace"),
        ("edit", None, "edit is of type NoneType, expected RankOneEdit"),
        ("edit", [results["edit"]], "edit is of type list, expected RankOneEdit"),
        ("answers", None, "answers is of type NoneType, expected a list of BeforeAfter"),
        ("answers", [("fact", "Paris")], r"answers\[0\] is of type tuple, expected BeforeAfter"),
        ("limits", [results["limits"]], "limits is of type list, expected Limits"),
        ("limits", check, "limits is of type CheckResult, expected Limits"),
        ("firing", None, "firing is of type NoneType, expected a list of EditFiring"),
        ("firing", [3], r"firing\[0\] is of type int, expected EditFiring"),
        ("model_name", None, "model_name is None, expected the model's name"),
        ("model_name", "a\ud83d", "model_name is 'a.*lone surrogate"),
    ]
    for name, value, message in cases:
        with pytest.raises(ArgumentError, match=message):
            rl.report(tmp_path / "page.html", **{**results, name: value})
    with pytest.raises(ArgumentError, match="average is of type Limits, expected LimitsAverage"):
        rl.limits_report(tmp_path / "page.html", model_name="toy", average=results["limits"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["page.html", "tables.md"])
def test_limits_of_which_no_check_was_asked_give_a_page_without_a_picture(
    results: dict[str, Any], tmp_path: Path, name: str
) -> None:
    checks = (results["limits"]["association"],)
    average = rl.average_limits([Limits(record_id="one", relation="", results=checks)])
    page = rl.limits_report(tmp_path / name, model_name="toy", average=average)
    assert "<img" not in page.read_text(encoding="utf-8")


def fail(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("no picture")


def write_half(path: Path, text: str, **kwargs: Any) -> None:
    path.write_bytes(text[:100].encode())
    raise RuntimeError("no disk")


@pytest.mark.parametrize(
    ("owner", "name", "failing"),
    [(viz, "figure_html", fail), (Path, "write_text", write_half)],
    ids=["draw", "write"],
)
def test_an_old_page_stays_when_the_new_one_fails(
    owner: Any,
    name: str,
    failing: Any,
    results: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(b"old")
    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(RuntimeError, match=r"no (picture|disk)"):
        rl.report(path, **results)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_old_page_is_replaced_by_a_whole_new_one(
    results: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    new = rl.report(path, **results).read_text(encoding="utf-8")
    assert new.startswith("<!doctype html>")
    assert new.endswith("</html>")
    assert list(tmp_path.iterdir()) == [path]


def test_an_edit_made_by_hand_can_be_reported(results: dict[str, Any], tmp_path: Path) -> None:
    for lacking in ({"losses": None}, {"probability": None}, {"fact": None}):
        edit = dataclasses.replace(results["edit"], **lacking)
        least = {"model_name": "toy", "traces": results["traces"][:1], "edit": edit}
        page = written(tmp_path / "page.html", **least)
        assert f"layer {edit.layer}" in page.text
