"""Causal tracing: corrupt the subject, restore one state, and see how much of the answer returns.

The plain method runs the whole model once for each cell (layer, position). Here a cell costs what it must: the run
resumes from the corrupted stream at the first restored layer, many cells share a batch, only the last position is
unembedded, and cells that cannot reach the answer are not run at all.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from rome_lens.corruption import GaussianNoise, noise_for
from rome_lens.facts import Fact, FactError
from rome_lens.forward import PartialForward, Past, evaluating, last_position_logits, log_probabilities
from rome_lens.models import (
    COMPONENTS,
    EMBED,
    Hook,
    LensModel,
    ModelError,
    capture_hooks,
    check_layer,
    component_hook,
    device,
    fingerprint,
    resid_pre_hook,
)
from rome_lens.tokens import FactTokens, encode
from rome_lens.traces import CausalTrace

_TOKENS_PER_BATCH = 4096
_TOKENS_PER_BATCH_WITH_PAST = 320
_LOGITS_PER_BATCH = 1 << 27


class FactNotKnownError(FactError):
    """The model's first answer is another one, so that there is no fact to trace."""


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
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    require_correct: bool = True,
) -> CausalTrace:
    """``P*_{clean h_pos^layer}[answer]``: corrupt the subject's embeddings, restore single states, score the answer.

    The score of a cell is the mean over ``samples`` corrupted runs of the softmax probability of the answer's first
    token at the last position, while the component's output at that position is held at its clean value in the layers
    ``max(0, l - window // 2)`` up to, not including, ``min(n_layers, l - (-window // 2))``. The same noise serves every
    cell.

    Source: Meng et al. 2022, section 2.1 and appendix B.1 (single states; windows of 10 for MLP and attention).

    Args:
        component: ``"resid"`` (the stream after the layer), ``"mlp"`` or ``"attn"`` (what the layer adds to it).
        noise: a :class:`~rome_lens.corruption.Noise`, or the tensor itself, ``[samples, subject, d_model]``
            (then ``samples`` is not read).
        layers, positions: None takes all. Negative positions count from the end.
        prepend_bos: None takes the model's default.
        batch_size: rows of one forward, a row being one noise sample of one cell; a cell's samples stay together. None
            takes a few hundred tokens' worth where later positions can be run alone, else some thousand. It changes no
            score beyond rounding.
        require_correct: refuse a fact whose answer is not the model's first choice; with False the answer's
            probability is traced all the same.

    Raises:
        FactNotKnownError: the model gives another answer and ``require_correct`` is True.
        ModelError, FactError, NoiseError, ValueError: as their messages say; nothing is run before they are raised but
            one forward.
    """
    chosen_layers = _chosen_layers(model, component, window, layers)
    encoded = encode(model, fact, prepend_bos=prepend_bos)
    chosen_positions = _chosen_positions(positions, len(encoded.tokens))
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
    with evaluating(model), torch.no_grad():
        forward = PartialForward(model, encoded.tokens)
        states, embeddings, clean_logits = _clean_run(model, encoded, component)
        _check_known(model, fact, encoded, clean_logits, require_correct)
        drawn = noise_for(noise, model, embeddings[slice(*encoded.subject)], samples=samples)
        streams, past = _corrupted_run(forward, encoded, embeddings, drawn)
        tracer = _Tracer(forward, encoded, component, window, states, streams, past, batch_size)
        corrupted, scores = tracer.run(chosen_layers, chosen_positions, progress=progress)
        clean = float(log_probabilities(clean_logits[None], torch.tensor(encoded.answer[:1])).exp())
    return CausalTrace(
        fact=fact,
        component=component,
        window=window,
        layers=tuple(chosen_layers),
        positions=tuple(chosen_positions),
        labels=encoded.labels,
        subject=encoded.subject,
        answer=model.tokenizer.decode([encoded.answer[0]]),
        clean=clean,
        corrupted_samples=corrupted.cpu(),
        sample_scores=scores.cpu(),
        noise="tensor" if isinstance(noise, Tensor) else repr(noise),
        model_fingerprint=fingerprint(model),
    )


