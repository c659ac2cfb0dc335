"""CircuitsVis' interactive widgets, with their script once on a page, whatever stands there.

The script is 1.3 MB. It is embedded once, compressed to a third, and unpacked by the browser, so a
page with any number of widgets has about 480 kB and needs no network. Pictures that need no
interaction (:func:`rome_lens.viz.firing`, :func:`rome_lens.viz.trace_table`) are plain HTML.
"""

import base64
import functools
import gzip
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import circuitsvis

from rome_lens.composing.attention import AttentionComparison
from rome_lens.composing.log_probs import LogProbComparison
from rome_lens.editing.firing import EditFiring
from rome_lens.errors import ArgumentError
from rome_lens.storage import whole_or_nothing
from rome_lens.viz.axes import named_model
from rome_lens.viz.html import Html

_LOADER = """<script>
window.circuitsVisReady ||= (async () => {
  const packed = Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text() + ";window.CircuitsVis = CircuitsVis;";
  document.head.append(script);
})();
</script>"""
_RENDER = """<div id="%s"></div><script>
window.circuitsVisReady.then(() => CircuitsVis.render("%s", CircuitsVis.%s, %s));
</script>"""


@dataclass(frozen=True, kw_only=True)
class Widget:
    """An interactive picture, of which :func:`widgets` and :func:`widget_page` show several."""

    title: str
    """What the picture is of."""
    element: str
    """The name of CircuitsVis' element."""
    properties: dict[str, Any] = field(repr=False)
    """What it shows."""

    def _repr_html_(self) -> str:
        return widgets([self]).source


def attention_patterns(result: AttentionComparison) -> tuple[Widget, Widget]:
    """The attention patterns of a layer's heads, one widget before and one after the edit."""
    before, after = (
        Widget(
            title=f"Attention of layer {result.layer} of {named_model(result.model_name)}, "
            f"{name}: “{result.text}”",
            element="AttentionPatterns",
            properties={"tokens": _labels(result.labels), "attention": _rounded(values.tolist())},
        )
        for name, values in (("unedited", result.before), ("with the edit", result.after))
    )
    return before, after


def token_log_probs(result: LogProbComparison) -> tuple[Widget, Widget]:
    """A text coloured by log probability, with the likeliest tokens on hover, before and after."""
    before, after = (
        Widget(
            title=f"Log probability of each token under {named_model(result.model_name)}, {name}",
            element="TokenLogProbs",
            properties={
                "prompt": _labels([result.first, *result.labels]),
                "topKLogProbs": _rounded(best.tolist()),
                "topKTokens": [_labels(row) for row in tops],
                "correctTokenRank": list(ranks),
                "correctTokenLogProb": _rounded(own.tolist()),
            },
        )
        for name, own, ranks, tops, best in (
            (
                "unedited",
                result.before,
                result.ranks_before,
                result.top_before,
                result.top_log_probs_before,
            ),
            (
                "with the edit",
                result.after,
                result.ranks_after,
                result.top_after,
                result.top_log_probs_after,
            ),
        )
    )
    return before, after


def topk_tokens(results: Sequence[EditFiring], *, count: int = 5) -> Widget:
    """The tokens of each text on which an edit fires most, and least.

    Raises:
        ArgumentError: there is no firing.
    """
    if not results:
        raise ArgumentError("results is empty: give at least one firing.")
    best = [each.values.topk(min(count, len(each.values))) for each in results]
    least = [(-each.values).topk(min(count, len(each.values))) for each in results]
    return Widget(
        title="Tokens on which the edit fires most and least, (u · k) / (u · k*), in each text",
        element="TopkTokens",
        properties={
            "tokens": [_labels(each.labels) for each in results],
            "topkVals": [_as_layer(each.values.tolist()) for each in best],
            "topkIdxs": [_as_layer(each.indices.tolist()) for each in best],
            "bottomkVals": [_as_layer([-v for v in each.values.tolist()][::-1]) for each in least],
            "bottomkIdxs": [_as_layer(each.indices.tolist()[::-1]) for each in least],
            "firstDimensionName": "Edit",
            "thirdDimensionName": "Firing",
            "sampleLabels": _labels([each.text for each in results]),
            "firstDimensionLabels": ["this edit"],
        },
    )


def widgets(shown: Sequence[Widget]) -> Html:
    """Several widgets as HTML, with CircuitsVis' script once.

    Raises:
        ArgumentError: there is no widget.
    """
    if not shown:
        raise ArgumentError("There is no widget to show: give at least one.")
    return Html(_LOADER % _packed_script() + "".join(map(_drawn, shown)))


def widget_page(path: str | Path, shown: Sequence[Widget]) -> Path:
    """Write widgets as a page of their own, and return its path.

    A notebook stays small if its widgets stand on a page next to it.

    Raises:
        ArgumentError: there is no widget.
    """
    path = Path(path)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>rome_lens</title>'
        "<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem }</style></head>"
        f"<body>{widgets(shown).source}</body></html>\n"
    )
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _drawn(widget: Widget) -> str:
    place = f"circuits-vis-{str(uuid4())[:13]}"
    # A word of the model's must not end the script that shows it.
    properties = json.dumps(widget.properties).replace("<", "\\u003c")
    return f"<h3>{html.escape(widget.title)}</h3>" + _RENDER % (
        place,
        place,
        widget.element,
        properties,
    )


@functools.cache
def _packed_script() -> str:
    """CircuitsVis' script, compressed and as base64."""
    script = Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js"
    return base64.b64encode(gzip.compress(script.read_bytes(), 9, mtime=0)).decode()


def _labels(labels: Sequence[str]) -> list[str]:
    """Tokens as CircuitsVis shows them: it puts them into the page as HTML."""
    return [html.escape(label) for label in labels]


def _rounded(values: Any) -> Any:
    """Numbers with four digits, which are enough to look at."""
    return [_rounded(each) for each in values] if isinstance(values, list) else round(values, 4)


def _as_layer(values: Sequence[float] | Sequence[int]) -> list[Any]:
    """A row of values as CircuitsVis wants it: ``[layer, place, neuron]``."""
    return [[[value] for value in values]]
