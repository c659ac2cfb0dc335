"""Analyses that TransformerLens users know, of one prompt without and with an edit.

* ``texts.py``: what the model writes. ``log_probs.py``: how likely it finds each token of a text.
* ``lens.py``: what each layer would answer. ``attribution.py``: what each component adds to
  the difference of the two answers' logits.
* ``attention.py``: where the heads of a layer look.
* ``runs.py``: the two runs that all of them read.

The edit acts through hooks, so the weights are never touched, and hooks that the caller has on the
model are part of both runs.
"""

from rome_lens.composing.attention import AttentionComparison, compare_attention
from rome_lens.composing.attribution import LogitAttribution, direct_logit_attribution
from rome_lens.composing.lens import LogitLens, logit_lens
from rome_lens.composing.log_probs import LogProbComparison, compare_log_probs
from rome_lens.composing.texts import TextComparison, compare_text

__all__ = [
    "AttentionComparison",
    "LogProbComparison",
    "LogitAttribution",
    "LogitLens",
    "TextComparison",
    "compare_attention",
    "compare_log_probs",
    "compare_text",
    "direct_logit_attribution",
    "logit_lens",
]
