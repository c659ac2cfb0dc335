"""Several edits as one: made in turn on the edited model, then applied and saved together."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import several, templates
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_facts
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.edit import Edit, LayerEdit
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.rome_method import rome
from rome_lens.editing.weight_edit import WeightEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import encode
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, mlp_output

_SAME = 0.05


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Edits(Edit):
    """Several edits that are applied and reverted together: ``W_out + delta_1 + delta_2 + ...``

    Several edits can do what one edit can: ``applied``, ``apply`` and ``revert``, ``fwd_hooks``,
    ``row_hooks`` (all of them on one row), ``state_dict``, ``save`` and ``load`` (one file).

    Raises:
        ArgumentError: there is no edit, or an entry is not an edit.
    """

    edits: tuple[LayerEdit, ...]
    """The edits in their order, each of one layer. An ``Edits`` among them stands for its parts."""

    def __post_init__(self) -> None:
        edits = several("edits", self.edits, "several edits, such as [rome(...), rome(...)]")
        for edit in edits:
            if not isinstance(edit, Edit):
                raise ArgumentError(
                    f"edits holds {edit!r}, expected edits, such as rome(...) returns."
                )
        object.__setattr__(self, "edits", tuple(part for edit in edits for part in edit.parts))
        if not self.edits:
            raise ArgumentError("edits is empty, expected at least one edit.")
        super().__post_init__()

    def __repr__(self) -> str:
        return f"Edits({len(self.edits)} at layers {sorted({edit.layer for edit in self.edits})})"

    @property
    def parts(self) -> tuple[LayerEdit, ...]:
        return self.edits

    @visits_model
    def is_applied(self, model: LensModel) -> bool:
        """Whether the model's own weights carry all the edits, by ``apply`` or in another way."""
        others = {id(part) for part in self.parts_of_weights(model)}
        return all(id(part) in others or part.is_applied(model) for part in self.parts)

    @visits_model
    def parts_of_weights(self, model: LensModel) -> list[LayerEdit]:
        """The parts that the weights carry other than by ``apply``, as after loading them.

        Parts of one layer that overlap much hide each other. So they are recognised together too.
        """
        found = {id(part) for part in super().parts_of_weights(model)}
        for layer in {part.layer for part in self.parts}:
            own = [part for part in self.parts if part.layer == layer]
            if _are_part_of_weights(model, own):
                found |= {id(part) for part in own}
        return [part for part in self.parts if id(part) in found]

    @visits_model
    def kept(self, model: LensModel) -> Float[Tensor, " edit"]:
        """How far the weights with all edits miss each edit's own mapping.

            || k_i* W_out + b_out - v_i* ||  /  || (u_i . k_i*) v_i ||

        The number is relative to what that edit had changed. At 0, ``k_i*`` is still mapped to
        ``v_i*``. At 1, the disturbance is as large as the edit itself was. Later edits at the same
        layer add ``(u_j . k_i*) v_j`` to the output for ``k_i*``. So the last edit of a layer has
        0, and the earlier ones generally do not. ``k_i*`` is the key at the time of the edit. Edits
        at earlier layers also move the keys that the model computes, which this number does not
        show.

        Raises:
            ArgumentError: an edit does not name its key and value.
            ModelError: as for :meth:`applied`.
        """
        gaps = []
        with ExitStack() as stack:
            for edit in self.edits:
                if not edit.is_applied(model):
                    stack.enter_context(edit.applied(model))
            for edit in self.edits:
                if not isinstance(edit, RankOneEdit) or edit.key is None or edit.value is None:
                    raise ArgumentError(
                        f"{edit!r} does not name its key k* and value v*, so there is no mapping "
                        "to compare with. rome(...) returns edits that do."
                    )
                missed = mlp_output(model, edit.layer, edit.key) - edit.value
                gaps.append(missed.norm() / ((edit.u @ edit.key) * edit.v).norm())
        return torch.stack(gaps)


