"""Averages of the checks over facts, made resumably, as tables, picture, page and command."""

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import rome_lens as rl
from rome_lens.checks import CheckResult, CheckRow, Measure
from rome_lens.checks.average import LimitsAverage
from rome_lens.checks.limits import Limits
from rome_lens.evaluation.scores import markdown
from rome_lens.intervals import average

TEXTS = ["Simon Calloway lives in the city of Pralec.", "Yusuf Brandt lives in the city of Karsun."]


QUICK: dict[str, Any] = {"texts": TEXTS, "samples": 0, "new_tokens": 2}


@pytest.fixture(scope="module")
def records(brief_records: list[rl.data.Record]) -> list[rl.data.Record]:
    """Two of the toy's, with few prompts."""
    return [dataclasses.replace(record, consequences=()) for record in brief_records[:2]]


class CountingEditor:
    """An editor that hands out edits which are made already, and counts them."""

    def __init__(self, edits: list[rl.RankOneEdit]) -> None:
        self.edits = {edit.fact: edit for edit in edits}
        self.made = 0

    def __repr__(self) -> str:
        return "CountingEditor()"

    def __call__(self, model: Any, fact: rl.Fact) -> rl.RankOneEdit:
        self.made += 1
        return self.edits[fact]


@pytest.fixture
def editor(toy_edits: list[rl.RankOneEdit]) -> CountingEditor:
    return CountingEditor(toy_edits)


def made_up(effects: list[float], *, known: bool | None = None, name: str = "direction") -> Limits:
    """A result with these effects, for the arithmetic alone."""
    rows = [
        CheckRow(
            kind="x",
            prompt=f"{i}",
            answer="y",
            before=0.0,
            after=e,
            effect=e,
            control=2 * e,
            known=known,
        )
        for i, e in enumerate(effects)
    ]
    further = (Measure(name="twice", values=tuple(2 * e for e in effects)),) if effects else ()
    result = CheckResult(
        name=name,
        asks="?",
        measured="m",
        effect_is="e",
        control_is="c",
        rows=tuple(rows),
        further=further,
    )
    return Limits(record_id="r", relation="", results=(result,))


def test_averages_are_over_facts_and_not_over_prompts() -> None:
    found = rl.average_limits([made_up([1.0]), made_up([3.0, 5.0, 7.0]), made_up([])])
    assert found.effect("direction").mean == pytest.approx((1.0 + 5.0) / 2)
    assert found.effect("direction").count == 2
    assert found.effect("direction", "control").mean == pytest.approx((2.0 + 10.0) / 2)
    assert found.measure("direction", "twice").mean == pytest.approx((2.0 + 10.0) / 2)
    assert found.effect("direction", "effect_where_known") is None
    assert (found.table().loc["direction", "facts"], found.table().loc["direction", "prompts"]) == (
        2,
        4,
    )


def test_firing_is_compared_with_kl_within_each_kind_of_prompt() -> None:
    """Two kinds, far apart. Within one, firing tells the KL; within the other, all fire alike."""

    def fact(shift: float) -> Limits:
        def row(kind: str, firing: float, kl: float) -> CheckRow:
            return CheckRow(
                kind=kind, prompt=f"{kl}", answer="", before=0.0, after=0.0, firing=firing, kl=kl
            )

        rows = [row("alias", x + shift, x + shift) for x in (0.1, 0.2)] + [
            row("forward", 1.0, x) for x in (3.0, 4.0)
        ]
        result = CheckResult(
            name="a", asks="", measured="", effect_is="", control_is="", rows=tuple(rows)
        )
        return Limits(record_id="r", relation="", results=(result,))

    table = rl.average_limits([fact(0.01 * i) for i in range(5)]).firing()
    assert list(table["prompts of kind"]) == ["alias", "forward"]
    assert list(table["prompts"]) == [10, 10]
    assert list(table["facts"]) == [5, 5]
    assert list(table["firing and KL"]) == ["1.000 [1.000, 1.000]", "all fire alike"]
    few = rl.average_limits([fact(0.0), fact(0.1), fact(0.2)]).firing()
    assert few["firing and KL"].iloc[0] == "1.000 (n = 3, too few for an interval)"


