"""Attribution patching: a causal trace estimated from one forward and one backward pass."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.errors import ArgumentError
from rome_lens.forward.module_hooks import hooks_on, unembedding_only
from rome_lens.forward.runs import evaluating, log_probabilities
from rome_lens.forward.tokens import Answer, encode
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.hook_names import EMBED, Component, Hook, component_hook
from rome_lens.models.lens import LensModel, at_least_float32, device
from rome_lens.tracing.cells import grid, restored_layers
from rome_lens.tracing.clean_run import CleanRun, run_one
from rome_lens.tracing.corruption import corrupted_embeddings, draw_noise
from rome_lens.tracing.noise import GaussianNoise, Noise
from rome_lens.tracing.passes import pass_size
from rome_lens.tracing.results import AttributionTrace
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
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    require_correct: bool = True,
) -> AttributionTrace:
    """A trace to first order: ``P* + sum_l (h_clean^l - h_corrupted^l) . dP*/dh_corrupted^l``.

    ``P*`` is the answer's probability in the corrupted run, and the sum is over the layers of the
    cell's window.

    This extends the corrupted run's probability linearly to the restored state. It is a preview.
    Where restoring a state changes much, the probability is far from linear and the estimate far
    from the exact trace. :meth:`AttributionTrace.rank_correlation` with an exact trace says how
    far.

    Args:
        window: for ``"mlp"`` and ``"attn"``, a window of more than 1 adds up the effects of its
            layers. This is a rougher preview: it counts what an earlier layer changes in a later
            one, although the later one is restored too. For ``"resid"`` the window must be 1,
            because each state of the residual stream contains the ones before it.
        component, noise, samples, layers, positions, heads, answer, prepend_bos, batch_size,
            require_correct: as for :func:`causal_trace`.

    Raises:
        FactNotKnownError, ArgumentError, FactError, NoiseError, ModelError: as for
            :func:`causal_trace`.

    Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Kramar et
    al. 2024, "AtP*".
    """
    fact = as_fact(fact)
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
        size=pass_size(model, batch_size=batch_size),
    )
    with evaluating(model), torch.no_grad():
        clean = run_one(model, fact, cells, prepend_bos, require_correct=require_correct)
        drawn = draw_noise(model, fact, clean, noise, samples=samples, prepend_bos=prepend_bos)
        parts = [_estimate(model, clean, component, part) for part in drawn.split(cells.rows)]
    corrupted = torch.cat([probability for probability, _ in parts])
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
        corrupted_samples=corrupted.cpu(),
        sample_scores=(effects + corrupted.view(-1, *(1 for _ in effects.shape[1:]))).cpu(),
        **common_fields(model, fact, cells, clean, noise, fingerprint(model)),
    )


def _estimate(
    model: LensModel,
    clean: CleanRun,
    component: Component,
    noise: Float[Tensor, "sample subject d_model"],
) -> tuple[Float[Tensor, " sample"], Float[Tensor, "sample layer pos head"]]:
    """The corrupted probability, and the estimated effect of each layer's state.

    Components other than ``"z"`` have a head axis of length 1.
    """
    states: dict[int, Tensor] = {}
    additions: dict[int, Tensor] = {}
    read = len(clean.answer)
    embeddings = corrupted_embeddings(clean, noise)

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
            logits = at_least_float32(model(clean.tokens.expand(len(noise), -1).to(device(model))))
        answer = torch.tensor(clean.answer, dtype=torch.long, device="cpu").repeat(len(noise))
        log_probs = log_probabilities(logits.flatten(0, 1), answer).view(len(noise), read)
        probability = log_probs.sum(1).exp()
        gradients = torch.autograd.grad(probability.sum(), list(additions.values()))
    effects = []
    for (layer, state), gradient in zip(states.items(), gradients, strict=True):
        change = (clean.states[layer] - state) * gradient
        effects.append(change.sum(-1, keepdim=component != "z"))
    return probability.detach(), at_least_float32(torch.stack(effects, dim=1))
