"""Forward passes: text to tokens, runs of parts of a model, and reading answers.

* ``tokens.py``: prompts, answers and subject spans as tokens.
* ``runs.py``: runs up to a layer, or with only some positions unembedded.
* ``partial.py``, ``kv_cache.py``: runs from a layer on, for later positions only.
* ``readout.py``: from the last stream to logits and log probabilities.
* ``memory.py``: how many bytes one batch may take on a device. ``call_costs.py``: what a call
  costs apart from its tokens.
* ``hooked.py``, ``bridge.py``: what differs between the two model classes. ``backend.py`` chooses
  between them.
* ``additions.py``: hooks that add to the raw output of ``W_out``.
* ``module_hooks.py``: temporary PyTorch hooks, for what TransformerLens' hook points do not reach.
* ``answers.py``, ``sampling.py``: probabilities of answers, and sampled text.
* ``identity.py``: what a stored result depends on besides its own settings.
"""

from rome_lens.forward.additions import mlp_contribution, raw_output_hooks
from rome_lens.forward.answers import answer_log_probs, knows
from rome_lens.forward.memory import bytes_per_batch, bytes_per_slice, rows_per_batch
from rome_lens.forward.module_hooks import unembedding_only
from rome_lens.forward.next_tokens import TopAnswers, top_answers
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import (
    agreement,
    check_raw_output,
    chosen_logits,
    differentiating,
    embed,
    evaluating,
    full_precision,
    in_float32,
    keys_of,
    last_position_logits,
    layer_states,
    log_probabilities,
    run_through,
)
from rome_lens.forward.sampling import sample_continuations
from rome_lens.forward.tokens import FactTokens, continuation, encode, token_ids

__all__ = [
    "FactTokens",
    "PartialForward",
    "TopAnswers",
    "agreement",
    "answer_log_probs",
    "bytes_per_batch",
    "bytes_per_slice",
    "check_raw_output",
    "chosen_logits",
    "continuation",
    "differentiating",
    "embed",
    "encode",
    "evaluating",
    "full_precision",
    "in_float32",
    "keys_of",
    "knows",
    "last_position_logits",
    "layer_states",
    "log_probabilities",
    "mlp_contribution",
    "raw_output_hooks",
    "rows_per_batch",
    "run_through",
    "sample_continuations",
    "token_ids",
    "top_answers",
    "unembedding_only",
]