class _Tracer:
    """Runs cells of one trace in batches; a row is one noise sample of one cell."""

    def __init__(
        self,
        forward: PartialForward,
        encoded: FactTokens,
        component: str,
        window: int,
        states: dict[int, Float[Tensor, "pos d_model"]],
        streams: dict[int, Float[Tensor, "sample pos d_model"]],
        past: Past | None,
        batch_size: int | None,
    ) -> None:
        self.forward, self.component, self.window, self.states, self.streams = (
            forward,
            component,
            window,
            states,
            streams,
        )
        self.answer = encoded.answer[0]
        self.first, self.last = encoded.subject[0], len(encoded.tokens) - 1
        self.n_layers = forward.model.cfg.n_layers
        self.past = past
        # Cells of one batch start at the first of their positions: with a past, small batches compute less.
        tokens = _TOKENS_PER_BATCH if past is None else _TOKENS_PER_BATCH_WITH_PAST
        rows = batch_size or tokens // len(encoded.tokens)
        self.cells_per_batch = max(1, rows // streams[0].shape[0])

    def run(
        self, layers: Sequence[int], positions: Sequence[int], *, progress: bool
    ) -> tuple[Float[Tensor, " sample"], Float[Tensor, "sample layer pos"]]:
        corrupted = self.probabilities(self.streams[self.n_layers][:, -1])
        scores = repeat(corrupted, "sample -> sample layer pos", layer=len(layers), pos=len(positions)).clone()
        cells: list[tuple[int, int]] = []
        finals: list[Tensor] = []
        for i, layer in enumerate(tqdm(layers, desc=f"trace {self.component}", disable=not progress)):
            columns = [j for j, pos in enumerate(positions) if self.can_matter(layer, pos)]
            columns.sort(key=lambda j: positions[j])
            for start in range(0, len(columns), self.cells_per_batch):
                chunk = columns[start : start + self.cells_per_batch]
                finals.append(self.restored(layer, [positions[j] for j in chunk]))
                cells.extend((i, j) for j in chunk)
        if cells:
            restored = rearrange(self.probabilities(torch.cat(finals)), "(cell sample) -> sample cell", cell=len(cells))
            rows, columns = (list(axis) for axis in zip(*cells, strict=True))
            scores[:, rows, columns] = restored
        return corrupted, scores

    def restored_layers(self, layer: int) -> range:
        """The window around a layer, as the original study cuts it."""
        return range(max(0, layer - self.window // 2), min(self.n_layers, layer - (-self.window // 2)))

    def can_matter(self, layer: int, pos: int) -> bool:
        """Whether restoring the cell can change the answer: states before the subject are not corrupted, and after the
        last layer's attention only the last position is read."""
        return pos >= self.first and (pos == self.last or self.restored_layers(layer)[0] < self.n_layers - 1)

    def restored(self, layer: int, positions: Sequence[int]) -> Float[Tensor, "row d_model"]:
        """The last position's final stream of all samples, for cells of one layer."""
        window = self.restored_layers(layer)
        first = window[0]
        samples = self.streams[0].shape[0]
        skipped = 0 if self.past is None else min(positions)
        states = {i: self.states[i][skipped:] for i in window}
        row_positions = repeat(torch.tensor(positions) - skipped, "cell -> (cell sample)", sample=samples)
        # The residual stream after a layer is what enters the next one, so that its first restored layer need not run.
        start = first + 1 if self.component == "resid" else first
        stream = repeat(self.streams[start][:, skipped:], "sample pos d -> (cell sample) pos d", cell=len(positions))
        hooked = window
        if self.component == "resid":
            stream = restore(stream, states[first], row_positions)
            hooked = window[1:]
        hooks: list[Hook] = [(component_hook(self.component, i), _restoring(states[i], row_positions)) for i in hooked]
        rows = torch.arange(samples).repeat(len(positions))
        read = None if (past := self.past) is None else lambda layer: past.at(layer, before=skipped, rows=rows)
        with self.forward.model.hooks(fwd_hooks=hooks):
            return self.forward.resume(stream, start, past=read)[:, -1]

    def probabilities(self, finals: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """The answer's probability for rows of the final stream, unembedded in chunks."""
        rows = max(1, _LOGITS_PER_BATCH // self.forward.model.cfg.d_vocab)
        logits = (self.forward.logits(chunk) for chunk in finals.split(rows))
        return torch.cat([log_probabilities(each, torch.full((len(each),), self.answer)).exp() for each in logits])


def restore(
    value: Float[Tensor, "row pos d_model"], state: Float[Tensor, "pos d_model"], row_positions: Int[Tensor, " row"]
) -> Float[Tensor, "row pos d_model"]:
    """``value`` with each row's own position replaced by the clean state there."""
    value = value.clone()
    value[torch.arange(len(row_positions)), row_positions] = state[row_positions]
    return value


def _restoring(state: Tensor, row_positions: Tensor) -> Any:
    def hook_fn(value: Tensor, hook: Any) -> Tensor:
        return restore(value, state, row_positions)

    return hook_fn


def _clean_run(
    model: LensModel, encoded: FactTokens, component: str
) -> tuple[dict[int, Tensor], Float[Tensor, "pos d_model"], Float[Tensor, " d_vocab"]]:
    """The component's clean states by layer, the clean embeddings, and the last position's clean logits."""
    names = {layer: component_hook(component, layer) for layer in range(model.cfg.n_layers)}
    kept: dict[str, Tensor] = {}
    with model.hooks(fwd_hooks=capture_hooks([EMBED, *names.values()], kept)), last_position_logits(model):
        logits = model(encoded.tokens[None].to(device(model)))[0, -1]
    states = {layer: kept[name][0] for layer, name in names.items()}
    return states, kept[EMBED][0], logits.double() if logits.dtype == torch.float64 else logits.float()


def _corrupted_run(
    forward: PartialForward,
    encoded: FactTokens,
    embeddings: Float[Tensor, "pos d_model"],
    noise: Float[Tensor, "sample subject d_model"],
) -> tuple[dict[int, Float[Tensor, "sample pos d_model"]], Past | None]:
    """The corrupted residual stream that enters each layer, under ``n_layers`` the one that leaves the last; and the past."""
    corrupted = repeat(embeddings, "pos d -> sample pos d", sample=noise.shape[0]).clone()
    corrupted[:, slice(*encoded.subject)] += noise
    n_layers = forward.model.cfg.n_layers
    names = [*(resid_pre_hook(layer) for layer in range(n_layers)), component_hook("resid", n_layers - 1)]
    kept: dict[str, Tensor] = {}
    hooks: list[Hook] = [(EMBED, lambda value, hook: corrupted), *capture_hooks(names, kept)]
    with forward.model.hooks(fwd_hooks=hooks):
        _, past = forward.run(repeat(encoded.tokens, "pos -> sample pos", sample=noise.shape[0]))
    return {layer: kept[name] for layer, name in enumerate(names)}, past


def _check_known(
    model: LensModel, fact: Fact, encoded: FactTokens, logits: Float[Tensor, " d_vocab"], require_correct: bool
) -> None:
    best = int(logits.argmax())
    if require_correct and best != encoded.answer[0]:
        probabilities = logits.softmax(-1)
        raise FactNotKnownError(
            f"The model answers {fact.text!r} with {model.tokenizer.decode([best])!r} (p = {float(probabilities[best]):.3f}), "
            f"not with {fact.target!r} (p = {float(probabilities[encoded.answer[0]]):.3f}). "
            "Choose a fact that it knows, or trace the answer all the same with require_correct=False."
        )


def _chosen_layers(model: LensModel, component: str, window: int, layers: Iterable[int] | None) -> list[int]:
    if component not in COMPONENTS:
        raise ValueError(f"component is {component!r}, expected one of {', '.join(map(repr, COMPONENTS))}.")
    n_layers = model.cfg.n_layers
    if window < 1 or (n_layers > 1 and window // 2 >= n_layers - 1 and -(-window // 2) >= n_layers):
        raise ValueError(
            f"window is {window}, expected at least 1 and less than {2 * n_layers - 1}: from there on the window around "
            f"every layer is the whole model of {n_layers} layers."
        )
    if component == "mlp" and getattr(model.cfg, "attn_only", False):
        raise ModelError("The model has no MLP (attention only): trace 'resid' or 'attn'.")
    chosen = list(range(n_layers)) if layers is None else list(layers)
    if not chosen:
        raise ValueError("layers is empty: name at least one, or None for all.")
    return [check_layer(model, layer) for layer in chosen]


def _chosen_positions(positions: Iterable[int] | None, length: int) -> list[int]:
    if positions is None:
        return list(range(length))
    chosen = list(positions)
    if not chosen:
        raise ValueError("positions is empty: name at least one, or None for all.")
    outside = [pos for pos in chosen if not -length <= pos < length]
    if outside:
        raise ValueError(f"Positions {outside} are outside the prompt, which has {length} tokens (0 to {length - 1}).")
    return [pos % length for pos in chosen]
