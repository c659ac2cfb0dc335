"""Pictures from results. Nothing here runs a model or shows a window: figures and HTML are returned."""

from rome_lens.viz.edits import layer_sweep, limits
from rome_lens.viz.html import Html, figure_html, firing, tokens, trace_tokens
from rome_lens.viz.traces import averages, heads, severed, trace

__all__ = [
    "Html",
    "averages",
    "figure_html",
    "firing",
    "heads",
    "layer_sweep",
    "limits",
    "severed",
    "tokens",
    "trace",
    "trace_tokens",
]
