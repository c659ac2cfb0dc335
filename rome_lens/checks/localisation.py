"""Localisation: does tracing tell where to edit?"""

import numpy as np

from rome_lens.checks.result import CheckResult, CheckRow
from rome_lens.layer_sweeps import LayerSweep

NAME = "localisation"
ASKS = "Is the layer that tracing names for a fact a better place to edit it than the layer that is best on average?"


def localisation(sweep: LayerSweep, *, measure: str = "EM", shuffles: int = 200, seed: int = 0) -> CheckResult:
    """What choosing each fact's layer by its trace gains over one layer for all facts.

        effect = mean over facts i of  success_i(argmax_l effect_i(l)) - success_i(l_-i),

    where ``l_-i`` is the layer of the best mean success over all other facts. Control: the same with the trace of another
    fact, averaged over all others. The sentence adds the R^2 of the success over facts and layers by layer and trace
    (:meth:`LayerSweep.variance_explained` has them with intervals).

    Source: Hase et al. 2023, "Does Localization Inform Editing?"

    Args:
        sweep: of :func:`rome_lens.layer_sweep`.
        measure: of success, such as ``"EM"`` or ``"S"``.
        shuffles: how often the facts' traces are exchanged for the R^2's control; ``seed`` of it.

    Raises:
        ValueError: an unknown measure, or fewer than two facts or layers that it was asked of.
    """
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
    )
    return result.with_reading(
        f"A fact's own traced layer gains {result.effect} of {measure} over the layer that is best on average; layers that other "
        f"facts' traces name, {result.control}. {explained.reading}"
    )
