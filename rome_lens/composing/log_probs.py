"""How likely a model finds each token of a text, without and with an edit."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.composing.runs import hooks_of, states
from rome_lens.data.facts import FactError
from rome_lens.forward.runs import finite_logits
from rome_lens.forward.tokens import token_ids, token_labels
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import name_of
from rome_lens.models.lens import LensModel, at_least_float32
from rome_lens.results import Stored


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LogProbComparison(Stored):
    """The result of :func:`compare_log_probs`. Numbers are of each token but the first."""

    axes: ClassVar = {"token": "labels"}

    text: str
    """The text."""
    first: str
    """Its first token, which nothing predicts; BOS if there is one."""
    labels: tuple[str, ...]
    """The other tokens."""
    before: Float[Tensor, " token"]
    """The log probability of each, given those before it, without the edit, in nats."""
    after: Float[Tensor, " token"]
    """The same with the edit."""
    ranks_before: tuple[int, ...]
    """The rank of each among all tokens, 0 for the likeliest."""
    ranks_after: tuple[int, ...]
    """The same with the edit."""
    top_before: tuple[tuple[str, ...], ...]
    """The likeliest tokens in the place of each."""
    top_after: tuple[tuple[str, ...], ...]
    """The same with the edit."""
    top_log_probs_before: Float[Tensor, "token best"]
    """The log probabilities of these likeliest tokens."""
    top_log_probs_after: Float[Tensor, "token best"]
    """The same with the edit."""
    model_name: str = ""
    """The name of the model, for titles."""

    def to_frame(self) -> pd.DataFrame:
        """One row for each token but the first: log probabilities and ranks, before and after."""
        return pd.DataFrame(
            {
                "token": self.labels,
                "log p, before": self.before.tolist(),
                "log p, after": self.after.tolist(),
                "rank, before": self.ranks_before,
                "rank, after": self.ranks_after,
            }
        )


@visits_model
def compare_log_probs(
    model: LensModel, edit: Any, text: str, *, count: int = 10, prepend_bos: bool | None = None
) -> LogProbComparison:
    """Log probabilities of a text's tokens, and the likeliest ones there, without and with an edit.

    Args:
        edit: an edit with ``fwd_hooks``; None compares the model with itself.
        text: the text, of at least two tokens.
        count: how many of the likeliest tokens to keep in each place.
        prepend_bos: whether the text starts with BOS; None takes the model's default.

    Raises:
        FactError: the text has fewer than two tokens, or too many.
        ArgumentError: ``count`` is out of range.
        ModelError: the edit was made on another model, or is already in the weights.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> found = rl.compare_log_probs(model, None, "Wanda Brandt lives in the city of Pralec.")
        >>> found.labels[-2], round(float(found.before[-2].exp()), 2)
        (' Pralec', 0.99)
    """
    count = whole_number("count", count, least=1, most=model.cfg.d_vocab)
    ids = token_ids(model, text, prepend_bos=prepend_bos)
    if len(ids) < 2:
        raise FactError(f"The text is {text!r}, expected at least two tokens.")
    labels = token_labels(model, ids)
    sides: dict[str, dict[str, Any]] = {}
    for name, hooks in (("before", ()), ("after", hooks_of(model, edit))):
        _, logits = states(model, ids, [], hooks)
        sides[name] = _side(model, logits[:-1], ids[1:], count, name)
    return LogProbComparison(
        text=text,
        first=labels[0],
        labels=tuple(labels[1:]),
        model_name=name_of(model),
        **sides["before"],
        **sides["after"],
    )


def _side(
    model: LensModel, logits: Tensor, ids: list[int], count: int, name: str
) -> dict[str, Any]:
    """The fields of one run."""
    log_p = finite_logits(at_least_float32(logits))
    log_p = (log_p - log_p.logsumexp(-1, keepdim=True)).cpu()
    own = log_p.gather(-1, torch.tensor(ids, dtype=torch.long, device="cpu")[:, None])
    best = log_p.topk(count)
    return {
        name: own[:, 0],
        f"ranks_{name}": tuple((log_p > own).sum(-1).tolist()),
        f"top_{name}": tuple(
            tuple(model.tokenizer.decode([i]) for i in row) for row in best.indices.tolist()
        ),
        f"top_log_probs_{name}": best.values,
    }
