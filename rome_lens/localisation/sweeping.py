"""Does tracing tell where to edit? One fact traced and edited at every layer, for many facts.

Source: Hase et al. 2023, "Does Localization Inform Editing?", where it did not: the layer alone told nearly all of how well
an edit succeeds, and the effect that tracing found there for the same fact hardly anything more.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.rank_one import Choice
from rome_lens.editing.value_optimisation import EditRows
from rome_lens.evaluation.evaluating import check_prompts
from rome_lens.evaluation.results import Evaluation
from rome_lens.evaluation.settings_sweep import EditSweep, sweep_edits
from rome_lens.keys.collecting import collect_key_statistics
from rome_lens.keys.statistics import KeyStatistics, StatisticsError
from rome_lens.localisation.results import MEASURES, LayerSweep
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel, named_layers
from rome_lens.tracing.many_facts import TracedFacts, trace_facts
from rome_lens.tracing.noise import GaussianNoise


def layer_sweep(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layers: Iterable[int],
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None = None,
    config: RomeConfig = RomeConfig(),
    variant: Variant = "rome",
    contexts: Sequence[str] | None = None,
    component: Component = "mlp",
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
        facts: one or several, with new targets; a bare fact is evaluated on its own prompt only.
        statistics: by layer, such as ``collect_key_statistics(model, layer=(3, 4))`` gives them. None collects just these, from
            samples of the model's own, which takes minutes on a model of some size; they are kept in ``directory/keys``.
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
        StoreError: the directory holds traces made with other settings.
    """
    records = _records(facts)
    chosen = tuple(sorted(set(named_layers(model, layers))))
    parts = (
        dict.fromkeys(("keys", "traces", "edits"))
        if directory is None
        else _directories(Path(directory))
    )
    given = {statistics.layer: statistics} if isinstance(statistics, KeyStatistics) else statistics
    if given is not None:
        _check_statistics(model, given, chosen, config, variant)
    if contexts is None:
        contexts = random_contexts(model, prepend_bos=prepend_bos)
    for record in records:
        check_prompts(model, record, prepend_bos=prepend_bos)
        EditRows.of(model, record.fact, contexts, prepend_bos)
    if given is None:
        given = collect_key_statistics(model, layer=chosen, cache=parts["keys"], progress=progress)
        _check_statistics(model, given, chosen, config, variant)
    moments = {layer: given[layer] for layer in chosen}
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
        directory=parts["traces"],
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
        directory=parts["edits"],
        progress=progress,
    )
    return LayerSweep(
        names=tuple(str(record.id) for record in records if record.fact in known),
        unknown=tuple(str(record.id) for record in records if record.fact not in known),
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


def _records(facts: Fact | Record | Iterable[Fact | Record]) -> list[Record]:
    """The facts as records; one that was given twice is refused, since it would count twice."""
    records = [with_new_target(record) for record in as_records(facts)]
    counts = Counter((record.fact.text, record.fact.target) for record in records)
    if twice := [text for (text, _), count in counts.items() if count > 1]:
        raise FactError(f"Given twice: {', '.join(map(repr, twice))}; a fact counts once.")
    return records


def _directories(directory: Path) -> dict[str, Path]:
    return {part: directory / part for part in ("keys", "traces", "edits")}


def _check_statistics(
    model: LensModel,
    statistics: Mapping[int, KeyStatistics],
    layers: Sequence[int],
    config: RomeConfig,
    variant: Variant,
) -> None:
    """All layers are there, fit, and can be inverted."""
    if missing := [layer for layer in layers if layer not in statistics]:
        raise StatisticsError(
            f"There are no statistics of the layers {missing}: collect_key_statistics(model, layer={missing}) does them in "
            "one pass."
        )
    for layer in layers:
        found = Choice(statistics=statistics[layer], variant=variant).check(model, layer)
        found.solve(
            torch.zeros(len(found.moment)), ridge=config.ridge
        )  # its factor is kept, and the edits use it


def _effects(traced: TracedFacts) -> dict[str, Any]:
    return {
        "effects": torch.stack([trace.indirect_effects[:, 0].double() for trace in traced]),
        "total_effects": torch.tensor(
            [trace.total_effect for trace in traced], dtype=torch.float64
        ),
        "noise": traced.traces[0].noise,
    }


def _successes(sweep: EditSweep, layers: Sequence[int]) -> dict[str, Any]:
    """By measure; a sweep has one setting for each layer here."""
    by_layer = {setting.layer: evaluations for setting, evaluations in sweep.evaluations.items()}
    return {
        measure: torch.tensor(
            [[_value(each, measure) for each in by_layer[layer]] for layer in layers],
            dtype=torch.float64,
        ).T
        for measure in MEASURES
    }


def _value(evaluation: Evaluation, measure: str) -> float:
    value = getattr(evaluation, measure)
    return float("nan") if value is None else float(value)
