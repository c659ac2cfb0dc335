"""Convert a transformers model to a HookedTransformer."""

import tempfile
import warnings
from typing import Any

import torch

from rome_lens.models.lens import LensModel

# HookedTransformer keeps a mask of n_ctx x n_ctx for each layer. Without this bound, Gemma 3 270M's
# take 1.2 GB.
LONGEST = 2048


def hooked_transformer_class() -> Any:
    """The class ``transformer_lens.HookedTransformer``, or None in TransformerLens 4 and later."""
    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        return None
    return HookedTransformer


def hooked_transformer(hf_model: Any, tokenizer: Any, *, device: str = "cpu") -> LensModel:
    """A HookedTransformer in float32 with the unprocessed weights of a transformers model.

    No model hub is asked. The model takes at most ``LONGEST`` tokens.
    """
    from transformer_lens import loading_from_pretrained as loading

    config = hf_model.config
    name = None
    if config.model_type == "gemma3_text":
        # TransformerLens derives the config of this family from the name alone.
        name = "google/gemma-3-270m"
    else:
        config.n_ctx = config.max_position_embeddings
    with tempfile.TemporaryDirectory() as directory, expected_deprecations():
        config.save_pretrained(directory)
        cfg = loading.get_pretrained_model_config(
            name or directory, hf_cfg=config.to_dict(), device=device, dtype=torch.float32
        )
        sizes = {} if name is None else _gemma3_sizes(config)
        sizes["n_ctx"] = min(config.max_position_embeddings, LONGEST)
        for field, value in sizes.items():
            setattr(cfg, field, value)
        state = loading.get_pretrained_state_dict(
            name or directory, cfg, hf_model, dtype=torch.float32
        )
        model = hooked_transformer_class()(cfg, tokenizer)
        model.load_and_process_state_dict(
            state,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
            refactor_factored_attn_matrices=False,
        )
    lay_out_for_speed(model)
    return model.eval()


def _gemma3_sizes(config: Any) -> dict[str, Any]:
    """The settings that TransformerLens derives from a Gemma 3 name, read from the config."""
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "d_head": config.head_dim,
        "rotary_dim": config.head_dim,
        "n_heads": config.num_attention_heads,
        "n_key_value_heads": config.num_key_value_heads,
        "d_mlp": config.intermediate_size,
        "d_vocab": config.vocab_size,
        "d_vocab_out": config.vocab_size,
        "eps": config.rms_norm_eps,
        "window_size": config.sliding_window,
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_types": [
            "global" if kind == "full_attention" else "local" for kind in config.layer_types
        ],
    }


def lay_out_for_speed(model: Any) -> None:
    """Store weights in the layout that HookedTransformer needs in every forward pass.

    Their values do not change.

    HookedTransformer computes ``F.linear(x, W.T.contiguous())``, which copies nothing once ``W.T``
    is contiguous in memory. Likewise, it reshapes the weights of attention's queries, keys and
    values from ``[head, d_model, d_head]`` to ``[head * d_head, d_model]``.
    """
    for module in model.modules():
        for name in ("W_Q", "_W_K", "_W_V", "W_K", "W_V"):
            weight = module._parameters.get(name)
            if weight is not None and weight.ndim == 3:
                weight.data = weight.data.transpose(1, 2).contiguous().transpose(1, 2)
        for name in ("W_in", "W_gate", "W_out", "W_U"):
            weight = module._parameters.get(name)
            if weight is not None and weight.ndim == 2:
                weight.data = weight.data.T.contiguous().T


class expected_deprecations(warnings.catch_warnings):
    """Inside, HookedTransformer does not warn that TransformerLens 4 drops it.

    It warns at every use, and this package supports both versions on purpose.
    """

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings(
            "ignore", message=r"HookedTransformer(\.from_pretrained)? is deprecated"
        )
