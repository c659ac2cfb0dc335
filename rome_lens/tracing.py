"""Causal tracing: corrupt the subject, restore one state, and see how much of the answer returns.

The plain method runs the whole model once for each cell (layer, position). Here a cell costs what it must: see
``restoring.py``.
"""

from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from rome_lens.corruption import CorruptedPrompt, GaussianNoise, NoiseError, noise_for
from rome_lens.facts import Fact
from rome_lens.forward import evaluating
from rome_lens.grid import Grid, check_has_mlp, grid
from rome_lens.models import Hook, LensModel, capture_hooks, component_hook, fingerprint
from rome_lens.recall import FactNotKnownError, Recall, recall
from rome_lens.restoring import CorruptedRun, Restorer, corrupted_run
from rome_lens.tokens import encode
from rome_lens.traces import CausalTrace, SeveredTrace

__all__ = ["FactNotKnownError", "causal_trace", "severed_trace"]

_ROWS_PER_UNEMBEDDING = 2048
_SEVERED = {"mlp": ("mlp",), "attn": ("attn",), "both": ("mlp", "attn")}


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
        batch_size: the most rows that any forward may have, a row being one noise sample of one cell: the bound on memory.
            None takes some thousand tokens' worth. It changes no score beyond rounding.
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
        with _progress(f"trace {component}", cells, len(drawn), shown=progress) as bar:
            for part in drawn.split(cells.rows):
                run = corrupted_run(recalled.forward, recalled.tokens, corrupted_embeddings(recalled, part))
                corrupted.append(_probabilities(recalled, run.streams[-1]))
                restorer = Restorer(recalled.forward, component, recalled.states, run)
                scores.append(_scores(recalled, cells, restorer, corrupted[-1], bar))
    return CausalTrace(
        fact=fact,
        component=component,
        window=window,
        layers=cells.layers,
        positions=cells.positions,
        heads=cells.heads or (),
        labels=cells.encoded.labels,
        subject=cells.encoded.subject,
        answer=model.tokenizer.decode(list(cells.answer)),
        clean=recalled.clean,
        corrupted_samples=torch.cat(corrupted).cpu(),
        sample_scores=torch.cat(scores).cpu(),
        noise=described(noise),
        model_fingerprint=fingerprint(model),
    )


def severed_trace(
    model: LensModel,
    fact: Fact,
    *,
    severed: str = "mlp",
    noise: Any = GaussianNoise(),
    held_noise: Any = None,
    held_layers: str = "later",
    samples: int = 10,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    answer: str = "first_token",
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    require_correct: bool = True,
) -> SeveredTrace:
    """The trace of the residual stream while later MLPs (or attentions) at the restored position stay corrupted.

    With the state at ``(layer, pos)`` restored, the outputs of the severed modules at ``pos`` in the layers after it are
    held at the values that they have in the corrupted run: what is lost against the ordinary trace went through them.

    Source: Meng et al. 2022, section 2.2 and figure 3 (the modified graph). There the held values come from a first draw of
    noise and the scored run from a second one; here one draw serves both, unless ``held_noise`` is given. (At the last
    layer, after which nothing is held, the study's code scores its first draw; here it is always ``noise``.)

    Args:
        severed: ``"mlp"``, ``"attn"`` or ``"both"``.
        noise: of the scored runs.
        held_noise: of the runs that the held values are taken from; None takes the scored runs' own.
        held_layers: ``"later"`` holds the layers after the restored one, ``"all"`` every layer. With one draw they agree,
            since before the restored layer nothing differs from the corrupted run.
        positions: None takes the last token of the subject, as the study does.
        samples, layers, answer, prepend_bos, batch_size, progress, require_correct: as for :func:`causal_trace`.

    Raises:
        FactNotKnownError, ModelError, FactError, NoiseError, ValueError: as for :func:`causal_trace`.
    """
    _check_severed(model, severed, held_layers)
    cells = grid(
        model,
        fact,
        component="resid",
        window=1,
        layers=layers,
        positions=[encode(model, fact, prepend_bos=prepend_bos).subject_last] if positions is None else positions,
        heads=None,
        answer=answer,
        prepend_bos=prepend_bos,
        batch_size=batch_size,
    )
    with evaluating(model), torch.no_grad():
        recalled = recall(model, fact, cells.encoded, cells.answer, "resid", require_correct=require_correct)
        drawn = drawn_noise(model, fact, recalled, noise, samples=samples, prepend_bos=prepend_bos)
        first = drawn
        if held_noise is not None:
            first = drawn_noise(model, fact, recalled, held_noise, samples=samples, prepend_bos=prepend_bos)
        if len(first) != len(drawn):
            raise NoiseError(f"held_noise has {len(first)} samples, noise {len(drawn)}: expected as many.")
        corrupted, ordinary, cut = [], [], []
        with _progress(f"severed {severed}", cells, 2 * len(drawn), shown=progress) as bar:
            for part, held_part in zip(drawn.split(cells.rows), first.split(cells.rows), strict=True):
                run = corrupted_run(recalled.forward, recalled.tokens, corrupted_embeddings(recalled, part))
                corrupted.append(_probabilities(recalled, run.streams[-1]))
                restorer = Restorer(recalled.forward, "resid", recalled.states, run)
                ordinary.append(_scores(recalled, cells, restorer, corrupted[-1], bar))
                held = _outputs(recalled, severed, held_part)
                columns = []
                for pos in cells.positions:
                    base = run if held_layers == "later" else _run_with_held(recalled, part, held, pos)
                    restorer = Restorer(recalled.forward, "resid", recalled.states, base, held=held)
                    unrestored = _probabilities(recalled, base.streams[-1])
                    columns.append(_scores(recalled, cells.at(pos), restorer, unrestored, bar))
                cut.append(torch.cat(columns, dim=2))
    return SeveredTrace(
        fact=fact,
        severed=severed,
        held_layers=held_layers,
        layers=cells.layers,
        positions=cells.positions,
        labels=cells.encoded.labels,
        subject=cells.encoded.subject,
        answer=model.tokenizer.decode(list(cells.answer)),
        clean=recalled.clean,
        corrupted_samples=torch.cat(corrupted).cpu(),
        ordinary_sample_scores=torch.cat(ordinary).cpu(),
        sample_scores=torch.cat(cut).cpu(),
        noise=described(noise),
        held_noise=described(noise if held_noise is None else held_noise),
        model_fingerprint=fingerprint(model),
    )


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
    """The noise as results name it."""
    return "tensor" if isinstance(noise, Tensor) else repr(noise)