@pytest.mark.usefixtures("unchecked")
def test_a_check_goes_by_its_function_s_name_too_and_a_wrong_name_is_told() -> None:
    one, other = made_up([1.0], name="bleed-over"), made_up([3.0], name="bleed-over")
    assert one["bleed_over"] is one["bleed-over"]
    found = rl.average_limits([one, other])
    assert found.effect("bleed_over") == found.effect("bleed-over")
    assert found.effect("bleed_over").mean == 2.0
    assert found.measure("bleed_over", "twice").mean == 4.0
    assert found.of("bleed_over") == found.of("bleed-over") == [one.results[0], other.results[0]]
    for wrong in (
        lambda: one["bleeding"],
        lambda: found.of("bleeding"),
        lambda: found.effect("bleeding"),
        lambda: found.effect("bleeding", "control"),
        lambda: found.measure("bleeding", "twice"),
    ):
        with pytest.raises(KeyError, match="no check 'bleeding'; there are \\['bleed-over'\\]"):
            wrong()
    with pytest.raises(ValueError, match="which is 'rows', expected one of 'effect'"):
        found.effect("bleed-over", "rows")


def test_where_known_is_over_the_prompts_that_the_model_knows() -> None:
    found = rl.average_limits([made_up([1.0], known=False), made_up([4.0, 6.0], known=True)])
    assert found.effect("direction", "effect_where_known").mean == 5.0
    assert found.table().loc["direction", "facts known"] == 1
    none = rl.average_limits([made_up([1.0], known=False)])
    assert none.table().loc["direction", "where known"] == "none known"


def test_the_interval_over_facts_is_student_s() -> None:
    effects = [0.1, 0.4, 0.2, 0.9, 0.3, 0.7]
    found = rl.average_limits([made_up([effect]) for effect in effects])
    assert found.effect("direction") == average(effects)
    assert found.effect("direction").low is not None


def test_nothing_asked_is_not_passed_in_the_table() -> None:
    found = rl.average_limits([made_up([])])
    assert found.table().loc["direction", "effect"] == "not asked"
    assert "not asked" in markdown(found.table())


def rounded_means(limits: Limits) -> dict[tuple[str, str], float]:
    """All averages without their last digits, which differ where an edit is read from a file."""
    return {
        (result.name, name): round(value.mean, 4)
        for result in limits.results
        for name, value in [
            ("effect", result.effect),
            ("control", result.control),
            *((measure.name, measure.average) for measure in result.further),
        ]
        if value is not None
    }


def test_each_record_is_checked_with_the_edits_of_the_others(
    one_toy: Any, records: Any, editor: CountingEditor, tmp_path: Path
) -> None:
    """As by hand. A second call reads the directory; another setting has the checks made again."""
    found = rl.check_records(one_toy, records, editor, directory=tmp_path, **QUICK)
    edits = [editor(one_toy, record.fact) for record in records]
    by_hand = [
        rl.check_limits(one_toy, edits[i], record, others=[edits[1 - i]], **QUICK)
        for i, record in enumerate(records)
    ]
    for ours, theirs in zip(found.limits, by_hand, strict=True):
        for a, b in zip(ours.results, theirs.results, strict=True):
            for which in ("effect", "control"):
                mine, other = getattr(a, which), getattr(b, which)
                assert (mine is None) == (other is None)
                assert mine is None or mine.mean == pytest.approx(other.mean, abs=1e-5)
            assert [m.name for m in a.further] == [m.name for m in b.further]
            assert [m.average.mean for m in a.further] == pytest.approx(
                [m.average.mean for m in b.further], abs=1e-4
            )
    made = editor.made
    assert rl.check_records(one_toy, records, editor, directory=tmp_path, **QUICK) == found
    first = rl.check_records(one_toy, records[:1], editor, directory=tmp_path, **QUICK)
    for other in (
        {"texts": TEXTS[:1]},
        {"samples": 1},
        {"new_tokens": 0},
        {"seed": 1},
        {"prepend_bos": False},
    ):
        files = set(tmp_path.iterdir())
        options = {**QUICK, **other, "directory": tmp_path}
        again = rl.check_records(one_toy, records[:1], editor, **options)
        assert len(set(tmp_path.iterdir()) - files) == 1, other
        assert rounded_means(again.limits[0]) != rounded_means(first.limits[0]), other
    assert editor.made == made
    # The mean over facts of the others' effects is the mean of the effects: it would be no control.
    assert found.effect("fidelity", "control") is None
    assert found.table().loc["fidelity", "control"] == "by fact"
    assert found.measure("fidelity", "||delta|| / ||W_out||, other edits") is None
    assert found.measure("fidelity", "||delta|| / ||W_out||") is not None


def test_a_bare_fact_has_limits_and_without_other_text_no_fidelity(
    one_toy: Any, records: Any, editor: CountingEditor
) -> None:
    options: dict[str, Any] = {"texts": [], "samples": 0, "new_tokens": 0}
    found = rl.check_records(one_toy, records[0].fact, editor, **options)
    asked = [name for name in found.checks if found.effect(name) is not None]
    assert (asked, editor.made) == (["overfit", "essence"], 1)
    assert found.table().loc["fidelity", "effect"] == "not asked"


