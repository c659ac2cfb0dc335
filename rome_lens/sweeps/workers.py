"""Where the work of a sweep is done: in processes of this machine, or on any other executor.

There is no scheduler here. An executor takes jobs by ``submit``, and each job is a call of
:func:`work`, which loads the model once in each process and keeps every finished unit itself.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

import torch

from rome_lens.errors import RomeLensError
from rome_lens.forward.identity import model_identity
from rome_lens.models.lens import LensModel
from rome_lens.models.sources import Loaded, Source
from rome_lens.stores import MANIFEST
from rome_lens.sweeps.stages import perform
from rome_lens.sweeps.units import Job, Plan

_SECONDS_BETWEEN_LOOKS = 0.05


class SweepError(RomeLensError):
    """A sweep cannot go on, because of a worker. What is finished is kept."""


@runtime_checkable
class Submits(Protocol):
    """A ``concurrent.futures.Executor``, or whatever else returns something like a future.

    The returned object needs ``done()``, ``result()`` and ``cancel()``. The jobs of ``submitit``
    have them, too.
    """

    def submit(self, function: Any, /, *args: Any) -> Any:
        """Call the function somewhere, at some time."""


def run_jobs(executor: Submits, source: Source, plan: Plan, jobs: Sequence[Job]) -> Iterator[int]:
    """Yield the number of units that each job finished, in the order in which jobs end.

    Raises:
        SweepError: a worker died, has another model, or cannot see the directory.
    """
    futures: list[Any] = []
    try:
        futures += [executor.submit(work, source, plan, job) for job in jobs]
        while futures:
            done = {future for future in futures if future.done()}
            futures = [future for future in futures if future not in done]
            for future in done:
                yield future.result()
            if not done:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
    except BrokenExecutor as error:
        raise SweepError(
            "A worker ended before its time. The system may have stopped it for lack of memory: "
            "use fewer workers. Or the main module starts the sweep when it is imported: put the "
            "call below if __name__ == '__main__'. What is finished is kept; run the sweep again "
            "to go on."
        ) from error
    finally:
        for future in futures:
            future.cancel()


def work(source: Source, plan: Plan, job: Job) -> int:
    """Do a job in a worker, and return the number of units that it finished.

    Raises:
        SweepError: the worker's model is not the sweep's, or it does not see the directory.
    """
    if not (plan.directory / "units" / MANIFEST).is_file():
        raise SweepError(
            f"A worker does not see {plan.directory}, where the sweep keeps what is finished: give "
            "a directory on a file system that all workers share."
        )
    with _LOADING:  # of several threads, one loads the model
        model = _model(source, plan.identity)
    return sum(perform(model, plan, job))


_LOADING = threading.Lock()


def _model(source: Source, identity: str) -> LensModel:
    if isinstance(source, Loaded):  # it may be changed later, so it is not kept
        return _checked(source.load(), identity)
    return _load_once(_Wanted(source=source, identity=identity))


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A model by its identity. A source is a new object in each job that is sent."""

    source: Source = field(compare=False)
    identity: str


@lru_cache(maxsize=1)
def _load_once(wanted: _Wanted) -> LensModel:
    model = _checked(wanted.source.load(), wanted.identity)
    return_free_memory()
    return model


def return_free_memory() -> None:
    """Give back to the system what was freed, such as the working memory of loading a model.

    Modules refer to each other in circles. And glibc keeps freed memory: for Gemma 3 270M 180 MB in
    each worker, a quarter of what workers do not share. Other systems' libraries have no such call.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _checked(model: LensModel, identity: str) -> LensModel:
    if (own := model_identity(model)) != identity:
        raise SweepError(
            f"A worker has another model or other versions: {own}. The sweep began with "
            f"{identity}. Give all workers the same weights and versions, or a new directory."
        )
    return model


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of new processes, which share out this process's threads.

    They end with this process, even if it is killed: each of them waits at a pipe whose other end
    only this process holds. On Ctrl-C they end at once.
    """
    context = multiprocessing.get_context("spawn")
    ours_alone, leash = context.Pipe(duplex=False)[::-1]
    threads = max(1, torch.get_num_threads() // count)
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_begin, initargs=(leash, threads)
    )
    try:
        yield pool
        pool.shutdown()
    finally:
        ours_alone.close()
        pool.shutdown(cancel_futures=True)
        leash.close()


def _begin(leash: Connection, threads: int) -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the leash
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, args=(leash,), daemon=True).start()


def _end_with_parent(leash: Connection) -> None:
    with suppress(OSError):
        leash.poll(None)
    os._exit(1)
