"""What only a TransformerBridge's weights have: the transformers model that it wraps."""

from collections.abc import Mapping
from typing import Any

from rome_lens.models.lens import LensModel


def has_processed_weights(model: LensModel) -> bool:
    """Whether a bridge has folded or centred the weights of its transformers model."""
    return bool(getattr(model, "_weights_processed", False))


def unwrapped_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers model's state dict, without the levels that a bridge inserts in its names."""
    return {name.replace("._original_component", ""): value for name, value in state.items()}
