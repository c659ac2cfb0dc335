"""Hashes that tell whether a model is the one that a result was made on."""

import hashlib
import json

import torch
from torch import Tensor

from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, w_out


@visits_model
def fingerprint(model: LensModel) -> str:
    """A hash of the model's sizes and of samples of its weights.

    It is the same on both model classes. ``W_out`` is left out, because a model that carries an
    edit is still the model that other edits were made on.
    """
    cfg = model.cfg
    digest = hashlib.sha256(
        json.dumps([cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.n_heads, cfg.d_vocab]).encode()
    )
    for block in model.blocks:
        w_o = getattr(getattr(block, "attn", None), "W_O", None)  # absent in state space models
        if isinstance(w_o, Tensor):
            digest.update(_sample(w_o.flatten(0, -2)))
        w_in = getattr(getattr(block, "mlp", None), "W_in", None)
        if isinstance(w_in, Tensor) and w_in.ndim == 2:
            digest.update(_sample(w_in))
    digest.update(_sample(model.unembed.W_U))
    return digest.hexdigest()[:16]


def w_out_fingerprint(model: LensModel, layers: range) -> str:
    """A hash of samples of ``W_out`` in some layers, which :func:`fingerprint` leaves out."""
    return hashlib.sha256(b"".join(_sample(w_out(model, layer)) for layer in layers)).hexdigest()[
        :10
    ]


@visits_model
def weights_fingerprint(model: LensModel) -> str:
    """A hash of sums and samples of every weight, which any edit or training changes.

    It differs between the two model classes.
    """
    digest = hashlib.sha256(fingerprint(model).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            flat = value.detach().flatten()
            digest.update(
                f"{name} {tuple(value.shape)} {float(flat.sum(dtype=torch.float64)):.17g}".encode()
            )
            digest.update(
                flat[:: max(1, len(flat) // 64)].to("cpu", torch.float64).numpy().tobytes()
            )
    return digest.hexdigest()[:16]


def _sample(weight: Tensor, per_axis: int = 32) -> bytes:
    """Bytes of about ``per_axis`` times ``per_axis`` evenly spaced entries, in float32."""
    rows, columns = (max(1, size // per_axis) for size in weight.shape)
    return (
        weight.detach()[::rows, ::columns].to("cpu", torch.float32).contiguous().numpy().tobytes()
    )
