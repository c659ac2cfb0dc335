"""Pictures show a result's numbers and words, whatever characters the words hold."""

import base64
import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib.pyplot
import pytest
import torch
from house.results_for_tests import EXAMPLES
from matplotlib.figure import Figure

import rome_lens as rl
from rome_lens import viz
from rome_lens.editing.firing import EditFiring
from rome_lens.errors import ArgumentError
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
        assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
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


class Words(HTMLParser):
    """The coloured words of a picture, with their numbers and colours, and its legend's text."""

    def __init__(self, picture: Html) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self.values: list[float] = []
        self.colours: list[str] = []
        self.legend = ""
        self._in_word = False
        self.feed(picture.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "br":
            self.words.append("\n")
        self._in_word = tag == "span" and "title" in dict(attrs)
        if self._in_word:
            self.words.append("")
            self.values.append(float(dict(attrs)["title"]))
            style = str(dict(attrs)["style"])
            self.colours.append(style.rpartition("background:")[2])

    def handle_endtag(self, tag: str) -> None:
        self._in_word = False

    def handle_data(self, data: str) -> None:
        if self._in_word:
            self.words[-1] += data
        else:
            self.legend += data


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
    assert mesh.get_clim() == (result.corrupted, result.clean)


def test_maps_of_one_fact_share_their_colours_and_a_scale_of_ones_own_says_so(
    unchecked: None,
) -> None:
    strong, weak = a_trace(), a_trace(sample_scores=torch.full((2, 3, 6), 0.32))
    shared = [viz.trace(each).axes[0].collections[0].get_clim() for each in (strong, weak)]
    assert shared[0] == shared[1]
    own = viz.trace(weak, scale="own")
    assert own.axes[0].collections[0].get_clim()[0] == pytest.approx(0.32)
    assert "this map's own" in written_above(own)
    assert "own" not in written_above(viz.trace(weak))
    with pytest.raises(ArgumentError, match="scale is 'mine', expected one of"):
        viz.trace(weak, scale="mine")


def written_above(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def test_scores_below_the_corrupted_run_can_be_drawn() -> None:
    low = a_trace(sample_scores=torch.full((2, 3, 6), 0.125))
    (mesh,) = viz.trace(low).axes[0].collections
    assert mesh.get_clim() == (low.corrupted, low.clean)
    assert viz.trace(low).axes[1].get_ylabel() == "p(Paris)"


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
    figure = viz.trace(a_trace(component="mlp", window=3, model_name="toy"))
    words = written_above(figure)
    for part in (
        "MLP output",
        "The Louvre is↵ in → Paris",
        "* corrupted",
        "toy; clean 0.875, corrupted 0.312",
    ):
        assert part in words


def test_an_estimate_is_called_one() -> None:
    fields = {field.name: getattr(a_trace(), field.name) for field in dataclasses.fields(a_trace())}
    figure = viz.trace(rl.AttributionTrace(**fields))
    assert written_above(figure).startswith("Estimated trace")
    label = figure.axes[1].get_ylabel().replace("\n", " ")
    assert label == "linear estimate of p(Paris), not bounded"


def test_a_trace_by_layer_has_the_effects_and_intervals_of_its_positions() -> None:
    result = a_trace()
    axes = viz.trace_by_layer(result, at=["subject_last", "last"]).axes[0]
    assert [line.get_label() for line in axes.get_lines()[:2]] == ["at 'vre'*", "at 'in'"]
    assert torch.equal(
        torch.as_tensor(axes.get_lines()[0].get_ydata()), result.indirect_effects[:, 2]
    )
    band = axes.collections[0].get_paths()[0].vertices
    low, high = result.intervals[:, :, 2].clamp(-result.corrupted, 1.0 - result.corrupted)
    assert band[:, 1].min() == pytest.approx(float(low.min()))
    assert band[:, 1].max() == pytest.approx(float(high.max()))
    assert (
        len(
            viz.trace_by_layer(
                a_trace(corrupted_samples=torch.tensor([0.3]), sample_scores=torch.zeros(1, 3, 6))
            )
            .axes[0]
            .collections
        )
        == 0
    )


def test_a_band_is_cut_only_where_no_probability_is_possible() -> None:
    for metric, cut in (("probability", True), ("log_prob", False)):
        result = a_trace(metric=metric)
        figure = viz.trace_by_layer(result, at=["last"])
        lowest = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].min()
        assert float(result.intervals.min()) < -result.corrupted
        assert (lowest >= -result.corrupted - 1e-6) == cut
        assert "Bands: 95 % intervals over this fact's noise samples" in written_above(figure)


def test_a_trace_of_an_edit_has_no_star_because_nothing_is_corrupted() -> None:
    figure = viz.trace(EXAMPLES["EditTrace"])
    assert not [label for label in tick_labels(figure) if label.endswith("*")]
    assert "*" not in written_above(figure)
    assert "*" not in viz.trace_table(EXAMPLES["EditTrace"]).source
    assert "* corrupted" in viz.trace_table(a_trace()).source


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
    labels = ["The", " Lou", "東京", '"', "\\"]
    found = Words(viz.tokens(labels, torch.tensor([1.0, -0.5, 0.0, 0.25, 2.0])))
    assert found.words == labels
    assert found.values == [1.0, -0.5, 0.0, 0.25, 2.0]


def test_red_and_blue_are_on_one_scale_with_fixed_ends() -> None:
    """-.05 is as pale as +.05, whatever stands next to it, and a value beyond the end is full."""
    found = Words(viz.tokens(["a", "b", "c", "d", "e"], [-0.05, 0.05, 0.2, 1.0, -3.0]))
    strengths = [float(colour.rpartition(",")[2].strip(")")) for colour in found.colours]
    assert strengths[0] == strengths[1] == pytest.approx(0.05 * 0.75, abs=0.006)
    assert strengths[3] == strengths[4] == 0.75
    assert found.colours[0].rpartition(",")[0] != found.colours[1].rpartition(",")[0]
    assert all(end in found.legend for end in ("-1", "+1"))
    doubled = Words(viz.tokens(["a"], [1.0], limit=2.0))
    assert "0.38" in doubled.colours[0]
    assert "+2" in doubled.legend
    with pytest.raises(ArgumentError, match=r"limit is 0\.0, expected a number"):
        viz.tokens(["a"], [1.0], limit=0.0)


def test_coloured_words_need_about_a_kilobyte_and_no_script() -> None:
    picture = viz.firing(firings())
    assert len(picture.source) < 1500
    assert "<script" not in picture.source


def test_a_traces_tokens_are_coloured_by_their_largest_effect() -> None:
    scores = torch.full((2, 3, 6), 0.125)  # below the corrupted run: no effect, and none below zero
    scores[:, 1, 2] = 0.8125
    found = Words(viz.trace_tokens(a_trace(sample_scores=scores)))
    assert found.words == ["↵" if label == "\n" else label for label in LABELS[1:]][:6]
    assert found.values == [0.0, 0.0, 0.5, 0.0, 0.0, 0.0]
    assert "total effect" in found.legend
    assert "p(Paris)" in found.legend


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
    found = Words(viz.firing(firings()))
    assert found.words == ["The", " Louvre", "\n", "Big", " Ben", "\n"]
    assert found.values == [0.25, 1.0, -0.5, 0.0]


def test_the_firing_on_a_single_prompt_is_drawn_too_and_shows_itself_in_a_notebook() -> None:
    one = firings()[0]
    found = Words(viz.firing(one))
    assert (found.words, found.values) == (["The", " Louvre", "\n"], [0.25, 1.0])
    assert one._repr_html_() == viz.firing(one).source


WORDS = {
    "tokens": lambda: viz.tokens(["a", " b"], [0.5, -1.0]),
    "trace_tokens": lambda: viz.trace_tokens(a_trace()),
    "firing": lambda: viz.firing(firings()),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_picture_of_tokens_closes_what_it_opens_and_loads_nothing(name: str) -> None:
    page = Page(WORDS[name]().source)
    for tag in ("div", "span"):
        assert page.names().count(tag) == page.closed.count(tag) > 0
    page.assert_loads_nothing()


def test_a_token_that_looks_like_html_is_shown_as_it_reads() -> None:
    labels = ["<bos>", "<b>", "&lt;", "<img src=x onerror=alert(1)>", "</script>"]
    picture = viz.tokens(labels, [1.0] * 5, what="<b>")
    assert Words(picture).words == labels
    assert set(Page(picture.source).names()) == {"div", "span"}


def test_a_trace_of_another_metric_and_direction_says_so(one_toy: Any, toy_record: Any) -> None:
    result = rl.causal_trace(one_toy, toy_record, metric="log_prob", direction="noising", samples=2)
    figure = rl.viz.trace(result)
    axes, bar = figure.axes
    assert bar.get_ylabel() == f"log_prob of {result.answer.strip()}"
    assert "by noising" in written_above(figure)
    assert axes.get_xlabel() == "corrupted layer"
    image = axes.collections[0]
    assert image.get_clim() == (result.corrupted, result.clean)
    # Dark cells are those that matter, in both directions.
    darkness = [1.0 - sum(image.cmap(x)[:3]) / 3 for x in (0.0, 1.0)]
    assert darkness[0] > darkness[1]
