"""The target of each fact: what the block's output must be at the subject to give the new target.

    z = h + delta

``h`` is the residual stream after the last edited layer, at the lookup position of the bare prompt.
That is the subject's last token, unless :attr:`RomeConfig.lookup` names another one. ``delta`` is
optimised as in ROME (``value_optimisation.py``), several facts side by side.

Source: Meng et al. 2023, section 4.3 ("obtaining target representations").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from rome_lens.data.facts import Fact, FactError
from rome_lens.editing.config import RomeConfig
from rome_lens.editing.edited_layer import EditedLayer
from rome_lens.editing.fact_batches import batches_in_memory
from rome_lens.editing.matched import p_true_answer
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.prompts import EditRows
from rome_lens.editing.value_optimisation import OptimisedValue, optimised_values
from rome_lens.forward.identity import model_identity
from rome_lens.forward.partial import ResumeError
from rome_lens.forward.runs import differentiable, differentiating, weights_laid_out
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import has_hooks
from rome_lens.models.lens import LensModel, device


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one fact needs."""

    fact: Fact
    """The fact."""
    rows: EditRows
    """Its token rows."""
    start: Float[Tensor, " d_model"]
    """``h``, the block's output for the bare prompt, at the subject's last token."""
    optimised: OptimisedValue
    """``delta``, and how it was found."""

    @property
    def value(self) -> Float[Tensor, " d_model"]:
        """``z = h + delta``."""
        return self.start + self.optimised.delta


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """What the target of a fact depends on, besides the fact and the model."""

    layer: int
    """The last edited layer."""
    contexts: tuple[str, ...]
    """Templates around the prompt."""
    config: RomeConfig
    """Hyperparameters of the optimisation."""
    prepend_bos: bool
    """Whether prompts start with a BOS token."""


Found: TypeAlias = Target | FactError | OptimisationError
"""The target of a fact, or the error where there is none."""


class TargetMemory:
    """The targets of one model's facts, for methods that differ only in the update.

    It holds those of one model at a time, on one device and with the weights that it has. Nothing
    is remembered of a model with hooks, because they may change at any time, nor of a fact that has
    no target.
    """

    def __init__(self) -> None:
        self._model = ""
        self._targets: dict[tuple[TargetSettings, Fact], Target] = {}

    @visits_model
    def targets(
        self, model: LensModel, facts: Sequence[Fact], settings: TargetSettings
    ) -> list[Found]:
        """What :func:`optimised_targets` returns. Only facts that are not known are optimised."""
        if has_hooks(model):
            return optimised_targets(model, facts, settings)
        identity = f"{device(model)} {model_identity(model)}"
        if identity != self._model:
            self._model, self._targets = identity, {}
        missing = [fact for fact in facts if (settings, fact) not in self._targets]
        new = dict(zip(missing, optimised_targets(model, missing, settings), strict=True))
        found = [new.get(fact) or self._targets[settings, fact] for fact in facts]
        self._targets |= {
            (settings, fact): each for fact, each in new.items() if isinstance(each, Target)
        }
        return found


@visits_model
def optimised_targets(
    model: LensModel, facts: Sequence[Fact], settings: TargetSettings
) -> list[Found]:
    """The target of each fact after a layer, or the error where there is none.

    Each fact is optimised alone, on the model as it is now.
    """
    layer, config = settings.layer, settings.config
    contexts, prepend_bos = settings.contexts, settings.prepend_bos
    found: list[Found | None] = [None] * len(facts)
    rows: dict[int, EditRows] = {}
    for i, fact in enumerate(facts):
        try:
            rows[i] = EditRows.of(model, fact, contexts, prepend_bos, config.lookup)
        except FactError as error:
            found[i] = error
    with differentiating(model):
        model = differentiable(model)
        matched: dict[int, float | None] = dict.fromkeys(rows)
        if config.stop == "matched":
            matched = {
                i: p_true_answer(model, facts[i], contexts, prepend_bos, null=False) for i in rows
            }
        with weights_laid_out(model):
            for batch in batches_in_memory(model, rows, layer):
                optimised = _optimised(
                    model, [rows[i] for i in batch], layer, config, [matched[i] for i in batch]
                )
                for i, (start, value) in zip(batch, optimised, strict=True):
                    found[i] = (
                        value
                        if isinstance(value, OptimisationError)
                        else Target(fact=facts[i], rows=rows[i], start=start, optimised=value)
                    )
    return [each for each in found if each is not None]


def _optimised(
    model: LensModel,
    rows: Sequence[EditRows],
    layer: int,
    config: RomeConfig,
    matched: Sequence[float | None],
    *,
    later_positions: bool = True,
) -> list[tuple[Tensor, OptimisedValue | OptimisationError]]:
    """For each fact, ``h`` and the optimised change."""
    state = EditedLayer.of(model, rows, layer, site="block", later_positions=later_positions)
    try:
        values = optimised_values(state, rows, [config], matched)
    except ResumeError:
        if state.rows.pasts is None:
            raise
        return _optimised(model, rows, layer, config, matched, later_positions=False)
    return [(start, value) for start, (value,) in zip(state.starts, values, strict=True)]
