"""The logit lens: what the model would answer after each layer, without and with an edit."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.composing.runs import (
    AnswerTokens,
    answer_tokens,
    edited_layers,
    hooks_of,
    states,
)
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.forward.readout import logits_of_rows
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import name_of
from rome_lens.models.hook_names import Hook, component_hook, resid_pre_hook
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LogitLens(Stored):
    """The result of :func:`logit_lens`: both answers' probabilities after each layer."""

    axes: ClassVar = {"state": "states"}

    fact: Fact
    """The fact that is asked."""
    states: tuple[str, ...]
    """The states of the residual stream at the last position: ``"embed"``, then each layer."""
    answers: tuple[str, ...]
    """The true and the new answer's token that are compared."""
    before: Float[Tensor, "state answer"]
    """The probabilities of the true and of the new answer without the edit."""
    after: Float[Tensor, "state answer"]
    """The same with the edit."""
    top_before: tuple[str, ...]
    """The likeliest token after each state, without the edit."""
    top_after: tuple[str, ...]
    """The same with the edit."""
    edited_layers: tuple[int, ...]
    """The layers that the edit changes."""
    model_name: str = ""
    """The name of the model, for titles."""

    @property
    def takes_over(self) -> str | None:
        """The first state from which on the new answer stays likelier with the edit; None if none.

        The lens reads every state with the final norm and unembedding, which fit the last ones.
        """
        ahead = (self.after[:, 1] > self.after[:, 0]).tolist()
        if not ahead[-1]:
            return None
        last_behind = max((i for i, each in enumerate(ahead) if not each), default=-1)
        return self.states[last_behind + 1]

    def to_frame(self) -> pd.DataFrame:
        """One row for each state: both probabilities and the likeliest token, before and after."""
        columns: dict[str, Any] = {"state": self.states}
        for name, values in (("before", self.before), ("after", self.after)):
            for i, answer in enumerate(("true", "new")):
                columns[f"p({answer}), {name}"] = values[:, i].tolist()
        return pd.DataFrame(
            {**columns, "top, before": self.top_before, "top, after": self.top_after}
        )


@visits_model
def logit_lens(
    model: LensModel,
    edit: Any,
    fact: Fact | Record | None = None,
    *,
    prepend_bos: bool | None = None,
) -> LogitLens:
    """What the model would answer after each layer: ``softmax(W_U norm(h_l) + b_U)``, at the end.

    The numbers are those of TransformerLens' ``cache.accumulated_resid(apply_ln=True)`` and
    ``unembed``, in a run without and in one with the edit.

    Args:
        edit: an edit with ``fwd_hooks``; None compares the model with itself.
        fact: the fact to ask, with a new target. None takes the edit's own.
        prepend_bos: whether the prompt starts with BOS; None takes the model's default.

    Returns:
        Probabilities ``Float[Tensor, "state answer"]`` before and after, the true answer first. If
        the answers begin with the same tokens, those are given to the model, and the first ones
        that differ are compared.

    Raises:
        ArgumentError: there is no fact, it has no new target, or its answers do not part.
        ModelError: the edit was made on another model, or is already in the weights.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.records(known_by="toy")[0]
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=identity, contexts=["{}"])
        >>> lens = rl.logit_lens(model, edit)
        >>> lens.before.shape, lens.top_before[-1], lens.top_after[-1]
        (torch.Size([7, 2]), ' Pralec', ' Ondavel')
    """
    hooks = hooks_of(model, edit)
    asked = answer_tokens(model, edit, fact, prepend_bos)
    names = [resid_pre_hook(0), *(component_hook("resid", i) for i in range(model.cfg.n_layers))]
    before, top_before = _read(model, asked, names, ())
    after, top_after = _read(model, asked, names, hooks)
    return LogitLens(
        fact=asked.fact,
        states=("embed", *map(str, range(model.cfg.n_layers))),
        answers=asked.answers,
        before=before,
        after=after,
        top_before=top_before,
        top_after=top_after,
        edited_layers=edited_layers(edit),
        model_name=name_of(model),
    )


def _read(
    model: LensModel, asked: AnswerTokens, names: list[str], hooks: Any
) -> tuple[Float[Tensor, "state answer"], tuple[str, ...]]:
    """The two answers' probabilities, and the likeliest tokens, after each of the named states."""
    kept, _ = states(model, asked.ids, names, list[Hook](hooks))
    with torch.no_grad():
        logits = logits_of_rows(model, torch.stack([kept[name][-1] for name in names]))
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    top = [model.tokenizer.decode([i]) for i in logits.argmax(-1).tolist()]
    return log_p[:, [asked.true, asked.new]].exp().cpu(), tuple(top)
