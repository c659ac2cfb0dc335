"""Localisation: does tracing tell where to edit?

* ``sweep_over_layers.py``: ``layer_sweep``, which traces and edits facts at every layer.
  ``results.py``: what it returns.
* ``edit_trace.py``: ``trace_edit``, the path by which an edit reaches the answer.
* ``edit_value.py``: ``compare_value``, an edit's value among values of the model's own.
* ``variance.py``: how much of an edit's success the layer and the trace explain.
"""

from rome_lens.localisation.edit_trace import trace_edit
from rome_lens.localisation.edit_trace_result import EditTrace
from rome_lens.localisation.edit_value import ValueComparison, compare_value
from rome_lens.localisation.results import LayerSweep
from rome_lens.localisation.sweep_over_layers import layer_sweep
from rome_lens.localisation.variance import VarianceExplained, explain_variance

__all__ = [
    "EditTrace",
    "LayerSweep",
    "ValueComparison",
    "VarianceExplained",
    "compare_value",
    "explain_variance",
    "layer_sweep",
    "trace_edit",
]
