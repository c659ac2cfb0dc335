"""Attribution patching: a causal trace estimated from one forward and one backward pass."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import one_of
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.errors import ArgumentError
from rome_lens.forward.module_hooks import hooks_on, unembedding_only
from rome_lens.forward.runs import evaluating
from rome_lens.forward.tokens import Answer, encode
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.hook_names import EMBED, Component, Hook, component_hook
from rome_lens.models.lens import LensModel, at_least_float32, device
from rome_lens.tracing.cells import grid, restored_layers
from rome_lens.tracing.clean_run import CleanRun, run_one
from rome_lens.tracing.corruption import corrupted_embeddings, draw_noise
from rome_lens.tracing.metrics import Metric
from rome_lens.tracing.noise import GaussianNoise, Noise
from rome_lens.tracing.passes import pass_size
from rome_lens.tracing.results import AttributionTrace, Direction
from rome_lens.tracing.scoring import common_fields


@visits_model
def attribution_trace(
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
    require_correct: bool = True,
) -> AttributionTrace:
    """A trace to first order: ``P* + sum_l (h_clean^l - h_corrupted^l) . dP*/dh_corrupted^l``.

    ``P*`` is the score of the corrupted run, such as the answer's probability, and the sum is over
    the layers of the cell's window. In noising, clean and corrupted change places.

    This extends the corrupted run's score linearly to the restored state. It is a preview.
    Where restoring a state changes much, the probability is far from linear and the estimate far
    from the exact trace. :meth:`AttributionTrace.rank_correlation` with an exact trace says how
    far.

    Args:
        window: for ``"mlp"`` and ``"attn"``, a window of more than 1 adds up the effects of its
            layers. This is a rougher preview: it counts what an earlier layer changes in a later
            one, although the later one is restored too. For ``"resid"`` the window must be 1,
            because each state of the residual stream contains the ones before it.
        component, noise, samples, layers, positions, heads, answer, metric, direction, prepend_bos,
            batch_size, require_correct: as for :func:`causal_trace`.

    Raises:
        FactNotKnownError, ArgumentError, FactError, NoiseError, ModelError: as for
            :func:`causal_trace`.

    Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Kramar et
    al. 2024, "AtP*".
    """
    fact = as_fact(fact)
    one_of("direction", direction, Direction)
    if component == "resid" and window != 1:
        raise ArgumentError(
            f"window is {window}, expected 1 for 'resid': effects of the residual stream do not "
            "add up over layers."
        )
    if torch.is_inference_mode_enabled():
        raise ArgumentError(
            "Attribution patching takes a gradient, which torch.inference_mode() forbids: call it "
            "outside."
        )
    cells = grid(
        model,
        encode(model, fact, prepend_bos=prepend_bos),
        component=component,
        window=window,
        layers=layers,
        positions=positions,
        heads=heads,
        answer=answer,
        metric=metric,
        size=pass_size(model, batch_size=batch_size),
    )
    with evaluating(model), torch.no_grad():
        clean = run_one(model, fact, cells, prepend_bos, require_correct=require_correct)
        drawn = draw_noise(model, fact, clean, noise, samples=samples, prepend_bos=prepend_bos)
        estimate = _estimate if direction == "denoising" else _estimate_noising
        parts = [estimate(model, clean, component, part) for part in drawn.split(cells.rows)]
    corrupted = torch.cat([score for score, _ in parts])
    # A corrupted state moves the clean run's score by minus the effect.
    base = corrupted if direction == "denoising" else torch.full_like(corrupted, clean.score)
    by_layer = torch.cat([effects for _, effects in parts])[:, :, list(cells.positions)]
    by_layer = by_layer.sum(-1) if cells.heads is None else by_layer[..., list(cells.heads)]
    windows = [restored_layers(layer, cells.window, model.cfg.n_layers) for layer in cells.layers]
    effects = torch.stack(
        [by_layer[:, window.start : window.stop].sum(1) for window in windows], dim=1
    )
    return AttributionTrace(
        component=component,
        window=cells.window,
        heads=cells.heads or (),
        direction=direction,
        corrupted_samples=corrupted.cpu(),
        sample_scores=(effects + base.view(-1, *(1 for _ in effects.shape[1:]))).cpu(),
        **common_fields(model, fact, cells, clean, noise, fingerprint(model)),
    )


def _estimate(
    model: LensModel,
    clean: CleanRun,
    component: Component,
    noise: Float[Tensor, "sample subject d_model"],
) -> tuple[Float[Tensor, " sample"], Float[Tensor, "sample layer pos head"]]:
    """The corrupted score, and the estimated effect of each layer's clean state.

    Components other than ``"z"`` have a head axis of length 1.
    """
    scores, states, gradients = _gradients(
        model, clean, component, corrupted_embeddings(clean, noise)
    )
    return scores, _products(component, clean.states, states, gradients)


def _estimate_noising(
    model: LensModel,
    clean: CleanRun,
    component: Component,
    noise: Float[Tensor, "sample subject d_model"],
) -> tuple[Float[Tensor, " sample"], Float[Tensor, "sample layer pos head"]]:
    """The corrupted score, and what each layer's corrupted state adds to the clean score."""
    corrupted, states, _ = _gradients(model, clean, component, corrupted_embeddings(clean, noise))
    _, own, gradients = _gradients(model, clean, component, clean.embeddings[None])
    return corrupted, _products(component, states, own, gradients)


def _products(
    component: Component,
    states: Mapping[int, Tensor],
    replaced: Mapping[int, Tensor],
    gradients: Mapping[int, Tensor],
) -> Float[Tensor, "sample layer pos head"]:
    """The estimated change of the score, if a layer's states take the place of others."""
    products = [(states[i] - replaced[i]) * gradients[i] for i in gradients]
    return at_least_float32(
        torch.stack([each.sum(-1, keepdim=component != "z") for each in products], dim=1)
    )


def _gradients(
    model: LensModel,
    clean: CleanRun,
    component: Component,
    embeddings: Float[Tensor, "sample pos d_model"],
) -> tuple[Float[Tensor, " sample"], dict[int, Tensor], dict[int, Tensor]]:
    """The scores of a run on these embeddings; its states by layer; and the scores' gradients."""
    states: dict[int, Tensor] = {}
    additions: dict[int, Tensor] = {}
    read = len(clean.answer)

    def adding(layer: int) -> Hook:
        """Add a zero to the state and take the gradient there.

        The tensor that a hook receives is not always the one that the model continues with.
        """

        def add(value: Tensor, hook: Any) -> Tensor:
            states[layer] = value.detach()
            additions[layer] = torch.zeros_like(value, requires_grad=True)
            return value + additions[layer]

        return component_hook(component, layer), add

    with torch.enable_grad(), unembedding_only(model, lambda stream: stream[:, -read:]):
        hooks: list[Hook] = [(EMBED, lambda value, hook: embeddings), *map(adding, clean.states)]
        with hooks_on(model, hooks):
            tokens = clean.tokens.expand(len(embeddings), -1).to(device(model))
            logits = at_least_float32(model(tokens))
        scores = clean.reading.scores(logits)
        gradients = torch.autograd.grad(scores.sum(), list(additions.values()))
    return scores.detach(), states, dict(zip(additions, gradients, strict=True))
