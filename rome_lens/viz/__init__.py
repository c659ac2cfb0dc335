"""Pictures and pages of results. Functions return figures or HTML, and run no model.

* ``trace_plots.py``, ``layer_plots.py``, ``sweep_plots.py``, ``check_plots.py``,
  ``comparison_plots.py``, ``dose_plots.py``, ``mass_plots.py``, ``value_plots.py``: figures.
  ``axes.py``: what they share.
* ``html.py``: coloured tokens, and figures as HTML. ``page.py``: whole pages.
* ``notebook.py``: what a notebook shows for each type of result.
"""

from rome_lens.viz import notebook as notebook
from rome_lens.viz.check_plots import limits
from rome_lens.viz.comparison_plots import limits_by_editor
from rome_lens.viz.dose_plots import doses
from rome_lens.viz.html import Html, figure_html, firing, tokens, trace_tokens
from rome_lens.viz.layer_plots import layer_sweep
from rome_lens.viz.mass_plots import mass_curve
from rome_lens.viz.sweep_plots import sweep
from rome_lens.viz.trace_plots import averages, heads, severed, trace
from rome_lens.viz.value_plots import values

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
    "mass_curve",
    "severed",
    "sweep",
    "tokens",
    "trace",
    "trace_tokens",
    "values",
]
