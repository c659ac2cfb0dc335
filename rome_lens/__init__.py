"""Where a transformer keeps a fact, whether it can be rewritten there, and what the rewrite really changed."""

from rome_lens.corruption import GaussianNoise
from rome_lens.edits import RankOneEdit
from rome_lens.facts import Fact
from rome_lens.keys import KeyStatistics, collect_key_statistics
from rome_lens.loading import load_model
from rome_lens.rome import RomeConfig, rome
from rome_lens.tracing import CausalTrace, causal_trace

__all__ = [
    "CausalTrace",
    "Fact",
    "GaussianNoise",
    "KeyStatistics",
    "RankOneEdit",
    "RomeConfig",
    "causal_trace",
    "collect_key_statistics",
    "load_model",
    "rome",
]
