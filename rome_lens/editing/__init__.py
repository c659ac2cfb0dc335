"""Editing: ROME, its variants and baselines, and edits as objects.

* ``contexts.py``: the prompt behind random prefixes. ``value_optimisation.py``: the optimisation of ``v*``.
* ``rank_one.py``: ``rome``, from the key ``k*`` and the value ``v*`` to a rank-one edit. ``sequences.py``: several edits in turn.
* ``edit.py``: what an edit can do. ``rows.py``: edits row by row. ``export.py``: edited models in transformers' format.
* ``editors.py``, ``fine_tuning.py``, ``presets.py``: what turns a fact into an edit.
* ``firing.py``: where in a text an edit acts.
"""

from rome_lens.editing.config import RomeConfig
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.edit import Edit, Edits, LayerEdit, RankOneEdit, WeightEdit
from rome_lens.editing.editors import Editor, FineTuning, InContext, RomeEditor, Unedited
from rome_lens.editing.export import export_hf
from rome_lens.editing.fine_tuning import fine_tune
from rome_lens.editing.firing import EditFiring, edit_firing, edit_firings
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.presets import Preset, preset
from rome_lens.editing.rank_one import rome
from rome_lens.editing.rows import row_hooks
from rome_lens.editing.sequences import rome_sequence

__all__ = [
    "Edit",
    "EditFiring",
    "Editor",
    "Edits",
    "FineTuning",
    "InContext",
    "LayerEdit",
    "OptimisationError",
    "Preset",
    "RankOneEdit",
    "RomeConfig",
    "RomeEditor",
    "Unedited",
    "WeightEdit",
    "edit_firing",
    "edit_firings",
    "export_hf",
    "fine_tune",
    "preset",
    "random_contexts",
    "rome",
    "rome_sequence",
    "row_hooks",
]
