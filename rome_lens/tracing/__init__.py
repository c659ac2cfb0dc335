"""Tracing: causal tracing by corrupted-run activation patching, and what follows from it.

* ``noise.py``, ``embeddings.py``, ``corruption.py``: how the subject is corrupted.
* ``clean_run.py``: the run without corruption. ``cells.py``: which states are restored.
* ``restoring.py``: the engine that restores them. ``scoring.py``: from final streams to scores.
* ``causal.py``, ``severed.py``, ``attribution.py``: the three kinds of trace. ``results.py``: what they return.
* ``many_facts.py``, ``averages.py``: traces of many facts, and their averages.
"""

from rome_lens.tracing.attribution import attribution_trace
from rome_lens.tracing.averages import TraceAverage, average_traces
from rome_lens.tracing.causal import causal_trace
from rome_lens.tracing.clean_run import FactNotKnownError
from rome_lens.tracing.corruption import Counterfactual, Replacement
from rome_lens.tracing.many_facts import TracedFacts, trace_facts
from rome_lens.tracing.noise import (
    GaussianNoise,
    MultivariateGaussianNoise,
    StudentTNoise,
    UniformNoise,
)
from rome_lens.tracing.results import AttributionTrace, CausalTrace, SeveredTrace, choose_layer
from rome_lens.tracing.severed import severed_trace

__all__ = [
    "AttributionTrace",
    "CausalTrace",
    "Counterfactual",
    "FactNotKnownError",
    "GaussianNoise",
    "MultivariateGaussianNoise",
    "Replacement",
    "SeveredTrace",
    "StudentTNoise",
    "TraceAverage",
    "TracedFacts",
    "UniformNoise",
    "attribution_trace",
    "average_traces",
    "causal_trace",
    "choose_layer",
    "severed_trace",
    "trace_facts",
]
