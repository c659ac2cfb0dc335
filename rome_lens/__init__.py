"""Where does a language model store a fact, can it be rewritten there, and what else changes?

A plugin for TransformerLens. The package has one subpackage for each step of the work:

* ``data``: facts, records of questions about them, and what comes with the package.
* ``models``: loading, and everything that depends on where TransformerLens keeps a weight.
* ``forward``: tokens, parts of a forward pass, and answers.
* ``keys``: key statistics, ``C = E[k k^T]``.
* ``tracing``: causal tracing. ``editing``: ROME, its variants, and edits as objects.
* ``evaluation``: CounterFact's scores, and editors side by side.
* ``localisation``: does tracing tell where to edit?
* ``checks``: what an edit does not do, and what it does besides.
* ``sweeps``: all of this for many facts and layers, resumable, on one machine or many.
* ``viz``: pictures and pages.

The files next to the wings serve them all. ``results.py`` holds what every result can do,
``stores.py`` keeps finished work on disk, and ``storage.py`` writes files. ``arguments.py`` checks
arguments, ``intervals.py`` computes averages, and ``errors.py`` holds the base class of all errors.

A wing imports only from the wings above it in this list, so a picture can know a check, but not the
other way round. ``tracing`` and ``editing`` do not know each other.
"""

from rome_lens import checks, data, forward, models, viz
from rome_lens.checks import (
    CheckResult,
    Limits,
    LimitsAverage,
    LimitsComparison,
    average_limits,
    check_limits,
    check_records,
    compare_limits,
)
from rome_lens.data import CounterFactRecord, Fact, read_counterfact, read_facts
from rome_lens.editing import (
    AlphaEditConfig,
    Edit,
    EditFiring,
    Edits,
    EmmetConfig,
    FineTuning,
    InContext,
    MassEdit,
    MassEditor,
    MemitConfig,
    NullEditor,
    Preset,
    RankOneEdit,
    RomeConfig,
    RomeEditor,
    Unedited,
    WeightEdit,
    alphaedit,
    applied_edits,
    edit_firing,
    edit_firings,
    emmet,
    export_hf,
    fine_tune,
    keep_edits,
    memit,
    null_edit,
    preset,
    random_contexts,
    rome,
    rome_batch,
    rome_path,
    rome_sequence,
    row_hooks,
)
from rome_lens.errors import RomeLensError
from rome_lens.evaluation import (
    Comparison,
    EditSetting,
    EditSweep,
    Evaluation,
    Scores,
    compare_editors,
    evaluate,
    evaluate_all,
    sweep_edits,
)
from rome_lens.forward import TopAnswers, answer_log_probs, knows, top_answers
from rome_lens.keys import KeyStatistics, collect_key_statistics
from rome_lens.localisation import (
    EditTrace,
    LayerSweep,
    ValueComparison,
    compare_value,
    layer_sweep,
    trace_edit,
)
from rome_lens.models import ModelSource, load_model
from rome_lens.sweeps import MassSetting, RomeSetting, Sweep, SweepError, sweep
from rome_lens.tracing import (
    AttributionTrace,
    CausalTrace,
    Counterfactual,
    Counterfactuals,
    GaussianNoise,
    MultivariateGaussianNoise,
    Replacement,
    SeveredTrace,
    StudentTNoise,
    TraceAverage,
    TracedFacts,
    UniformNoise,
    attribution_trace,
    average_traces,
    causal_trace,
    choose_layer,
    severed_trace,
    trace_facts,
)
from rome_lens.version import __version__
from rome_lens.viz.page import BeforeAfter, limits_report, report

__all__ = [
    "AlphaEditConfig",
    "AttributionTrace",
    "BeforeAfter",
    "CausalTrace",
    "CheckResult",
    "Comparison",
    "CounterFactRecord",
    "Counterfactual",
    "Counterfactuals",
    "Edit",
    "EditFiring",
    "EditSetting",
    "EditSweep",
    "EditTrace",
    "Edits",
    "EmmetConfig",
    "Evaluation",
    "Fact",
    "FineTuning",
    "GaussianNoise",
    "InContext",
    "KeyStatistics",
    "LayerSweep",
    "Limits",
    "LimitsAverage",
    "LimitsComparison",
    "MassEdit",
    "MassEditor",
    "MassSetting",
    "MemitConfig",
    "ModelSource",
    "MultivariateGaussianNoise",
    "NullEditor",
    "Preset",
    "RankOneEdit",
    "Replacement",
    "RomeConfig",
    "RomeEditor",
    "RomeLensError",
    "RomeSetting",
    "Scores",
    "SeveredTrace",
    "StudentTNoise",
    "Sweep",
    "SweepError",
    "TopAnswers",
    "TraceAverage",
    "TracedFacts",
    "Unedited",
    "UniformNoise",
    "ValueComparison",
    "WeightEdit",
    "__version__",
    "alphaedit",
    "answer_log_probs",
    "applied_edits",
    "attribution_trace",
    "average_limits",
    "average_traces",
    "causal_trace",
    "check_limits",
    "check_records",
    "checks",
    "choose_layer",
    "collect_key_statistics",
    "compare_editors",
    "compare_limits",
    "compare_value",
    "data",
    "edit_firing",
    "edit_firings",
    "emmet",
    "evaluate",
    "evaluate_all",
    "export_hf",
    "fine_tune",
    "forward",
    "keep_edits",
    "knows",
    "layer_sweep",
    "limits_report",
    "load_model",
    "memit",
    "models",
    "null_edit",
    "preset",
    "random_contexts",
    "read_counterfact",
    "read_facts",
    "report",
    "rome",
    "rome_batch",
    "rome_path",
    "rome_sequence",
    "row_hooks",
    "severed_trace",
    "sweep",
    "sweep_edits",
    "top_answers",
    "trace_edit",
    "trace_facts",
    "viz",
]
