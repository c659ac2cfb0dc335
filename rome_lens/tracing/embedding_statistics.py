"""How token embeddings are distributed, over the vocabulary or over the tokens of some subjects.

An embedding here is the output of ``hook_embed``: before positions are added, and on Gemma after
the scaling by ``sqrt(d_model)``.
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

_TOKENS_PER_RUN = (
    1024  # a run makes an attention mask of this number squared, though nothing attends
)
_COLUMNS_PER_BLOCK = 128


def embedding_std(model: LensModel, subjects: Sequence[str]) -> float:
    """The standard deviation over all entries of the subjects' token embeddings.

    Raises:
        ArgumentError: there is no subject.

    Source: Meng et al. 2022, appendix B.1.
    """
    return float(torch.cat(list(embed_in_slices(model, subject_ids(model, subjects)))).std())


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingLaw:
    """The mean ``m`` of token embeddings and the symmetric root ``C^(1/2)`` of their covariance, in
    float64.

    ``C`` divides by ``tokens - 1``. With fewer tokens than ``d_model`` it is singular, and so is
    its root.
    """

    subjects: tuple[str, ...] | None
    """The subjects whose tokens were counted; None for the whole vocabulary."""
    tokens: int
    """The number of tokens."""
    mean: Float[Tensor, " d_model"] = field(repr=False)
    """The mean ``m``."""
    root: Float[Tensor, "d_model d_model"] = field(repr=False)
    """The symmetric root ``C^(1/2)``."""

    def __repr__(self) -> str:
        # Results tell corruptions apart by this text, so it includes a hash of the tensors.
        values = b"".join(value.contiguous().numpy().tobytes() for value in (self.mean, self.root))
        digest = hashlib.sha256(values).hexdigest()[:8]
        return f"EmbeddingLaw(subjects={self.subjects!r}, tokens={self.tokens}, digest={digest!r})"

    @classmethod
    def of(cls, model: LensModel, subjects: Sequence[str] | None = None) -> "EmbeddingLaw":
        """Compute mean and covariance over the subjects' tokens, or over the whole vocabulary for
        None.

        Each subject is tokenised alone and without BOS.

        Raises:
            ArgumentError: there are fewer than two tokens, or some embeddings are not finite.
        """
        ids = (
            torch.arange(model.cfg.d_vocab, device="cpu")
            if subjects is None
            else subject_ids(model, subjects)
        )
        if len(ids) < 2:
            raise ArgumentError(
                f"The subjects {subjects!r} have one token in all, but a covariance needs at least "
                "two."
            )
        mean, covariance = _moments(model, ids)
        if not torch.isfinite(covariance).all():
            raise ArgumentError(
                "The model's token embeddings contain NaN or infinity, so they have no covariance."
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
    """The tokens of all subjects, one after the other. Each subject is tokenised alone and without
    BOS.

    Raises:
        ArgumentError: there is no subject.
    """
    if not subjects:
        raise ArgumentError(
            "The list of subjects is empty, but the statistics of their embeddings need at least "
            "one."
        )
    return torch.tensor(
        [i for subject in subjects for i in token_ids(model, subject, prepend_bos=False)],
        dtype=torch.long,
        device="cpu",
    )


def embed_in_slices(
    model: LensModel, ids: Int[Tensor, " token"]
) -> Iterator[Float[Tensor, "row d_model"]]:
    """Yield the embeddings in slices that fit the model's context.

    Slicing changes nothing, because a token's embedding does not depend on its place until
    positions are added.
    """
    for part in ids.split(min(_TOKENS_PER_RUN, model.cfg.n_ctx)):
        yield at_least_float32(embed(model, part))


def _moments(
    model: LensModel, ids: Int[Tensor, " token"]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
    """Mean and covariance.

    Sums are taken around one of the embeddings, so a large mean costs no digits.
    """
    origin = next(embed_in_slices(model, ids[:1]))[0].cpu().double()
    first = torch.zeros_like(origin)
    second = torch.zeros(len(origin), len(origin), dtype=torch.float64, device="cpu")
    for rows in embed_in_slices(model, ids):
        rows = rows.cpu().double() - origin
        first += rows.sum(0)
        # Only the upper triangle, which the rest mirrors: this product is where the time goes.
        for start in range(0, len(origin), _COLUMNS_PER_BLOCK):
            block = rows[:, start : start + _COLUMNS_PER_BLOCK]
            second[start : start + _COLUMNS_PER_BLOCK, start:].addmm_(block.T, rows[:, start:])
    second = second.triu() + second.triu(1).T
    shift = first / len(ids)
    return origin + shift, (second - len(ids) * torch.outer(shift, shift)) / (len(ids) - 1)
