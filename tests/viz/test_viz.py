"""Pictures show a result's numbers and words, whatever characters the words hold."""

import base64
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib.pyplot
import pytest
import torch
from matplotlib.figure import Figure

import rome_lens as rl
from rome_lens import viz
from rome_lens.editing.firing import EditFiring
from rome_lens.viz import Html

LABELS = ("<s>", " The", " Lou", "vre", " is", "\n", " in")
OUTSIDE = re.compile(r"""(?:import|from|import\(|fetch\(|src=|href=)\s*["'`]?(?:https?:)?//""")


class Page(HTMLParser):
    """The elements of a page, its scripts and its text. A tag that ends in a slash opens its
    element too."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.opened: list[tuple[str, dict[str, str | None]]] = []
        self.closed: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.opened.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def names(self) -> list[str]:
        return [tag for tag, _ in self.opened]

    def assert_loads_nothing(self) -> None:
        addresses = [
            value or ""
            for _, attrs in self.opened
            for name, value in attrs.items()
            if name in ("src", "href")
        ]
        assert [address for address in addresses if not address.startswith("data:")] == []
        assert not {"link", "iframe", "object", "embed", "base"} & set(self.names())
        assert [found for script in self.scripts for found in OUTSIDE.findall(script)] == []


def a_trace(**changes: Any) -> rl.CausalTrace:
    """A trace of three layers and all positions but the first."""
    scores = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.4
    fields: dict[str, Any] = {
        "fact": rl.Fact("{} is\n in", subject="The Louvre", target="Paris"),
        "component": "resid",
        "window": 1,
        "layers": (2, 3, 5),
        "positions": (1, 2, 3, 4, 5, 6),
        "labels": LABELS,
        "subject": (1, 4),
        "answer": " Paris",
        "clean": 0.875,
        "corrupted_samples": torch.tensor([0.25, 0.375]),
        "sample_scores": scores,
        "noise": "tensor",
        "model_fingerprint": "0123",
    }
    return rl.CausalTrace(**{**fields, **changes})


def tick_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def given_to_circuitsvis(picture: Html) -> dict[str, Any]:
    """What the page gives to CircuitsVis."""
    (script,) = Page(picture.source).scripts
    found = re.search(r"CircuitsVis\.ColoredTokens,\s*(\{.*\})\s*\)\s*$", script)
    assert found is not None
    return json.loads(found[1])


def test_each_traced_position_is_named_once_with_a_star_on_the_subjects() -> None:
    assert tick_labels(viz.trace(a_trace())) == ["The*", "Lou*", "vre*", "is", "↵", "in"]


def test_a_trace_of_some_positions_names_those() -> None:
    some = a_trace(positions=(0, 3, 6), sample_scores=torch.zeros(2, 3, 3))
    assert tick_labels(viz.trace(some)) == ["<s>", "vre*", "in"]


def test_a_token_without_visible_signs_is_shown_as_a_space() -> None:
    assert tick_labels(viz.trace(a_trace(labels=("", " ", *LABELS[2:]))))[0] == "␣*"


def test_the_colours_are_the_scores_from_the_corrupted_run_up() -> None:
    result = a_trace()
    (mesh,) = viz.trace(result).axes[0].collections
    assert torch.equal(torch.as_tensor(mesh.get_array().data.reshape(6, 3)), result.scores.T)
    assert mesh.get_clim() == (result.corrupted, float(result.scores.max()))


def test_scores_below_the_corrupted_run_can_be_drawn() -> None:
    low = a_trace(sample_scores=torch.full((2, 3, 6), 0.125))
    (mesh,) = viz.trace(low).axes[0].collections
    bottom, top = mesh.get_clim()
    assert bottom == low.corrupted < top


def test_the_first_token_stands_on_top() -> None:
    bottom, top = viz.trace(a_trace()).axes[0].get_ylim()
    assert bottom > top


def test_a_layers_name_stands_at_its_own_column() -> None:
    for layers in [(4,), (0, 1, 2), (1, 3, 7), tuple(range(48))]:
        scores = torch.zeros(2, len(layers), 6)
        axes = viz.trace(a_trace(layers=layers, sample_scores=scores)).axes[0]
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert names == [str(layers[int(tick - 0.5)]) for tick in axes.get_xticks()]
        assert 1 <= len(names) <= 25


def test_signs_of_formulas_are_words_like_others() -> None:
    words = ("$\\nosuch{$", "a_b^c", "$x_1$", "\\frac{1}{2}", "<b>&amp;", "$", "b")
    result = a_trace(labels=words)
    figure = viz.trace(result)
    viz.figure_html(figure)
    assert tick_labels(figure) == ["a_b^c*", "$x_1$*", "\\frac{1}{2}*", "<b>&amp;", "$", "b"]
    for answer in words:
        figure = viz.trace(a_trace(answer=answer))
        assert figure.axes[1].get_ylabel() == f"p({answer})"
    viz.figure_html(viz.trace(a_trace(labels=words[:1] * 7, answer=words[0])))


def test_a_window_and_its_component_are_named() -> None:
    axes = viz.trace(a_trace(component="mlp", window=3)).axes[0]
    assert axes.get_xlabel() == "centre of 3 restored layers"
    assert axes.get_title() == "MLP output: clean 0.88, corrupted 0.312"


def test_a_figure_is_a_picture_that_holds_its_own_data() -> None:
    page = Page(viz.figure_html(viz.trace(a_trace()), alt='of "<b>" & co'))
    ((tag, attrs),) = page.opened
    assert (tag, attrs["alt"]) == ("img", 'of "<b>" & co')
    kind, data = str(attrs["src"]).split(",", 1)
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG\r\n")


def test_a_trace_shows_itself_in_a_notebook_as_its_picture() -> None:
    assert Page(a_trace()._repr_html_()).names() == ["img"]


def test_no_figure_is_left_for_pyplot_to_show() -> None:
    viz.figure_html(viz.trace(a_trace()))
    assert matplotlib.pyplot.get_fignums() == []


def test_tokens_are_shown_with_their_values() -> None:
    found = given_to_circuitsvis(
        viz.tokens(["The", " Lou", "東京", '"', "\\"], torch.tensor([1.0, -0.5, 0.0, 0.25, 2.0]))
    )
    assert [html.unescape(token) for token in found["tokens"]] == ["The", " Lou", "東京", '"', "\\"]
    assert found["values"] == [1.0, -0.5, 0.0, 0.25, 2.0]


def test_a_traces_tokens_are_coloured_by_their_largest_effect() -> None:
    scores = torch.full((2, 3, 6), 0.125)  # below the corrupted run: no effect, and none below zero
    scores[:, 1, 2] = 0.8125
    found = given_to_circuitsvis(viz.trace_tokens(a_trace(sample_scores=scores)))
    assert found["tokens"] == list(LABELS[1:])
    assert found["values"] == [0.0, 0.0, 0.5, 0.0, 0.0, 0.0]


def firings() -> list[EditFiring]:
    return [
        EditFiring(
            text="The Louvre",
            labels=("The", " Louvre"),
            values=torch.tensor([0.25, 1.0]),
            scale=2.0,
        ),
        EditFiring(
            text="Big Ben", labels=("Big", " Ben"), values=torch.tensor([-0.5, 0.0]), scale=2.0
        ),
    ]


def test_an_edits_firing_has_one_line_for_each_prompt() -> None:
    found = given_to_circuitsvis(viz.firing(firings()))
    assert found["tokens"] == ["The", " Louvre", "\n", "Big", " Ben", "\n"]
    assert found["values"] == [0.25, 1.0, 0.0, -0.5, 0.0, 0.0]


def test_the_firing_on_a_single_prompt_is_drawn_too_and_shows_itself_in_a_notebook() -> None:
    one = firings()[0]
    found = given_to_circuitsvis(viz.firing(one))
    assert (found["tokens"], found["values"]) == (["The", " Louvre"], [0.25, 1.0])
    assert given_to_circuitsvis(Html(one._repr_html_())) == found


PICTURES = {
    "tokens": lambda: viz.tokens(["a", " b"], [0.5, -1.0]),
    "trace_tokens": lambda: viz.trace_tokens(a_trace()),
    "firing": lambda: viz.firing(firings()),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_tokens_closes_what_it_opens_and_loads_nothing(name: str) -> None:
    page = Page(PICTURES[name]().source)
    assert page.names().count("div") == page.closed.count("div") > 0
    assert page.names().count("script") == page.closed.count("script") == 1
    page.assert_loads_nothing()


def test_two_pictures_on_one_page_draw_in_two_places() -> None:
    page = Page("".join(viz.tokens(["a"], [1.0]).source for _ in range(2)))
    places = [attrs["id"] for _, attrs in page.opened if "id" in attrs]
    assert len(set(places)) == 2
    assert all(f'"{place}"' in script for place, script in zip(places, page.scripts, strict=True))


def test_a_token_that_looks_like_html_is_shown_as_it_reads() -> None:
    labels = ["<bos>", "<b>", "&lt;", "<img src=x onerror=alert(1)>"]
    tokens = given_to_circuitsvis(viz.tokens(labels, [1.0] * 4))["tokens"]
    assert [html.unescape(token) for token in tokens] == labels
    assert Page(" ".join(tokens)).names() == []


def test_a_token_cannot_end_the_script_that_shows_it() -> None:
    page = Page(viz.tokens(["</script><img src=x onerror=alert(1)>"], [1.0]).source)
    assert sorted(set(page.names())) == ["div", "script"]


def test_a_trace_of_another_metric_and_direction_says_so(one_toy: Any, toy_record: Any) -> None:
    result = rl.causal_trace(one_toy, toy_record, metric="log_prob", direction="noising", samples=2)
    axes, bar = rl.viz.trace(result).axes
    assert bar.get_ylabel() == f"log_prob of {result.answer.strip()}"
    image = axes.collections[0]
    assert image.get_clim() == (pytest.approx(float(result.scores.min())), result.clean)
    # Dark cells are those that matter, in both directions.
    darkness = [1.0 - sum(image.cmap(x)[:3]) / 3 for x in (0.0, 1.0)]
    assert darkness[0] > darkness[1]
