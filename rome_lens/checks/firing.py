"""Why an edit acts where it acts: it adds ``(u . k) v``, so that it fires where a token's key meets ``u``."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rome_lens.edits import RankOneEdit
from rome_lens.forward import keys_of
from rome_lens.models import LensModel
from rome_lens.tokens import pad_right, token_ids, token_labels

_ROWS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class EditFiring:
    """``(u . k) / (u . k*)`` for every token of a text: 1 where the edit acts as on its own fact, 0 where it does nothing."""

    text: str
    labels: tuple[str, ...]
    values: Float[Tensor, " pos"]


def edit_firing(model: LensModel, edit: RankOneEdit, text: str, *, prepend_bos: bool | None = None) -> EditFiring:
    """How strongly an edit fires at every token of ``text``, relative to the key ``k*`` that it was made for.

    Raises:
        ModelError: the edit was made on another model.
        ValueError: the edit does not name its key, or the text is empty.
    """
    return edit_firings(model, edit, [text], prepend_bos=prepend_bos)[0]


def edit_firings(
    model: LensModel, edit: RankOneEdit, texts: Sequence[str], *, prepend_bos: bool | None = None
) -> list[EditFiring]:
    """:func:`edit_firing` of several texts, in runs that end at the edited layer.

    Raises:
        ModelError: the edit was made on another model.
        ValueError: the edit does not name its key; there is no text, or an empty one.
    """
    edit.check(model)
    if edit.key is None:
        raise ValueError("The edit has no key k* to compare with: make it with rome(), or set RankOneEdit(key=...).")
    if not texts or not all(texts):
        raise ValueError(
            f"The texts are {list(texts)!r}, expected at least one, and none empty: there is no token to fire at."
        )
    rows = [token_ids(model, text, prepend_bos=prepend_bos) for text in texts]
    found = []
    for first in range(0, len(rows), _ROWS_PER_BATCH):
        some = rows[first : first + _ROWS_PER_BATCH]
        keys = keys_of(model, pad_right(some), edit.layer).to("cpu", edit.u.dtype)
        found += list(keys @ edit.u / (edit.key @ edit.u))
    return [
        EditFiring(text=text, labels=tuple(token_labels(model, ids)), values=own[: len(ids)].clone())
        for text, ids, own in zip(texts, rows, found, strict=True)
    ]
