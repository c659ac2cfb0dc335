"""Causal tracing: corrupt the subject, restore one state, and see how much of the answer returns.

The plain method runs the whole model once for each cell (layer, position). ``restoring.py`` does
the same with far less work.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import one_of
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.forward.runs import evaluating, weights_laid_out
from rome_lens.forward.tokens import Answer, encode
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.hook_names import Component, capture_hooks, component_hook
from rome_lens.models.lens import LensModel
from rome_lens.tracing.cells import Grid, grid
from rome_lens.tracing.clean_run import CleanRun, run_clean
from rome_lens.tracing.corrupted_run import clean_rows, run_corrupted
from rome_lens.tracing.corruption import corrupted_embeddings, draw_noise
from rome_lens.tracing.metrics import Metric
from rome_lens.tracing.noise import GaussianNoise, Noise
from rome_lens.tracing.passes import packed, pass_size
from rome_lens.tracing.restoring import Restorer
from rome_lens.tracing.results import CausalTrace, Direction
from rome_lens.tracing.scoring import (
    cell_scores,
    common_fields,
    progress_bar,
    run_scores,
)


@visits_model
def causal_trace(
    model: LensModel,
    fact: Fact | Record,
    *,
    component: Component = "resid",
    window: int = 1,
    noise: Noise | Tensor = GaussianNoise(),
    samples: int = 10,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    answer: Answer = "first_token",
    metric: Metric = "probability",
    direction: Direction = "denoising",
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    require_correct: bool = True,
) -> CausalTrace:
    """``P*_{clean h_pos^layer}[answer]``: the answer's probability with one clean state restored.

    A cell is a layer and a position. Its score is the softmax probability of the answer's first
    token after the prompt, averaged over ``samples`` runs with a corrupted subject. During
    these runs, the component's output at the cell's position is held at its clean value in a window
    of layers around the cell's layer: from ``max(0, l - window // 2)`` up to, not including,
    ``min(n_layers, l - (-window // 2))``. All cells use the same noise. Probabilities are computed
    in float32 or better, whatever the model's precision.

    TransformerLens can process weights on loading (folded norms, centred writing weights). This
    does not change the scores for the same noise tensor. It does change the default noise, because
    it moves the embeddings and with them their standard deviation.

    Args:
        model: the model; it is left as it was.
        fact: the fact to trace.
        component: ``"resid"`` (the residual stream after the layer), ``"mlp"`` or ``"attn"`` (what
            the layer's MLP or attention adds to it), or ``"z"`` (the output of single heads before
            ``W_O``). For ``"z"`` the scores have a third axis, ``heads``.
        window: the number of layers restored together.
        noise: a kind of noise (see ``corruption.py``), or the noise itself as a tensor of
            shape ``[samples, subject, d_model]``. With a tensor, ``samples`` is not used.
        samples: the number of corrupted runs.
        layers, positions, heads: the cells; None takes all. Negative positions count from the end.
        answer: ``"whole"`` scores the product over all of the answer's tokens, each given the
            tokens before it. ``"first_token"`` scores a single one, as the study does: the answer's
            first token, or, if the fact has a new target, the first token in which the two answers
            differ, given the tokens before it. If that token is white space alone, as before
            numbers in some tokenizers, the whole answer is scored. The trace's ``answer`` and
            ``given`` show what was scored.
        metric: what is scored instead of the probability: ``"log_prob"``, ``"logit_difference"``
            (the target's logit minus the new target's), ``"kl"`` (``-KL(clean || run)``), or a
            function from logits ``[row, d_vocab]`` at the last position to one number for each row;
            see :data:`rome_lens.tracing.metrics.MetricName`.
        direction: ``"denoising"`` restores a clean state in corrupted runs, as the study does, and
            asks whether it is sufficient. ``"noising"`` puts the state of a corrupted run into the
            clean run, and asks whether the clean state is necessary: ``scores`` are then those of
            the clean run with the cell corrupted, and an indirect effect is what the cell takes
            away from ``clean``.
        prepend_bos: whether the prompt starts with BOS; None takes the model's default.
        batch_size: maximum rows per forward pass (one row is one noise sample of one cell). This
            bounds the memory; it does not change the scores beyond rounding. The check of the model
            needs two rows in any case. None chooses by the device: enough rows to keep a CPU
            busy, or those whose largest tensor fits a share of a GPU's memory.
        progress: show a progress bar.
        require_correct: refuse a fact that the model does not know, as :func:`rome_lens.knows`
            decides it: every token of the answer must be the model's first choice. With False, the
            probability of the answer is traced anyway.

    Returns:
        The trace; its ``scores`` are ``Float[Tensor, "layer pos"]``, or ``"layer pos head"`` for
        ``"z"``.

    Raises:
        FactNotKnownError: ``require_correct`` is True and the model's first choice is another
            answer.
        ArgumentError, FactError, NoiseError, ModelError: an argument does not fit; the message says
            which. At most one forward pass is run before that.

    Source: Meng et al. 2022, section 2.1 and appendix B.1 (single states; windows of 10 for MLP and
    attention). Zhang and Nanda 2023 (metrics); Heimersheim and Nanda 2024 (noising, denoising).

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.Fact("{} lives in the city of", subject="Wanda Brandt", target="Pralec")
        >>> trace = rl.causal_trace(model, fact)
        >>> trace.scores.shape
        torch.Size([6, 9])
        >>> round(trace.clean, 2), round(trace.corrupted, 2)
        (0.99, 0.16)
        >>> layer, pos = trace.peak()
        >>> trace.labels[pos], layer, round(float(trace.scores[layer, pos]), 2)
        (' of', 5, 0.99)
        >>> layer, pos = trace.peak(at="subject_last")
        >>> trace.labels[pos], round(float(trace.scores[layer, pos]), 2)
        (' Brandt', 0.93)
    """
    fact = as_fact(fact)
    cells = grid(
        model,
        encode(model, fact, prepend_bos=prepend_bos),
        component=component,
        window=window,
        layers=layers,
        positions=positions,
        heads=heads,
        answer=answer,
        size=pass_size(model, batch_size=batch_size),
        metric=metric,
    )
    [trace] = trace_together(
        model,
        [fact],
        [cells],
        noise=noise,
        samples=samples,
        direction=direction,
        prepend_bos=prepend_bos,
        require_correct=require_correct,
        progress=progress,
    )
    if isinstance(trace, Exception):
        raise trace
    return trace


@visits_model
def trace_together(
    model: LensModel,
    facts: Sequence[Fact],
    grids: Sequence[Grid],
    *,
    noise: Noise | Tensor,
    samples: int,
    prepend_bos: bool | None,
    require_correct: bool,
    direction: Direction = "denoising",
    progress: bool = False,
) -> list[CausalTrace | Exception]:
    """The traces of several facts, whose cells share forward passes.

    Args:
        facts: the facts to trace.
        grids: the cells of each fact. All grids have the same component, window and pass size.
        noise, samples, direction, prepend_bos, require_correct, progress: as for
            :func:`causal_trace`.

    Returns:
        For each fact its trace, or the error that concerns this fact alone.

    Raises:
        ModelError: the model's forward pass cannot be resumed from a layer.
    """
    one_of("direction", direction, Direction)
    outcomes: dict[int, CausalTrace | Exception] = {}
    subjects: list[_Subject] = []
    with evaluating(model), weights_laid_out(model), torch.no_grad():
        cleans = run_clean(model, facts, grids, prepend_bos, require_correct=require_correct)
        for i, (fact, clean) in enumerate(zip(facts, cleans, strict=True)):
            if isinstance(clean, Exception):
                outcomes[i] = clean
                continue
            try:
                drawn = draw_noise(
                    model, fact, clean, noise, samples=samples, prepend_bos=prepend_bos
                )
            except Exception as error:  # the caller raises it, once the other facts are traced
                outcomes[i] = error
            else:
                subjects.append(_Subject(number=i, cells=grids[i], clean=clean, noise=drawn))
        _score(subjects, direction, progress=progress)
        model_fingerprint = fingerprint(model)
    for each in subjects:
        outcomes[each.number] = CausalTrace(
            component=each.cells.component,
            window=each.cells.window,
            direction=direction,
            heads=each.cells.heads or (),
            corrupted_samples=torch.cat(each.corrupted),
            sample_scores=torch.cat(each.scores),
            **common_fields(
                model, facts[each.number], each.cells, each.clean, noise, model_fingerprint
            ),
        )
    return [outcomes[i] for i in range(len(facts))]


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A fact that is ready to be traced, and its scores as they come in."""

    number: int
    cells: Grid
    clean: CleanRun
    noise: Float[Tensor, "sample subject d_model"]
    corrupted: list[Float[Tensor, " _sample"]] = field(default_factory=list)
    scores: list[Float[Tensor, "_sample _layer _pos ..."]] = field(default_factory=list)


def _score(subjects: Sequence[_Subject], direction: Direction, *, progress: bool) -> None:
    """Run the subjects' cells, as many noise samples together as one pass takes."""
    parts = [
        (subject, noise)
        for subject in subjects
        for noise in subject.noise.split(subject.cells.rows)
    ]
    if not parts:
        return
    # Facts share a run only where their padding changes nothing.
    shared = all(subject.clean.forward.has_past for subject in subjects)
    most = min(subject.cells.rows for subject in subjects) if shared else 1
    component = subjects[0].cells.component
    total = sum(subject.cells.count * len(subject.noise) for subject in subjects)
    with progress_bar(f"trace {component}", total, progress=progress) as bar:
        for batch in packed(parts, [len(noise) for _, noise in parts], most):
            owners = [subject for subject, _ in batch]
            forward = owners[0].clean.forward
            states: dict[str, Tensor] = {}
            names = [component_hook(component, layer) for layer in owners[0].clean.states]
            run = run_corrupted(
                forward,
                [subject.clean for subject in owners],
                [corrupted_embeddings(subject.clean, noise) for subject, noise in batch],
                hooks=capture_hooks(names, states) if direction == "noising" else (),
            )
            corrupted = run_scores(forward, run)
            for owner, low in zip(owners, corrupted, strict=True):
                owner.corrupted.append(low.cpu())
            if direction == "noising":
                owners = [owner for owner, low in zip(owners, corrupted, strict=True) for _ in low]
                run = clean_rows(forward, [owner.clean for owner in owners], names, states)
            base = corrupted if direction == "denoising" else run_scores(forward, run)
            restorer = Restorer(forward, component, run)
            scores = cell_scores(restorer, [owner.cells for owner in owners], base, bar)
            for owner, high in zip(owners, scores, strict=True):
                owner.scores.append(high)
