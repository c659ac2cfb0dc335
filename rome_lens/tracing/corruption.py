"""How the subject's embeddings are corrupted.

Corruption enters at the output of ``hook_embed``: token embeddings before positions are added, on Gemma after the scaling
by ``sqrt(d_model)``, on both model classes. Every kind answers with what is added there to the subject's clean embeddings:
the random kinds of ``noise.py``, a replacement by one of them, another subject's embeddings, or a tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.forward.runs import embed
from rome_lens.forward.tokens import FactTokens, encode
from rome_lens.models.lens import LensModel
from rome_lens.tracing.noise import CorruptedPrompt, Noise, NoiseError


@dataclass(frozen=True, repr=False, eq=False)
class Replacement:
    """The subject's embeddings become the noise's draw ``e`` instead of ``embedding + e``.

    In a run they are ``embedding + (e - embedding)``, which is ``e`` up to the rounding of the model's precision.

    Source: Meng et al. 2022, appendix B.

    Args:
        noise: a kind of noise, such as ``MultivariateGaussianNoise()``, or the embeddings themselves,
            ``[samples, subject, d_model]``.

    Raises:
        NoiseError: ``noise`` is no noise, or already a replacement.
    """

    noise: Any

    def __post_init__(self) -> None:
        if isinstance(self.noise, (Replacement, Counterfactual)):
            raise NoiseError(
                f"{self.noise!r} replaces the subject's embeddings already: use it as it is."
            )
        _check_kind(self.noise)

    def __repr__(self) -> str:
        return (
            f"Replacement(noise={'tensor' if isinstance(self.noise, Tensor) else repr(self.noise)})"
        )

    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """The draw less the clean embeddings."""
        return noise_for(self.noise, model, prompt, samples=samples) - prompt.embeddings


@dataclass(frozen=True, kw_only=True)
class Counterfactual:
    """The subject's embeddings become those of another subject in the same prompt: a swapped prompt.

    There is no chance in it, so that there is one sample, however many are asked for. The other subject must have as
    many tokens in the prompt, so that every position keeps its meaning.

    Source: Zhang and Nanda 2024, "Towards Best Practices of Activation Patching in Language Models", section 2 (symmetric
    token replacement).

    Raises:
        NoiseError: when made, ``subject`` is no words; when traced, it does not fit the prompt token by token, or is
            the prompt's own subject.
    """

    subject: str

    def __post_init__(self) -> None:
        if not isinstance(self.subject, str) or not self.subject.strip():
            raise NoiseError(f"subject is {self.subject!r}, expected the words of another subject.")

    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """One sample: the other subject's embeddings less the clean ones."""
        swapped = encode(model, prompt.fact.about(self.subject), prepend_bos=prompt.prepend_bos)
        _check_swap(prompt, swapped, self.subject)
        return (embed(model, swapped.tokens)[slice(*swapped.subject)] - prompt.embeddings)[None]


def noise_for(
    noise: Any, model: LensModel, prompt: CorruptedPrompt, *, samples: int
) -> Float[Tensor, "sample subject d_model"]:
    """The noise tensor of a trace: drawn, or the caller's own, checked against the prompt.

    Raises:
        NoiseError: ``noise`` is neither; the tensor is not ``[samples, subject, d_model]``, or not finite in the model's
            precision; ``samples`` is below 1; or as the kind's own message says.
    """
    _check_kind(noise)
    if not isinstance(noise, Tensor):
        samples = whole_number("samples", samples, least=1, error=NoiseError)
        noise = noise.sample(model, prompt, samples=samples)
        if not isinstance(noise, Tensor):
            raise NoiseError(
                f"The noise's sample gave a {type(noise).__name__}, expected a tensor."
            )
    subject, d_model = prompt.embeddings.shape
    if noise.ndim != 3 or noise.shape[1:] != prompt.embeddings.shape or noise.shape[0] < 1:
        raise NoiseError(
            f"The noise has shape {list(noise.shape)}, expected [samples, {subject}, {d_model}]: one vector of d_model for "
            f"each token of the subject {list(_subject_labels(prompt.encoded))}, at least one sample."
        )
    noise = noise.to(prompt.embeddings)
    if not torch.isfinite(noise).all():
        raise NoiseError(
            f"The noise holds NaN or infinity as {noise.dtype}: expected finite numbers."
        )
    return noise


def _check_kind(noise: Any) -> None:
    if isinstance(noise, type):
        raise NoiseError(
            f"noise is the class {noise.__name__}, expected an instance of it: write {noise.__name__}(...)."
        )
    if not isinstance(noise, (Tensor, Noise)):
        raise NoiseError(
            f"noise is {noise!r}, expected a kind of noise such as GaussianNoise(), or a tensor."
        )


def _check_swap(prompt: CorruptedPrompt, swapped: FactTokens, subject: str) -> None:
    ours, theirs = prompt.encoded, swapped
    both = f"{prompt.fact.subject!r} is {list(_subject_labels(ours))}, {subject!r} is {list(_subject_labels(theirs))}"
    lengths = [span[1] - span[0] for span in (ours.subject, theirs.subject)]
    if lengths[0] != lengths[1]:
        raise NoiseError(
            f"The counterfactual subject has {lengths[1]} tokens in {prompt.fact.prompt!r}, the fact's own {lengths[0]}: "
            f"{both}. Choose a subject of {lengths[0]} tokens."
        )
    (start, end), (other_start, other_end) = ours.subject, theirs.subject
    before = torch.equal(ours.tokens[:start], theirs.tokens[:other_start])
    if not before or not torch.equal(ours.tokens[end:], theirs.tokens[other_end:]):
        raise NoiseError(
            f"With the counterfactual subject {subject!r} the rest of {prompt.fact.prompt!r} has other tokens: "
            f"{list(theirs.labels)} against {list(ours.labels)}. Choose a subject that the tokenizer keeps apart from it."
        )
    if torch.equal(ours.tokens, theirs.tokens):
        raise NoiseError(
            f"The counterfactual subject {subject!r} is the fact's own: {both}. Choose another one."
        )


def _subject_labels(encoded: FactTokens) -> Sequence[str]:
    return encoded.labels[slice(*encoded.subject)]
