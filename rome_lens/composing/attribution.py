"""Direct logit attribution: what each component adds to the difference of two answers' logits."""

from collections.abc import Sequence
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
from rome_lens.forward.runs import agreement
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import name_of
from rome_lens.models.hook_names import Hook, component_hook, resid_pre_hook
from rome_lens.models.lens import LensModel, ModelError, final_norm, unembedding
from rome_lens.results import Stored


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LogitAttribution(Stored):
    """The result of :func:`direct_logit_attribution`: each component's part of a difference."""

    axes: ClassVar = {"component": "components"}

    fact: Fact
    """The fact that is asked."""
    components: tuple[str, ...]
    """``"embed"``, then attention and MLP of each layer, such as ``"3 mlp"``."""
    answers: tuple[str, ...]
    """The true and the new answer's token whose logits are compared."""
    before: Float[Tensor, " component"]
    """What each component adds to the new answer's logit minus the true one's, without the edit."""
    after: Float[Tensor, " component"]
    """The same with the edit."""
    total_before: float
    """The difference of the logits without the edit: the sum of ``before``, and what the norm's and
    the unembedding's biases add."""
    total_after: float
    """The same with the edit."""
    edited_layers: tuple[int, ...]
    """The layers that the edit changes."""
    model_name: str = ""
    """The name of the model, for titles."""

    def to_frame(self) -> pd.DataFrame:
        """One row for each component: its part before and after, and the change."""
        return pd.DataFrame(
            {
                "component": self.components,
                "before": self.before.tolist(),
                "after": self.after.tolist(),
                "change": (self.after - self.before).tolist(),
            }
        )


@visits_model
def direct_logit_attribution(
    model: LensModel,
    edit: Any,
    fact: Fact | Record | None = None,
    *,
    prepend_bos: bool | None = None,
) -> LogitAttribution:
    """What each component adds to ``logit(new) - logit(true)`` at the last position.

    The last residual stream is a sum of components. The final norm is linear once its scale is held
    at that of the whole stream, so the difference of two logits is a sum too:

        logit(new) - logit(true) = sum_c (W_U[new] - W_U[true]) . A c / scale + biases.

    ``A`` holds the norm's weights and, for LayerNorm, takes the mean off. TransformerLens'
    ``cache.logit_attrs`` gives the same on a model whose norm is folded into its unembedding. On an
    unprocessed model it leaves the norm's weights out; this function does not. A soft cap on the
    logits (Gemma 2) comes after and is left out.

    Args:
        edit, fact, prepend_bos: as for :func:`rome_lens.logit_lens`.

    Raises:
        ArgumentError: there is no fact, it has no new target, or its answers do not part.
        ModelError: the edit was made on another model or is already in the weights; or the model's
            stream is not the sum of its components.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.records(known_by="toy")[0]
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=identity, contexts=["{}"])
        >>> parts = rl.direct_logit_attribution(model, edit)
        >>> parts.before.shape, parts.total_before < 0.0 < parts.total_after
        (torch.Size([13]), True)
    """
    hooks = hooks_of(model, edit)
    asked = answer_tokens(model, edit, fact, prepend_bos)
    before, total_before = _parts(model, asked, ())
    after, total_after = _parts(model, asked, hooks)
    layers = range(model.cfg.n_layers)
    return LogitAttribution(
        fact=asked.fact,
        components=("embed", *(f"{i} {part}" for i in layers for part in ("attn", "mlp"))),
        answers=asked.answers,
        before=before,
        after=after,
        total_before=total_before,
        total_after=total_after,
        edited_layers=edited_layers(edit),
        model_name=name_of(model),
    )


def _parts(
    model: LensModel, asked: AnswerTokens, hooks: Sequence[Hook]
) -> tuple[Float[Tensor, " component"], float]:
    """Each component's part of the difference, and the whole difference with its biases."""
    layers = range(model.cfg.n_layers)
    last = component_hook("resid", model.cfg.n_layers - 1)
    names = [
        resid_pre_hook(0),
        *(component_hook(part, i) for i in layers for part in ("attn", "mlp")),
    ]
    kept, _ = states(model, asked.ids, [*names, last], hooks)
    components = torch.stack([kept[name][-1] for name in names]).double()
    stream = kept[last][-1].double()
    if not torch.allclose(
        components.sum(0), stream, atol=agreement(kept[last].dtype) * float(stream.abs().max())
    ):
        raise ModelError(
            "The model's residual stream is not the sum of its embedding, attentions and MLPs, so "
            "there is no direct logit attribution of it."
        )
    weight, bias = unembedding(model)
    direction = (weight[:, asked.new] - weight[:, asked.true]).double()
    offset = float(bias[asked.new] - bias[asked.true])
    odd, even = _halves(model, torch.stack([stream, *components]))
    scales = _scales(model, torch.stack([stream, *components]))
    parts = (odd[1:] @ direction) * scales[1:] / scales[0]
    return parts.float().cpu(), float((odd[0] + even[0]) @ direction) + offset


def _halves(
    model: LensModel, rows: Float[Tensor, "row d_model"]
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, "row d_model"]]:
    """The norm of rows, divided into what is odd in the row, ``A x / scale(x)``, and its bias.

    The scale of ``x`` is that of ``-x``.
    """
    dtype = next(iter(model.parameters())).dtype
    with torch.no_grad():
        both = final_norm(model, torch.stack([rows, -rows]).to(dtype)).double()
    return (both[0] - both[1]) / 2, (both[0] + both[1]) / 2


def _scales(model: LensModel, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
    """The scale that the final norm divides each row by; ones where the model has no such norm."""
    if getattr(model, "ln_final", None) is None:
        return torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    kind = str(getattr(model.cfg, "normalization_type", "") or "")
    centred = rows if kind.startswith("RMS") else rows - rows.mean(-1, keepdim=True)
    return (centred.pow(2).mean(-1) + float(model.cfg.eps)).sqrt()