def _scores(
    recalled: Recall, cells: Grid, restorer: Restorer, unrestored: Float[Tensor, " sample"], bar: tqdm
) -> Float[Tensor, "sample layer pos *head"]:
    """The scores of all cells; one that cannot matter has the score of the run with nothing restored."""
    samples = len(unrestored)
    scores = unrestored.view(-1, *(1 for _ in cells.shape)).repeat(1, *cells.shape)
    places, wanted = list(cells.cells()), list(cells.cells().values())
    waiting: list[tuple[int, Tensor]] = []

    def write() -> None:  # many at once, since each product reads the whole vocabulary's weights
        if waiting:
            found = _probabilities(recalled, torch.cat([finals for _, finals in waiting])).split(samples)
            by_place = rearrange(scores, "sample ... -> ... sample")
            for (i, _), probabilities in zip(waiting, found, strict=True):
                by_place[places[i]] = probabilities
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


def _probabilities(recalled: Recall, finals: Float[Tensor, "row pos d_model"]) -> Float[Tensor, " row"]:
    """The answer's probability, from the last positions of final streams."""
    return recalled.forward.answer_log_probs(finals[:, -len(recalled.answer) :], recalled.answer).exp()


def _outputs(
    recalled: Recall, severed: str, noise: Float[Tensor, "sample subject d_model"]
) -> dict[str, Float[Tensor, "sample pos d_model"]]:
    """The severed modules' outputs in the corrupted run, by hook name."""
    n_layers = recalled.forward.model.cfg.n_layers
    names = [component_hook(module, layer) for layer in range(n_layers) for module in _SEVERED[severed]]
    kept: dict[str, Tensor] = {}
    embeddings = corrupted_embeddings(recalled, noise)
    corrupted_run(recalled.forward, recalled.tokens, embeddings, hooks=capture_hooks(names, kept))
    return kept


def _run_with_held(
    recalled: Recall, noise: Float[Tensor, "sample subject d_model"], held: dict[str, Tensor], pos: int
) -> CorruptedRun:
    """The corrupted run with one position's severed modules held in every layer."""

    def holding(name: str) -> Hook:
        def hold(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, pos] = held[name][:, pos]
            return value

        return name, hold

    hooks = [holding(name) for name in held]
    return corrupted_run(recalled.forward, recalled.tokens, corrupted_embeddings(recalled, noise), hooks=hooks)


def _progress(description: str, cells: Grid, runs: int, *, shown: bool) -> tqdm:
    return tqdm(desc=description, total=cells.count * runs, unit="run", disable=not shown)


def _check_severed(model: LensModel, severed: str, held_layers: str) -> None:
    if severed not in _SEVERED:
        raise ValueError(f"severed is {severed!r}, expected one of {', '.join(map(repr, _SEVERED))}.")
    if held_layers not in ("later", "all"):
        raise ValueError(f"held_layers is {held_layers!r}, expected 'later' or 'all'.")
    if "mlp" in _SEVERED[severed]:
        check_has_mlp(model)
