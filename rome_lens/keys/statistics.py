"""The second moment ``C = E[k k^T]`` of a layer's keys: how much each direction is used."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.errors import RomeLensError
from rome_lens.forward.runs import agreement
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import exact, fingerprint, same_model
from rome_lens.models.lens import LensModel, w_out
from rome_lens.results import Stored

# How the name of a source starts that nobody has named. Different sources may share such a name.
UNNAMED = "unnamed"
_ADVICE = (
    "Collect more tokens, or give a ridge (RomeConfig(ridge=1e-3)), which makes the edit possible "
    "but less specific."
)
_ROWS = 256  # rows of the moment that are compared at once, to avoid a copy of all of it


class StatisticsError(RomeLensError):
    """Key statistics that cannot be collected or inverted, or do not fit the edit or each other."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class KeyStatistics(Stored):
    """``C = E[k k^T]`` over tokens, uncentred, where ``k`` is the input of ``W_out`` at one layer.

    Raises:
        StatisticsError: the layer or the count is not a whole number of at least 0; or the moment
            is not a tensor of floats ``[d_mlp, d_mlp]``, not finite, or not symmetric.

    Source: Meng et al. 2022, section 3.1 and appendix E.5.
    """

    layer: int
    """The layer of the keys."""
    moment: Float[Tensor, "d_mlp d_mlp"]
    """``C``, symmetric, in float64."""
    count: int
    """The number of keys that were averaged. 0 for the identity, which averages none."""
    model_fingerprint: str | None = None
    """The fingerprint of the model that the keys come from. None is not checked."""
    source: str = UNNAMED
    """Where the tokens came from, in words."""

    def __post_init__(self) -> None:
        for name in ("layer", "count"):
            object.__setattr__(
                self, name, whole_number(name, getattr(self, name), least=0, error=StatisticsError)
            )
        _check_moment(self.moment)
        super().__post_init__()

    @classmethod
    def file_label(cls) -> str:
        return "keys"

    def __repr__(self) -> str:
        return (
            f"KeyStatistics(layer={self.layer}, d_mlp={len(self.moment)}, count={self.count}, "
            f"source={self.source!r}, moment {self.digest})"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row: layer, width, number of keys, source, model, and the hash of ``C``."""
        row = {
            "layer": self.layer,
            "d_mlp": len(self.moment),
            "count": self.count,
            "source": self.source,
            "model_fingerprint": self.model_fingerprint,
            "digest": self.digest,
        }
        return pd.DataFrame([row])

    @cached_property
    def digest(self) -> str:
        """A hash of ``C``, which distinguishes statistics with the same name."""
        return hashlib.sha256(self.moment.contiguous().cpu().numpy().tobytes()).hexdigest()[:10]

    @classmethod
    @visits_model
    def identity(cls, model: LensModel, *, layer: SupportsIndex) -> "KeyStatistics":
        """``C = I``, to edit without statistics.

        Such an edit spills over to keys that resemble ``k*``.

        Raises:
            StatisticsError: the layer is not a whole number.
            ModelError: the model has no such layer, or no dense MLP there.
        """
        layer = whole_number("layer", layer, error=StatisticsError)
        moment = torch.eye(w_out(model, layer).shape[0], dtype=torch.float64, device="cpu")
        return cls(
            layer=layer,
            moment=moment,
            count=0,
            model_fingerprint=fingerprint(model),
            source="identity",
        )

    def solve(
        self, key: Float[Tensor, "*fact d_mlp"], *, ridge: float = 0.0
    ) -> Float[Tensor, "*fact d_mlp"]:
        """``(C + ridge * mean(diag C) * I)^-1 k``, for one key or for several at once.

        It is computed in float64 by a Cholesky factorisation. The first call with a ridge computes
        the factor and keeps it with the statistics (``d_mlp^2 * 8`` bytes per ridge). Further keys
        then cost two triangular solves each.

        Raises:
            StatisticsError: ``C`` is singular, and no ridge is given. That happens when fewer than
                ``d_mlp`` keys were averaged, or when the keys repeat each other. Also: the key has
                another width, or the ridge is negative or not finite.
        """
        d_mlp = self.moment.shape[0]
        if key.shape[-1:] != (d_mlp,):
            raise StatisticsError(
                f"The key has shape {list(key.shape)}, but the statistics are {d_mlp} x {d_mlp}: "
                "they come from different models."
            )
        rows = key.double().reshape(-1, d_mlp)
        return torch.cholesky_solve(rows.T, self._factor(ridge)).T.reshape(key.shape)

    def condition(self, *, ridge: float = 0.0) -> float:
        """The condition number of ``C + ridge * mean(diag C) * I``, infinite if that is singular.

        It is the largest eigenvalue divided by the smallest one. It bounds the factor by which a
        relative error in the key can grow in ``C^-1 k``.
        """
        smallest, *_, largest = torch.linalg.eigvalsh(self._ridged(ridge)).tolist()
        singular = smallest <= 0.0 or (ridge == 0.0 and 0 < self.count < len(self.moment))
        return math.inf if singular else largest / smallest

    def used_directions(self, threshold: float) -> Float[Tensor, "d_mlp used"]:
        """Orthonormal eigenvectors of ``C`` whose eigenvalue is at least ``threshold``, in float64.

        The directions that are orthogonal to all of them are the null space that AlphaEdit edits
        in: tokens of the texts hardly use these. The first call computes the eigenvectors and keeps
        them with the statistics (``d_mlp^2 * 8`` bytes).

        Raises:
            StatisticsError: every eigenvalue is at least the threshold.

        Source: Fang et al. 2025, "AlphaEdit", section 3.
        """
        version = -1 if self.moment.is_inference() else self.moment._version
        if version not in self._spectra:
            with torch.inference_mode(False):
                self._spectra[version] = tuple(torch.linalg.eigh(self.moment.double()))
        values, vectors = self._spectra[version]
        used = vectors[:, values >= threshold]
        if used.shape[1] == len(values):
            raise StatisticsError(
                f"The null space of C has rank 0: the threshold is {threshold:.3g}, and the "
                f"smallest eigenvalue of C at layer {self.layer} is {float(values[0]):.3g}. Half "
                f"of the eigenvalues are below {float(values.median()):.3g}. Give a larger "
                "threshold (AlphaEditConfig(threshold=...))."
            )
        return used

    def merged(self, *others: "KeyStatistics") -> "KeyStatistics":
        """The statistics over all keys of these and the others: ``C = sum_i n_i C_i / sum_i n_i``.

        Raises:
            StatisticsError: they are of different layers, widths or models; one of them averages no
                keys (the identity); or two have the same source, whose keys would count twice.
        """
        parts = (self, *others)
        for name, values in (
            ("layers", {part.layer for part in parts}),
            ("widths", {len(part.moment) for part in parts}),
            ("models", {exact(part.model_fingerprint) for part in parts} - {None}),
        ):
            if len(values) > 1:
                raise StatisticsError(
                    f"The statistics are of different {name}: {sorted(values, key=str)}."
                )
        if empty := [part.source for part in parts if part.count < 1]:
            raise StatisticsError(
                f"The statistics {empty} average no keys, so they have no weight in the mean."
            )
        sources = [part.source for part in parts]
        if twice := sorted(
            {name for name in sources if sources.count(name) > 1 and not name.startswith(UNNAMED)}
        ):
            raise StatisticsError(
                f"The same source was given twice, so its keys would count twice: {twice}."
            )
        count = sum(part.count for part in parts)
        moment = reduce(torch.add, ((p.count / count) * p.moment.double() for p in parts))
        fingerprints = [p.model_fingerprint for p in parts if p.model_fingerprint is not None]
        return KeyStatistics(
            layer=self.layer,
            moment=moment,
            count=count,
            model_fingerprint=fingerprints[0] if fingerprints else None,
            source=" + ".join(sources),
        )

    @visits_model
    def check(self, model: LensModel, *, layer: int) -> None:
        """Check that these are statistics of this model at this layer.

        Raises:
            StatisticsError: they are not. The message says what differs.
        """
        if self.layer != layer:
            raise StatisticsError(
                f"The statistics are of layer {self.layer}, the edit is at layer {layer}: collect "
                "them there."
            )
        d_mlp = w_out(model, layer).shape[0]
        if self.moment.shape != (d_mlp, d_mlp):
            raise StatisticsError(
                f"The statistics have shape {list(self.moment.shape)}, but the layer's keys have "
                f"{d_mlp} entries: collect them on this model."
            )
        own = fingerprint(model)
        if self.model_fingerprint is not None and not same_model(self.model_fingerprint, own):
            raise StatisticsError(
                f"The statistics are of the model {exact(self.model_fingerprint)}, this one is "
                f"{exact(own)}: collect them on this model."
            )

    def _ridged(self, ridge: float) -> Float[Tensor, "d_mlp d_mlp"]:
        if not 0.0 <= ridge < math.inf:
            raise StatisticsError(f"ridge is {ridge}, expected a finite number of at least 0.")
        moment = self.moment.double()
        if not ridge:
            return moment
        return moment + ridge * moment.diagonal().mean() * torch.eye(
            len(moment), dtype=torch.float64, device=moment.device
        )

    @cached_property
    def _factors(self) -> dict[tuple[float, int], Tensor]:
        """Cholesky factors by ridge and by the version of ``moment``.

        This is not a dataclass field, so it is neither saved, nor compared, nor copied by replace.
        """
        return {}

    @cached_property
    def _spectra(self) -> dict[int, tuple[Tensor, ...]]:
        """Eigenvalues and eigenvectors by the version of ``moment``. Not a field either."""
        return {}

    @torch.inference_mode(False)  # a factor made inside inference mode could not be used outside it
    def _factor(self, ridge: float) -> Float[Tensor, "d_mlp d_mlp"]:
        # torch counts the writes to a tensor. With that count in the key, a moment that was changed
        # in place is not solved with its old factor.
        version = -1 if self.moment.is_inference() else self.moment._version
        if (ridge, version) in self._factors:
            return self._factors[ridge, version]
        moment = self._ridged(ridge)
        d_mlp = len(moment)
        if ridge == 0.0 and 0 < self.count < d_mlp:
            raise StatisticsError(
                f"The second moment was averaged over {self.count} keys, fewer than its width "
                f"{d_mlp}, and is therefore singular. {_ADVICE}"
            )
        factor, info = torch.linalg.cholesky_ex(moment)
        # The share of each entry's second moment that the entries before it do not explain. It is
        # an upper bound on the smallest eigenvalue of the rescaled C. If it is as small as
        # rounding, then Cholesky has only succeeded on noise.
        unexplained = factor.diagonal() ** 2 / moment.diagonal()
        if int(info) or not float(unexplained.min()) > d_mlp * torch.finfo(torch.float64).eps:
            raise StatisticsError(
                f"The second moment ({self.count} keys, width {d_mlp}) is not positive definite. "
                f"{_ADVICE}"
            )
        if version >= 0:
            self._factors[ridge, version] = factor
        return factor


def _check_moment(moment: Any) -> None:
    """Refuse what is not a second moment.

    A factorisation reads only one triangle, so it would not notice an asymmetric moment.
    """
    floats = isinstance(moment, Tensor) and moment.is_floating_point()
    if not floats or moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        description = (
            f"{moment.dtype} {list(moment.shape)}"
            if isinstance(moment, Tensor)
            else type(moment).__name__
        )
        raise StatisticsError(
            f"moment is {description}, expected a tensor of floats [d_mlp, d_mlp]."
        )
    moment = moment.detach()
    # One pass without a copy. Both ends are NaN if any entry is.
    if moment.numel() and not all(map(math.isfinite, map(float, torch.aminmax(moment)))):
        raise StatisticsError(
            "moment is not finite: collect the statistics from a model with finite keys."
        )
    scale = moment.diagonal().abs().sqrt()
    for start in range(0, len(moment), _ROWS):
        rows = slice(start, start + _ROWS)
        upper, lower = moment[rows, start:], moment[start:, rows].T
        if torch.equal(upper, lower):  # as in all statistics that are collected here
            continue
        allowed = agreement(moment.dtype) * torch.outer(scale[rows], scale[start:])
        if not ((upper - lower).abs() <= allowed).all():
            raise StatisticsError(
                "moment is not symmetric, although a mean of k k^T is: give both of its triangles."
            )
