"""Pages in a real browser, with the network off: complete, quiet, and readable at any width."""

from pathlib import Path
from typing import Any

import browser_for_tests as browser
import pytest
from fixtures_for_tests import with_few_prompts

import rome_lens as rl
from rome_lens.data.record_type import Record

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("browser")]
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def pages(
    one_toy: Any,
    toy_record: Record,
    toy_edit: rl.RankOneEdit,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The report of one edit, the page of the checks of two, and pages of other results."""
    browser.browser()
    directory = tmp_path_factory.mktemp("pages")
    fact = toy_record.fact
    prompts = [fact.text, toy_record.neighborhood[0].prompt]
    before = rl.top_answers(one_toy, prompts, count=3)
    after = rl.top_answers(one_toy, prompts, count=3, fwd_hooks=toy_edit.fwd_hooks(one_toy))
    limits = rl.check_limits(
        one_toy, toy_edit, with_few_prompts(toy_record), samples=1, new_tokens=5
    )
    report = rl.report(
        directory / "report.html",
        model_name="toy",
        traces=[
            rl.causal_trace(one_toy, fact, component=c, samples=2) for c in ("resid", "mlp", "attn")
        ],
        edit=toy_edit,
        answers=[
            rl.BeforeAfter(kind=kind, expected=expected, before=b, after=a)
            for kind, expected, b, a in zip(
                ("fact", "neighbour"), (fact.target, "?"), before, after, strict=True
            )
        ],
        limits=limits,
        firing=[rl.edit_firing(one_toy, toy_edit, prompt) for prompt in prompts],
    )
    average = rl.average_limits([limits, limits])
    results = {
        "Texts": rl.compare_text(one_toy, toy_edit, prompts, new_tokens=3),
        "Lens": rl.logit_lens(one_toy, toy_edit),
        "Cells": rl.viz.trace_table(rl.causal_trace(one_toy, fact, samples=2)),
    }
    shown = [
        *rl.viz.token_log_probs(rl.compare_log_probs(one_toy, toy_edit, prompts[0])),
        *rl.viz.attention_patterns(rl.compare_attention(one_toy, toy_edit, fact.text, layer=5)),
    ]
    return {
        "results": rl.viz.results_page(directory / "results.html", title="toy", results=results),
        "widgets": rl.viz.widget_page(directory / "widgets.html", shown),
        "report": report,
        "limits": rl.limits_report(directory / "limits.html", model_name="toy", average=average),
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "limits", "results", "widgets"])
def test_a_page_is_quiet_loads_nothing_and_cuts_nothing_off(
    name: str, width: int, pages: dict[str, Path], tmp_path: Path
) -> None:
    seen = browser.look(pages[name], width=width, scratch=tmp_path, name=name)
    assert seen.console == []
    assert seen.outside == []
    assert seen.cut == []
    assert seen.width <= width
    assert seen.full <= seen.width, "the page scrolls sideways"
    assert len(seen.pictures) == {"report": 4, "limits": 1, "results": 1, "widgets": 0}[name]
    assert [p for p in seen.pictures if min(p[1:]) < 100] == [], "a picture has no size"


def test_faults_of_a_page_are_seen(tmp_path: Path) -> None:
    """A page with every fault that the other tests look for."""
    page = tmp_path / "page.html"
    page.write_text(
        '<div style="width:3000px;text-align:right">far away</div><img alt="none" src="no.png">'
        '<script src="http://elsewhere.invalid/x.js"></script><script>missing()</script>'
    )
    seen = browser.look(page, width=400, scratch=tmp_path, name="faulty", height=600)
    assert seen.cut == ["far away"]
    assert seen.full > seen.width
    assert seen.pictures[0][1] == 0
    assert any("elsewhere.invalid" in each for each in [*seen.outside, *seen.console])
    assert any("missing is not defined" in each for each in seen.console)
