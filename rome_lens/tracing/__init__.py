"""Tracing: where does a model read a fact out?

Causal tracing corrupts the subject, restores one clean state, and measures how much of the answer
returns. (The literature also calls this corrupted-run activation patching.)

* ``noise.py``, ``corruption.py``, ``partners.py``: how the subject is corrupted.
  ``embedding_statistics.py``: how strong noise has to be. ``metrics.py``: what is measured.
* ``clean_run.py``: the run without corruption. ``cells.py``: which states are restored.
* ``corrupted_run.py``: runs with a corrupted subject. ``restoring.py``: the engine that restores
  states in them. ``branches.py``: cells that are one computation. ``passes.py``: how much is
  computed in one forward pass. ``scoring.py``: from residual streams to scores.
* ``causal.py``, ``severed.py``, ``attribution.py``: the three kinds of trace. ``results.py``: what
  they return. ``positions.py``: positions by name.
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
from rome_lens.tracing.partners import Counterfactuals
from rome_lens.tracing.results import AttributionTrace, CausalTrace, SeveredTrace, choose_layer
from rome_lens.tracing.severed import severed_trace

__all__ = [
    "AttributionTrace",
    "CausalTrace",
    "Counterfactual",
    "Counterfactuals",
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
