"""How the subject's embeddings are corrupted.

Corruption acts on the output of ``hook_embed``: token embeddings before positions are added, and on
Gemma after the scaling by ``sqrt(d_model)``. Both model classes agree on that. Every kind of
corruption says what is added there to the subject's clean embeddings: random noise (``noise.py``),
a replacement by random noise, the embeddings of another subject, or a tensor.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.data.facts import Fact
from rome_lens.forward.runs import embed
from rome_lens.forward.tokens import FactTokens, encode
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel
from rome_lens.tracing.clean_run import CleanRun
from rome_lens.tracing.noise import CorruptedPrompt, Noise, NoiseError

_MOST_SAMPLES = 1_000_000


@dataclass(frozen=True, repr=False, eq=False)
class Replacement:
    """Replace the subject's embeddings with the noise ``e``, instead of adding ``e`` to them.

    A run computes ``embedding + (e - embedding)``, which is ``e`` up to rounding in the model's
    precision.

    Args:
        noise: a kind of noise, such as ``MultivariateGaussianNoise()``, or the new embeddings
            themselves as a tensor ``[samples, subject, d_model]``.

    Raises:
        NoiseError: ``noise`` is neither, or it is a replacement already.

    Source: Meng et al. 2022, appendix B.
    """

    noise: Noise | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.noise, (Replacement, Counterfactual)):
            raise NoiseError(
                f"{self.noise!r} replaces the subject's embeddings already: use it on its own."
            )
        check_kind(self.noise)

    def __repr__(self) -> str:
        noise = "tensor" if isinstance(self.noise, Tensor) else repr(self.noise)
        return f"Replacement(noise={noise})"

    @visits_model
    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """The draw minus the clean embeddings."""
        return noise_for(self.noise, model, prompt, samples=samples) - prompt.embeddings


@dataclass(frozen=True, kw_only=True)
class Counterfactual:
    """Replace the subject's embeddings with those of another subject.

    The corrupted run is then the run of a prompt that names the other subject.
    This involves no chance, so there is a single sample, whatever number is asked for. The other
    subject must have the same number of tokens in the prompt, because every position keeps its
    meaning.

    Raises:
        NoiseError: on construction, if ``subject`` is empty or not a text; in a trace, if its
            tokens do not fit the prompt, or if it is the prompt's own subject.

    Source: Zhang and Nanda 2024, "Towards Best Practices of Activation Patching in Language
    Models", section 2 (symmetric token replacement).
    """

    subject: str
    """The other subject."""

    def __post_init__(self) -> None:
        if not isinstance(self.subject, str) or not self.subject.strip():
            raise NoiseError(f"subject is {self.subject!r}, expected the words of another subject.")

    @visits_model
    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """A single sample: the other subject's embeddings minus the clean ones."""
        swapped = encode(model, prompt.fact.about(self.subject), prepend_bos=prompt.prepend_bos)
        _check_swap(prompt, swapped, self.subject)
        return (embed(model, swapped.tokens)[slice(*swapped.subject)] - prompt.embeddings)[None]


def noise_for(
    noise: Noise | Tensor, model: LensModel, prompt: CorruptedPrompt, *, samples: int
) -> Float[Tensor, "sample subject d_model"]:
    """The noise of a trace, drawn or given, checked against the prompt.

    Raises:
        NoiseError: ``noise`` is neither a kind of noise nor a tensor; the tensor is not ``[samples,
            subject, d_model]`` or is not finite in the model's precision; ``samples`` is below 1;
            or the kind of noise refuses the prompt.
    """
    check_kind(noise)
    if not isinstance(noise, Tensor):
        samples = sample_count(samples)
        noise = noise.sample(model, prompt, samples=samples)
        if not isinstance(noise, Tensor):
            raise NoiseError(
                f"The noise's sample method returned a {type(noise).__name__}, expected a tensor."
            )
    subject, d_model = prompt.embeddings.shape
    if noise.ndim != 3 or noise.shape[1:] != prompt.embeddings.shape or noise.shape[0] < 1:
        raise NoiseError(
            f"The noise has shape {list(noise.shape)}, expected [samples, {subject}, {d_model}]: "
            "at least one sample, and in it one vector for each token of the subject "
            f"{list(_subject_labels(prompt.encoded))}."
        )
    noise = noise.to(prompt.embeddings)
    if not torch.isfinite(noise).all():
        raise NoiseError(
            f"The noise contains NaN or infinity as {noise.dtype}, expected finite numbers."
        )
    return noise


