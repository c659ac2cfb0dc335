"""Does tracing tell where to edit? One fact traced and edited at every layer, for many facts.

Source: Hase et al. 2023, "Does Localization Inform Editing?", where it did not: the layer alone told nearly all of how well
an edit succeeds, and the effect that tracing found there for the same fact hardly anything more.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.corruption import GaussianNoise
from rome_lens.counterfact import CounterFactRecord
from rome_lens.data import Record
from rome_lens.edit_sweeps import EditSweep, sweep_edits
from rome_lens.evaluation import check_targets
from rome_lens.facts import Fact, FactError
from rome_lens.grid import named_layers
from rome_lens.intervals import average, share
from rome_lens.keys import KeyStatistics, StatisticsError
from rome_lens.models import LensModel, fingerprint
from rome_lens.rome import Choice
from rome_lens.sampling import random_contexts
from rome_lens.scores import Evaluation
from rome_lens.storage import Stored
from rome_lens.sweeps import TracedFacts, trace_facts
from rome_lens.value import EditRows, RomeConfig
from rome_lens.variance import VarianceExplained, explain_variance

MEASURES = ("EM", "PM", "NM", "ES", "PS", "NS", "S")
_SHARES = ("ES", "PS", "NS", "S")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LayerSweep(Stored):
    """What :func:`layer_sweep` found: of each fact and layer, the effect of restoring it and the success of editing it.

    Attributes:
        names: of the facts, as the records name them; a bare fact's is its text. ``unknown`` those of the facts left out
            since the model answers otherwise.
        layers: both axes' second.
        effects: indirect effect, the answer's probability restored less corrupted; ``total_effects`` clean less corrupted.
        EM, PM, NM, ES, PS, NS, S: success, as :class:`Evaluation` has it for a record; NaN where it has no prompts for it.
        component, window, at, samples, noise: of the traces; ``model_fingerprint`` of the model.
        edits: what made the edits, as text.
    """

    names: tuple[str, ...]
    unknown: tuple[str, ...]
    layers: tuple[int, ...]
    effects: Float[Tensor, "fact layer"]
    total_effects: Float[Tensor, " fact"]
    EM: Float[Tensor, "fact layer"]
    PM: Float[Tensor, "fact layer"]
    NM: Float[Tensor, "fact layer"]
    ES: Float[Tensor, "fact layer"]
    PS: Float[Tensor, "fact layer"]
    NS: Float[Tensor, "fact layer"]
    S: Float[Tensor, "fact layer"]
    component: str
    window: int
    at: str | int
    samples: int
    noise: str
    edits: str
    model_fingerprint: str

    def __repr__(self) -> str:
        return (
            f"LayerSweep({len(self.names)} facts, {len(self.unknown)} not known, layers {list(self.layers)}, "
            f"{self.component!r}, window={self.window}, at={self.at!r})"
        )

    def success(self, measure: str) -> Float[Tensor, "fact layer"]:
        """The success of a name.

        Raises:
            ValueError: an unknown name.
        """
        if measure not in MEASURES:
            raise ValueError(f"measure is {measure!r}, expected one of {', '.join(map(repr, MEASURES))}.")
        found: Tensor = getattr(self, measure)
        return found

    def variance_explained(self, measure: str = "EM", *, shuffles: int = 200, seed: int = 0) -> VarianceExplained:
        """How much of the success the layer explains, how much the effect, and what the effect adds to the layer.

        R^2 is over all cells (fact, layer), of the least squares fits

            success = a_layer,   success = a + b effect,   success = a_layer + b effect.

        The last is never below the first: what it adds is compared with what it adds when each fact has the whole row of
        effects of a fact drawn at random. Intervals are of a bootstrap over facts. Beside R^2 stands what a user of one
        fact asks: whether its layer of the largest effect is as good as its best.

        Source: Hase et al. 2023, who regress in this way and find that tracing adds next to nothing.

        Args:
            shuffles: how often effects are given to other facts.
            seed: of shuffles and bootstrap.

        Raises:
            ValueError: an unknown measure, or fewer than two facts or layers that it was asked of.
        """
        success = self.success(measure).numpy()
        return explain_variance(self.effects.numpy(), success, measure=measure, shuffles=shuffles, seed=seed)

    def to_frame(self) -> pd.DataFrame:
        """One row for each fact and layer: effect, total effect, and each measure of success."""
        cells = [(i, j) for i in range(len(self.names)) for j in range(len(self.layers))]
        frame = pd.DataFrame(
            {
                "fact": [self.names[i] for i, _ in cells],
                "layer": [self.layers[j] for _, j in cells],
                "effect": self.effects.flatten().tolist(),
                "total_effect": [float(self.total_effects[i]) for i, _ in cells],
            }
        )
        for measure in MEASURES:
            frame[measure] = self.success(measure).flatten().tolist()
        return frame

    def table(self) -> pd.DataFrame:
        """Layers down; mean over the facts of effect and success across, with 95 % intervals.

        What no record asked is left out. S is the mean of the facts' own, not that of :class:`Scores`, which takes the
        harmonic mean of means.
        """
        frame = pd.DataFrame(index=pd.Index(self.layers, name="layer"))
        frame["effect"] = [str(average(column.tolist())) for column in self.effects.T]
        for measure in MEASURES:
            success = asked(self.success(measure))
            if len(success):
                mean = share if measure in _SHARES else average
                frame[measure] = [str(mean(column.tolist())) for column in success.T]
        return frame

    def _repr_html_(self) -> str:
        from rome_lens import viz

        return viz.figure_html(viz.layer_sweep(self))


def asked(success: Float[Tensor, "fact layer"]) -> Float[Tensor, "known layer"]:
    """The rows of the facts of which the success was asked."""
    return success[~success.isnan().any(1)]


def layer_sweep(
    model: LensModel,
    facts: Iterable[Fact | Record | CounterFactRecord],
    *,
    layers: Iterable[int],
    statistics: Mapping[int, KeyStatistics],
    config: RomeConfig = RomeConfig(),
    variant: str = "rome",
    contexts: Sequence[str] | None = None,
    component: str = "mlp",
    window: int = 5,
    at: str | int = "subject_last",
    noise: Any = GaussianNoise(),
    samples: int = 10,
    prepend_bos: bool | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> LayerSweep:
    """Trace each fact at the layers, edit it at each of them, and evaluate each edit. The model is not changed.

    Facts that the model does not know are neither traced nor edited, and named in ``unknown``.

    Source: Hase et al. 2023, who restore windows of MLP outputs at the subject's last token.

    Args:
        facts: with new targets; a bare fact is evaluated on its own prompt only.
        statistics: by layer, such as ``collect_key_statistics(model, layer=(3, 4))`` gives them.
        config, variant, contexts: as for :func:`rome`; None samples contexts once for all facts.
        component, window, noise, samples: as for :func:`causal_trace`.
        at: the position of which effects are taken, as :meth:`CausalTrace.peak` names it.
        prepend_bos: None takes the model's default.
        directory: where each finished trace (in ``traces``) and evaluation (in ``edits``) is written at once; a run broken
            off goes on from there, with the same or with more facts.

    Raises:
        FactError: no fact, one twice, one without a new target or that cannot be asked; the model knows none of them.
        StatisticsError: a layer without statistics, or with those of another layer or model, or singular ones.
        ModelError, ValueError: a layer out of range, otherwise as for :func:`rome`, :func:`trace_facts` and
            :func:`evaluate_all`.
        SweepError: the directory holds traces made otherwise.
    """
    records = _records(facts)
    chosen = tuple(sorted(set(named_layers(model, layers))))
    moments = _moments(model, statistics, chosen, config, variant)
    if contexts is None:
        contexts = random_contexts(model, prepend_bos=prepend_bos)
    for record in records:
        check_targets(model, record)
        EditRows.of(model, record.fact, contexts, prepend_bos)
    traced = trace_facts(
        model,
        [record.fact for record in records],
        component=component,
        window=window,
        noise=noise,
        samples=samples,
        layers=chosen,
        at=at,
        prepend_bos=prepend_bos,
        directory=None if directory is None else Path(directory) / "traces",
        progress=progress,
    )
    if not traced.traces:
        raise FactError(f"The model knows none of the {len(records)} facts. {traced.unknown[0][1]}")
    known = {trace.fact for trace in traced}
    sweep = sweep_edits(
        model,
        [record for record in records if record.fact in known],
        statistics={"by layer": moments},
        stop_probabilities=(config.stop_probability,),
        variants=(variant,),
        config=config,
        contexts=contexts,
        prepend_bos=prepend_bos,
        directory=None if directory is None else Path(directory) / "edits",
        progress=progress,
    )
    return LayerSweep(
        names=tuple(str(record.case_id) for record in records if record.fact in known),
        unknown=tuple(str(record.case_id) for record in records if record.fact not in known),
        layers=chosen,
        component=component,
        window=window,
        at=at,
        samples=samples,
        edits=f"{variant}, {config}, {len(contexts)} contexts, statistics: {moments[chosen[0]].source}",
        model_fingerprint=fingerprint(model),
        **_effects(traced),
        **_successes(sweep, chosen),
    )


def _records(facts: Iterable[Fact | Record | CounterFactRecord]) -> list[CounterFactRecord]:
    """The facts as records; one that was given twice is refused, since it would count twice."""
    records = []
    for fact in facts:
        if isinstance(fact, Fact):
            records.append(CounterFactRecord(case_id=fact.text, fact=fact))
        else:
            records.append(CounterFactRecord.of(fact) if isinstance(fact, Record) else fact)
    if not records:
        raise FactError("The list of facts is empty: give at least one.")
    counts = Counter((record.fact.text, record.fact.target) for record in records)
    if twice := [text for (text, _), count in counts.items() if count > 1]:
        raise FactError(f"Given twice: {', '.join(map(repr, twice))}; a fact counts once.")
    return records


def _moments(
    model: LensModel,
    statistics: Mapping[int, KeyStatistics],
    layers: Sequence[int],
    config: RomeConfig,
    variant: str,
) -> dict[int, KeyStatistics]:
    """The statistics of the layers, where all are there, fit, and can be inverted."""
    if missing := [layer for layer in layers if layer not in statistics]:
        raise StatisticsError(
            f"There are no statistics of the layers {missing}: collect_key_statistics(model, layer={missing}) does them in "
            "one pass."
        )
    for layer in layers:
        found = Choice(statistics=statistics[layer], variant=variant).check(model, layer)
        found.solve(torch.zeros(len(found.moment)), ridge=config.ridge)  # its factor is kept, and the edits use it
    return {layer: statistics[layer] for layer in layers}


def _effects(traced: TracedFacts) -> dict[str, Any]:
    return {
        "effects": torch.stack([trace.indirect_effects[:, 0].double() for trace in traced]),
        "total_effects": torch.tensor([trace.total_effect for trace in traced], dtype=torch.float64),
        "noise": traced.traces[0].noise,
    }


def _successes(sweep: EditSweep, layers: Sequence[int]) -> dict[str, Any]:
    """By measure; a sweep has one setting for each layer here."""
    by_layer = {setting.layer: evaluations for setting, evaluations in sweep.evaluations.items()}
    return {
        measure: torch.tensor(
            [[_value(each, measure) for each in by_layer[layer]] for layer in layers], dtype=torch.float64
        ).T
        for measure in MEASURES
    }


def _value(evaluation: Evaluation, measure: str) -> float:
    value = getattr(evaluation, measure)
    return float("nan") if value is None else float(value)
