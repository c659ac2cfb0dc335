"""Tables of texts and traces, and CircuitsVis' widgets, show what the results hold."""

import base64
import dataclasses
import gzip
import html
import json
import re
from pathlib import Path
from typing import Any

import circuitsvis
import pytest
import torch
from house.results_for_tests import EXAMPLES
from test_viz import Page, a_trace, firings

import rome_lens as rl
from rome_lens import viz
from rome_lens.errors import ArgumentError


def a_text(**changes: Any) -> rl.TextComparison:
    fields: dict[str, Any] = {
        "prompts": ("It is in <b>",),
        "before": ((" Paris, the Parisian city", " x"),),
        "after": ((" New Paris & Paris.", " <i>Paris"),),
        "target": "Paris",
        "new_target": "New Paris",
        "new_tokens": 2,
        "seed": 0,
        "edit": "by <hand>",
        "model_name": "toy",
    }
    return rl.TextComparison(**{**fields, **changes})


def test_both_answers_are_marked_as_whole_words_and_the_longer_one_first() -> None:
    source = viz.text(a_text()).source
    marked = re.findall(r'<mark style="([^"]*)">([^<]*)</mark>', source)[2:]  # after the legend's
    assert [words for _, words in marked] == ["Paris", "New Paris", "Paris", "Paris"]
    styles = dict.fromkeys(style for style, _ in marked)
    assert len(styles) == 2
    assert "underline" in marked[1][0]


def test_texts_that_hold_html_are_shown_as_they_read() -> None:
    page = Page(viz.text(a_text()).source)
    assert {"i", "b", "hand"} & set(page.names()) == set()
    for words in ("It is in <b>", "<i>Paris", "toy, 2 tokens", "New Paris & Paris."):
        assert words in page.text
    page.assert_loads_nothing()
    assert "mark" not in Page(viz.text(a_text(target=None, new_target=None)).source).names()
    assert a_text()._repr_html_() == viz.text(a_text()).source


def cells(source: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r'<td title="([^"]*)"', source)]


def test_each_cell_of_a_trace_tells_its_numbers_on_hover() -> None:
    result = a_trace()
    titles = cells(viz.trace_table(result).source)
    assert len(titles) == result.scores.numel()
    low, high = (float(end[1, 2]) for end in result.intervals)
    score, effect = float(result.scores[1, 2]), float(result.indirect_effects[1, 2])
    place = 2 * len(result.layers) + 1
    assert (
        titles[place]
        == f"layer 3, vre: {score:.3f}, effect {effect:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    Page(viz.trace_table(result).source).assert_loads_nothing()
    one = a_trace(corrupted_samples=torch.tensor([0.3]), sample_scores=torch.zeros(1, 3, 6))
    assert all("[" not in title for title in cells(viz.trace_table(one).source))


def test_a_table_has_the_colours_of_the_map() -> None:
    scores = torch.full((2, 3, 6), 0.3125)
    scores[:, 0, 0], scores[:, 1, 0], scores[:, 2, 0] = 0.875, 2.0, -1.0
    strengths = re.findall(
        r"rgba\([\d,]+,([\d.]+)\)", viz.trace_table(a_trace(sample_scores=scores)).source
    )
    assert strengths == ["1.00", "1.00", "0.00"] + ["0.00"] * 15


def test_a_trace_of_heads_shows_the_best_head_in_each_cell() -> None:
    result: Any = EXAMPLES["AttributionTrace"]
    titles = cells(viz.trace_table(result).source)
    best = int(result.scores[0, 0].argmax())
    assert f"head {result.heads[best]}," in titles[0]
    assert f": {float(result.scores[0, 0, best]):.3f}," in titles[0]


def widgets() -> list[viz.Widget]:
    attention: Any = EXAMPLES["AttentionComparison"]
    log_probs: Any = EXAMPLES["LogProbComparison"]
    return [
        *viz.attention_patterns(attention),
        *viz.token_log_probs(log_probs),
        viz.topk_tokens(firings(), count=1),
    ]


def test_a_page_of_widgets_holds_their_script_once_and_loads_nothing(tmp_path: Path) -> None:
    page = viz.widget_page(tmp_path / "new" / "page.html", widgets())
    source = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 500_000
    packed = re.findall(r'atob\("([^"]+)"\)', source)
    assert len(packed) == 1
    script = Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js"
    assert gzip.decompress(base64.b64decode(packed[0])) == script.read_bytes()
    found = Page(source)
    found.assert_loads_nothing()
    assert found.names().count("script") == found.closed.count("script") == 6
    assert re.findall(r"CircuitsVis\.render\([^,]+, CircuitsVis\.(\w+),", source) == [
        "AttentionPatterns",
        "AttentionPatterns",
        "TokenLogProbs",
        "TokenLogProbs",
        "TopkTokens",
    ]


def test_widgets_hold_the_results_numbers_before_and_after() -> None:
    result: Any = EXAMPLES["AttentionComparison"]
    before, after = viz.attention_patterns(result)
    assert torch.allclose(torch.tensor(before.properties["attention"]), result.before, atol=1e-4)
    assert torch.allclose(torch.tensor(after.properties["attention"]), result.after, atol=1e-4)
    log_probs: Any = EXAMPLES["LogProbComparison"]
    _, edited = viz.token_log_probs(log_probs)
    assert edited.properties["correctTokenRank"] == [3]
    assert edited.properties["topKTokens"] == [[" c", "&lt;"]]
    assert edited.properties["prompt"] == ["a", " b"]
    top = viz.topk_tokens(firings(), count=1)
    assert top.properties["topkIdxs"] == [[[[1]]], [[[1]]]]
    assert top.properties["bottomkVals"] == [[[[0.25]]], [[[-0.5]]]]


def test_a_word_cannot_end_the_script_that_shows_it() -> None:
    result: Any = EXAMPLES["AttentionComparison"]
    bad = dataclasses.replace(result, labels=("</script><img src=x>", "b"), text="</h3><script>")
    page = Page(viz.widgets(viz.attention_patterns(bad)).source)
    assert set(page.names()) == {"script", "div", "h3"}
    assert page.names().count("script") == 3
    [given] = re.findall(r"AttentionPatterns, (\{.*\})\)", page.scripts[1])
    assert html.unescape(json.loads(given)["tokens"][0]) == "</script><img src=x>"


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(ArgumentError, match="no widget to show"):
        viz.widgets([])
    with pytest.raises(ArgumentError, match="results is empty"):
        viz.topk_tokens([])
