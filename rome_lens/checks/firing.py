"""Why an edit acts where it acts: it adds ``(u . k) v``, so that it fires where a token's key meets ``u``."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edits import RankOneEdit
from rome_lens.forward import keys_of
from rome_lens.models import LensModel
from rome_lens.tokens import token_ids, token_labels


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
        ValueError: the edit does not name its key.
    """
    edit.check(model)
    if edit.key is None:
        raise ValueError("The edit has no key k* to compare with: make it with rome(), or set RankOneEdit(key=...).")
    if not text:
        raise ValueError("The text is empty: there is no token at which the edit could fire.")
    ids = token_ids(model, text, prepend_bos=prepend_bos)
    keys = keys_of(model, torch.tensor([ids]), edit.layer)[0].to("cpu", edit.u.dtype)
    return EditFiring(text=text, labels=tuple(token_labels(model, ids)), values=keys @ edit.u / (edit.key @ edit.u))