def test_what_cannot_be_checked_or_averaged_is_refused_before_the_first_edit(
    one_toy: Any,
    records: Any,
    editor: CountingEditor,
    tmp_path: Path,
    untouched: Any,
    unchecked: Any,
) -> None:
    untouched(one_toy)
    one = made_up([1.0, 3.0])
    assert rl.average_limits(one) == rl.average_limits([one])
    assert rl.average_limits(one).effect("direction").low is None
    check, average_ = partial(rl.check_records, one_toy), rl.average_limits
    text = [records[0].fact, "eiffel-tower"]
    unnamed = lambda model, fact: editor(model, fact)  # noqa: E731  a function has no settings
    unfit = dataclasses.replace(
        records[0], fact=rl.Fact("{} is", subject="Wanda", target="old", new_target=None)
    )
    cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (average_, ([one, one.results[0]],), {}, "limits holds CheckResult, expected"),
        (average_, (rl.average_limits(one),), {}, "limits holds LimitsAverage, expected"),
        (average_, (3,), {}, "limits holds int, expected"),
        (average_, ([],), {}, "limits is empty"),
        (check, ("eiffel-tower", editor), {}, r"Expected a list of facts or records"),
        (check, (None, editor), {}, r"Expected a list of facts or records"),
        (check, (editor, editor), {}, r"Expected a list of facts or records"),
        (check, (text, editor), {}, "Expected a Fact or a Record"),
        (check, ([], editor), {}, "The list of records is empty"),
        (check, (unfit, editor), {}, "has no new target"),
        (check, (records[0], records), {}, "type list, expected a function that makes an edit"),
        (check, (records, unnamed), {"directory": tmp_path}, "does not say what its settings"),
    ]
    wrong = []
    for call, args, options, message in cases:
        with pytest.raises(ValueError) as refused:  # noqa: PT011  the message is compared below
            call(*args, **options)
        if not re.search(message, str(refused.value)):
            wrong.append((message, str(refused.value)))
    assert wrong == []
    with one_toy.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: None)]):
        with pytest.raises(ValueError, match="has hooks"):
            rl.check_records(one_toy, records, editor, directory=tmp_path, texts=TEXTS)
        assert editor.made == 0
        # Results that are not kept may have been made under hooks.
        rl.check_records(one_toy, records[0].fact, editor, texts=[])
    assert editor.made == 1


def test_edits_of_two_models_are_not_averaged() -> None:
    one, other = (
        dataclasses.replace(made_up([1.0]), model_fingerprint=name) for name in ("a", "b")
    )
    with pytest.raises(ValueError, match="made on 2 models"):
        rl.average_limits([one, other])


def test_tables_picture_and_page_show_every_check(tmp_path: Path) -> None:
    facts = [made_up([0.1 * i, 0.2], known=True) for i in range(6)]
    found = LimitsAverage(limits=tuple(facts))
    figure = rl.viz.limits_detail(found)
    assert [axes.get_xlabel() for axes in figure.axes] == ["e", "c"]
    means = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert means == pytest.approx([found.effect("direction").mean] * 2)
    page = rl.limits_report(tmp_path / "page.html", model_name="<toy>", average=found).read_text()
    assert "&lt;toy&gt;" in page
    assert page.count("<details><summary>r") == 6
    assert "http" not in page.replace("http://www.w3.org", "")
    tables = rl.limits_report(tmp_path / "tables.md", model_name="toy", average=found).read_text()
    assert tables.count("| direction |") == 2
    with pytest.raises(ValueError, match=r"expected one that ends in \.html or \.md"):
        rl.limits_report(tmp_path / "page.pdf", model_name="toy", average=found)


def test_the_picture_of_a_single_edit_has_a_dot_for_each_prompt_and_no_interval_below_five() -> (
    None
):
    few, many = made_up([0.1, 0.4], known=True), made_up([0.1, 0.4, 0.2, 0.9, 0.3])
    figure = rl.viz.limits_detail(few)
    assert [axes.get_xlabel() for axes in figure.axes] == ["e", "c"]
    assert figure.axes[0].get_title(loc="left") == "direction (2 prompts)"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "all (2)",
        "where known (2)",
    ]
    dots = [
        list(line.get_xdata())
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() in ("o", "s")
    ]
    assert dots == [[0.1, 0.4], [0.1, 0.4], [0.2, 0.8]]
    for limits, intervals in ((few, 0), (many, 2)):
        lines = [line for axes in rl.viz.limits_detail(limits).axes for line in axes.lines]
        assert sum(line.get_linewidth() == 2.5 for line in lines) == intervals
    with pytest.raises(ValueError, match="No check was asked"):
        rl.viz.limits_detail(made_up([]))


