"""Where a transformer keeps a fact, whether it can be rewritten there, and what the rewrite really changed."""

from rome_lens import data, forward, models, viz
from rome_lens.answers import TopAnswers, answer_log_probs, top_answers
from rome_lens.checks import CheckResult, Limits, check_limits
from rome_lens.checks.firing import EditFiring, edit_firing
from rome_lens.corruption import (
    Counterfactual,
    GaussianNoise,
    MultivariateGaussianNoise,
    Replacement,
    StudentTNoise,
    UniformNoise,
)
from rome_lens.edits import RankOneEdit
from rome_lens.facts import Fact
from rome_lens.keys import KeyStatistics, collect_key_statistics
from rome_lens.loading import load_model
from rome_lens.report import BeforeAfter, report
from rome_lens.rome import RomeConfig, rome
from rome_lens.traces import CausalTrace, choose_layer
from rome_lens.tracing import causal_trace

__all__ = [
    "BeforeAfter",
    "CausalTrace",
    "CheckResult",
    "Counterfactual",
    "EditFiring",
    "Fact",
    "GaussianNoise",
    "KeyStatistics",
    "Limits",
    "MultivariateGaussianNoise",
    "RankOneEdit",
    "Replacement",
    "RomeConfig",
    "StudentTNoise",
    "TopAnswers",
    "UniformNoise",
    "answer_log_probs",
    "causal_trace",
    "check_limits",
    "choose_layer",
    "collect_key_statistics",
    "data",
    "edit_firing",
    "forward",
    "load_model",
    "models",
    "report",
    "rome",
    "top_answers",
    "viz",
]
