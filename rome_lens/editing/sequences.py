"""Several edits as one: made one after the other on the model as already edited, applied, saved and exported together."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from rome_lens.arguments import templates
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_facts
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.edit import Edits, RankOneEdit
from rome_lens.editing.rank_one import rome
from rome_lens.forward.tokens import encode
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.lens import LensModel


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
    facts = as_facts(facts)
    contexts = None if contexts is None else templates(contexts)
    for i, fact in enumerate(facts):
        if fact.new_target is None:
            raise FactError(
                f"Fact {i}, {fact.text!r}, has no new target: Fact(..., new_target='Rome')."
            )
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
