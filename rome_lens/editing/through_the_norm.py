"""How the raw output of ``W_out`` must change so that the residual stream changes as wanted.

Without a norm after the MLP, both changes are the same. Gemma 2 and 3 have a norm there,

    contribution = g * y / rms(y)        y: the raw output

which leaves only contributions of one length: ``u = y / rms(y)`` has ``rms(u) = 1``. The change
here leads to the closest contribution that the norm can give, and keeps ``rms(y)``. It solves

    min_u || g * u - (contribution + wanted change) ||^2    with  rms(u) = 1

whose solution is ``u = g t / (g^2 + l)`` for the ``l`` that gives ``u`` its length. The originals
have no such models; code that adds the wanted change to the raw output writes something else.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.forward.additions import mlp_contribution
from rome_lens.forward.runs import agreement
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, ModelError, post_norm

_HALVINGS = 100


@visits_model
def raw_change(
    model: LensModel,
    layer: int,
    outputs: Float[Tensor, "row d_model"],
    wanted: Float[Tensor, "row d_model"],
) -> Float[Tensor, "row d_model"]:
    """The change of each raw output that changes the residual stream as wanted, or as near as can.

    Args:
        outputs: the raw outputs ``k W_out + b_out`` now.
        wanted: the change of the stream.

    Raises:
        ModelError: the norm after the MLP is of a kind that is not known here.
    """
    with torch.no_grad():
        gain = mlp_contribution(model, layer, torch.ones_like(outputs[:1])).double()
        if post_norm(model, layer) is None:
            return wanted / gain.to(wanted)
        raw = outputs.double()
        size = raw.square().mean(-1, keepdim=True).sqrt()
        contribution = mlp_contribution(model, layer, outputs).double()
        error = float((gain * raw / size - contribution).abs().max())
        if not error <= agreement(outputs.dtype) * max(1.0, float(contribution.abs().max())):
            raise ModelError(
                f"The norm after the MLP of layer {layer} is not a gain times y / rms(y), which "
                "is the only kind that is supported here: edit another model."
            )
        unit = closest_unit(gain, contribution + wanted.double())
        return (size * unit - raw).to(outputs)


def closest_unit(
    gain: Float[Tensor, "1 d_model"], target: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_model"]:
    """The ``u`` with ``rms(u) = 1`` for which ``gain * u`` is nearest to the target.

    Where the target is shorter than the norm can give, it is the one in the target's direction.
    """
    aimed, length = gain * target, target.shape[-1] ** 0.5
    low = torch.zeros_like(target[:, :1])
    high = aimed.norm(dim=-1, keepdim=True) / length
    tiny = torch.finfo(target.dtype).tiny
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_long = (aimed / (gain.square() + middle + tiny)).norm(dim=-1, keepdim=True) > length
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    unit = aimed / (gain.square() + high + tiny)
    return unit * (length / unit.norm(dim=-1, keepdim=True).clamp(min=tiny))
