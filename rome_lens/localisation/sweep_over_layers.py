"""Does tracing tell where to edit? ``layer_sweep`` traces and edits facts at every layer.

Source: Hase et al. 2023, "Does Localization Inform Editing?", who report for GPT-J that the layer
alone explains nearly all of an edit's success, and that the effect found by tracing adds little.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from rome_lens.arguments import one_of, templates
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.data.relations import relation_of
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.prompts import EditRows
from rome_lens.editing.side_by_side import Choice
from rome_lens.evaluation.evaluating import check_prompts
from rome_lens.evaluation.results import Evaluation
from rome_lens.evaluation.settings_sweep import EditSweep, sweep_edits
from rome_lens.keys.collecting import collect_key_statistics
from rome_lens.keys.statistics import KeyStatistics, StatisticsError
from rome_lens.localisation.results import MEASURES, LayerSweep, Place
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint, name_of
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel, named_layers
from rome_lens.tracing.many_facts import TracedFacts, trace_facts
from rome_lens.tracing.noise import GaussianNoise, Noise
from rome_lens.tracing.positions import position_of
from rome_lens.tracing.results import CausalTrace

Without = Literal["identity"]
"""Key statistics that are left out on purpose: ``C = I``."""
_WINDOW = 5


@visits_model
def layer_sweep(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layers: Iterable[int] | None = None,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | Without | None = "identity",
    config: RomeConfig = RomeConfig(),
    variant: Variant = "rome",
    contexts: Sequence[str] | None = None,
    component: Component = "mlp",
    window: int | None = None,
    at: Place = "site",
    noise: Noise = GaussianNoise(),
    samples: int = 10,
    prepend_bos: bool | None = None,
    directory: str | Path | None = None,
    progress: bool = True,
) -> LayerSweep:
    """The effect of restoring each layer and the success of editing it, for one or many facts.

    Every fact is traced, edited at each of the layers, and each edit is evaluated. The model is
    left as it was. Facts that the model does not know are neither traced nor edited. They are named
    in ``unknown``.

    Args:
        model: the model.
        facts: one or several facts with new targets. A bare fact is evaluated on its own prompt
            only.
        layers: the layers to trace and edit; None takes all.
        statistics: key statistics by layer, as ``collect_key_statistics(model, layer=(3, 4))``
            returns them. ``"identity"`` edits without, i.e. with ``C = I``, which takes no
            time. Such edits spill over to other subjects, so success at neighbours (NM, NS) is then
            lower than it could be; pictures of the sweep say so. None collects statistics from text
            that the model samples, which takes minutes for all but the smallest models. They are
            then kept in ``directory/keys``.
        config, variant, contexts: as for :func:`rome`. ``contexts=None`` samples contexts once for
            all facts.
        component, noise, samples: as for :func:`causal_trace`.
        window: the number of layers restored together. None takes 5, or a third of the model's
            layers if that is less.
        at: the position whose effects are taken, as in :meth:`CausalTrace.peak`. ``"site"`` takes
            each fact's own: the subject's token with the largest effect at any of the layers.
            Being the largest of several, it is biased upwards; models differ in which token
            gathers the fact.
        prepend_bos: whether prompts start with BOS; None takes the model's default.
        directory: a directory where each finished trace (in ``traces``) and evaluation (in
            ``edits``) is written at once. An interrupted run resumes from there, with the same
            facts or with more.
        progress: show progress bars.

    Returns:
        The sweep: effects and measures of success, each ``Float[Tensor, "fact layer"]``.

    Raises:
        FactError: there is no fact; a fact is given twice, has no new target, or cannot be asked;
            or the model knows none of the facts.
        StatisticsError: a layer's statistics are missing, belong to another layer or model, or are
            singular.
        StoreError: the directory has results made with other settings.
        ArgumentError, ModelError: a layer is out of range, or as for :func:`rome`,
            :func:`trace_facts` and :func:`evaluate_all`.

    Source: Hase et al. 2023, who restore windows of MLP outputs at the subject's last token.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")[:2]
        >>> sweep = rl.layer_sweep(
        ...     model, records, layers=(1, 3), contexts=["{}"],
        ...     config=rl.RomeConfig(steps=5), samples=3, progress=False,
        ... )
        >>> sweep.effects.shape
        torch.Size([2, 2])
        >>> [round(success, 1) for success in sweep.EM.mean(0).tolist()]
        [1.0, 0.8]
    """
    records = different_records([with_new_target(record) for record in as_records(facts)])
    chosen = tuple(sorted(set(named_layers(model, layers))))
    if at != "site":
        position_of(at, (0, 1), model.cfg.n_ctx)  # refused before anything is run
    if window is None:
        window = max(1, min(_WINDOW, model.cfg.n_layers // 3))
    stores = _directories(directory)
    contexts, by_layer = _prepare(
        model,
        records,
        chosen,
        statistics,
        config=config,
        variant=variant,
        contexts=contexts,
        prepend_bos=prepend_bos,
        cache=stores["keys"],
        progress=progress,
    )
    traced = trace_facts(
        model,
        [record.fact for record in records],
        component=component,
        window=window,
        noise=noise,
        samples=samples,
        layers=chosen,
        at=None if at == "site" else at,
        prepend_bos=prepend_bos,
        directory=stores["traces"],
        progress=progress,
    )
    if not traced.traces:
        raise FactError(f"The model knows none of the {len(records)} facts. {traced.unknown[0][1]}")
    known = {trace.fact for trace in traced}
    sweep = sweep_edits(
        model,
        [record for record in records if record.fact in known],
        statistics={"by layer": by_layer},
        stop_probabilities=(config.stop_probability,),
        variants=(variant,),
        config=config,
        contexts=contexts,
        prepend_bos=prepend_bos,
        directory=stores["edits"],
        progress=progress,
    )
    return LayerSweep(
        names=tuple(str(record.id) for record in records if record.fact in known),
        unknown=tuple(str(record.id) for record in records if record.fact not in known),
        layers=chosen,
        component=component,
        window=traced.traces[0].window,
        at=at if isinstance(at, str) else int(at),
        samples=len(traced.traces[0].corrupted_samples),
        edits=f"{variant}, {config}, {len(contexts)} contexts, statistics: "
        f"{by_layer[chosen[0]].source}",
        model_fingerprint=fingerprint(model),
        model_name=name_of(model),
        relations=tuple(relation_of(record) for record in records if record.fact in known),
        **_effects(traced, at),
        **_successes(sweep, chosen),
    )


def different_records(records: Sequence[Record]) -> Sequence[Record]:
    """The records themselves. A fact that is given twice is refused, because it would count twice.

    Raises:
        FactError: a fact is given twice.
    """
    counts = Counter((record.fact.text, record.fact.target) for record in records)
    if twice := [text for (text, _), count in counts.items() if count > 1]:
        raise FactError(f"Given twice: {', '.join(map(repr, twice))}. Each fact counts once.")
    return records


def _directories(directory: str | Path | None) -> dict[str, Path | None]:
    parts = ("keys", "traces", "edits")
    return {part: None if directory is None else Path(directory) / part for part in parts}


def _prepare(
    model: LensModel,
    records: Sequence[Record],
    layers: Sequence[int],
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | Without | None,
    *,
    config: RomeConfig,
    variant: Variant,
    contexts: Sequence[str] | None,
    prepend_bos: bool | None,
    cache: Path | None,
    progress: bool,
) -> tuple[Sequence[str], dict[int, KeyStatistics]]:
    """The contexts and the statistics by layer. Everything is checked before the first trace."""
    if isinstance(statistics, str):
        one_of("statistics", statistics, Without)
        statistics = {layer: KeyStatistics.identity(model, layer=layer) for layer in layers}
    if isinstance(statistics, KeyStatistics):
        statistics = {statistics.layer: statistics}
    if statistics is not None:
        check_statistics(model, statistics, layers, config, variant)
    contexts = (
        random_contexts(model, prepend_bos=prepend_bos) if contexts is None else templates(contexts)
    )
    for record in records:
        check_prompts(model, record, prepend_bos=prepend_bos)
        EditRows.of(model, record.fact, contexts, prepend_bos, config.lookup)
    if statistics is None:  # collected last, because it takes longest
        statistics = collect_key_statistics(model, layer=layers, cache=cache, progress=progress)
        check_statistics(model, statistics, layers, config, variant)
    return contexts, {layer: statistics[layer] for layer in layers}


def check_statistics(
    model: LensModel,
    statistics: Mapping[int, KeyStatistics],
    layers: Sequence[int],
    config: RomeConfig,
    variant: Variant,
) -> None:
    """Every layer must have statistics that fit the model and can be inverted."""
    if missing := [layer for layer in layers if layer not in statistics]:
        raise StatisticsError(
            f"There are no statistics of the layers {missing}: collect_key_statistics(model, "
            f"layer={missing}) collects them in one pass."
        )
    for layer in layers:
        checked = Choice(statistics=statistics[layer], variant=variant).check(model, layer)
        # The factorisation is kept, and the edits use it again.
        checked.solve(checked.moment.new_zeros(len(checked.moment)), ridge=config.ridge)


def _effects(traced: TracedFacts, at: Place) -> dict[str, Any]:
    columns = [_site(trace) if at == "site" else 0 for trace in traced]
    return {
        "effects": torch.stack(
            [
                trace.indirect_effects[:, column].double()
                for trace, column in zip(traced, columns, strict=True)
            ]
        ),
        "tokens": tuple(
            trace.labels[trace.positions[column]]
            for trace, column in zip(traced, columns, strict=True)
        ),
        "total_effects": torch.tensor(
            [trace.total_effect for trace in traced], dtype=torch.float64, device="cpu"
        ),
        "noise": traced.traces[0].noise,
    }


def _site(trace: CausalTrace) -> int:
    """The column of the subject's token with the largest effect at any layer."""
    columns = [trace.positions.index(pos) for pos in range(*trace.subject)]
    return max(columns, key=lambda column: float(trace.indirect_effects[:, column].max()))


def _successes(sweep: EditSweep, layers: Sequence[int]) -> dict[str, Any]:
    """Success by measure. This sweep has one setting for each layer."""
    by_layer = {setting.layer: evaluations for setting, evaluations in sweep.evaluations.items()}
    return {
        measure: torch.tensor(
            [[_success(each, measure) for each in by_layer[layer]] for layer in layers],
            dtype=torch.float64,
            device="cpu",
        ).T
        for measure in MEASURES
    }


def _success(evaluation: Evaluation, measure: str) -> float:
    success = getattr(evaluation, measure)
    return float("nan") if success is None else float(success)
