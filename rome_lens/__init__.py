"""Where a transformer keeps a fact, whether it can be rewritten there, and what the rewrite really changed."""

from rome_lens import checks, data, forward, models, viz
from rome_lens.answers import TopAnswers, answer_log_probs, knows, top_answers
from rome_lens.applying import applied_edits, keep_edits
from rome_lens.attribution import attribution_trace
from rome_lens.averages import TraceAverage, average_traces
from rome_lens.baselines import Comparison, FineTuning, InContext, RomeEditor, Unedited, compare_editors
from rome_lens.checks import CheckResult, Limits, check_limits
from rome_lens.checks.firing import EditFiring, edit_firing, edit_firings
from rome_lens.checks.many import LimitsAverage, average_limits, check_records
from rome_lens.corruption import (
    Counterfactual,
    GaussianNoise,
    MultivariateGaussianNoise,
    Replacement,
    StudentTNoise,
    UniformNoise,
)
from rome_lens.counterfact import CounterFactRecord, read_counterfact
from rome_lens.edit_sweeps import EditSetting, EditSweep, sweep_edits
from rome_lens.edits import Edit, RankOneEdit, WeightEdit
from rome_lens.evaluation import evaluate, evaluate_all
from rome_lens.export import export_hf
from rome_lens.facts import Fact, read_facts
from rome_lens.finetuning import fine_tune
from rome_lens.keys import KeyStatistics, collect_key_statistics
from rome_lens.layer_sweeping import layer_sweep
from rome_lens.layer_sweeps import LayerSweep
from rome_lens.loading import load_model
from rome_lens.presets import Preset, preset
from rome_lens.report import BeforeAfter, limits_report, report
from rome_lens.rome import rome
from rome_lens.rows import row_hooks
from rome_lens.sampling import random_contexts
from rome_lens.scores import Evaluation, Scores
from rome_lens.sequences import Edits, rome_sequence
from rome_lens.severed import severed_trace
from rome_lens.sweeps import TracedFacts, trace_facts
from rome_lens.traces import AttributionTrace, CausalTrace, SeveredTrace, choose_layer
from rome_lens.tracing import causal_trace
from rome_lens.value import RomeConfig

__all__ = [
    "AttributionTrace",
    "BeforeAfter",
    "CausalTrace",
    "CheckResult",
    "Comparison",
    "CounterFactRecord",
    "Counterfactual",
    "Edit",
    "EditFiring",
    "EditSetting",
    "EditSweep",
    "Edits",
    "Evaluation",
    "Fact",
    "FineTuning",
    "GaussianNoise",
    "InContext",
    "KeyStatistics",
    "LayerSweep",
    "Limits",
    "LimitsAverage",
    "MultivariateGaussianNoise",
    "Preset",
    "RankOneEdit",
    "Replacement",
    "RomeConfig",
    "RomeEditor",
    "Scores",
    "SeveredTrace",
    "StudentTNoise",
    "TopAnswers",
    "TraceAverage",
    "TracedFacts",
    "Unedited",
    "UniformNoise",
    "WeightEdit",
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
    "data",
    "edit_firing",
    "edit_firings",
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
    "models",
    "preset",
    "random_contexts",
    "read_counterfact",
    "read_facts",
    "report",
    "rome",
    "rome_sequence",
    "row_hooks",
    "severed_trace",
    "sweep_edits",
    "top_answers",
    "trace_facts",
    "viz",
]
