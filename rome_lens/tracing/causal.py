"""Causal tracing: corrupt the subject, restore one state, and see how much of the answer returns.

The plain method runs the whole model once for each cell (layer, position). Here a cell costs what it must: see
``restoring.py``.
"""

from collections.abc import Iterable
from typing import Any

import torch

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.forward.runs import evaluating
from rome_lens.forward.tokens import Answer
from rome_lens.models.hook_names import Component
from rome_lens.models.lens import LensModel
from rome_lens.tracing.cells import grid
from rome_lens.tracing.clean_run import recall
from rome_lens.tracing.noise import GaussianNoise
from rome_lens.tracing.restoring import Restorer, corrupted_run
from rome_lens.tracing.results import CausalTrace
from rome_lens.tracing.scoring import (
    common_fields,
    corrupted_embeddings,
    drawn_noise,
    probabilities,
    progress_bar,
    scores_of,
)


def causal_trace(
    model: LensModel,
    fact: Fact | Record,
    *,
    component: Component = "resid",
    window: int = 1,
    noise: Any = GaussianNoise(),
    samples: int = 10,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    answer: Answer = "first_token",
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    require_correct: bool = True,
) -> CausalTrace:
    """``P*_{clean h_pos^layer}[answer]``: corrupt the subject's embeddings, restore single states, score the answer.

    The score of a cell is the mean over ``samples`` corrupted runs of the softmax probability of the answer's first
    token at the last position, while the component's output at that position is held at its clean value in the layers
    ``max(0, l - window // 2)`` up to, not including, ``min(n_layers, l - (-window // 2))``. The same noise serves every
    cell. Probabilities are computed in float32 at least, whatever the model's precision.

    Source: Meng et al. 2022, section 2.1 and appendix B.1 (single states; windows of 10 for MLP and attention).

    On weights that TransformerLens has processed (folded norms, centred writing weights) scores are the same for the same
    noise tensor. The default noise is another one there, since processing moves the embeddings and with them their
    standard deviation.

    Args:
        component: ``"resid"`` (the stream after the layer), ``"mlp"`` or ``"attn"`` (what the layer adds to it), or
            ``"z"``, the output of single heads before ``W_O``; then scores have a third axis, ``heads``.
        noise: a kind of noise (see ``corruption.py``), or the tensor itself, ``[samples, subject, d_model]``
            (then ``samples`` is not read).
        layers, positions, heads: None takes all. Negative positions count from the end.
        answer: ``"first_token"`` scores the answer's first token, as the study does; ``"whole"`` the product over all of
            its tokens, each given those before it.
        prepend_bos: None takes the model's default.
        batch_size: the most rows that any forward may have, a row being one noise sample of one cell: the bound on memory
            (two at least, for a check of the model). None takes some thousand tokens' worth. It changes no score beyond rounding.
        require_correct: refuse a fact whose answer is not the model's first choice; with False the answer's
            probability is traced all the same.

    Raises:
        FactNotKnownError: the model gives another answer and ``require_correct`` is True.
        ModelError, FactError, NoiseError, ValueError: as their messages say; nothing is run before they are raised but
            one forward.
    """
    fact = as_fact(fact)
    cells = grid(
        model,
        fact,
        component=component,
        window=window,
        layers=layers,
        positions=positions,
        heads=heads,
        answer=answer,
        prepend_bos=prepend_bos,
        batch_size=batch_size,
    )
    with evaluating(model), torch.no_grad():
        recalled = recall(
            model, fact, cells.encoded, cells.answer, component, require_correct=require_correct
        )
        drawn = drawn_noise(model, fact, recalled, noise, samples=samples, prepend_bos=prepend_bos)
        corrupted, scores = [], []
        with progress_bar(f"trace {component}", cells, len(drawn), shown=progress) as bar:
            for part in drawn.split(cells.rows):
                run = corrupted_run(
                    recalled.forward, recalled.tokens, corrupted_embeddings(recalled, part)
                )
                corrupted.append(probabilities(recalled, run.streams[-1]))
                restorer = Restorer(recalled.forward, component, recalled.states, run)
                scores.append(scores_of(recalled, cells, restorer, corrupted[-1], bar))
    return CausalTrace(
        component=component,
        window=window,
        heads=cells.heads or (),
        corrupted_samples=torch.cat(corrupted).cpu(),
        sample_scores=torch.cat(scores).cpu(),
        **common_fields(model, fact, cells, recalled, noise),
    )
