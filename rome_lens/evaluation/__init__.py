"""Evaluation: CounterFact's scores, editors compared side by side, and sweeps over settings.

* ``evaluating.py``: ``evaluate``, the scores of an edit.
* ``fluency.py``: the scores of generated text.
* ``results.py``: the scores of one record. ``scores.py``: averages over records, and tables.
* ``numbered_edits.py``: which prompts under which edits can share a forward pass.
* ``comparison.py``: several editors on the same records.
* ``settings_sweep.py``: ROME at many settings.
"""

from rome_lens.evaluation.comparison import Comparison, compare_editors
from rome_lens.evaluation.evaluating import EvaluationError, evaluate, evaluate_all
from rome_lens.evaluation.results import Evaluation, PromptScore
from rome_lens.evaluation.scores import Scores
from rome_lens.evaluation.settings_sweep import EditSetting, EditSweep, sweep_edits

__all__ = [
    "Comparison",
    "EditSetting",
    "EditSweep",
    "Evaluation",
    "EvaluationError",
    "PromptScore",
    "Scores",
    "compare_editors",
    "evaluate",
    "evaluate_all",
    "sweep_edits",
]