def sample_count(samples: object) -> int:
    """The number of noise samples, as an ``int``.

    Raises:
        NoiseError: it is not a whole number from 1 to a million.
    """
    return whole_number("samples", samples, least=1, most=_MOST_SAMPLES, error=NoiseError)


def check_kind(noise: object) -> None:
    """Refuse what is neither a kind of noise nor a tensor.

    Raises:
        NoiseError: it is neither.
    """
    if isinstance(noise, type):
        name = noise.__name__
        raise NoiseError(
            f"noise is the class {name}, expected an instance of it: write {name}(...)."
        )
    if not isinstance(noise, (Tensor, Noise)):
        raise NoiseError(
            f"noise is {noise!r}, expected a kind of noise such as GaussianNoise(), or a tensor."
        )


def _check_swap(prompt: CorruptedPrompt, swapped: FactTokens, subject: str) -> None:
    """The prompt about the other subject must differ in the subject's tokens and nowhere else."""
    own = prompt.encoded
    both = (
        f"{prompt.fact.subject!r} is {list(_subject_labels(own))}, "
        f"{subject!r} is {list(_subject_labels(swapped))}"
    )
    (start, end), (other_start, other_end) = own.subject, swapped.subject
    length, other_length = end - start, other_end - other_start
    if length != other_length:
        raise NoiseError(
            f"The counterfactual subject has {other_length} tokens in {prompt.fact.prompt!r}, but "
            f"the fact's own has {length}: {both}. Choose a subject of {length} tokens."
        )
    same_before = torch.equal(own.tokens[:start], swapped.tokens[:other_start])
    if not same_before or not torch.equal(own.tokens[end:], swapped.tokens[other_end:]):
        raise NoiseError(
            f"With the counterfactual subject {subject!r}, the rest of {prompt.fact.prompt!r} has "
            f"other tokens: {list(swapped.labels)} instead of {list(own.labels)}. Choose a subject "
            "that does not change them."
        )
    if torch.equal(own.tokens, swapped.tokens):
        raise NoiseError(
            f"The counterfactual subject {subject!r} is the fact's own: {both}. Choose another one."
        )


def _subject_labels(encoded: FactTokens) -> Sequence[str]:
    return encoded.labels[slice(*encoded.subject)]


def draw_noise(
    model: LensModel,
    fact: Fact,
    clean: CleanRun,
    noise: Noise | Tensor,
    *,
    samples: int,
    prepend_bos: bool | None,
) -> Float[Tensor, "sample subject d_model"]:
    """The noise of a trace for this fact."""
    prompt = CorruptedPrompt(
        fact=fact,
        encoded=clean.encoded,
        embeddings=clean.embeddings[slice(*clean.encoded.subject)],
        prepend_bos=prepend_bos,
    )
    return noise_for(noise, model, prompt, samples=samples)


def corrupted_embeddings(
    clean: CleanRun, noise: Float[Tensor, "sample subject d_model"]
) -> Float[Tensor, "sample pos d_model"]:
    """The clean embeddings with the noise added to the subject's."""
    embeddings = repeat(clean.embeddings, "pos d -> sample pos d", sample=len(noise)).clone()
    embeddings[:, slice(*clean.encoded.subject)] += noise
    return embeddings


def noise_text(noise: Noise | Tensor) -> str:
    """The noise as results name it. A tensor is named by a few digits of its hash."""
    if not isinstance(noise, Tensor):
        return repr(noise)
    values = noise.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    return f"tensor {hashlib.sha256(values).hexdigest()[:8]}"
