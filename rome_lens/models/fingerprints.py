"""Hashes that tell whether a model is the one that a result was made on."""

import hashlib
import json

import torch
from torch import Tensor

from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, w_out


@visits_model
def fingerprint(model: LensModel) -> str:
    """Three hashes of the model's sizes and of samples of its weights, joined by colons.

    The first is of the weights as they are, the others of the weights rounded to float16 and to
    bfloat16. :func:`same_model` uses the others to recognise a model in another precision. They are
    the same on both model classes. ``W_out`` is left out, because a model that carries an edit is
    still the model that other edits were made on.
    """
    cfg = model.cfg
    sizes = [cfg.n_layers, cfg.d_model, cfg.d_mlp, cfg.n_heads, cfg.d_vocab]
    samples = []
    for block in model.blocks:
        w_o = getattr(getattr(block, "attn", None), "W_O", None)  # absent in state space models
        if isinstance(w_o, Tensor):
            samples.append(_sample(w_o.flatten(0, -2)))
        w_in = getattr(getattr(block, "mlp", None), "W_in", None)
        if isinstance(w_in, Tensor) and w_in.ndim == 2:
            samples.append(_sample(w_in))
    samples.append(_sample(model.unembed.W_U))
    return ":".join(
        hashlib.sha256(
            json.dumps(sizes).encode() + b"".join(_bytes(each.to(dtype)) for each in samples)
        ).hexdigest()[:16]
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )


def exact(fingerprint: str | None) -> str | None:
    """The hash of the weights as they are. Files of older versions hold it alone."""
    return None if fingerprint is None else fingerprint.split(":")[0]


def same_model(one: str, other: str) -> bool:
    """Whether two fingerprints are of one model, or of a model and its rounding to half precision.

    Weights in float16 and weights in bfloat16 are roundings of a third model, and count as
    different.
    """
    first, second = one.split(":"), other.split(":")
    return first[0] in second or second[0] in first


def w_out_fingerprint(model: LensModel, layers: range) -> str:
    """A hash of samples of ``W_out`` in some layers, which :func:`fingerprint` leaves out."""
    return hashlib.sha256(
        b"".join(_bytes(_sample(w_out(model, layer))) for layer in layers)
    ).hexdigest()[:10]


@visits_model
def weights_fingerprint(model: LensModel) -> str:
    """A hash of sums and samples of every weight, which any edit or training changes.

    It differs between the two model classes.
    """
    digest = hashlib.sha256(str(exact(fingerprint(model))).encode())
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


def _sample(weight: Tensor, per_axis: int = 32) -> Tensor:
    """About ``per_axis`` times ``per_axis`` evenly spaced entries, in float32."""
    rows, columns = (max(1, size // per_axis) for size in weight.shape)
    return weight.detach()[::rows, ::columns].to("cpu", torch.float32)


def _bytes(sample: Tensor) -> bytes:
    return sample.to(torch.float32).contiguous().numpy().tobytes()
