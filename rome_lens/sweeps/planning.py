"""What a sweep is asked for, checked and completed before the long part."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rome_lens.arguments import one_of, several, templates, whole_number
from rome_lens.arguments import texts as several_texts
from rome_lens.checks.answered import text_question
from rome_lens.data.record_type import Record
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.editors import FineTuning
from rome_lens.editing.mass_editors import MassEditor
from rome_lens.errors import ArgumentError
from rome_lens.forward.identity import model_identity
from rome_lens.keys.collecting import collect_key_statistics
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.localisation.sweep_over_layers import check_statistics
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel, named_layers
from rome_lens.stores import Store
from rome_lens.sweeps.editors import MassSetting, SweepEditor
from rome_lens.sweeps.units import Job, Plan, Stage
from rome_lens.tracing.cells import check_options
from rome_lens.tracing.corruption import sample_count
from rome_lens.tracing.many_facts import check_noise
from rome_lens.tracing.positions import NamedPosition, Position

STAGES: tuple[Stage, ...] = get_args(Stage)


def chosen_stages(stages: Iterable[str]) -> tuple[Stage, ...]:
    """The stages in their order.

    Raises:
        ArgumentError: there is none, or one is unknown.
    """
    listed = several("stages", stages, f"some of {', '.join(STAGES)}")
    named = {one_of("A stage", stage, Stage) for stage in listed}
    if not named:
        raise ArgumentError(f"stages is empty, expected some of {', '.join(STAGES)}.")
    return tuple(stage for stage in STAGES if stage in named)


def make_plan(
    model: LensModel,
    directory: Path,
    *,
    stages: tuple[Stage, ...],
    layers: Iterable[int],
    editors: Mapping[str, SweepEditor],
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    contexts: Sequence[str] | None,
    texts: Sequence[str] | None,
    progress: bool,
    **settings: Any,
) -> Plan:
    """The plan of a sweep. Key statistics are collected, if need be, when all else is checked.

    Raises:
        ArgumentError, ModelError, StatisticsError: a setting is wrong for every fact.
    """
    chosen = tuple(sorted(set(named_layers(model, layers))))
    settings = _checked(model, **settings)
    texts = None if texts is None else several_texts("texts", texts)
    for text in texts or ():
        text_question(text)
    prepend_bos = settings["prepend_bos"]
    by_rome = [each for each in editors.values() if not isinstance(each, FineTuning)]
    if not by_rome:
        contexts, kept = (), {}
    else:
        contexts = (
            random_contexts(model, prepend_bos=prepend_bos)
            if contexts is None
            else templates(contexts)
        )
        kept = _keep_statistics(model, directory / "keys", chosen, statistics, by_rome, progress)
    return Plan(
        directory=directory,
        identity=model_identity(model),
        model_fingerprint=fingerprint(model),
        stages=stages,
        layers=chosen,
        editors=editors,
        statistics=kept,
        contexts=tuple(contexts),
        texts=texts,
        **settings,
    )


def _checked(model: LensModel, **settings: Any) -> dict[str, Any]:
    """The settings of the stages as plain values."""
    check_noise(settings["noise"], stored=True)
    check_options(model, component=settings["component"], window=settings["window"])
    return {
        **settings,
        "window": whole_number("window", settings["window"]),
        "at": _position(settings["at"]),
        "samples": sample_count(settings["samples"]),
        "generate": whole_number("generate", settings["generate"], least=0),
        "continuations": whole_number("continuations", settings["continuations"], least=0),
        "new_tokens": whole_number("new_tokens", settings["new_tokens"], least=0),
        "seed": whole_number("seed", settings["seed"]),
    }


def _position(at: Position) -> Position:
    return one_of("at", at, NamedPosition) if isinstance(at, str) else whole_number("at", at)


def _keep_statistics(
    model: LensModel,
    directory: Path,
    layers: Sequence[int],
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None,
    editors: Sequence[Any],
    progress: bool,
) -> dict[int, tuple[str, str]]:
    """Check the statistics of every layer, and write them where workers find them."""
    if isinstance(statistics, KeyStatistics):
        statistics = {statistics.layer: statistics}
    if statistics is None:
        statistics = collect_key_statistics(model, layer=layers, cache=directory, progress=progress)
    for editor in editors:
        if isinstance(editor, MassSetting):
            for layer in layers:
                MassEditor(
                    config=editor.config, statistics=statistics, layers=(layer,), contexts=("{}",)
                ).check(model)
            continue
        check_statistics(model, statistics, layers, editor.config, editor.variant)
    store, kept = Store(directory), {}
    for layer in layers:
        name = store.name(statistics[layer])
        if not store.has(KeyStatistics, name):
            store.add(name, statistics[layer])
        kept[layer] = (repr(statistics[layer]), name)
    return kept


def make_jobs(plan: Plan, records: Sequence[Record], facts_at_once: int) -> list[Job]:
    """All jobs, the traces first, then layer by layer."""
    blocks = [
        tuple(records[first : first + facts_at_once])
        for first in range(0, len(records), facts_at_once)
    ]
    traces = [Job(records=block) for block in blocks] if "trace" in plan.stages else []
    cells = [
        Job(records=block, layer=layer, editor=editor)
        for layer in plan.layers
        for editor in plan.editors
        for block in blocks
    ]
    return traces + (cells if plan.cell_stages else [])
