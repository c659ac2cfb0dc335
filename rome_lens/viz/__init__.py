"""Pictures from results. Nothing here runs a model or shows a window: figures and HTML are returned."""

from rome_lens.viz import notebook as notebook
from rome_lens.viz.check_plots import limits
from rome_lens.viz.html import Html, figure_html, firing, tokens, trace_tokens
from rome_lens.viz.layer_plots import layer_sweep
from rome_lens.viz.trace_plots import averages, heads, severed, trace

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
