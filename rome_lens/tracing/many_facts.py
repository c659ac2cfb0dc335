"""One trace for each of many facts, on disk as soon as it is done, so that a long run can be broken off and resumed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_facts
from rome_lens.errors import ArgumentError
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import Answer, tokens_to_run
from rome_lens.models.fingerprints import weights_fingerprint
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel, named_layers, starts_with_bos
from rome_lens.results import Result, Stored
from rome_lens.stores import Store
from rome_lens.tracing.causal import causal_trace
from rome_lens.tracing.cells import check_options
from rome_lens.tracing.clean_run import FactNotKnownError
from rome_lens.tracing.corruption import Replacement
from rome_lens.tracing.noise import GaussianNoise
from rome_lens.tracing.results import CausalTrace, position_of


@dataclass(frozen=True, kw_only=True, repr=False)
class NotKnown(Stored):
    """Why a fact was not traced: what the model answers instead."""

    message: str


@dataclass(frozen=True, kw_only=True, repr=False)
class TracedFacts(Result):
    """Traces of the facts that the model knows; and the facts that it does not, each with what it answers instead."""

    traces: tuple[CausalTrace, ...]
    unknown: tuple[tuple[Fact, str], ...]

    def __iter__(self) -> Iterator[CausalTrace]:
        return iter(self.traces)

    def __len__(self) -> int:
        return len(self.traces)

    def __repr__(self) -> str:
        return f"TracedFacts({len(self.traces)} traced, {len(self.unknown)} not known)"


def trace_facts(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    component: Component = "resid",
    window: int = 1,
    noise: Any = GaussianNoise(),
    samples: int = 10,
    layers: Iterable[int] | None = None,
    at: str | int | None = None,
    answer: Answer = "first_token",
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> TracedFacts:
    """:func:`causal_trace` of every fact that the model knows.

    For the noise of the study, one level for all facts, pass
    ``GaussianNoise(subjects=tuple(fact.subject for fact in facts)).fitted(model)``.

    Args:
        layers: None takes all.
        facts: one or several; one that is given twice is traced once.
        at: the one position to trace in each fact, as :meth:`CausalTrace.peak` names it; None takes all.
        directory: where each finished trace is written at once. A run broken off goes on from there, with the same or
            with more facts. None keeps everything in memory.
        component, window, noise, samples, answer, prepend_bos, batch_size: as for :func:`causal_trace`.

    Raises:
        StoreError: the directory holds traces of another model or with other settings; the message says which.
        FactError: there is no fact, or one cannot be tokenised; raised before the first is traced.
        ValueError: as for :func:`causal_trace`; ``at`` is no position of a fact.
    """
    chosen = list(
        {(fact.prompt, fact.subject, fact.target): fact for fact in as_facts(facts)}.values()
    )
    if isinstance(noise, Tensor) or (
        isinstance(noise, Replacement) and isinstance(noise.noise, Tensor)
    ):
        raise ArgumentError(
            "noise is a tensor, which fits one subject: give a kind of noise, such as GaussianNoise()."
        )
    if directory is not None and " at 0x" in repr(noise):
        raise ArgumentError(
            f"noise is {noise!r}, which a later run cannot be compared with: give its class a __repr__ that names its "
            "settings (a dataclass has one), or no directory."
        )
    check_options(model, component=component, window=window, batch_size=batch_size)
    layers = None if layers is None else named_layers(model, layers)
    positions = {}
    for fact in chosen:
        encoded, _ = tokens_to_run(model, fact, answer, prepend_bos=prepend_bos)
        positions[fact] = (
            None if at is None else [position_of(at, encoded.subject, len(encoded.tokens))]
        )
    settings = {
        "component": component,
        "window": int(window),
        "noise": repr(noise),
        "samples": samples,
        "layers": None if layers is None else list(layers),
        "at": at,
        "answer": answer,
        "prepend_bos": starts_with_bos(model, prepend_bos),
    }
    if directory is None:
        store = Store(None)
    else:
        identity = model_identity(model)
        store = Store(
            directory, identity=identity, settings={"model": weights_fingerprint(model), **settings}
        )
    traces, unknown = [], []
    for fact in tqdm(chosen, desc=f"trace {component}", disable=not progress):
        name = store.name(fact.prompt, fact.subject, fact.target)
        trace = store.get(CausalTrace, name)
        reason = store.get(NotKnown, name)
        if trace is None and reason is None:
            try:
                trace = causal_trace(
                    model,
                    fact,
                    component=component,
                    window=window,
                    noise=noise,
                    samples=samples,
                    layers=layers,
                    positions=positions[fact],
                    answer=answer,
                    prepend_bos=prepend_bos,
                    batch_size=batch_size,
                )
                store.add(name, trace)
            except FactNotKnownError as error:
                reason = NotKnown(message=str(error))
                store.add(name, reason)
        if trace is not None:
            traces.append(replace(trace, fact=fact))  # with this call's new target
        elif reason is not None:
            unknown.append((fact, reason.message))
    return TracedFacts(traces=tuple(traces), unknown=tuple(unknown))
