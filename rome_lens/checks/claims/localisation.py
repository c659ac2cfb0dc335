"""Localisation: does tracing tell where to edit?"""

import numpy as np

from rome_lens.checks.result import CheckResult, CheckRow, Measure
from rome_lens.errors import ArgumentError
from rome_lens.localisation.results import LayerSweep
from rome_lens.localisation.variance import SuccessMeasure, VarianceExplained

NAME = "localisation"
ASKS = (
    "Is the layer that a fact's trace names a better place to edit it than the layer that is best "
    "on average?"
)
DIFFERENCE = "own trace minus other facts' traces"


def localisation(
    sweep: LayerSweep,
    *more: object,
    measure: SuccessMeasure = "EM",
    shuffles: int = 200,
    seed: int = 0,
) -> CheckResult:
    """What is gained when each fact's layer is chosen by its trace.

        effect = mean over facts i of  success_i(argmax_l effect_i(l)) - success_i(l_-i),

    compared with one layer for all facts: ``l_-i`` is the layer with the best mean success over all
    other facts.

    Control: the same with the trace of another fact, averaged over all other facts. ``further`` has
    the difference of the two, paired by fact. All three have intervals that are clustered by the
    sweep's relations.

    ``further`` and the sentence also give the R^2 of the success over facts and layers that is
    explained by the layer, by the trace, and by both; how much the trace adds; and how much another
    fact's trace adds (:meth:`LayerSweep.variance_explained`).

    Source: Hase et al. 2023, "Does Localization Inform Editing?"

    Args:
        sweep: the result of :func:`rome_lens.layer_sweep`. It covers many facts and their edits.
            The other checks take a model, an edit and a record; this one takes the sweep alone.
        more: nothing. Anything here is refused, with a message that says what was expected.
        measure: a measure of success, such as ``"EM"`` or ``"S"``.
        shuffles: how often the facts' traces are exchanged for the control of R^2.
        seed: seed of the shuffles.

    Raises:
        ArgumentError: ``sweep`` is not a sweep; the measure is unknown, or there are fewer than two
            facts or layers that have it.
    """
    if more or not isinstance(sweep, LayerSweep):
        given = ", ".join(type(each).__name__ for each in (sweep, *more))
        raise ArgumentError(
            f"localisation was given {given}, expected the result of "
            "rl.layer_sweep(model, records, ...) alone. Whether tracing tells where to edit is "
            "asked of many facts, each traced and edited at every layer, and not of one edit."
        )
    explained = sweep.variance_explained(measure, shuffles=shuffles, seed=seed)
    rows = _rows(sweep, measure)
    difference = Measure(
        name=DIFFERENCE,
        values=tuple(
            row.effect - row.control
            for row in rows
            if row.effect is not None and row.control is not None
        ),
        clusters=tuple(row.cluster for row in rows),
    )
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured=f"{measure} at the layer that is best on average, and at the traced layer",
        effect_is=f"{measure} gained by each fact's traced layer",
        control_is="the same by the layers that other facts' traces name",
        rows=tuple(rows),
        further=(difference, *_r_squared(explained)),
    )
    return result.with_reading(
        f"A fact's own traced layer gains {result.effect} of {measure} over the layer that is best "
        f"on average. The layers that other facts' traces name gain {result.control}. "
        f"Paired by fact, its own trace gains {difference.average} more. {explained.reading}"
    )


def _r_squared(explained: VarianceExplained) -> list[Measure]:
    numbers = {
        "R^2 of the layer": explained.layer,
        "R^2 of the trace's effect": explained.effect,
        "R^2 of both": explained.both,
        "R^2 that the effect adds to the layer": explained.added,
        "R^2 that shuffled facts' effects add": explained.shuffled,
    }
    return [Measure.of(name, value) for name, value in numbers.items() if value is not None]


def _rows(sweep: LayerSweep, measure: SuccessMeasure) -> list[CheckRow]:
    """One row for each fact whose edits have the measure."""
    success, effects = sweep.success(measure).numpy(), sweep.effects.numpy()
    clusters = sweep.clusters(sweep.success(measure))
    measured = ~np.isnan(success).any(1)
    names = [name for name, kept in zip(sweep.names, measured, strict=True) if kept]
    success, traced = success[measured], effects[measured].argmax(1)
    rows = []
    for i, name in enumerate(names):
        others = np.delete(np.arange(len(names)), i)
        best = int(success[others].mean(0).argmax())
        rows.append(
            CheckRow(
                kind="fact",
                prompt=name,
                answer=f"layer {sweep.layers[best]} -> {sweep.layers[traced[i]]}",
                before=float(success[i, best]),
                after=float(success[i, traced[i]]),
                effect=float(success[i, traced[i]] - success[i, best]),
                control_prompt="layers that other facts' traces name",
                control=float(success[i, traced[others]].mean() - success[i, best]),
                cluster="" if clusters is None else clusters[i],
            )
        )
    return rows
