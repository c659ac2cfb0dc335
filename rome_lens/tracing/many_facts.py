"""Traces of many facts, some at a time. Finished ones are written, so a run can be resumed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from rome_lens.arguments import one_of, whole_number
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_facts
from rome_lens.errors import ArgumentError
from rome_lens.forward.identity import model_identity
from rome_lens.forward.runs import weights_laid_out
from rome_lens.forward.tokens import Answer, FactTokens, encode, scored_answer
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import weights_fingerprint
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel, ModelError, named_layers, starts_with_bos
from rome_lens.results import Result, Stored
from rome_lens.stores import Store
from rome_lens.tracing.causal import trace_together
from rome_lens.tracing.cells import Grid, check_options, grid
from rome_lens.tracing.clean_run import FactNotKnownError
from rome_lens.tracing.corruption import Replacement, check_kind, sample_count
from rome_lens.tracing.metrics import Metric, check_metric, metric_text
from rome_lens.tracing.noise import GaussianNoise, Noise
from rome_lens.tracing.passes import PassSize, packed, pass_size
from rome_lens.tracing.positions import Position, position_of
from rome_lens.tracing.results import CausalTrace, Direction

_PASSES_PER_BATCH = 16


@dataclass(frozen=True, kw_only=True, repr=False)
class NotKnown(Stored):
    """Why a fact was not traced."""

    message: str
    """What the model answers instead."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TracedFacts(Result):
    """The traces of the facts that the model knows, and the facts that it does not know."""

    traces: tuple[CausalTrace, ...]
    """One trace for each fact that the model knows, in the order of the facts."""
    unknown: tuple[tuple[Fact, str], ...]
    """The facts that the model does not know, each with a message that says what it answers."""

    def __iter__(self) -> Iterator[CausalTrace]:
        return iter(self.traces)

    def __len__(self) -> int:
        return len(self.traces)

    def __repr__(self) -> str:
        return f"TracedFacts({len(self.traces)} traced, {len(self.unknown)} not known)"


