"""Pictures and pages of results. Functions return figures or HTML, and run no model.

* ``trace_plots.py``, ``severed_plots.py``, ``average_plots.py``, ``layer_plots.py``,
  ``sweep_plots.py``, ``check_plots.py``, ``comparison_plots.py``, ``dose_plots.py``,
  ``by_fact_plots.py``, ``mass_plots.py``, ``value_plots.py``: figures.
  ``axes.py``: what they share. ``overview.py``: every check on one scale.
  ``composing_plots.py``: logit lens, logit attribution and attention without and with an edit.
* ``words.py``: coloured tokens. ``tables.py``: texts before and after, and a trace as a table.
  ``interactive.py``: CircuitsVis. ``html.py``: figures as HTML. ``page.py``: pages of an edit
  and of many. ``sections.py``: a page of any results.
* ``notebook.py``: what a notebook shows for each type of result.
"""

from rome_lens.viz import notebook as notebook
from rome_lens.viz.average_plots import averages
from rome_lens.viz.by_fact_plots import means_by_editor
from rome_lens.viz.check_plots import limits, limits_detail
from rome_lens.viz.comparison_plots import limits_by_editor
from rome_lens.viz.composing_plots import attention, lens, logit_attribution
from rome_lens.viz.dose_plots import doses
from rome_lens.viz.html import Html, figure_html
from rome_lens.viz.interactive import (
    Widget,
    attention_patterns,
    token_log_probs,
    topk_tokens,
    widget_page,
    widgets,
)
from rome_lens.viz.layer_plots import layer_sweep
from rome_lens.viz.mass_plots import mass_curve
from rome_lens.viz.sections import results_page
from rome_lens.viz.severed_plots import severed
from rome_lens.viz.sweep_plots import sweep
from rome_lens.viz.tables import text, trace_table
from rome_lens.viz.trace_plots import heads, trace, trace_by_layer
from rome_lens.viz.value_plots import values
from rome_lens.viz.words import firing, tokens, trace_tokens

__all__ = [
    "Html",
    "Widget",
    "attention",
    "attention_patterns",
    "averages",
    "doses",
    "figure_html",
    "firing",
    "heads",
    "layer_sweep",
    "lens",
    "limits",
    "limits_by_editor",
    "limits_detail",
    "logit_attribution",
    "mass_curve",
    "means_by_editor",
    "results_page",
    "severed",
    "sweep",
    "text",
    "token_log_probs",
    "tokens",
    "topk_tokens",
    "trace",
    "trace_by_layer",
    "trace_table",
    "trace_tokens",
    "values",
    "widget_page",
    "widgets",
]
