"""Every figure says what it is of, cuts nothing off, and covers no data with its legend."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from house.results_for_tests import EXAMPLES, FACT, random
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import rome_lens as rl
from rome_lens import viz
from rome_lens.checks.limits import Limits
from rome_lens.checks.result import CheckResult, CheckRow
from rome_lens.errors import ArgumentError
from rome_lens.intervals import Average, average
from rome_lens.viz.axes import LINES
from rome_lens.viz.overview import Reading, not_drawn, readings

MODEL = "a-model-with-a-name"
LONG = dataclasses.replace(FACT, prompt="It is known to everyone who has been there that {} is in")


def tick_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def of_model(name: str, **changes: Any) -> Any:
    """The example of a type of result, of a named model."""
    return dataclasses.replace(EXAMPLES[name], model_name=MODEL, **changes)


def a_check(name: str, *rows: CheckRow) -> CheckResult:
    return CheckResult(
        name=name, asks="?", measured="p", effect_is="e", control_is="c", rows=tuple(rows)
    )


def a_row(before: float, after: float, control: float | None = None, **changes: Any) -> CheckRow:
    fields = {"effect": after - before, **changes}
    return CheckRow(
        kind="a", prompt="p", answer="b", before=before, after=after, control=control, **fields
    )


def some_limits(*checks: CheckResult, record_id: str = "1") -> Limits:
    return Limits(
        record_id=record_id, relation="in", results=checks, model_name=MODEL, fact=LONG.text
    )


CHECKS = (
    a_check("direction", *(a_row(-7.0, -6.9, 0.5 + i / 20, known=True) for i in range(6))),
    a_check("overfit", a_row(0.5, 0.9)),
    a_check("bleed-over", a_row(0.5, 0.4), a_row(0.6, 0.6)),
)
FIGURES: dict[str, Callable[[], Figure]] = {
    "trace": lambda: viz.trace(of_model("CausalTrace", fact=LONG)),
    "trace, own scale": lambda: viz.trace(of_model("CausalTrace"), scale="own"),
    "trace of an edit": lambda: viz.trace(of_model("EditTrace")),
    "estimate": lambda: viz.trace(of_model("AttributionTrace")),
    "heads": lambda: viz.heads(of_model("AttributionTrace")),
    "by layer": lambda: viz.trace_by_layer(of_model("CausalTrace", fact=LONG)),
    "severed": lambda: viz.severed(of_model("SeveredTrace", fact=LONG)),
    "averages": lambda: viz.averages([of_model("TraceAverage")] * 2),
    "one average": lambda: viz.averages(of_model("TraceAverage")),
    "layers": lambda: viz.layer_sweep(of_model("LayerSweep")),
    "logit lens": lambda: viz.lens(of_model("LogitLens", fact=LONG)),
    "logit attribution": lambda: viz.logit_attribution(of_model("LogitAttribution", fact=LONG)),
    "attention": lambda: viz.attention(of_model("AttentionComparison")),
    "limits": lambda: viz.limits(some_limits(*CHECKS)),
    "limits of many": lambda: viz.limits(rl.average_limits([some_limits(*CHECKS)] * 6)),
    "limits by editor": lambda: viz.limits_by_editor(
        rl.LimitsComparison(
            editors=("an editor", "another"),
            edited=("an editor", "another"),
            averages=(rl.average_limits([some_limits(*CHECKS)] * 6),) * 2,
            failures=(),
        )
    ),
    "mass curve": lambda: viz.mass_curve(of_model("MassCurve")),
    "means by editor": lambda: viz.means_by_editor(
        pd.DataFrame(
            [
                (editor, f"fact {i}", f"relation {i % 6}", "overfit", "effect", i / 10, False)
                for i in range(12)
                for editor in ("an editor", "another editor with quite a long name")
            ],
            columns=["editor", "record", "relation", "check", "number", "value", "share"],
        ),
        {"A title which is so long that it needs more than one line": ("overfit", "effect")},
        title=MODEL,
    ),
    "limits in detail": lambda: viz.limits_detail(some_limits(*CHECKS)),
}


@pytest.fixture(scope="module", params=FIGURES)
def figure(request: pytest.FixtureRequest) -> Figure:
    made = FIGURES[request.param]()
    FigureCanvasAgg(made).draw()
    return made


def test_a_figure_says_of_which_model_it_is(figure: Figure) -> None:
    assert MODEL in figure.get_suptitle()


def test_nothing_is_cut_off(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    drawn = figure.get_tightbbox(figure.canvas.get_renderer())
    assert drawn.x0 > -0.02
    assert drawn.y0 > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02


def test_no_legend_lies_on_data(figure: Figure) -> None:
    renderer = figure.canvas.get_renderer()
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    for legend in legends:
        box = legend.get_window_extent(renderer)
        for axes in figure.axes:
            inside = axes.get_window_extent(renderer)
            assert not box.overlaps(inside), legend.get_title().get_text()


def test_lines_of_one_panel_differ_by_style_as_well_as_by_colour(figure: Figure) -> None:
    for axes in figure.axes:
        lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
        looks = [(str(line.get_linestyle()), str(line.get_marker())) for line in lines]
        assert len(set(looks)) == len(looks)


def test_every_line_of_the_palette_has_a_style_and_a_mark_of_its_own() -> None:
    assert len({str(line.style) for line in LINES}) == len(LINES)
    assert len({line.mark for line in LINES}) == len(LINES)


def test_a_figure_shows_itself_in_a_notebook_and_can_be_saved(tmp_path: Path) -> None:
    figure: Any = FIGURES["trace"]()
    assert figure._repr_png_().startswith(b"\x89PNG")
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for kind, start in starts.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            figure.savefig(tmp_path / f"trace.{kind}")
        assert (tmp_path / f"trace.{kind}").read_bytes().startswith(start)


@pytest.mark.parametrize("facts", [4, 5])
def test_facts_are_scattered_from_five_on(facts: int) -> None:
    numbers = {name: random(facts, 3) for name in ("EM", "PM", "NM", "ES", "PS", "NS", "S")}
    sweep = of_model(
        "LayerSweep",
        names=tuple(map(str, range(facts))),
        effects=random(facts, 3),
        total_effects=random(facts),
        edits="rome, statistics: identity",
        **numbers,
    )
    figure = viz.layer_sweep(sweep)
    assert len(figure.axes) == (3 if facts >= 5 else 2)
    assert "C = I" in figure.get_suptitle()


def test_a_sweeps_caption_names_statistics_without_fingerprints_and_its_only_fact() -> None:
    sweep = of_model(
        "LayerSweep",
        edits="rome, statistics: 64 samples of 32 tokens, seed 0, openings d0bca111f8, bos True, "
        "W_out dfe53992d6",
    )
    one = dataclasses.replace(
        sweep,
        names=("an-id",),
        tokens=sweep.tokens[:1],
        relations=("{} lives in",),
        total_effects=sweep.total_effects[:1],
        **{
            name: getattr(sweep, name)[:1]
            for name in ("effects", "EM", "PM", "NM", "ES", "PS", "NS", "S")
        },
    )
    written = viz.layer_sweep(one).get_suptitle().replace("\n", " ")
    assert written.endswith("Key statistics: 64 samples of 32 tokens, seed 0")
    assert "1 fact: an-id, “… lives in”" in written
    texts = dataclasses.replace(one, edits="rome, statistics: 3 texts d0bca111f8, cut at 9 tokens")
    assert viz.layer_sweep(texts).get_suptitle().endswith("3 texts, cut at 9 tokens")


def test_panels_of_different_scales_have_their_own_legends() -> None:
    figure = viz.layer_sweep(of_model("LayerSweep"))
    above, below = (
        [text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[:2]
    )
    assert below == ["indirect effect of restoring"]
    assert set(above).isdisjoint(below)
    assert figure.legends == []


def several(count: int) -> rl.LimitsAverage:
    """Limits of facts of so many relations, with numbers that differ."""
    return rl.LimitsAverage(
        limits=tuple(
            dataclasses.replace(
                some_limits(a_check("bleed-over", a_row(0.5, 0.4 + i / 50)), record_id=str(i)),
                relation=str(i),
            )
            for i in range(count)
        )
    )


@pytest.mark.parametrize(
    ("count", "words"),
    [(3, "no interval: fewer than five relations"), (7, "bars are 95 % intervals")],
)
def test_a_caption_promises_bars_only_where_there_are_some(count: int, words: str) -> None:
    average_of = several(count)
    compared = rl.LimitsComparison(
        editors=("an editor",), edited=("an editor",), averages=(average_of,)
    )
    for figure in (viz.limits_detail(average_of), viz.limits_by_editor(compared)):
        written = figure.get_suptitle().replace("\n", " ")
        assert words in written
        assert ("95 %" in written) == (count == 7)


def numbers_by_fact(count: int) -> pd.DataFrame:
    """A number of two editors for so many relations, and one that the second lacks."""
    columns = ["editor", "record", "relation", "check", "number", "value", "share"]
    rows = [
        (editor, f"fact {i}", f"relation {i}", "overfit", number, i / 10, False)
        for i in range(count)
        for editor, number in (("a", "effect"), ("b", "effect"), ("a", "loud: difference"))
    ]
    return pd.DataFrame(rows, columns=columns)


def test_a_table_of_facts_is_drawn_with_what_it_lacks() -> None:
    panels = {"asked": ("overfit", "effect"), "loud": ("overfit", "loud: difference")}
    for count, words in ((3, "no interval: fewer than five relations"), (7, "bars are 95 %")):
        figure = viz.means_by_editor(numbers_by_fact(count), panels)
        assert words in figure.get_suptitle().replace("\n", " ")
        assert f"2 editors on the same {count} facts" in figure.get_suptitle()
        assert [[text.get_text() for text in axes.texts] for axes in figure.axes[:2]] == [
            [],
            ["no number"],
        ]
    frame = numbers_by_fact(3)
    assert tick_labels(viz.means_by_editor(frame, panels, editors=["b"])) == ["b"]
    for message, numbers, editors in (
        ("No editor is called 'c'", panels, ["c"]),
        ("no number .*'silent'", {"x": ("overfit", "silent")}, None),
        ("nothing to draw", {}, None),
        ("nothing to draw", panels, []),
    ):
        with pytest.raises(rl.RomeLensError, match=message):
            viz.means_by_editor(frame, numbers, editors=editors)


def test_each_row_in_detail_has_its_count() -> None:
    known, unknown = (
        a_check("association", a_row(0.0, 0.4, control, known=control >= 0.1))
        for control in (0.8, 0.0)
    )
    many = rl.average_limits(
        [some_limits(known if i < 2 else unknown, record_id=str(i)) for i in range(6)]
    )
    assert tick_labels(viz.limits_detail(many)) == ["all (6)", "where known (2)"]


def test_an_editor_without_a_number_says_so() -> None:
    without = several(3)
    numberless = rl.LimitsAverage(
        limits=tuple(
            dataclasses.replace(each, results=(a_check("bleed-over"),)) for each in without.limits
        )
    )
    compared = rl.LimitsComparison(
        editors=("an editor", "another"),
        edited=("an editor", "another"),
        averages=(without, numberless),
    )
    texts = [text.get_text() for text in viz.limits_by_editor(compared).axes[0].texts]
    assert texts == ["not asked"]


def by_name(*checks: CheckResult) -> dict[str, Reading]:
    return {each.name: each for each in readings(some_limits(*checks))}


def test_each_check_is_read_as_a_share_of_what_the_model_could_do() -> None:
    found = by_name(
        a_check(
            "generalisation", a_row(0.0, 0.9, 1.0, effect=1.0), a_row(0.0, 0.1, 1.0, effect=0.0)
        ),
        a_check(
            "direction", a_row(-3.0, -1.0, 0.5, known=True), a_row(-1.0, -0.0, 0.0, known=False)
        ),
        a_check("association", a_row(0.1, 0.2, 0.8, known=True)),
        a_check("overfit", a_row(0.5, 0.9)),
        a_check("bleed-over", a_row(0.8, 0.6)),
        a_check("essence", a_row(0.0, 0.7, 0.2, effect=0.7)),
        a_check("fidelity", a_row(2.0, 2.1)),
    )
    exp = torch.tensor([-1.0, -3.0, -0.7, -0.2, -0.1], dtype=torch.float64).exp()
    expected = {
        "generalisation": (0.5, 1.0, "◐ in part"),
        "direction": (float(exp[0] - exp[1]), 0.5, "◐ in part"),
        "association": (0.1, 0.8, "○ does not"),
        "overfit": (0.9, 0.5, "▲ over"),
        "bleed-over": (0.6, 0.8, "◐ in part"),
        "essence": (float(exp[2]), float(exp[3]), "▼ moves more"),
        "fidelity": (float(exp[4]), 1.0, "● stays"),
    }
    for name, (value, reference, verdict) in expected.items():
        assert found[name].value.mean == pytest.approx(value)
        assert found[name].reference.mean == pytest.approx(reference)
        assert found[name].verdict == verdict


def test_a_verdict_is_unsure_where_the_interval_reaches_into_another_one() -> None:
    def reading(name: str, low: float | None, high: float | None) -> Reading:
        value = Average(mean=0.45, low=low, high=high, count=9)
        reference = Average(mean=0.5, low=None, high=None, count=9)
        gap = dataclasses.replace(
            value,
            mean=-0.05,
            low=None if low is None else low - 0.5,
            high=None if high is None else high - 0.5,
        )
        return Reading(name=name, value=value, reference=reference, ratio=0.9, gap=gap)

    assert reading("association", 0.41, 0.6).verdict == "● holds"
    assert reading("association", 0.39, 0.6).verdict == "● holds, unsure"
    assert reading("association", None, None).verdict == "● holds"
    assert reading("overfit", 0.41, 0.48).verdict == "▼ under"
    assert reading("overfit", 0.41, 0.52).verdict == "▼ under, unsure"


@pytest.mark.parametrize(
    ("kl", "verdict"), [(0.37, "▼ moves more"), (0.064, "● as random"), (0.001, "▲ moves less")]
)
def test_essence_is_judged_by_the_random_edit_and_not_by_how_much_is_left(
    kl: float, verdict: str
) -> None:
    rows = [a_row(0.0, kl, 0.064, effect=kl)] * 2
    assert by_name(a_check("essence", *rows))["essence"].verdict == verdict


def test_an_interval_ends_where_no_value_is_possible() -> None:
    rows = [a_row(0.5, value) for value in (0.99, 0.98, 0.97, 0.95, 0.6, 0.96)]
    found = by_name(a_check("bleed-over", *rows))["bleed-over"]
    assert found.value.high is not None
    assert found.value.high > 1.0
    assert found.ends == (found.value.low, 1.0)


def test_each_row_says_of_how_many_it_is_and_what_its_control_is() -> None:
    known, unknown = (
        a_check("association", a_row(0.0, 0.4, control, known=control >= 0.1))
        for control in (0.8, 0.0)
    )
    many = rl.average_limits(
        [some_limits(known if i < 2 else unknown, record_id=str(i)) for i in range(6)]
    )
    figure = viz.limits(many)
    [label] = (each.get_text() for each in figure.axes[0].get_yticklabels())
    assert label.startswith("association, 2 of 6 facts\n")
    assert label.endswith("control: the true answer, unedited")
    assert "the unedited model knows" in figure.get_suptitle().replace("\n", " ")


def test_the_facts_of_a_mean_are_drawn() -> None:
    split = [
        some_limits(a_check("bleed-over", a_row(0.9, p)), record_id=str(p)) for p in (0.0, 0.9)
    ]
    dots = [
        line
        for line in viz.limits(rl.average_limits(split)).axes[0].get_lines()
        if line.get_label() == "with the edit, one fact"
    ]
    assert [list(line.get_xdata()) for line in dots] == [[0.0, 0.9]]


def test_nothing_follows_where_the_model_could_not_have_done_it() -> None:
    found = by_name(a_check("association", a_row(0.0, 0.05, 0.05, known=False)))
    assert found["association"].verdict == "? model cannot do it"


def test_facts_that_the_model_knows_are_not_mixed_with_those_that_it_does_not() -> None:
    known = a_check("association", a_row(0.0, 0.4, 0.8, known=True))
    unknown = a_check("association", a_row(0.0, 0.0, 0.0, known=False))
    average_of = rl.average_limits(
        [some_limits(known), *(some_limits(unknown, record_id=str(i)) for i in range(2, 5))]
    )
    [found] = readings(average_of)
    assert found.value == average([0.4], ["in"])
    assert found.reference.mean == 0.8


def test_a_check_that_was_not_asked_is_named_and_not_drawn() -> None:
    result = some_limits(*CHECKS, a_check("association"), a_check("localisation"))
    assert not_drawn(result) == ["association", "localisation"]
    assert "Not asked: association, localisation" in viz.limits(result).get_suptitle().replace(
        "\n", " "
    )
    with pytest.raises(ArgumentError, match="No check was asked"):
        viz.limits(some_limits(a_check("association")))