def test_a_notebook_shows_tables_and_picture_and_of_nothing_asked_the_table_alone() -> None:
    one = made_up([0.1, 0.4])
    for result in (one, rl.average_limits([one, one])):
        shown = result._repr_html_()
        assert shown.count("<img") == 1
        assert "too few for an interval" in shown
    for nothing in (made_up([]), rl.average_limits([made_up([])])):
        assert "<img" not in nothing._repr_html_()
        assert "not asked" in nothing._repr_html_()


def test_a_check_shows_effect_interval_and_control_and_no_words_as_html() -> None:
    few = dataclasses.replace(
        made_up([0.1, 0.4], known=True).results[0], reading="<b>1 & 2</b>", asks="<i>?"
    )
    shown = few._repr_html_()
    assert "&lt;b&gt;1 &amp; 2&lt;/b&gt;" in shown
    assert "<i>" not in shown
    for number in (few.effect, few.effect_where_known, few.control, few["twice"]):
        assert str(number) in shown
    assert "too few for an interval" in shown
    many = made_up([0.1, 0.4, 0.2, 0.9, 0.3]).results[0]
    assert f"[{many.effect.low:.3f}, {many.effect.high:.3f}]" in many._repr_html_()
    asked = dataclasses.replace(made_up([]).results[0], reading="Not asked: <nothing>.")
    assert asked._repr_html_().endswith("<p>Not asked: &lt;nothing&gt;.</p>")


def test_an_average_is_saved_and_loaded(tmp_path: Path) -> None:
    found = rl.average_limits([made_up([0.1, 0.4], known=True), made_up([])])
    loaded = LimitsAverage.load(found.save(tmp_path / "limits.safetensors"))
    assert loaded == found
    assert loaded.table().equals(found.table())


def test_a_model_knows_what_it_answers(one_toy: Any, records: Any) -> None:
    fact = records[0].fact
    wrong = rl.Fact(fact.prompt, subject=fact.subject, target=str(fact.new_target))
    assert rl.knows(one_toy, [fact, wrong]) == [True, False]


def of_relation(limits: Limits, number: int, relation: str) -> Limits:
    return dataclasses.replace(limits, record_id=f"{number}", relation=relation)


def test_averages_are_clustered_by_relation() -> None:
    effects = [0.1, 0.1, 0.4, 0.4, 0.2, 0.2, 0.9, 0.9, 0.3, 0.3, 0.7, 0.7]
    relations = [f"relation {i // 2}" for i in range(12)]
    some = [
        of_relation(made_up([effect]), i, relation)
        for i, (effect, relation) in enumerate(zip(effects, relations, strict=True))
    ]
    found = rl.average_limits(some)
    expected = average(effects, relations)
    assert found.effect("direction") == expected
    assert found.measure("direction", "twice").mean == pytest.approx(2 * expected.mean)
    for number in (found.effect("direction"), found.measure("direction", "twice")):
        assert number.clusters == 6
    # Two facts of a relation agree, so that they are worth one.
    assert expected.high - expected.low == pytest.approx(
        average(effects[::2]).high - average(effects[::2]).low
    )
    few = rl.average_limits(some[:8]).effect("direction")
    assert str(few) == "0.400 (n = 8 in 4 clusters, too few for an interval)"


def test_differences_are_paired_by_fact() -> None:
    effects = [0.1, 0.5, 0.2, 0.9, 0.4, 0.7, 0.3, 0.8]
    gained = [0.10, 0.11, 0.12, 0.10, 0.09, 0.11, 0.10, 0.12]
    one = rl.average_limits([of_relation(made_up([e]), i, str(i)) for i, e in enumerate(effects)])
    more = [
        of_relation(made_up([e + g]), i, str(i))
        for i, (e, g) in enumerate(zip(effects, gained, strict=True))
    ]
    other = rl.average_limits([*more[::-1], of_relation(made_up([9.0]), 99, "99")])
    found = other.difference("direction", other=one)
    assert found.mean == pytest.approx(average(gained).mean)
    assert (found.count, found.high - found.low < 0.03) == (8, True)
    with pytest.raises(rl.RomeLensError, match="in another unit than its effect"):
        one.difference("direction")
    assert one.table().loc["direction", "effect - control"] == ""
    change = one.difference("direction", "after", minus="before")
    assert change.mean == pytest.approx(average(effects).mean)
    assert one.difference("direction", minus="effect_where_known") is None
    with pytest.raises(KeyError, match="no check 'bleeding'"):
        one.difference("direction", of="bleeding")