@visits_model
def trace_facts(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    component: Component = "resid",
    window: int = 1,
    noise: Noise = GaussianNoise(),
    samples: int = 10,
    layers: Iterable[int] | None = None,
    at: Position | None = None,
    answer: Answer = "first_token",
    metric: Metric = "probability",
    direction: Direction = "denoising",
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    batch_bytes: int | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> TracedFacts:
    """:func:`causal_trace` for every fact that the model knows.

    The study's noise has one level for all facts. To use it, pass
    ``noise=GaussianNoise(subjects=tuple(fact.subject for fact in facts)).fitted(model)``.

    Args:
        model: the model; it is left as it was.
        facts: one or several facts. A fact that is given twice is traced once.
        layers: None takes all.
        at: the one position to trace in each fact: ``"subject_first"``, ``"subject_last"``,
            ``"last"``, or a number. None takes all positions.
        directory: a directory where finished traces are written at once. An interrupted run
            resumes from there, with the same facts or with more. None keeps everything in memory.
        progress: show a progress bar.
        batch_bytes: bytes that the largest tensor of a forward pass may take; None takes a share of
            a GPU's memory. Facts are traced together, and this bounds how many share a pass. It
            changes scores by rounding only. On a CPU, passes are smaller in any case.
        component, window, noise, samples, answer, metric, direction, prepend_bos, batch_size: as
            for :func:`causal_trace`. ``noise`` cannot be a tensor, because a tensor fits one
            subject. With a directory, a metric that is a function must be defined in a module.

    Returns:
        The traces, and the facts that the model does not know.

    Raises:
        StoreError: the directory has traces of another model or with other settings; the message
            says which.
        FactError: there is no fact, or one of them cannot be tokenised. Nothing is traced before
            all have been checked.
        ArgumentError, ModelError: as for :func:`causal_trace`, or ``at`` is not a position of one
            of the facts.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> known = rl.Fact("{} lives in the city of", subject="Wanda Brandt", target="Pralec")
        >>> wrong = rl.Fact("{} lives in the city of", subject="Wanda Brandt", target="Ondavel")
        >>> traced = rl.trace_facts(model, [known, wrong], samples=2)
        >>> traced
        TracedFacts(1 traced, 1 not known)
        >>> traced.traces[0].fact.target, traced.unknown[0][0].target
        ('Pralec', 'Ondavel')
    """
    given = list(dict.fromkeys(as_facts(facts)))
    check_noise(noise, stored=directory is not None)
    check_options(model, component=component, window=window)
    size = pass_size(model, batch_size=batch_size, batch_bytes=batch_bytes)
    one_of("answer", answer, Answer)
    one_of("direction", direction, Direction)
    _check_named(metric, stored=directory is not None)
    layers = None if layers is None else named_layers(model, layers)
    encoded = {fact: encode(model, fact, prepend_bos=prepend_bos) for fact in given}
    scored = {fact: scored_answer(model, encoded[fact], answer) for fact in given}
    # A new target matters only by the tokens that tell the target from it.
    keys = {
        fact: (
            fact.prompt,
            fact.subject,
            fact.target,
            fact.joiner,
            scored[fact],
            *([fact.new_target] if metric == "logit_difference" else []),
        )
        for fact in given
    }
    chosen = list({key: fact for fact, key in keys.items()}.values())
    positions = {fact: _positions(encoded[fact], at) for fact in chosen}
    if at is not None and not isinstance(at, str):
        at = whole_number("at", at)
    settings = {
        "component": component,
        "window": int(window),
        "noise": repr(noise),
        "samples": sample_count(samples),
        "layers": None if layers is None else list(layers),
        "at": at,
        "answer": answer,
        "prepend_bos": starts_with_bos(model, prepend_bos),
    }
    if metric != "probability" or direction != "denoising":  # older directories have neither
        settings |= {"metric": metric_text(metric), "direction": direction}
    store = _store(model, directory, settings)
    names = {fact: store.name(*keys[fact]) for fact in chosen}

    def stored(fact: Fact) -> CausalTrace | NotKnown | None:
        return store.get(CausalTrace, names[fact]) or store.get(NotKnown, names[fact])

    pending = {
        fact: grid(
            model,
            encoded[fact],
            component=component,
            window=window,
            layers=layers,
            positions=positions[fact],
            heads=None,
            answer=answer,
            size=size,
            metric=metric,
        )
        for fact in chosen
        if stored(fact) is None
    }
    bar = tqdm(total=len(chosen), desc=f"trace {component}", disable=not progress)
    with bar, weights_laid_out(model):
        bar.update(len(chosen) - len(pending))
        for batch in _batches(pending, sample_count(samples), size):
            for fact, outcome in _trace_batch(model, batch, noise, samples, direction, prepend_bos):
                store.add(names[fact], outcome)
                bar.update()
    traces, unknown = [], []
    for fact in chosen:
        done = stored(fact)
        if isinstance(done, NotKnown):
            unknown.append((fact, done.message))
        elif done is not None:
            traces.append(replace(done, fact=fact))  # the stored fact may have another new target
    return TracedFacts(traces=tuple(traces), unknown=tuple(unknown))


def _batches(
    grids: Mapping[Fact, Grid], samples: int, size: PassSize
) -> Iterator[dict[Fact, Grid]]:
    """Facts of similar length, enough of them to fill several forward passes.

    More would hardly be faster, and an interrupted run loses the facts that are being traced.
    """
    ordered = sorted(grids, key=lambda fact: grids[fact].length)
    work = [grids[fact].work * samples for fact in ordered]
    for batch in packed(ordered, work, _PASSES_PER_BATCH * size.tokens):
        yield {fact: grids[fact] for fact in batch}


def _trace_batch(
    model: LensModel,
    grids: Mapping[Fact, Grid],
    noise: Noise,
    samples: int,
    direction: Direction,
    prepend_bos: bool | None,
) -> Iterator[tuple[Fact, CausalTrace | NotKnown]]:
    """The outcomes of several facts that are traced together.

    An error that concerns one fact is raised after the outcomes of the others.
    """
    facts = list(grids)
    try:
        outcomes = trace_together(
            model,
            facts,
            list(grids.values()),
            noise=noise,
            samples=samples,
            direction=direction,
            prepend_bos=prepend_bos,
            require_correct=True,
        )
    except ModelError:
        if len(facts) == 1:
            raise
        # It may concern one fact only: the others are traced before it is raised again.
        for fact in facts:
            yield from _trace_batch(
                model, {fact: grids[fact]}, noise, samples, direction, prepend_bos
            )
        return
    errors = []
    for fact, outcome in zip(facts, outcomes, strict=True):
        if isinstance(outcome, FactNotKnownError):
            yield fact, NotKnown(message=str(outcome))
        elif isinstance(outcome, Exception):
            errors.append(outcome)
        else:
            yield fact, outcome
    if errors:
        raise errors[0]


def check_noise(noise: object, *, stored: bool) -> None:
    """Refuse noise that fits one subject only, or that a later run could not recognise."""
    check_kind(noise)
    inner = noise.noise if isinstance(noise, Replacement) else noise
    if isinstance(inner, Tensor):
        raise ArgumentError(
            "noise is a tensor, which fits one subject: give a kind of noise, such as "
            "GaussianNoise()."
        )
    if stored and " at 0x" in repr(noise):
        raise ArgumentError(
            f"noise is {noise!r}, which does not name its settings, so a later run could not tell "
            "whether they are the same. Give its class a __repr__ that names them (a dataclass has "
            "one), or leave out the directory."
        )


def _check_named(metric: Metric, *, stored: bool) -> None:
    """Refuse a wrong metric, and one that a later run could not recognise."""
    check_metric(metric)
    text = metric_text(metric)
    if stored and any(mark in text for mark in ("<lambda>", "<locals>", " at 0x")):
        raise ArgumentError(
            f"metric is {text}, which a later run could not recognise. Define the function in a "
            "module, or leave out the directory."
        )


def _positions(encoded: FactTokens, at: Position | None) -> list[int] | None:
    """The positions to trace in a fact; None for all."""
    return None if at is None else [position_of(at, encoded.subject, len(encoded.tokens))]


def _store(model: LensModel, directory: str | Path | None, settings: Mapping[str, object]) -> Store:
    if directory is None:
        return Store(None)
    return Store(
        directory,
        identity=model_identity(model),
        settings={"model": weights_fingerprint(model), **settings},
    )
