"""Causal tracing: corrupt the subject, restore one state, and see how much of the answer returns.

The plain method runs the whole model once for each cell (layer, position). Here a cell costs what it must: see
``restoring.py``.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from rome_lens.corruption import CorruptedPrompt, GaussianNoise, noise_for
from rome_lens.facts import Fact
from rome_lens.fingerprints import fingerprint
from rome_lens.forward import evaluating
from rome_lens.grid import Grid, grid
from rome_lens.models import LensModel
from rome_lens.recall import FactNotKnownError, Recall, recall
from rome_lens.restoring import Restorer, corrupted_run
from rome_lens.traces import CausalTrace

__all__ = ["FactNotKnownError", "causal_trace"]

_ROWS_PER_UNEMBEDDING = 2048


def causal_trace(
    model: LensModel,
    fact: Fact,
    *,
    component: str = "resid",
    window: int = 1,
    noise: Any = GaussianNoise(),
    samples: int = 10,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    answer: str = "first_token",
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
        recalled = recall(model, fact, cells.encoded, cells.answer, component, require_correct=require_correct)
        drawn = drawn_noise(model, fact, recalled, noise, samples=samples, prepend_bos=prepend_bos)
        corrupted, scores = [], []
        with progress_bar(f"trace {component}", cells, len(drawn), shown=progress) as bar:
            for part in drawn.split(cells.rows):
                run = corrupted_run(recalled.forward, recalled.tokens, corrupted_embeddings(recalled, part))
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


def common_fields(model: LensModel, fact: Fact, cells: Grid, recalled: Recall, noise: Any) -> dict[str, Any]:
    """What every kind of trace says of its fact, its cells and its model."""
    return {
        "fact": fact,
        "layers": cells.layers,
        "positions": cells.positions,
        "labels": cells.encoded.labels,
        "subject": cells.encoded.subject,
        "answer": model.tokenizer.decode(list(cells.answer)),
        "answer_tokens": len(cells.answer),
        "clean": recalled.clean,
        "noise": described(noise),
        "model_fingerprint": fingerprint(model),
    }


def drawn_noise(
    model: LensModel, fact: Fact, recalled: Recall, noise: Any, *, samples: int, prepend_bos: bool | None
) -> Float[Tensor, "sample subject d_model"]:
    """The noise of a trace for this fact."""
    prompt = CorruptedPrompt(
        fact=fact,
        encoded=recalled.encoded,
        embeddings=recalled.embeddings[slice(*recalled.encoded.subject)],
        prepend_bos=prepend_bos,
    )
    return noise_for(noise, model, prompt, samples=samples)


def corrupted_embeddings(
    recalled: Recall, noise: Float[Tensor, "sample subject d_model"]
) -> Float[Tensor, "sample pos d_model"]:
    """The clean embeddings with noise on the subject's."""
    embeddings = repeat(recalled.embeddings, "pos d -> sample pos d", sample=len(noise)).clone()
    embeddings[:, slice(*recalled.encoded.subject)] += noise
    return embeddings


def described(noise: Any) -> str:
    """The noise as results name it; of a tensor a few digits of its hash."""
    if not isinstance(noise, Tensor):
        return repr(noise)
    values = noise.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    return f"tensor {hashlib.sha256(values).hexdigest()[:8]}"


def scores_of(
    recalled: Recall, cells: Grid, restorer: Restorer, unrestored: Float[Tensor, " sample"], bar: tqdm
) -> Float[Tensor, "sample layer pos *head"]:
    """The scores of all cells; one that cannot matter has the score of the run with nothing restored."""
    samples = len(unrestored)
    scores = unrestored.view(-1, *(1 for _ in cells.shape)).repeat(1, *cells.shape)
    chosen = cells.cells(causal=restorer.past is not None)
    places, wanted = list(chosen), list(chosen.values())
    waiting: list[tuple[int, Tensor]] = []

    def write() -> None:  # many at once, since each product reads the whole vocabulary's weights
        if waiting:
            found = probabilities(recalled, torch.cat([finals for _, finals in waiting])).split(samples)
            by_place = rearrange(scores, "sample ... -> ... sample")
            for (i, _), row in zip(waiting, found, strict=True):
                by_place[places[i]] = row
            waiting.clear()

    bar.update(samples * (scores[0].numel() - len(places)))
    with recalled.forward.model.hooks(fwd_hooks=restorer.hooks()):
        for chunk, finals in restorer.finals(wanted, rows=cells.rows, read=len(recalled.answer)):
            waiting += zip(chunk, finals, strict=True)
            bar.update(samples * len(chunk))
            if len(waiting) * samples >= _ROWS_PER_UNEMBEDDING:
                write()
    write()
    return scores


def probabilities(recalled: Recall, finals: Float[Tensor, "row pos d_model"]) -> Float[Tensor, " row"]:
    """The answer's probability, from the last positions of final streams."""
    return recalled.forward.answer_log_probs(finals[:, -len(recalled.answer) :], recalled.answer).exp()


def progress_bar(description: str, cells: Grid, runs: int, *, shown: bool) -> tqdm:
    """A bar that counts restored runs."""
    return tqdm(desc=description, total=cells.count * runs, unit="run", disable=not shown)