def _are_part_of_weights(model: LensModel, edits: Sequence[LayerEdit]) -> bool:
    """Whether the weights have moved by exactly these rank-one edits of one layer.

    If they have moved by ``sum_j c_j delta_j`` since the edits were made, edit ``i`` sees it as
    ``sum_j c_j <delta_j, delta_i> / ||delta_i||^2``. The edits are there if every ``c_j`` is 1.
    """
    ranks = [edit for edit in edits if isinstance(edit, RankOneEdit)]
    moved = [
        now - edit.alignment
        for edit in ranks
        if edit.alignment is not None
        and edit.has_place_in(model)
        and (now := edit.alignment_in(model)) is not None
    ]
    if len(moved) < len(edits):
        return False
    u, v = (torch.stack([getattr(edit, name).double() for edit in ranks]) for name in "uv")
    products = (u @ u.T) * (v @ v.T)
    shares = torch.tensor(moved, dtype=torch.float64, device="cpu")
    counts = torch.linalg.lstsq(products / products.diag()[:, None], shares[:, None]).solution
    return bool(((counts - 1.0).abs() < _SAME).all())


@visits_model
def rome_sequence(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layer: int,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Iterable[str] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: Variant = "rome",
    prepend_bos: bool | None = None,
) -> Edits:
    """One :func:`rome` edit for each fact, each made on the model with the earlier edits applied.

    The weights are edited during the call and come back bit for bit. Apply the result to edit the
    model. At one layer the deltas add up,

        W_out + u_1 v_1^T + ... + u_n v_n^T,

    where ``v_i = (v_i* - k_i* (W_out + sum_{j<i} u_j v_j^T) - b_out) / (u_i . k_i*)``. Each edit
    closes the gap that the earlier ones have left at its own key, and disturbs their mappings.
    :meth:`Edits.kept` measures by how much.

    Args:
        model: the model to edit.
        facts: the facts in their order, each with a new target.
        layer, statistics, config, variant, prepend_bos: as for :func:`rome`, and the same for all
            facts. The statistics stay the same throughout, because edits do not change the keys of
            their own layer.
        contexts: as for :func:`rome`. With None, new contexts are sampled for each fact from the
            model as edited so far.

    Raises:
        FactError: there is no fact, or a fact has no new target or cannot be encoded. This is
            checked before anything is computed.
        ArgumentError, StatisticsError, ModelError, OptimisationError: as for :func:`rome`.
    """
    facts = as_facts(facts)
    contexts = None if contexts is None else templates(contexts)
    for i, fact in enumerate(facts):
        if fact.new_target is None:
            raise FactError(
                f"Fact {i}, {fact.text!r}, has no new target: Fact(..., new_target='Rome')."
            )
        encode(model, fact, prepend_bos=prepend_bos)
    edits: list[RankOneEdit] = []
    with ExitStack() as earlier:
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
            earlier.enter_context(edit.applied(model))
    return Edits(edits=tuple(edits))


@visits_model
def sequence_of_what_can_be_edited(
    model: LensModel, facts: Iterable[Fact | Record], **options: Any
) -> tuple[Edits, list[FactError | OptimisationError]]:
    """As :func:`rome_sequence`, but a fact that cannot be edited is left out.

    That is one whose optimisation diverges, or that the model as edited so far answers with the new
    target already. The earlier edits are in the weights as one matrix, so that many of them cost no
    more time than few.

    Returns:
        The edits, and the errors of the facts that were left out.

    Raises:
        OptimisationError: no fact could be edited.
    """
    edits: list[RankOneEdit] = []
    errors: list[FactError | OptimisationError] = []
    total: WeightEdit | None = None
    for fact in as_facts(facts):
        try:
            with nullcontext() if total is None else total.applied(model):
                edit = rome(model, fact, **options)
        except (FactError, OptimisationError) as error:
            errors.append(error.with_traceback(None))
            continue
        edits.append(edit)
        delta = edit.delta if total is None else total.delta + edit.delta
        total = WeightEdit(layer=edit.layer, delta=delta)
    if not edits:
        raise OptimisationError(f"None of the facts could be edited. The first error: {errors[0]}")
    return Edits(edits=tuple(edits)), errors


def one_matrix_per_layer(edit: Edit) -> Edits:
    """The same change as one dense edit of each layer, which acts as fast as a single edit does."""
    deltas: dict[int, Tensor] = {}
    for part in edit.parts:
        delta = part.delta.double()
        deltas[part.layer] = deltas[part.layer] + delta if part.layer in deltas else delta
    first = edit.parts[0]
    return Edits(
        edits=tuple(
            WeightEdit(
                layer=layer,
                delta=delta.to(first.tensors[0].dtype),
                model_fingerprint=first.model_fingerprint,
            )
            for layer, delta in sorted(deltas.items())
        )
    )
