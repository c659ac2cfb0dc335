"""Localisation: does tracing tell where to edit?"""

import numpy as np

from rome_lens.checks.result import CheckResult, CheckRow, Measure
from rome_lens.errors import ArgumentError
from rome_lens.localisation.results import LayerSweep

NAME = "localisation"
ASKS = "Is the layer that tracing names for a fact a better place to edit it than the layer that is best on average?"


def localisation(
    sweep: LayerSweep, *more: object, measure: str = "EM", shuffles: int = 200, seed: int = 0
) -> CheckResult:
    """What choosing each fact's layer by its trace gains over one layer for all facts.

        effect = mean over facts i of  success_i(argmax_l effect_i(l)) - success_i(l_-i),

    where ``l_-i`` is the layer of the best mean success over all other facts. Control: the same with the trace of another
    fact, averaged over all others. ``further`` and the sentence add the R^2 of the success over facts and layers: of the layer, of
    the trace, of both, what the trace adds, and what another fact's adds (:meth:`LayerSweep.variance_explained`).

    Source: Hase et al. 2023, "Does Localization Inform Editing?"

    Args:
        sweep: of :func:`rome_lens.layer_sweep`. It is of many facts and their edits, so that this check takes nothing beside
            it, unlike the others, which take a model, an edit and a record: these are refused.
        measure: of success, such as ``"EM"`` or ``"S"``.
        shuffles: how often the facts' traces are exchanged for the R^2's control; ``seed`` of it.

    Raises:
        ValueError: something else than a sweep; an unknown measure, or fewer than two facts or layers that it was asked of.
    """
    if more or not isinstance(sweep, LayerSweep):
        given = ", ".join(type(each).__name__ for each in (sweep, *more))
        raise ArgumentError(
            f"localisation was given {given}, expected what rl.layer_sweep(model, records, ...) gives, alone: whether tracing "
            "tells where to edit is asked of many facts, each traced and edited at every layer, and not of one edit."
        )
    explained = sweep.variance_explained(measure, shuffles=shuffles, seed=seed)
    success, effects = sweep.success(measure).numpy(), sweep.effects.numpy()
    asked = ~np.isnan(success).any(1)
    names = [name for name, kept in zip(sweep.names, asked, strict=True) if kept]
    success, traced = success[asked], effects[asked].argmax(1)
    rows = []
    for i, name in enumerate(names):
        others = np.delete(np.arange(len(names)), i)
        usual = int(success[others].mean(0).argmax())
        rows.append(
            CheckRow(
                kind="fact",
                prompt=name,
                answer=f"layer {sweep.layers[usual]} -> {sweep.layers[traced[i]]}",
                before=float(success[i, usual]),
                after=float(success[i, traced[i]]),
                effect=float(success[i, traced[i]] - success[i, usual]),
                control_prompt="layers that other facts' traces name",
                control=float(success[i, traced[others]].mean() - success[i, usual]),
            )
        )
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured=f"{measure} at the layer that is best on average, and at the traced one",
        effect_is=f"{measure} gained by each fact's traced layer",
        control_is="the same by the layers that other facts' traces name",
        rows=tuple(rows),
        further=tuple(
            Measure.of(name, value)
            for name, value in (
                ("R^2 of the layer", explained.layer),
                ("R^2 of the trace's effect", explained.effect),
                ("R^2 of both", explained.both),
                ("R^2 that the effect adds to the layer", explained.added),
                ("R^2 that shuffled facts' effects add", explained.shuffled),
            )
            if value is not None
        ),
    )
    return result.with_reading(
        f"A fact's own traced layer gains {result.effect} of {measure} over the layer that is best on average; layers that other "
        f"facts' traces name, {result.control}. {explained.reading}"
    )
