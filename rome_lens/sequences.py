"""Several edits as one: made one after the other on the model as already edited, applied, saved and exported together."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens import applying
from rome_lens.arguments import templates
from rome_lens.edits import Edit, LayerEdit, RankOneEdit
from rome_lens.facts import Fact, FactError, check_fact
from rome_lens.keys import KeyStatistics
from rome_lens.models import LensModel, mlp_output
from rome_lens.rome import rome
from rome_lens.tokens import encode
from rome_lens.value import RomeConfig


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Edits(Edit):
    """Edits that come and go together, in this order: ``W_out + delta_1 + delta_2 + ...`` at each layer.

    What one edit can do, several can: ``applied``, ``apply`` and ``revert``, ``fwd_hooks``, ``row_hooks`` (all of
    them on one row), ``state_dict``, ``save`` and ``load`` (one file).

    Attributes:
        edits: the edits, each of one layer; of several given as one, its parts.
    """

    edits: tuple[LayerEdit, ...]

    def __post_init__(self) -> None:
        edits = tuple(self.edits)
        for edit in edits:
            if not isinstance(edit, Edit):
                raise ValueError(f"edits holds {edit!r}, expected edits, such as what rome(...) gives.")
        object.__setattr__(self, "edits", tuple(part for edit in edits for part in edit.parts))
        if not self.edits:
            raise ValueError("edits is empty, expected at least one edit.")

    def __repr__(self) -> str:
        return f"Edits({len(self.edits)} at layers {sorted({edit.layer for edit in self.edits})})"

    @property
    def parts(self) -> tuple[LayerEdit, ...]:
        return self.edits

    def kept(self, model: LensModel) -> Float[Tensor, " edit"]:
        """How far the weights with all the edits miss each edit's own mapping, relative to what that edit had changed.

            || k_i* W_out + b_out - v_i* ||  /  || (u_i . k_i*) v_i ||

        0: ``k_i*`` is still mapped to ``v_i*``. Later edits at the same layer add ``(u_j . k_i*) v_j`` to what it is mapped
        to, so that the last edit of a layer has 0 and the earlier ones, in general, not; at 1 the disturbance is as large as
        the edit itself was. ``k_i*`` is the key at the time of the edit: that edits at earlier layers also move the
        keys which the model then computes is not in this number.

        Raises:
            ValueError: an edit does not name its key and value.
            ModelError: as :meth:`applied` says.
        """
        gaps = []
        with ExitStack() as stack:
            for edit in self.edits:
                if not applying.in_weights(model, edit):
                    stack.enter_context(edit.applied(model))
            for edit in self.edits:
                if not isinstance(edit, RankOneEdit) or edit.key is None or edit.value is None:
                    raise ValueError(f"{edit!r} does not name its key k* and value v*: there is no mapping to keep.")
                missed = mlp_output(model, edit.layer, edit.key) - edit.value
                gaps.append(missed.norm() / ((edit.u @ edit.key) * edit.v).norm())
        return torch.stack(gaps)


def rome_sequence(
    model: LensModel,
    facts: Iterable[Fact],
    *,
    layer: int,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: str = "rome",
    prepend_bos: bool | None = None,
) -> Edits:
    """:func:`rome` for one fact after the other, each on the model as the edits before have left it.

    The weights are edited meanwhile and come back bit for bit; apply the result to edit them. At one layer the deltas add up,

        W_out + u_1 v_1T + ... + u_n v_nT,

    where ``v_i = (v_i* - k_i* (W_out + sum_{j<i} u_j v_jT) - b_out) / (u_i . k_i*)``: each edit closes the gap that the
    ones before have left at its own key, and disturbs theirs; :meth:`Edits.kept` measures by how much.

    Args:
        facts: in their order, each with a new target.
        layer, statistics, contexts, config, variant, prepend_bos: as for :func:`rome`, the same for all; contexts of None
            are sampled anew for each from the model as edited by then. The statistics stay those given: edits at their
            own layer do not change its keys.

    Raises:
        FactError: there is no fact, or one has no new target or cannot be encoded; before anything is computed.
        StatisticsError, ModelError, OptimisationError: as for :func:`rome`.
    """
    if isinstance(facts, Fact):
        raise FactError(f"facts is the one fact {facts.text!r}, expected a list of them: write [fact], or rl.rome.")
    facts = [check_fact(fact) for fact in facts]
    contexts = None if contexts is None else templates(contexts)
    if not facts:
        raise FactError("facts is empty, expected at least one fact with a new target.")
    for i, fact in enumerate(facts):
        if fact.new_target is None:
            raise FactError(f"Fact {i}, {fact.text!r}, has no new target: Fact(..., new_target='Rome').")
        encode(model, fact, prepend_bos=prepend_bos)
    edits: list[RankOneEdit] = []
    with ExitStack() as before:
        for fact in facts:
            edit = rome(
                model,
                fact,
                layer=layer,
                statistics=statistics,
                contexts=contexts,
                config=config,
                variant=variant,
                prepend_bos=prepend_bos,
            )
            edits.append(edit)
            before.enter_context(edit.applied(model))
    return Edits(edits=tuple(edits))
