"""Where in a text an edit acts.

A rank-one edit adds ``(u . k) v`` at each token with key ``k``. It fires where the key meets ``u``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.runs import keys_of
from rome_lens.forward.tokens import pad_right, token_ids, token_labels
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored

_ROWS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class EditFiring(Stored):
    """``(u . k) / (u . k*)`` for every token of a text.

    It is 1 where the edit acts as on its own fact, and 0 where it does nothing.
    """

    axes: ClassVar = {"pos": "labels"}
    # u . k* may be so small, or 0, that no ratio to it is a number
    unbounded: ClassVar = frozenset({"values"})
    undefined: ClassVar = frozenset({"values"})

    text: str
    """The text."""
    labels: tuple[str, ...]
    """The text's tokens."""
    values: Float[Tensor, " pos"]
    """``(u . k) / (u . k*)`` for each token."""
    scale: float
    """``u . k*``, by which the values were divided."""

    @property
    def raw(self) -> Float[Tensor, " pos"]:
        """``u . k``. The edit adds this number times ``v`` to the output of the layer's MLP."""
        return self.values * self.scale

    def to_frame(self) -> pd.DataFrame:
        """One row for each token: its position, the token, ``(u . k) / (u . k*)`` and ``u . k``."""
        values, raw = self.values.tolist(), self.raw.tolist()
        return pd.DataFrame(
            {"pos": range(len(values)), "token": self.labels, "firing": values, "u . k": raw}
        )


@visits_model
def edit_firing(
    model: LensModel, edit: RankOneEdit, text: str, *, prepend_bos: bool | None = None
) -> EditFiring:
    """How strongly an edit fires at every token of ``text``, relative to its own key ``k*``.

    Args:
        model: the model on which the edit was made.
        edit: a rank-one edit that names its key, such as :func:`rome` returns.
        text: the text.
        prepend_bos: whether the text starts with a BOS token. None uses the model's default.

    Raises:
        ModelError: the edit was made on another model.
        ArgumentError: the edit is not of rank one, or does not name its key; or the text is empty.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.data.records(known_by="toy")[0].fact
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, fact, layer=2, statistics=identity, contexts=["{}"])
        >>> firing = rl.edit_firing(model, edit, fact.text)
        >>> at = int(firing.values.argmax())
        >>> firing.labels[at], round(float(firing.values[at]), 2)
        (' Brandt', 1.0)
    """
    return edit_firings(model, edit, [text], prepend_bos=prepend_bos)[0]


@visits_model
def edit_firings(
    model: LensModel, edit: RankOneEdit, texts: Sequence[str], *, prepend_bos: bool | None = None
) -> list[EditFiring]:
    """:func:`edit_firing` for several texts, in batches that run up to the edited layer.

    Raises:
        ModelError: the edit was made on another model.
        ArgumentError: the edit is not of rank one, or does not name its key; there is no text, or a
            text is empty.
    """
    if not isinstance(edit, RankOneEdit):
        raise ArgumentError(
            f"The edit is of type {type(edit).__name__}, expected a RankOneEdit as "
            "rl.rome(model, fact, ...) returns it. Only a rank-one edit fires with one number per "
            "token. For several edits, call this for each one of edits.edits."
        )
    edit.check(model)
    if edit.key is None:
        raise ArgumentError(
            "The edit has no key k* to compare with. Make it with rome(), or set "
            "RankOneEdit(key=...)."
        )
    if (
        isinstance(texts, str)
        or not texts
        or not all(isinstance(text, str) and text for text in texts)
    ):
        raise ArgumentError(
            f"The texts are {texts!r}, expected a list of at least one text, and no empty text."
        )
    rows = [token_ids(model, text, prepend_bos=prepend_bos) for text in texts]
    scale = edit.key @ edit.u
    values: list[Tensor] = []
    for first in range(0, len(rows), _ROWS_PER_BATCH):
        some = rows[first : first + _ROWS_PER_BATCH]
        keys = keys_of(model, pad_right(some), edit.layer).to("cpu", edit.u.dtype)
        values += list(keys @ edit.u / scale)
    return [
        EditFiring(
            text=text,
            labels=tuple(token_labels(model, ids)),
            values=own[: len(ids)].clone(),
            scale=float(scale),
        )
        for text, ids, own in zip(texts, rows, values, strict=True)
    ]
