"""Convert a transformers model to a HookedTransformer."""

import tempfile
import warnings
from typing import Any

import torch

from rome_lens.models.lens import LensModel

# HookedTransformer keeps a mask of n_ctx x n_ctx for each layer. Without this bound, Gemma 3 270M's
# take 1.2 GB.
LONGEST = 2048
_IN_MEMORY = {
    **dict.fromkeys([(name, 3) for name in ("W_Q", "_W_K", "_W_V", "W_K", "W_V")], (0, 2, 1)),
    ("W_O", 3): (2, 0, 1),
    **dict.fromkeys([(name, 2) for name in ("W_in", "W_gate", "W_out", "W_U")], (1, 0)),
}
"""By name and number of axes, the order of a parameter's axes in memory."""


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

    with tempfile.TemporaryDirectory() as directory, expected_deprecations():
        name, cfg = _settings(hf_model.config, directory, device=device)
        state = loading.get_pretrained_state_dict(name, cfg, hf_model, dtype=torch.float32)
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


def hooked_transformer_without_weights(config: Any, tokenizer: Any) -> LensModel:
    """A HookedTransformer for the config of a transformers model. Its weights hold anything."""
    with tempfile.TemporaryDirectory() as directory, expected_deprecations():
        _, cfg = _settings(config, directory, device="cpu")
        return hooked_transformer_class()(cfg, tokenizer).eval()


def _settings(config: Any, directory: str, *, device: str) -> tuple[str, Any]:
    """The name that TransformerLens knows an architecture by, and its settings for this config.

    Args:
        directory: an empty directory, which stands in for a name.
    """
    from transformer_lens import loading_from_pretrained as loading

    name = directory
    if config.model_type == "gemma3_text":
        # TransformerLens derives the config of this family from the name alone.
        name = "google/gemma-3-270m"
    else:
        config.n_ctx = config.max_position_embeddings
    config.save_pretrained(directory)
    cfg = loading.get_pretrained_model_config(
        name, hf_cfg=config.to_dict(), device=device, dtype=torch.float32
    )
    sizes = {} if name == directory else _gemma3_sizes(config)
    sizes["n_ctx"] = min(config.max_position_embeddings, LONGEST)
    for field, value in sizes.items():
        setattr(cfg, field, value)
    return name, cfg


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
    values from ``[head, d_model, d_head]`` to ``[head * d_head, d_model]``, and those of its output
    from ``[head, d_head, d_model]`` to ``[d_model, head * d_head]``.
    """
    for name, weight in model.named_parameters():
        weight.data = from_memory(name, in_memory(name, weight.data))


def in_memory(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A HookedTransformer's parameter as it lies in memory, contiguous."""
    return weight.permute(_axes(name, weight)).contiguous()


def from_memory(name: str, stored: torch.Tensor) -> torch.Tensor:
    """The parameter that :func:`in_memory` returned, with its own axes. No entry is moved."""
    axes = _axes(name, stored)
    return stored.permute([axes.index(i) for i in range(len(axes))])


def _axes(name: str, weight: torch.Tensor) -> tuple[int, ...]:
    usual = tuple(range(weight.ndim))
    return _IN_MEMORY.get((name.rpartition(".")[2], weight.ndim), usual)


class expected_deprecations(warnings.catch_warnings):
    """Inside, HookedTransformer does not warn that TransformerLens 4 drops it.

    It warns at every use, and this package supports both versions on purpose.
    """

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings(
            "ignore", message=r"HookedTransformer(\.from_pretrained)? is deprecated"
        )
