"""Editing: ROME, its variants and baselines, and edits as objects.

From a fact to an edit by ROME, in the order of the steps:

* ``rome_method.py``: ``rome`` and ``rome_batch``. Start reading here.
* ``side_by_side.py``: runs the steps below, for several facts at once.
* ``contexts.py``: random prefixes. ``prompts.py``: the fact's prompt in contexts, as token rows.
  ``row_batch.py``: the rows of several facts as one batch.
* ``edited_layer.py``: one forward pass of these rows, and the later layers on a changed value.
* ``rome_key.py``: the key ``k*``.
* ``value_optimisation.py``: the value ``v*``. ``optimiser.py``: one step of Adam.
* ``rank_one_update.py``: ``u`` and ``v`` from ``C``, ``k*`` and ``v*``.
* ``config.py``: the hyperparameters. ``new_target.py``: facts that need no edit.

What an edit can do:

* ``edit.py``: the base class: apply, revert, hooks, state dict.
* ``rank_one_edit.py``, ``weight_edit.py``: the two kinds of edit.
* ``sequences.py``: several edits as one, and ``rome_sequence``.
* ``rows.py``: a batch with another edit in each row. ``firing.py``: where in a text an edit acts.
* ``export.py``: an edited model in transformers' format.

Many facts at once, by MEMIT, EMMET and AlphaEdit:

* ``mass_methods.py``: the three functions. Start reading here.
* ``mass_facts.py``: runs the steps, batch after batch. ``mass_editing.py`` lists them.
* ``mass_values.py``: each fact's target. ``mass_states.py``: keys and block outputs.
* ``mass_update.py``: the equation that the methods share. ``mass_solvers.py``: it, by method.
* ``through_the_norm.py``: what to write where a norm follows ``W_out``.
* ``mass_config.py``: the hyperparameters. ``mass_edit.py``: the result. ``mass_editors.py``: the
  methods as objects.

Other ways from a fact to an edit:

* ``fine_tuning.py``: constrained fine-tuning. ``editors.py``: ROME and the baselines as objects.
* ``presets.py``: settings for known models.
"""

from rome_lens.editing.config import RomeConfig
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.edit import Edit, LayerEdit, applied_edits, keep_edits
from rome_lens.editing.editors import (
    Editor,
    FineTuning,
    InContext,
    NullEditor,
    RomeEditor,
    Unedited,
)
from rome_lens.editing.export import export_hf
from rome_lens.editing.fine_tuning import fine_tune
from rome_lens.editing.firing import EditFiring, edit_firing, edit_firings
from rome_lens.editing.mass_config import AlphaEditConfig, EmmetConfig, MassConfig, MemitConfig
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.editing.mass_editors import MassEditor
from rome_lens.editing.mass_methods import alphaedit, emmet, memit
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.presets import Preset, preset
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.reference_edits import null_edit, rome_path
from rome_lens.editing.rome_method import rome, rome_batch
from rome_lens.editing.rows import row_hooks
from rome_lens.editing.sequences import Edits, rome_sequence
from rome_lens.editing.weight_edit import WeightEdit

__all__ = [
    "AlphaEditConfig",
    "Edit",
    "EditFiring",
    "Editor",
    "Edits",
    "EmmetConfig",
    "FineTuning",
    "InContext",
    "LayerEdit",
    "MassConfig",
    "MassEdit",
    "MassEditor",
    "MemitConfig",
    "NullEditor",
    "OptimisationError",
    "Preset",
    "RankOneEdit",
    "RomeConfig",
    "RomeEditor",
    "Unedited",
    "WeightEdit",
    "alphaedit",
    "applied_edits",
    "edit_firing",
    "edit_firings",
    "emmet",
    "export_hf",
    "fine_tune",
    "keep_edits",
    "memit",
    "null_edit",
    "preset",
    "random_contexts",
    "rome",
    "rome_batch",
    "rome_path",
    "rome_sequence",
    "row_hooks",
]
