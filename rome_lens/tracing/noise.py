"""The random kinds of noise, and the protocol that every kind of corruption follows.

Noise is drawn on the CPU in float32 from the kind's own seed. Every device and precision therefore
gets the same noise, and the global random state is neither read nor changed.

Source: Meng et al. 2022, section 2.1 and appendix B.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from scipy.special import chdtri
from torch import Tensor

from rome_lens.arguments import real_number, seed_number
from rome_lens.data.facts import Fact
from rome_lens.errors import RomeLensError
from rome_lens.forward.tokens import FactTokens
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, at_least_float32
from rome_lens.tracing.embedding_statistics import EmbeddingLaw, embedding_std

_DEFAULT_SCALE = 3.0
_DRAWN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults


class NoiseError(RomeLensError):
    """A noise tensor or a noise setting is wrong, or does not fit the subject."""


@dataclass(frozen=True, kw_only=True)
class CorruptedPrompt:
    """The prompt whose subject is corrupted."""

    fact: Fact
    """The fact that the prompt asks for."""
    encoded: FactTokens
    """The fact as the model's tokens, made with ``prepend_bos``."""
    embeddings: Float[Tensor, "subject d_model"]
    """The output of ``hook_embed`` at the subject's tokens in the clean run."""
    prepend_bos: bool | None
    """Whether the prompt starts with BOS; None means the model's default."""


@runtime_checkable
class Noise(Protocol):
    """A kind of corruption: what is added to the subject's token embeddings in a corrupted run."""

    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """The noise for ``samples`` corrupted runs.

        A kind that involves no chance returns a single sample.
        """
        ...


_Scaled = TypeVar("_Scaled", bound="_ScaledNoise")


@dataclass(frozen=True, kw_only=True)
class _ScaledNoise:
    """Noise that is ``level`` times a draw from a fixed distribution, where ``level`` is given or
    is ``scale * sigma``.

    ``sigma`` is the standard deviation over all entries of the token embeddings of ``subjects``.
    Each subject is tokenised alone and without BOS, as the study does with its list of facts.
    Without ``subjects`` it is the standard deviation of the traced subject's own embeddings.
    """

    scale: float | None = None
    seed: int = 0
    subjects: tuple[str, ...] | None = None
    level: float | None = None

    def __post_init__(self) -> None:
        if self.level is not None and (self.scale is not None or self.subjects is not None):
            raise NoiseError(
                f"level is {self.level!r}, but scale ({self.scale!r}) or subjects "
                f"({self.subjects!r}) is given too. A level replaces scale times the subjects' "
                "sigma. Give one or the other."
            )
        if self.level is None:
            scale = _DEFAULT_SCALE if self.scale is None else self.scale
            meaning = "in sigmas of the embeddings; 0 adds nothing"
            _set(self, "scale", _amount("scale", scale, meaning))
        else:
            meaning = "in units of the embeddings; 0 adds nothing"
            _set(self, "level", _amount("level", self.level, meaning))
        _set(self, "seed", _seed(self.seed))
        _set(self, "subjects", _subjects(self.subjects))

    @visits_model
    def fitted(self: _Scaled, model: LensModel) -> _Scaled:
        """The same noise with ``level = scale * sigma`` computed once from ``subjects``, for
        tracing many facts.

        Raises:
            NoiseError: there are no ``subjects``, so ``sigma`` differs from one traced fact to the
                next.
        """
        if self.level is not None:
            return self
        if self.subjects is None:
            raise NoiseError(
                f"{self!r} takes sigma from each traced subject, so nothing can be computed in "
                "advance. Give the subjects, subjects=(...)."
            )
        level = self._times_scale(embedding_std(model, self.subjects))
        return replace(self, scale=None, subjects=None, level=level)

    @visits_model
    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """``level`` times draws from the distribution at level 1."""
        if self.level is not None:
            level = self.level
        elif self.subjects is not None:
            level = self._times_scale(embedding_std(model, self.subjects))
        else:
            level = self._times_scale(float(at_least_float32(prompt.embeddings).std()))
        generator = torch.Generator("cpu").manual_seed(self.seed)
        draws = self._draw((samples, *prompt.embeddings.shape), generator)
        return level * draws.to(prompt.embeddings)

    def _times_scale(self, sigma: float) -> float:
        assert self.scale is not None
        return self.scale * sigma

    def _draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Draws from the distribution at level 1."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(_ScaledNoise):
    """Noise ``e ~ N(0, level^2)`` in each entry, where ``level = scale * sigma``.

    ``sigma`` is the standard deviation of token embeddings.

    Args:
        scale: the standard deviation of the noise in units of ``sigma``. It is 3 if neither
            ``scale`` nor ``level`` is given.
        seed: the seed of the draws.
        subjects: compute ``sigma`` over all entries of these subjects' token embeddings. Each
            subject is tokenised alone and without BOS, as the study does with its list of facts.
            None uses the embeddings of the traced subject alone. Use :meth:`fitted` to compute
            ``sigma`` once for many traces.
        level: the standard deviation of the noise itself, instead of ``scale`` and ``subjects``.

    Raises:
        NoiseError: a setting is negative or not finite, or ``level`` is given together with what it
            replaces.

    Source: Meng et al. 2022, section 2.1 and appendix B.1 (scale 3).

    Example:
        The study's noise has one level for all facts, taken from the subjects of all of them.

        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> noise = rl.GaussianNoise(scale=3.0, subjects=("Wanda Brandt", "Hugo Kessler"))
        >>> round(noise.fitted(model).level, 2)
        0.45
    """

    def _draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, **_DRAWN)


