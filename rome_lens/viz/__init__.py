"""Pictures and pages of results. Functions return figures or HTML, and run no model.

* ``trace_plots.py``, ``average_plots.py``, ``layer_plots.py``, ``sweep_plots.py``,
  ``check_plots.py``, ``comparison_plots.py``, ``dose_plots.py``, ``value_plots.py``: figures.
  ``axes.py``: what they share. ``overview.py``: every check on one scale.
* ``words.py``: coloured tokens. ``html.py``: figures as HTML. ``page.py``: whole pages.
* ``notebook.py``: what a notebook shows for each type of result.
"""

from rome_lens.viz import notebook as notebook
from rome_lens.viz.average_plots import averages
from rome_lens.viz.check_plots import limits, limits_detail
from rome_lens.viz.comparison_plots import limits_by_editor
from rome_lens.viz.dose_plots import doses
from rome_lens.viz.html import Html, figure_html
from rome_lens.viz.layer_plots import layer_sweep
from rome_lens.viz.sweep_plots import sweep
from rome_lens.viz.trace_plots import heads, severed, trace, trace_by_layer
from rome_lens.viz.value_plots import values
from rome_lens.viz.words import firing, tokens, trace_tokens

__all__ = [
    "Html",
    "averages",
    "doses",
    "figure_html",
    "firing",
    "heads",
    "layer_sweep",
    "limits",
    "limits_by_editor",
    "limits_detail",
    "severed",
    "sweep",
    "tokens",
    "trace",
    "trace_by_layer",
    "trace_tokens",
    "values",
]
