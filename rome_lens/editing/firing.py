"""Why an edit acts where it acts: it adds ``(u . k) v``, so that it fires where a token's key meets ``u``."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rome_lens.editing.edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.runs import keys_of
from rome_lens.forward.tokens import pad_right, token_ids, token_labels
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored

_ROWS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class EditFiring(Stored):
    """``(u . k) / (u . k*)`` for every token of a text: 1 where the edit acts as on its own fact, 0 where it does nothing.

    Attributes:
        labels: the text's tokens; ``values`` has a number for each.
        scale: ``u . k*``, by which the values were divided.
    """

    text: str
    labels: tuple[str, ...]
    values: Float[Tensor, " pos"]
    scale: float

    @property
    def raw(self) -> Float[Tensor, " pos"]:
        """``u . k`` itself: the edit adds this times ``v`` to the layer's MLP output."""
        return self.values * self.scale

    def to_frame(self) -> pd.DataFrame:
        """One row for each token: its place, ``(u . k) / (u . k*)`` and ``u . k``."""
        values, raw = self.values.tolist(), self.raw.tolist()
        return pd.DataFrame(
            {"pos": range(len(values)), "token": self.labels, "firing": values, "u . k": raw}
        )


def edit_firing(
    model: LensModel, edit: RankOneEdit, text: str, *, prepend_bos: bool | None = None
) -> EditFiring:
    """How strongly an edit fires at every token of ``text``, relative to the key ``k*`` that it was made for.

    Raises:
        ModelError: the edit was made on another model.
        ValueError: the edit is not of rank one, or does not name its key; the text is empty.
    """
    return edit_firings(model, edit, [text], prepend_bos=prepend_bos)[0]


def edit_firings(
    model: LensModel, edit: RankOneEdit, texts: Sequence[str], *, prepend_bos: bool | None = None
) -> list[EditFiring]:
    """:func:`edit_firing` of several texts, in runs that end at the edited layer.

    Raises:
        ModelError: the edit was made on another model.
        ValueError: the edit is not of rank one, or does not name its key; there is no text, or one without words.
    """
    if not isinstance(edit, RankOneEdit):
        raise ArgumentError(
            f"The edit is of type {type(edit).__name__}, expected a RankOneEdit as rl.rome(model, fact, ...) gives it: only its "
            "firing is one number a token. Of several edits, ask each one alone (edits.edits)."
        )
    edit.check(model)
    if edit.key is None:
        raise ArgumentError(
            "The edit has no key k* to compare with: make it with rome(), or set RankOneEdit(key=...)."
        )
    if (
        isinstance(texts, str)
        or not texts
        or not all(isinstance(text, str) and text for text in texts)
    ):
        raise ArgumentError(
            f"The texts are {texts!r}, expected a list of at least one, and none empty: there is no token to fire at."
        )
    rows = [token_ids(model, text, prepend_bos=prepend_bos) for text in texts]
    scale = edit.key @ edit.u
    found = []
    for first in range(0, len(rows), _ROWS_PER_BATCH):
        some = rows[first : first + _ROWS_PER_BATCH]
        keys = keys_of(model, pad_right(some), edit.layer).to("cpu", edit.u.dtype)
        found += list(keys @ edit.u / scale)
    return [
        EditFiring(
            text=text,
            labels=tuple(token_labels(model, ids)),
            values=own[: len(ids)].clone(),
            scale=float(scale),
        )
        for text, ids, own in zip(texts, rows, found, strict=True)
    ]
