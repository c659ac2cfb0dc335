"""Hashes that tell whether a model is the one that a result was made on."""

import hashlib
import json
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.models.apply_and_revert import applied_edits
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, w_out

_COLUMNS = 1024


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
    samples: list[Tensor] = []
    for block in model.blocks:
        w_o = getattr(getattr(block, "attn", None), "W_O", None)  # absent in state space models
        if isinstance(w_o, Tensor):
            samples.append(_sample(w_o.flatten(0, -2)))
        w_in = getattr(getattr(block, "mlp", None), "W_in", None)
        if isinstance(w_in, Tensor) and w_in.ndim == 2:
            samples.append(_sample(w_in))
    samples.append(_sample(model.unembed.W_U))
    all_samples = _on_the_cpu(samples)
    return ":".join(
        hashlib.sha256(json.dumps(sizes).encode() + _bytes(all_samples.to(dtype))).hexdigest()[:16]
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
        _bytes(_on_the_cpu([_sample(w_out(model, layer)) for layer in layers])) if layers else b""
    ).hexdigest()[:10]


@visits_model
def name_of(model: LensModel) -> str:
    """The model's own name for titles, without the directories before it; it may be empty.

    Edits in the weights are named with it, because a result of an edited model must say so.
    """
    name = str(getattr(model.cfg, "model_name", None) or "").rstrip("/").rpartition("/")[2]
    edits = len(applied_edits(model))
    return name + (f" with {edits} edit{'s' * (edits > 1)} in its weights" if edits else "")


@visits_model
def weights_fingerprint(model: LensModel) -> str:
    """A hash of every bit of every weight, which any edit or training changes.

    It differs between the two model classes, and between weights that are laid out in memory in
    different ways. It is the same on every device and for every number of threads.
    """
    digest = hashlib.sha256(str(exact(fingerprint(model))).encode())
    sums = []
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            sums += _sums(value)
    digest.update(_on_the_cpu(sums).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sums(value: Tensor) -> list[Tensor]:
    """Sums of a tensor's bits, as 64-bit words, over the rows and over the columns of a grid.

    Sums of integers are exact in any order, and cost no more than reading the tensor. A change of
    one entry changes two of them, and an exchange of two entries at least two.
    """
    words = _words(value)
    whole = len(words) // _COLUMNS * _COLUMNS
    grid = words[:whole].view(-1, _COLUMNS)
    return [grid.sum(0), grid.sum(1), words[whole:]]


def _words(value: Tensor) -> Int[Tensor, " word"]:
    """A tensor's bits in the order of its memory, as 64-bit words. The last may end in zeros."""
    axes = sorted(range(value.ndim), key=value.stride, reverse=True)
    bits = value.detach().permute(axes).reshape(-1).view(torch.uint8)
    if len(bits) % 8 or bits.storage_offset() % 8:
        bits = torch.cat([bits, bits.new_zeros(-len(bits) % 8)])
    return bits.view(torch.int64)


def _on_the_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors end to end, moved to the CPU at once, so that the host waits for one copy only."""
    devices = {each.device for each in tensors}
    if len(devices) > 1:
        tensors = [each.to("cpu") for each in tensors]
    return torch.cat([each.flatten() for each in tensors]).to("cpu")


def _sample(weight: Tensor, per_axis: int = 32) -> Tensor:
    """About ``per_axis`` times ``per_axis`` evenly spaced entries, in float32."""
    rows, columns = (max(1, size // per_axis) for size in weight.shape)
    return weight.detach()[::rows, ::columns].to(torch.float32)


def _bytes(sample: Tensor) -> bytes:
    return sample.to(torch.float32).contiguous().numpy().tobytes()
