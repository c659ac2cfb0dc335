"""The random kinds of noise, and what every kind of corruption is.

Draws are made on the CPU in float32 from the kind's own seed, so that every device and precision gets the same noise, and
the global random state is neither read nor moved.

Source: Meng et al. 2022, section 2.1 and appendix B.
"""

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
from rome_lens.models.lens import LensModel, at_least_float32
from rome_lens.tracing.embeddings import EmbeddingLaw, embedding_std

_SCALE = 3.0


class NoiseError(RomeLensError):
    """A noise tensor or setting that does not fit the subject."""


@dataclass(frozen=True, kw_only=True)
class CorruptedPrompt:
    """The prompt whose subject is corrupted.

    Attributes:
        encoded: the fact as the model's tokens, made with ``prepend_bos``.
        embeddings: what ``hook_embed`` gives for the subject's tokens in the clean run.
    """

    fact: Fact
    encoded: FactTokens
    embeddings: Float[Tensor, "subject d_model"]
    prepend_bos: bool | None


@runtime_checkable
class Noise(Protocol):
    """What is added to the subject's token embeddings in a corrupted run."""

    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """The noise for ``samples`` corrupted runs; a kind without chance in it gives one."""
        ...


_Scaled = TypeVar("_Scaled", bound="_ScaledNoise")


@dataclass(frozen=True, kw_only=True)
class _ScaledNoise:
    """Draws of one law times a level: ``scale * sigma``, or given as itself.

    ``sigma`` is pooled over all entries of the token embeddings of ``subjects``, each tokenised alone without BOS, as
    the study does over its list of facts; without ``subjects`` it is taken over the traced subject's own embeddings.
    """

    scale: float | None = None
    seed: int = 0
    subjects: tuple[str, ...] | None = None
    level: float | None = None

    def __post_init__(self) -> None:
        if self.level is not None and (self.scale is not None or self.subjects is not None):
            raise NoiseError(
                f"level is {self.level!r} beside scale {self.scale!r} and subjects {self.subjects!r}: a level is used as "
                "it is, in place of scale times the subjects' sigma. Give one or the other."
            )
        if self.level is None:
            scale = _SCALE if self.scale is None else self.scale
            _set(self, "scale", _number("scale", scale, "sigmas of the embeddings; 0 adds nothing"))
        else:
            _set(
                self,
                "level",
                _number("level", self.level, "in units of the embeddings; 0 adds nothing"),
            )
        _set(self, "seed", _seed(self.seed))
        _set(self, "subjects", _subjects(self.subjects))

    def fitted(self: _Scaled, model: LensModel) -> _Scaled:
        """The same noise with ``level = scale * sigma`` of the ``subjects`` computed once, for tracing many facts.

        Raises:
            NoiseError: there are no ``subjects``, so that ``sigma`` is another one for each traced fact.
        """
        if self.level is not None:
            return self
        if self.subjects is None:
            raise NoiseError(
                f"{self!r} takes sigma from each traced subject: there is nothing to compute before. Give subjects=."
            )
        return replace(
            self, scale=None, subjects=None, level=self._scaled(embedding_std(model, self.subjects))
        )

    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """The level times draws of the law at level 1."""
        if self.level is not None:
            level = self.level
        elif self.subjects is not None:
            level = self._scaled(embedding_std(model, self.subjects))
        else:
            level = self._scaled(float(at_least_float32(prompt.embeddings).std()))
        draws = self._draw(
            (samples, *prompt.embeddings.shape), torch.Generator().manual_seed(self.seed)
        )
        return level * draws.to(prompt.embeddings)

    def _scaled(self, sigma: float) -> float:
        assert self.scale is not None
        return self.scale * sigma

    def _draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(_ScaledNoise):
    """Noise ``e ~ N(0, level^2)`` on each entry, ``level = scale * sigma``.

    Source: Meng et al. 2022, section 2.1 and appendix B.1 (scale 3).

    Args:
        scale: the standard deviation in units of ``sigma``; 3 where neither it nor ``level`` is given.
        seed: of the draws.
        subjects: ``sigma`` is pooled over all entries of their token embeddings, each tokenised alone without BOS, as
            the study does over its list of facts; None takes the traced subject's own embeddings. :meth:`fitted`
            computes it once for many traces.
        level: the standard deviation itself, in place of ``scale`` and ``subjects``.

    Raises:
        NoiseError: a setting is not finite or negative, or a level is given beside what it replaces.
    """

    def _draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator)


@dataclass(frozen=True, kw_only=True)
class UniformNoise(_ScaledNoise):
    """Noise ``e ~ U(-level, level)`` on each entry, ``level = scale * sigma``; its standard deviation is level / sqrt(3).

    Source: Meng et al. 2022, appendix B. Arguments and errors as for :class:`GaussianNoise`, but that ``level`` is half
    the range.
    """

    def _draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return 2.0 * torch.rand(shape, generator=generator) - 1.0


