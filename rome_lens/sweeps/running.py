"""``sweep``: trace, edit, evaluate and check many facts at many layers with several editors."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rome_lens.arguments import whole_number
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.config import RomeConfig
from rome_lens.editing.editors import FineTuning
from rome_lens.errors import ArgumentError
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.localisation.sweep_over_layers import different_records
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel
from rome_lens.models.sources import Source, as_source
from rome_lens.storage import as_path, sole_use
from rome_lens.sweeps.editors import MassSetting, RomeSetting, editors_by_name
from rome_lens.sweeps.planning import STAGES, chosen_stages, make_jobs, make_plan
from rome_lens.sweeps.results import TABLE, Sweep
from rome_lens.sweeps.rows import read_rows
from rome_lens.sweeps.stages import perform
from rome_lens.sweeps.units import Job, Plan, Stage, Units
from rome_lens.sweeps.workers import Submits, processes, return_free_memory, run_jobs
from rome_lens.tracing.noise import GaussianNoise, Noise
from rome_lens.tracing.positions import Position


def sweep(
    source: Any,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    layers: Iterable[int],
    directory: str | Path,
    editors: Iterable[str | RomeSetting | MassSetting | FineTuning] = ("rome",),
    stages: Iterable[Stage] = STAGES,
    statistics: KeyStatistics | Mapping[int, KeyStatistics] | None = None,
    config: RomeConfig = RomeConfig(),
    contexts: Sequence[str] | None = None,
    component: Component = "mlp",
    window: int = 5,
    at: Position = "subject_last",
    noise: Noise = GaussianNoise(),
    samples: int = 10,
    generate: int = 0,
    texts: Sequence[str] | None = None,
    continuations: int = 1,
    new_tokens: int = 20,
    seed: int = 0,
    prepend_bos: bool | None = None,
    workers: int = 1,
    executor: Submits | None = None,
    facts_at_once: int = 8,
    progress: bool = False,
) -> Sweep:
    """Trace facts, and edit, evaluate and check each of them at each layer with each editor.

    Every finished unit (a trace; an edit, its scores, or its limits) is written to ``directory`` at
    once. A run that was stopped at any moment goes on with the same call. It repeats nothing that
    is finished, and its table is the one of an uninterrupted run, bit for bit.

    A fact that fails does not stop the sweep. Its row names the error. An error of this package,
    such as a divergence, is final. Any other, such as a lack of memory, is tried again by the next
    run.

    Args:
        source: where the model comes from: a name for :func:`load_model`, a ``ModelSource``, a
            function without arguments that loads it, or a loaded model. A loaded model works in
            this process and in its threads only.
        facts: facts or records. All stages but ``"trace"`` need a new target.
        layers: the layers to trace and edit.
        directory: where everything is written. Only one run at a time may use it. With several
            machines, it must be on a file system that they share.
        editors: ``"rome"`` and ``"r-rome"`` with ``config``; a ``RomeSetting`` with its own; a
            ``MassSetting`` for MEMIT, EMMET or AlphaEdit at a single layer; or a
            :class:`FineTuning`, whose layer is replaced.
        stages: some of ``"trace"``, ``"edit"``, ``"evaluate"`` and ``"limits"``. The last two need
            the edits, which are then made in any case.
        statistics: key statistics by layer. None collects them from text that the model samples.
        config, contexts: as for :func:`rome`. ``contexts=None`` samples them once for all facts.
        component, window, at, noise, samples: of the traces, as for :func:`layer_sweep`.
        generate: as for :func:`evaluate`.
        texts, continuations, new_tokens: as ``texts``, ``samples`` and ``new_tokens`` of
            :func:`check_limits`.
        seed: the seed of evaluation and limits.
        prepend_bos: whether prompts start with a BOS token. None takes the model's default.
        workers: how many processes to use, which share out torch's threads; 1 works in this
            process. In a script, the call must then stand below ``if __name__ == "__main__":``.
        executor: a ``concurrent.futures.Executor`` to use in place of processes of this machine. It
            is not shut down.
        facts_at_once: how many facts a worker takes at a time.
        progress: whether to show a progress bar, with the rate and the time left.

    Returns:
        The table, with a row for each fact, layer and editor. It is also in
        ``directory/table.parquet``.

    Raises:
        InUseError: another run is writing to the directory.
        SweepError: a worker died, has another model, or does not see the directory.
        FactError: there is no fact, or a fact is given twice or has no new target.
        ArgumentError, ModelError, StatisticsError: a setting is wrong for every fact.
        StorageError: the directory cannot be read or written.

    Example:
        >>> import tempfile, rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> identity = {layer: rl.KeyStatistics.identity(model, layer=layer) for layer in (1, 3)}
        >>> sweep = rl.sweep(
        ...     model, rl.data.records(known_by="toy")[:2], layers=(1, 3), statistics=identity,
        ...     editors=["rome", "r-rome"], stages=["edit", "evaluate"], contexts=["{}"],
        ...     config=rl.RomeConfig(steps=5), directory=tempfile.mkdtemp(),
        ... )
        >>> sweep
        Sweep(2 facts, layers [1, 3], editors ['rome', 'r-rome'], 0 of 8 rows with an error)
        >>> sweep.rows.groupby("layer").ES.mean().tolist()
        [1.0, 1.0]
    """
    workers = whole_number("workers", workers, least=1)
    facts_at_once = whole_number("facts_at_once", facts_at_once, least=1)
    if executor is not None and workers > 1:
        raise ArgumentError("Give workers or an executor: an executor has workers of its own.")
    given, chosen = as_source(source), chosen_stages(stages)
    edits = chosen != ("trace",)
    records = as_records(facts)
    records = list(different_records([*map(with_new_target, records)] if edits else records))
    directory = as_path(directory).absolute()
    with sole_use(directory):
        model = given.load()
        plan = make_plan(
            model,
            directory,
            stages=chosen,
            layers=layers,
            editors=editors_by_name(editors, config) if edits else {},
            statistics=statistics,
            contexts=contexts,
            texts=texts,
            progress=progress,
            component=component,
            window=window,
            at=at,
            noise=noise,
            samples=samples,
            generate=generate,
            continuations=continuations,
            new_tokens=new_tokens,
            seed=seed,
            prepend_bos=prepend_bos,
        )
        here = model if workers == 1 and executor is None else None
        del model  # other workers have their own
        return_free_memory()
        jobs = make_jobs(plan, records, facts_at_once)
        _finish(jobs, given, plan, here, executor, workers=workers, progress=progress)
        result = Sweep(rows=read_rows(plan, records, str(given)))
        result.save(directory / TABLE)
    return result


def _finish(
    jobs: Sequence[Job],
    source: Source,
    plan: Plan,
    model: LensModel | None,
    executor: Submits | None,
    *,
    workers: int,
    progress: bool,
) -> None:
    """Do what is left of the jobs: on the model, on the executor, or in new processes."""
    units = Units(plan)
    left = {job: count for job in jobs if (count := units.unfinished(job))}
    total = sum(units.of_job(job) for job in jobs)
    finished = total - sum(left.values())
    steps = _steps(list(left), source, plan, model, executor, workers)
    with (
        closing(steps),
        tqdm(desc="sweep", total=total, initial=finished, unit="unit", disable=not progress) as bar,
    ):
        for count in steps:
            bar.update(count)


def _steps(
    jobs: Sequence[Job],
    source: Source,
    plan: Plan,
    model: LensModel | None,
    executor: Submits | None,
    workers: int,
) -> Generator[int, None, None]:
    """The numbers of units that are finished, one after the other."""
    if model is not None:
        for job in jobs:
            yield from perform(model, plan, job)
    elif executor is not None:
        yield from run_jobs(executor, source, plan, jobs)
    elif jobs:
        with processes(min(workers, len(jobs))) as pool:
            yield from run_jobs(pool, source, plan, jobs)
