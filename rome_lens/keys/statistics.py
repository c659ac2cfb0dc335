"""The second moment of a layer's keys, ``C = E[k kT]``: which directions of key space are in use, and how much."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.errors import RomeLensError
from rome_lens.forward.runs import agreement
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel, w_out
from rome_lens.results import Stored

UNNAMED = "unnamed"  # begins the name of a source that nobody named, of which there may be several
_ADVICE = "Collect more tokens, or give a ridge (RomeConfig(ridge=1e-3)), which keeps the edit defined and coarser."
_ROWS = 256  # of the moment compared at once, so that no copy of it is made


class StatisticsError(RomeLensError):
    """Key statistics that cannot be collected, do not fit the edit or each other, or cannot be inverted."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class KeyStatistics(Stored):
    """``C = E[k kT]`` over tokens, uncentred, ``k`` the input of ``W_out`` at one layer.

    Source: Meng et al. 2022, section 3.1 and appendix E.5.

    Attributes:
        moment: ``C``, float64, symmetric.
        count: the number of keys that were averaged; 0 where nothing was (the identity).
        model_fingerprint: of the model they come from; None is not checked.
        source: where the tokens came from, in words.

    Raises:
        StatisticsError: a number that is no integer; a moment that is no tensor of floats ``[d_mlp, d_mlp]``, not finite or
            not symmetric.
    """

    layer: int
    moment: Float[Tensor, "d_mlp d_mlp"]
    count: int
    model_fingerprint: str | None = None
    source: str = UNNAMED

    def __post_init__(self) -> None:
        for name in ("layer", "count"):
            object.__setattr__(
                self, name, whole_number(name, getattr(self, name), error=StatisticsError)
            )
        _check_moment(self.moment)

    @classmethod
    def file_label(cls) -> str:
        return "keys"

    def __repr__(self) -> str:
        return (
            f"KeyStatistics(layer={self.layer}, d_mlp={len(self.moment)}, count={self.count}, source={self.source!r}, "
            f"moment {self.digest})"
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
        """A hash of ``C``, by which statistics of one name can be told apart."""
        return hashlib.sha256(self.moment.contiguous().cpu().numpy().tobytes()).hexdigest()[:10]

    @classmethod
    def identity(cls, model: LensModel, *, layer: SupportsIndex) -> "KeyStatistics":
        """``C = I``: an edit without statistics, said on purpose. It spills over onto keys that resemble ``k*``."""
        layer = whole_number("layer", layer, error=StatisticsError)
        moment = torch.eye(w_out(model, layer).shape[0], dtype=torch.float64)
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
        """``(C + ridge * mean(diag C) * I)^-1 k`` by Cholesky, in float64, of one key or of several at once.

        The factor is computed at the first call with a ridge and kept with the statistics (``d_mlp^2 * 8`` bytes a ridge),
        so that the next keys cost two triangular solves each.

        Raises:
            StatisticsError: ``C`` is singular, as it is when fewer keys than ``d_mlp`` were averaged or when they repeat
                each other, and no ridge is given.
        """
        d_mlp = self.moment.shape[0]
        if key.shape[-1:] != (d_mlp,):
            raise StatisticsError(
                f"The key has shape {list(key.shape)}, the statistics are {d_mlp} x {d_mlp}: other models."
            )
        rows = key.double().reshape(-1, d_mlp)
        return torch.cholesky_solve(rows.T, self._factor(ridge)).T.reshape(key.shape)

    def condition(self, *, ridge: float = 0.0) -> float:
        """Largest over smallest eigenvalue of ``C + ridge * mean(diag C) * I``; infinite where that is singular.

        By so much can an error in the key grow on the way to ``C^-1 k``.
        """
        smallest, *_, largest = torch.linalg.eigvalsh(self._ridged(ridge)).tolist()
        singular = smallest <= 0.0 or (ridge == 0.0 and 0 < self.count < len(self.moment))
        return math.inf if singular else largest / smallest

    def merged(self, *others: "KeyStatistics") -> "KeyStatistics":
        """The statistics over the keys of all of these, ``C = sum_i n_i C_i / sum_i n_i``.

        Raises:
            StatisticsError: they are of other layers, widths or models, one of them averages nothing (the identity), or
                two are of the same source, whose keys would count twice.
        """
        parts = (self, *others)
        for name, values in (
            ("layers", {part.layer for part in parts}),
            ("widths", {len(part.moment) for part in parts}),
            ("models", {part.model_fingerprint for part in parts} - {None}),
        ):
            if len(values) > 1:
                raise StatisticsError(
                    f"The statistics are of different {name}: {sorted(values, key=str)}."
                )
        if empty := [part.source for part in parts if part.count < 1]:
            raise StatisticsError(
                f"The statistics {empty} average no keys, so that nothing says how much they weigh."
            )
        sources = [part.source for part in parts]
        if twice := sorted(
            {name for name in sources if sources.count(name) > 1 and not name.startswith(UNNAMED)}
        ):
            raise StatisticsError(
                f"The same source was given twice, its keys would count twice: {twice}."
            )
        count = sum(part.count for part in parts)
        moment = sum((part.count / count) * part.moment.double() for part in parts)
        known = [part.model_fingerprint for part in parts if part.model_fingerprint is not None]
        return KeyStatistics(
            layer=self.layer,
            moment=torch.as_tensor(moment),
            count=count,
            model_fingerprint=known[0] if known else None,
            source=" + ".join(sources),
        )

    def check(self, model: LensModel, *, layer: int) -> None:
        """Raise StatisticsError unless these statistics are this model's, at this layer."""
        if self.layer != layer:
            raise StatisticsError(
                f"The statistics are of layer {self.layer}, the edit is at layer {layer}: collect them there."
            )
        d_mlp = w_out(model, layer).shape[0]
        if self.moment.shape != (d_mlp, d_mlp):
            raise StatisticsError(
                f"The statistics have shape {list(self.moment.shape)}, the layer's keys {d_mlp} entries."
            )
        if self.model_fingerprint not in (None, fingerprint(model)):
            raise StatisticsError(
                f"The statistics are of the model {self.model_fingerprint}, this one is {fingerprint(model)}: "
                "collect them on this model."
            )

    def _ridged(self, ridge: float) -> Float[Tensor, "d_mlp d_mlp"]:
        if not 0.0 <= ridge < math.inf:
            raise StatisticsError(f"ridge is {ridge}, expected a finite number of at least 0.")
        moment = self.moment.double()
        if not ridge:
            return moment
        return moment + ridge * moment.diagonal().mean() * torch.eye(
            len(moment), dtype=torch.float64
        )

    @cached_property
    def _factors(self) -> dict[tuple[float, int], Tensor]:
        """Cholesky factors by ridge and by the version of ``moment``. No field: neither saved, compared nor replaced."""
        return {}

    @torch.inference_mode(False)  # a factor made inside inference mode could not be used outside it
    def _factor(self, ridge: float) -> Float[Tensor, "d_mlp d_mlp"]:
        # torch counts the writes to a tensor, so that a moment changed in place is not solved with its old factor.
        version = -1 if self.moment.is_inference() else self.moment._version
        if (ridge, version) in self._factors:
            return self._factors[ridge, version]
        moment = self._ridged(ridge)
        d_mlp = len(moment)
        if ridge == 0.0 and 0 < self.count < d_mlp:
            raise StatisticsError(
                f"The second moment was averaged over {self.count} keys, fewer than its width {d_mlp}, and is singular. "
                f"{_ADVICE}"
            )
        factor, info = torch.linalg.cholesky_ex(moment)
        # What earlier entries of the key leave unexplained of an entry, as a share of its second moment. It bounds the
        # smallest eigenvalue of the rescaled C from above; at rounding's size Cholesky succeeds on noise alone.
        unexplained = factor.diagonal() ** 2 / moment.diagonal()
        if int(info) or not float(unexplained.min()) > d_mlp * torch.finfo(torch.float64).eps:
            raise StatisticsError(
                f"The second moment ({self.count} keys, width {d_mlp}) is not positive definite. {_ADVICE}"
            )
        if version >= 0:
            self._factors[ridge, version] = factor
        return factor


def _check_moment(moment: Any) -> None:
    """A factorisation reads one triangle alone, and would take whatever stands there for the whole of ``C``."""
    floats = isinstance(moment, Tensor) and moment.is_floating_point()
    if not floats or moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        given = (
            f"{moment.dtype} {list(moment.shape)}"
            if isinstance(moment, Tensor)
            else type(moment).__name__
        )
        raise StatisticsError(f"moment is {given}, expected a tensor of floats [d_mlp, d_mlp].")
    moment = moment.detach()
    scale = moment.diagonal().abs().sqrt()
    for start in range(0, len(moment), _ROWS):
        rows = slice(start, start + _ROWS)
        if not torch.isfinite(moment[rows]).all():
            raise StatisticsError(
                "moment is not finite: collect the statistics from a model whose keys are."
            )
        apart = (moment[rows] - moment[:, rows].T).abs()
        if not (apart <= agreement(moment.dtype) * torch.outer(scale[rows], scale)).all():
            raise StatisticsError(
                "moment is not symmetric, as a mean of k kT is: give both of its triangles."
            )
