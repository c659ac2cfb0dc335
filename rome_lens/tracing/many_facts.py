"""One trace for each of many facts, on disk as soon as it is done, so that a long run can be broken off and resumed."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from rome_lens.data.facts import Fact, FactError
from rome_lens.errors import ArgumentError, RomeLensError
from rome_lens.forward.tokens import tokens_to_run
from rome_lens.models.fingerprints import weights_fingerprint
from rome_lens.models.lens import LensModel, named_layers
from rome_lens.storage import StorageError, whole_or_nothing
from rome_lens.tracing.causal import causal_trace
from rome_lens.tracing.cells import check_options
from rome_lens.tracing.clean_run import FactNotKnownError
from rome_lens.tracing.corruption import Replacement
from rome_lens.tracing.noise import GaussianNoise
from rome_lens.tracing.results import CausalTrace, position_of

_SETTINGS = "settings.json"


class SweepError(RomeLensError):
    """A directory whose finished traces were made on another model or with other settings."""


@dataclass(frozen=True, kw_only=True)
class TracedFacts:
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
    facts: Iterable[Fact],
    *,
    component: str = "resid",
    window: int = 1,
    noise: Any = GaussianNoise(),
    samples: int = 10,
    layers: Iterable[int] | None = None,
    at: str | int | None = None,
    answer: str = "first_token",
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
        at: the one position to trace in each fact, as :meth:`CausalTrace.peak` names it; None takes all.
        directory: where each finished trace is written at once. A run broken off goes on from there, with the same or
            with more facts. None keeps everything in memory.
        component, window, noise, samples, answer, prepend_bos, batch_size: as for :func:`causal_trace`. A fact given twice
            is traced once.

    Raises:
        SweepError: the directory holds traces of another model or with other settings; the message says which.
        FactError: there is no fact, or one cannot be tokenised; raised before the first is traced.
        ValueError: as for :func:`causal_trace`; ``at`` is no position of a fact.
    """
    chosen = list({(fact.prompt, fact.subject, fact.target): fact for fact in facts}.values())
    if not chosen:
        raise FactError("The list of facts is empty: give at least one.")
    if isinstance(noise, Tensor) or (isinstance(noise, Replacement) and isinstance(noise.noise, Tensor)):
        raise ArgumentError("noise is a tensor, which fits one subject: give a kind of noise, such as GaussianNoise().")
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
        positions[fact] = None if at is None else [position_of(at, encoded.subject, len(encoded.tokens))]
    store = _Store(
        directory,
        {
            "model": weights_fingerprint(model),
            "component": component,
            "window": int(window),
            "noise": repr(noise),
            "samples": samples,
            "layers": None if layers is None else list(layers),
            "at": at,
            "answer": answer,
            "prepend_bos": model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos,
        },
    )
    for fact in tqdm(chosen, desc=f"trace {component}", disable=not progress):
        if fact in store:
            continue
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
        except FactNotKnownError as error:
            store.add_unknown(fact, str(error))
        else:
            store.add(fact, trace)
    return store.found(chosen)


class _Store:
    """Finished facts, in memory or in a directory."""

    def __init__(self, directory: str | Path | None, settings: dict[str, Any]) -> None:
        self.directory = None if directory is None else Path(directory)
        self.traces: dict[Fact, CausalTrace] = {}
        self.unknown: dict[Fact, str] = {}
        if self.directory is not None:
            self._check(self.directory, settings)

    def _check(self, directory: Path, settings: dict[str, Any]) -> None:
        path = directory / _SETTINGS
        if not path.exists():
            if directory.exists() and any(other.suffix != ".part" for other in directory.iterdir()):
                raise SweepError(f"{directory} holds other files and no {_SETTINGS}: give an empty or a new directory.")
            _write(path, settings)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise SweepError(
                f"{path} is not JSON, so that what its traces were made with is not known: {error}"
            ) from error
        if not isinstance(found, dict):
            raise SweepError(f"{path} holds {found!r}, so that what its traces were made with is not known.")
        different = [
            f"{name} was {found.get(name)!r} and is {settings.get(name)!r}"
            for name in {**found, **settings}
            if found.get(name) != settings.get(name)
        ]
        if different:
            raise SweepError(
                f"The traces in {directory} were made otherwise: {'; '.join(different)}. Give the settings of then, or "
                "another directory."
            )

    def _path(self, fact: Fact, suffix: str) -> Path | None:
        if self.directory is None:
            return None
        words = json.dumps([fact.prompt, fact.subject, fact.target])
        return self.directory / f"{hashlib.sha256(words.encode()).hexdigest()[:20]}{suffix}"

    def __contains__(self, fact: Fact) -> bool:
        """Whether the fact is finished; what is on disk is read."""
        path, unknown = self._path(fact, ".safetensors"), self._path(fact, ".unknown.json")
        if path is not None and path.exists():
            try:
                self.traces[fact] = replace(CausalTrace.load(path), fact=fact)
            except StorageError as error:
                raise SweepError(
                    f"A finished trace cannot be read, remove it to have it made again: {error}"
                ) from error
        if unknown is not None and unknown.exists():
            self.unknown[fact] = json.loads(unknown.read_text(encoding="utf-8"))["message"]
        return fact in self.traces or fact in self.unknown

    def add(self, fact: Fact, trace: CausalTrace) -> None:
        path = self._path(fact, ".safetensors")
        if path is not None:
            trace.save(path)
        self.traces[fact] = trace

    def add_unknown(self, fact: Fact, message: str) -> None:
        path = self._path(fact, ".unknown.json")
        if path is not None:
            _write(path, {"text": fact.text, "message": message})
        self.unknown[fact] = message

    def found(self, facts: Sequence[Fact]) -> TracedFacts:
        return TracedFacts(
            traces=tuple(self.traces[fact] for fact in facts if fact in self.traces),
            unknown=tuple((fact, self.unknown[fact]) for fact in facts if fact in self.unknown),
        )


def _write(path: Path, content: dict[str, Any]) -> None:
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
