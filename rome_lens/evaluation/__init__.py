"""Evaluation: CounterFact's scores, editors side by side, and sweeps over settings.

* ``evaluating.py``: the scores of an edit. ``scores.py``: their averages. ``fluency.py``: GE and RS.
* ``numbered_edits.py``: which questions about which edits can share a forward pass.
* ``comparison.py``: editors side by side. ``settings_sweep.py``: one editor at many settings.
* ``store.py``: finished evaluations on disk.
"""

from rome_lens.evaluation.comparison import Comparison, compare_editors
from rome_lens.evaluation.evaluating import EvaluationError, evaluate, evaluate_all
from rome_lens.evaluation.scores import Evaluation, Scores
from rome_lens.evaluation.settings_sweep import EditSetting, EditSweep, sweep_edits

__all__ = [
    "Comparison",
    "EditSetting",
    "EditSweep",
    "Evaluation",
    "EvaluationError",
    "Scores",
    "compare_editors",
    "evaluate",
    "evaluate_all",
    "sweep_edits",
]