@dataclass(frozen=True, kw_only=True)
class UniformNoise(_ScaledNoise):
    """Noise ``e ~ U(-level, level)`` in each entry, where ``level = scale * sigma``.

    The standard deviation of the noise is ``level / sqrt(3)``. Arguments and errors are those of
    :class:`GaussianNoise`, except that ``level`` is half the range.

    Source: Meng et al. 2022, appendix B.
    """

    def _draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return 2.0 * torch.rand(shape, generator=generator, **_DRAWN) - 1.0


@dataclass(frozen=True, kw_only=True)
class StudentTNoise(_ScaledNoise):
    """Multivariate Student-t noise ``e = level * sqrt((degrees - 2) / u) * z``, where ``level =
    scale * sigma``.

    ``z ~ N(0, I)`` has ``d_model`` entries. ``u ~ chi^2(degrees)`` is one number for each token
    vector of each sample. A vector is therefore long or short as a whole, and the tail of each
    entry falls with power ``degrees``. The standard deviation of an entry is ``level``, as in
    :class:`GaussianNoise`, which is the limit of many degrees of freedom.

    The other arguments and the errors are those of :class:`GaussianNoise`.

    Args:
        degrees: degrees of freedom, more than 2. With fewer, the distribution has no standard
            deviation to scale.
    """

    degrees: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        degrees = _amount("degrees", self.degrees, "more than 2, or there is no standard deviation")
        if degrees <= 2.0:
            raise NoiseError(
                f"degrees is {self.degrees!r}, expected more than 2: with fewer, t has no standard "
                "deviation."
            )
        _set(self, "degrees", degrees)

    def _draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        normal = torch.randn(shape, generator=generator, **_DRAWN)
        # Inverts chi-square's survival function: torch's own draws take no public generator.
        survival = torch.rand(
            (*shape[:2], 1), generator=generator, dtype=torch.float64, device="cpu"
        )
        chi_square = torch.from_numpy(chdtri(self.degrees, survival.numpy()))
        return normal * ((self.degrees - 2.0) / chi_square).sqrt().float()


@dataclass(frozen=True, kw_only=True)
class MultivariateGaussianNoise:
    """Noise ``e ~ N(m, scale^2 C)`` for each token, where ``m`` and ``C`` are the mean and
    covariance of embeddings.

    With ``scale`` 1, a draw has the same mean and covariance as a token's embedding. A
    :class:`Replacement` by this noise therefore replaces the subject with something that looks like
    random tokens. ``scale`` widens the draws around ``m``, which stays: with ``scale`` 0 the noise
    is ``m``, not 0.

    Args:
        scale: factor of the standard deviations.
        seed: the seed of the draws.
        subjects: take the mean and covariance over these subjects' tokens. Each subject is
            tokenised alone and without BOS, and a token counts as often as it occurs. None takes
            every token of the vocabulary once.
        law: the mean and covariance themselves, instead of ``subjects``. :meth:`fitted` computes
            them.

    Raises:
        NoiseError: a setting is negative or not finite, or ``law`` and ``subjects`` are both given.

    Source: Meng et al. 2022, appendix B.
    """

    scale: float = 1.0
    seed: int = 0
    subjects: tuple[str, ...] | None = None
    law: EmbeddingLaw | None = None

    def __post_init__(self) -> None:
        meaning = "a factor of the embeddings' standard deviations"
        _set(self, "scale", _amount("scale", self.scale, meaning))
        _set(self, "seed", _seed(self.seed))
        _set(self, "subjects", _subjects(self.subjects))
        if self.law is not None and self.subjects is not None:
            raise NoiseError(
                f"law and subjects ({self.subjects!r}) are both given, but a law replaces "
                "subjects. Give one of the two."
            )

    @visits_model
    def fitted(self, model: LensModel) -> "MultivariateGaussianNoise":
        """A copy that holds the mean and covariance. Use it to trace many facts."""
        return self if self.law is not None else replace(self, subjects=None, law=self._fit(model))

    @visits_model
    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """``m + scale * C^(1/2) z``, with the symmetric root of ``C``.

        No other root is independent of the eigenvectors' signs.
        """
        law = self._fit(model) if self.law is None else self.law
        d_model = prompt.embeddings.shape[1]
        if len(law.mean) != d_model:
            raise NoiseError(
                f"{law!r} was fitted to another model: it has d_model {len(law.mean)}, this model "
                f"has {d_model}. Call fitted with this model."
            )
        generator = torch.Generator("cpu").manual_seed(self.seed)
        shape = (samples, *prompt.embeddings.shape)
        normal = torch.randn(shape, generator=generator, **_DRAWN)
        return (law.mean + self.scale * (normal.double() @ law.root)).to(prompt.embeddings)

    def _fit(self, model: LensModel) -> EmbeddingLaw:
        try:
            return EmbeddingLaw.of(model, self.subjects)
        except ValueError as error:
            raise NoiseError(str(error)) from error


def _set(noise: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass while it is being made."""
    object.__setattr__(noise, name, value)


def _amount(name: str, value: Any, meaning: str) -> float:
    """The value as a finite float of at least 0."""
    return real_number(f"{name} ({meaning})", value, least=0.0, finite=True, error=NoiseError)


def _seed(value: Any) -> int:
    return seed_number("seed", value, error=NoiseError)


def _subjects(value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        raise NoiseError(
            f"subjects is the single text {value!r}, expected a tuple of subjects: write "
            f"({value!r},)."
        )
    subjects = tuple(value)
    if not subjects or not all(isinstance(each, str) and each.strip() for each in subjects):
        raise NoiseError(
            f"subjects is {subjects!r}, expected at least one subject, each a non-empty text."
        )
    return subjects
