"""How the subject's embeddings are corrupted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.forward import embed
from rome_lens.models import LensModel
from rome_lens.tokens import token_ids


class NoiseError(ValueError):
    """A noise tensor or setting that does not fit the subject."""


@runtime_checkable
class Noise(Protocol):
    """What is added to the subject's token embeddings in a corrupted run."""

    def sample(
        self, model: LensModel, embeddings: Float[Tensor, "subject d_model"], *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """The noise for ``samples`` corrupted runs, given the subject's clean embeddings."""
        ...


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Noise ``e ~ N(0, (scale * sigma)^2)`` on each entry, ``sigma`` the standard deviation of subjects' embeddings.

    ``sigma`` is pooled over all entries of the token embeddings of ``subjects``, each tokenised alone without BOS, as
    the study does over its list of facts; without ``subjects`` it is taken over the traced subject's own embeddings.
    Embeddings are what ``hook_embed`` gives: before positions are added, and on Gemma after its scaling by
    ``sqrt(d_model)``. Drawn on the CPU from ``seed``, so that every device gets the same noise.

    Source: Meng et al. 2022, section 2.1 and appendix B.1 (scale 3).
    """

    scale: float = 3.0
    seed: int = 0
    subjects: tuple[str, ...] | None = None

    def sample(
        self, model: LensModel, embeddings: Float[Tensor, "subject d_model"], *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """``scale * sigma`` times standard normal draws."""
        sigma = float(embeddings.std()) if self.subjects is None else embedding_std(model, self.subjects)
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.randn((samples, *embeddings.shape), generator=generator)
        return self.scale * sigma * draws.to(embeddings)


def embedding_std(model: LensModel, subjects: Sequence[str]) -> float:
    """Standard deviation pooled over all entries of the subjects' token embeddings (Meng et al. 2022, appendix B.1)."""
    if not subjects:
        raise NoiseError(
            "The list of subjects is empty: the standard deviation of their embeddings needs at least one."
        )
    rows = [embed(model, torch.tensor(token_ids(model, subject, prepend_bos=False))) for subject in subjects]
    return float(torch.cat(rows).std())


def noise_for(
    noise: Any,
    model: LensModel,
    embeddings: Float[Tensor, "subject d_model"],
    *,
    samples: int,
) -> Float[Tensor, "sample subject d_model"]:
    """The noise tensor of a trace: drawn, or the caller's own after a check of its shape.

    Raises:
        NoiseError: the caller's tensor is not ``[samples, subject, d_model]``, or not finite; ``samples`` is below 1.
    """
    if not isinstance(noise, Tensor):
        if isinstance(noise, type) or not isinstance(noise, Noise):
            raise NoiseError(f"noise is {noise!r}, expected a kind of noise such as GaussianNoise(), or a tensor.")
        if samples < 1:
            raise NoiseError(f"samples is {samples}, expected at least 1.")
        noise = noise.sample(model, embeddings, samples=samples)
    if noise.ndim != 3 or noise.shape[1:] != embeddings.shape or noise.shape[0] < 1:
        raise NoiseError(
            f"The noise has shape {list(noise.shape)}, expected [samples, {embeddings.shape[0]}, {embeddings.shape[1]}]: "
            "one vector of d_model for each token of the subject, at least one sample."
        )
    if not torch.isfinite(noise).all():
        raise NoiseError("The noise holds NaN or infinity.")
    return noise.to(embeddings)
