"""The key ``k*``: what ``W_out`` reads at the subject's last token.

    k* = mean_contexts k(context at the subject's last token)

The original uses this mean to choose the direction ``u`` of the update, but writes the value for
the bare prompt's key. r-ROME uses the mean in both places.

Source: Meng et al. 2022, section 3.1 (equation 3); Gupta et al. 2024, "Rebuilding ROME".
"""

from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.config import Variant
from rome_lens.editing.edited_layer import SubjectStates


def mean_key(states: SubjectStates) -> Float[Tensor, " d_mlp"]:
    """The mean of the keys over the contexts, without the bare row and the KL row."""
    return states.keys[1:-1].mean(0)


def mapped_key(
    states: SubjectStates, variant: Variant
) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, " d_model"]]:
    """The key that the edited ``W_out`` maps to the value, and what ``W_out`` gives for it now."""
    key, output = states.keys[0], states.outputs[0]
    if variant == "r-rome":
        key, output = states.keys[1:-1].mean(0), states.outputs[1:-1].mean(0)
    return key, output
