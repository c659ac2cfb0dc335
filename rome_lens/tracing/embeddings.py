"""How token embeddings are distributed, over the vocabulary or over the tokens of some subjects.

Embeddings are what ``hook_embed`` gives: before positions are added, on Gemma after the scaling by ``sqrt(d_model)``.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.errors import ArgumentError
from rome_lens.forward.runs import embed
from rome_lens.forward.tokens import token_ids
from rome_lens.models.lens import LensModel, at_least_float32

_ROWS = 1024  # attention masks are made of the square of it, though nothing attends
_COLUMNS = 128


def embedding_std(model: LensModel, subjects: Sequence[str]) -> float:
    """Standard deviation pooled over all entries of the subjects' token embeddings (Meng et al. 2022, appendix B.1).

    Raises:
        ValueError: there is no subject.
    """
    return float(torch.cat(list(embedded(model, subject_ids(model, subjects)))).std())


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingLaw:
    """Mean ``m`` and symmetric root ``C^(1/2)`` of the covariance of ``tokens`` embeddings, in float64.

    ``C`` divides by ``tokens - 1``. With fewer tokens than ``d_model`` it is singular, and so is its root.
    """

    subjects: tuple[str, ...] | None
    tokens: int
    mean: Float[Tensor, " d_model"] = field(repr=False)
    root: Float[Tensor, "d_model d_model"] = field(repr=False)

    def __repr__(self) -> str:
        """Names the law itself by a few digits of its hash, since results tell corruptions apart by this text."""
        values = b"".join(value.contiguous().numpy().tobytes() for value in (self.mean, self.root))
        digest = hashlib.sha256(values).hexdigest()[:8]
        return f"EmbeddingLaw(subjects={self.subjects!r}, tokens={self.tokens}, digest={digest!r})"

    @classmethod
    def of(cls, model: LensModel, subjects: Sequence[str] | None = None) -> "EmbeddingLaw":
        """The law of the subjects' tokens, each subject tokenised alone without BOS; None takes the whole vocabulary.

        Raises:
            ValueError: there are fewer than two tokens, or embeddings that are not finite.
        """
        ids = torch.arange(model.cfg.d_vocab) if subjects is None else subject_ids(model, subjects)
        if len(ids) < 2:
            raise ArgumentError(
                f"The subjects {subjects!r} have one token in all: a covariance needs at least two."
            )
        mean, covariance = _moments(model, ids)
        if not torch.isfinite(covariance).all():
            raise ArgumentError(
                "The model's token embeddings hold NaN or infinity: they have no covariance."
            )
        variances, directions = torch.linalg.eigh(covariance)
        root = (directions * variances.clamp(min=0.0).sqrt()) @ directions.T
        return cls(
            subjects=None if subjects is None else tuple(subjects),
            tokens=len(ids),
            mean=mean,
            root=root,
        )


def subject_ids(model: LensModel, subjects: Sequence[str]) -> Int[Tensor, " token"]:
    """The tokens of all subjects in a row, each tokenised alone without BOS.

    Raises:
        ValueError: there is no subject.
    """
    if not subjects:
        raise ArgumentError(
            "The list of subjects is empty: the statistics of their embeddings need at least one."
        )
    return torch.tensor(
        [i for subject in subjects for i in token_ids(model, subject, prepend_bos=False)]
    )


def embedded(
    model: LensModel, ids: Int[Tensor, " token"]
) -> Iterator[Float[Tensor, "row d_model"]]:
    """Embeddings in slices that fit the model's context; before positions are added it does not matter where one stands."""
    for part in ids.split(min(_ROWS, model.cfg.n_ctx)):
        yield at_least_float32(embed(model, part))


def _moments(
    model: LensModel, ids: Int[Tensor, " token"]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
    """Mean and covariance, summed about one embedding so that a large mean costs no digits."""
    origin = next(embedded(model, ids[:1]))[0].cpu().double()
    first, second = (
        torch.zeros_like(origin),
        torch.zeros(len(origin), len(origin), dtype=torch.float64),
    )
    for rows in embedded(model, ids):
        rows = rows.cpu().double() - origin
        first += rows.sum(0)
        for start in range(
            0, len(origin), _COLUMNS
        ):  # the upper triangle: the rest mirrors it, and this is the time
            block = rows[:, start : start + _COLUMNS]
            second[start : start + _COLUMNS, start:].addmm_(block.T, rows[:, start:])
    second = second.triu() + second.triu(1).T
    shift = first / len(ids)
    return origin + shift, (second - len(ids) * torch.outer(shift, shift)) / (len(ids) - 1)
