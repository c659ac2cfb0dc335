"""Where the heads of a layer look, without and with an edit."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rome_lens.composing.runs import hooks_of, states
from rome_lens.data.facts import FactError
from rome_lens.forward.tokens import token_ids, token_labels
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import name_of
from rome_lens.models.lens import LensModel, check_layer
from rome_lens.results import Stored


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class AttentionComparison(Stored):
    """The result of :func:`compare_attention`: attention patterns of one layer."""

    axes: ClassVar = {"dest": "labels", "src": "labels"}

    text: str
    """The text."""
    labels: tuple[str, ...]
    """Its tokens."""
    layer: int
    """The layer of the heads."""
    before: Float[Tensor, "head dest src"]
    """How much each head looks from each token at each earlier one, without the edit."""
    after: Float[Tensor, "head dest src"]
    """The same with the edit."""
    model_name: str = ""
    """The name of the model, for titles."""

    @property
    def changes(self) -> Float[Tensor, " head"]:
        """How far each head's look from the last token changes: half the sum of differences.

        It is the total variation distance of two distributions, from 0 to 1.
        """
        return (self.after - self.before)[:, -1].abs().sum(-1) / 2

    def to_frame(self) -> pd.DataFrame:
        """One row for each head and token: the look from the last token, before and after."""
        rows = [
            (head, label, float(self.before[head, -1, j]), float(self.after[head, -1, j]))
            for head in range(len(self.before))
            for j, label in enumerate(self.labels)
        ]
        return pd.DataFrame(rows, columns=["head", "token", "before", "after"])


@visits_model
def compare_attention(
    model: LensModel, edit: Any, text: str, *, layer: int, prepend_bos: bool | None = None
) -> AttentionComparison:
    """The attention patterns of a layer's heads on a text, without and with an edit.

    Args:
        edit: an edit with ``fwd_hooks``; None compares the model with itself.
        text: the text, such as a fact's prompt.
        layer: the layer, such as the one where attention reads the answer out.
        prepend_bos: whether the text starts with BOS; None takes the model's default.

    Returns:
        Patterns ``Float[Tensor, "head dest src"]`` before and after. Each row sums to 1.

    Raises:
        FactError: the text is empty or too long.
        ModelError: the model has no such layer or no attention there, or the edit was made on
            another model.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.records(known_by="toy")[0]
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=identity, contexts=["{}"])
        >>> found = rl.compare_attention(model, edit, record.fact.text, layer=4)
        >>> found.before.shape
        torch.Size([4, 9, 9])
    """
    layer = check_layer(model, layer)
    ids = token_ids(model, text, prepend_bos=prepend_bos)
    if not ids:
        raise FactError("The text is empty: give the words to look at.")
    name = f"blocks.{layer}.attn.hook_pattern"
    patterns = [
        states(model, ids, [name], hooks)[0][name].float().cpu()
        for hooks in ((), hooks_of(model, edit))
    ]
    return AttentionComparison(
        text=text,
        labels=tuple(token_labels(model, ids)),
        layer=layer,
        before=patterns[0],
        after=patterns[1],
        model_name=name_of(model),
    )