@dataclass(frozen=True, kw_only=True)
class StudentTNoise(_ScaledNoise):
    """Noise ``e = level * sqrt((degrees - 2) / u) * z``, a multivariate Student t, ``level = scale * sigma``.

    ``z ~ N(0, I)`` has an entry for each of ``d_model``, ``u ~ chi^2(degrees)`` is one number for each token vector of
    each sample: a vector is long or short as a whole, and each entry has a tail of power ``degrees``. The standard
    deviation of an entry is ``level``, as in :class:`GaussianNoise`, which is the limit of many degrees.

    Arguments and errors as for :class:`GaussianNoise`.

    Args:
        degrees: degrees of freedom, more than 2: with fewer there is no standard deviation to scale to.
    """

    degrees: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            not _number(
                "degrees", self.degrees, "more than 2, so that the noise has a standard deviation"
            )
            > 2
        ):
            raise NoiseError(
                f"degrees is {self.degrees!r}, expected more than 2: below, t has no standard deviation."
            )
        _set(self, "degrees", float(self.degrees))

    def _draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        normal = torch.randn(shape, generator=generator)
        # The inverse of chi-square's survival function: torch's own draws of it take no public generator.
        survival = torch.rand((*shape[:2], 1), generator=generator, dtype=torch.float64)
        chi_square = torch.from_numpy(chdtri(self.degrees, survival.numpy()))
        return normal * ((self.degrees - 2.0) / chi_square).sqrt().float()


@dataclass(frozen=True, kw_only=True)
class MultivariateGaussianNoise:
    """Noise ``e ~ N(m, scale^2 C)`` for each token, ``m`` and ``C`` mean and covariance of token embeddings.

    With ``scale`` 1 a draw is distributed like a token's embedding to second order, so that ``Replacement`` of it puts
    a random token's likeness in place of the subject. ``scale`` widens the draws about ``m``, and ``m`` stays: with
    ``scale`` 0 the noise is ``m``, not 0.

    Source: Meng et al. 2022, appendix B.

    Args:
        scale: factor of the standard deviations.
        seed: of the draws.
        subjects: the embeddings are those of their tokens, each subject tokenised alone without BOS and a token counted
            as often as it occurs; None takes every token of the vocabulary once.
        law: mean and covariance themselves, in place of ``subjects``; :meth:`fitted` gives it.

    Raises:
        NoiseError: a setting is not finite or negative, or a law is given beside subjects.
    """

    scale: float = 1.0
    seed: int = 0
    subjects: tuple[str, ...] | None = None
    law: EmbeddingLaw | None = None

    def __post_init__(self) -> None:
        _set(
            self,
            "scale",
            _number("scale", self.scale, "a factor of the embeddings' standard deviations"),
        )
        _set(self, "seed", _seed(self.seed))
        _set(self, "subjects", _subjects(self.subjects))
        if self.law is not None and self.subjects is not None:
            raise NoiseError(
                f"law is given beside subjects {self.subjects!r}, which it replaces. Give one of the two."
            )

    def fitted(self, model: LensModel) -> "MultivariateGaussianNoise":
        """The same noise with the law of the embeddings computed once, for tracing many facts."""
        return self if self.law is not None else replace(self, subjects=None, law=self._fit(model))

    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """``m + scale * C^(1/2) z``; the symmetric root is the only one that does not depend on the eigenvectors' signs."""
        law = self._fit(model) if self.law is None else self.law
        if len(law.mean) != prompt.embeddings.shape[1]:
            raise NoiseError(
                f"{law!r} is of d_model {len(law.mean)}, the model's is {prompt.embeddings.shape[1]}: it was fitted to "
                "another model. Call fitted with this one."
            )
        normal = torch.randn(
            (samples, *prompt.embeddings.shape), generator=torch.Generator().manual_seed(self.seed)
        )
        return (law.mean + self.scale * (normal.double() @ law.root)).to(prompt.embeddings)

    def _fit(self, model: LensModel) -> EmbeddingLaw:
        try:
            return EmbeddingLaw.of(model, self.subjects)
        except ValueError as error:
            raise NoiseError(str(error)) from error


def _set(noise: Any, name: str, value: Any) -> None:
    object.__setattr__(noise, name, value)


def _number(name: str, value: Any, meaning: str) -> float:
    return real_number(f"{name} ({meaning})", value, least=0.0, finite=True, error=NoiseError)


def _seed(value: Any) -> int:
    return seed_number("seed", value, error=NoiseError)


def _subjects(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        raise NoiseError(
            f"subjects is the text {value!r}, expected a tuple of subjects: write ({value!r},)."
        )
    subjects = tuple(value)
    if not subjects or not all(
        isinstance(subject, str) and subject.strip() for subject in subjects
    ):
        raise NoiseError(
            f"subjects is {subjects!r}, expected the words of at least one subject, and no empty ones."
        )
    return subjects
