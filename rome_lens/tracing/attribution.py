"""Attribution patching: what a causal trace would find, to first order, for the price of one forward and one backward pass."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.errors import ArgumentError
from rome_lens.forward.module_hooks import unembedding_only
from rome_lens.forward.runs import evaluating, log_probabilities
from rome_lens.forward.tokens import Answer
from rome_lens.models.hook_names import EMBED, Component, Hook, component_hook
from rome_lens.models.lens import LensModel, at_least_float32, device
from rome_lens.tracing.cells import grid, restored_layers
from rome_lens.tracing.clean_run import Recall, recall
from rome_lens.tracing.noise import GaussianNoise
from rome_lens.tracing.results import AttributionTrace
from rome_lens.tracing.scoring import common_fields, corrupted_embeddings, drawn_noise


def attribution_trace(
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
    require_correct: bool = True,
) -> AttributionTrace:
    """``P*[answer] + sum_{l in window} (h_clean^l - h_corrupted^l) . dP*/dh_corrupted^l``, on the cells of a trace.

    The corrupted run's probability, extended linearly to the restored state. It is a preview: far from linear, and far
    from the exact trace where restoring a state changes much. Its ``rank_correlation`` with an exact trace says how far.

    Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Kramar et al. 2024, "AtP*".

    Args:
        window: more than 1 adds up the layers of a window, for ``"mlp"`` and ``"attn"``: a rougher preview, since what an
            earlier layer changes in a later one counts, though the later one is restored too. States of the residual
            stream do not add up at all, since each holds the ones before it.
        component, noise, samples, layers, positions, heads, answer, prepend_bos, batch_size, require_correct: as for
            :func:`causal_trace`.

    Raises:
        FactNotKnownError, ModelError, FactError, NoiseError, ValueError: as for :func:`causal_trace`.
    """
    fact = as_fact(fact)
    if component == "resid" and window != 1:
        raise ArgumentError(
            f"window is {window}, expected 1 for 'resid': its states do not add up over layers."
        )
    if torch.is_inference_mode_enabled():
        raise ArgumentError(
            "Attribution patching takes a gradient, which torch.inference_mode() rules out: call it outside."
        )
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
        parts = [_estimated(model, recalled, component, part) for part in drawn.split(cells.rows)]
    corrupted = torch.cat([probability for probability, _ in parts])
    by_layer = torch.cat([effects for _, effects in parts])[:, :, list(cells.positions)]
    by_layer = by_layer.sum(-1) if cells.heads is None else by_layer[..., list(cells.heads)]
    windows = [restored_layers(layer, window, model.cfg.n_layers) for layer in cells.layers]
    effects = torch.stack(
        [by_layer[:, window.start : window.stop].sum(1) for window in windows], dim=1
    )
    return AttributionTrace(
        component=component,
        window=window,
        heads=cells.heads or (),
        corrupted_samples=corrupted.cpu(),
        sample_scores=(effects + corrupted.view(-1, *(1 for _ in effects.shape[1:]))).cpu(),
        **common_fields(model, fact, cells, recalled, noise),
    )


def _estimated(
    model: LensModel,
    recalled: Recall,
    component: str,
    noise: Float[Tensor, "sample subject d_model"],
) -> tuple[Float[Tensor, " sample"], Float[Tensor, "sample layer pos head"]]:
    """The corrupted probability, and the effect of each layer's state; one head stands for all of what is no head."""
    states: dict[int, Tensor] = {}
    additions: dict[int, Tensor] = {}
    read = len(recalled.answer)
    embeddings = corrupted_embeddings(recalled, noise)

    def adding(layer: int) -> Hook:
        """A zero added to the state, since what a hook is shown is not always what the model goes on with."""

        def add(value: Tensor, hook: Any) -> Tensor:
            states[layer], additions[layer] = (
                value.detach(),
                torch.zeros_like(value, requires_grad=True),
            )
            return value + additions[layer]

        return component_hook(component, layer), add

    with torch.enable_grad(), unembedding_only(model, lambda stream: stream[:, -read:]):
        hooks: list[Hook] = [(EMBED, lambda value, hook: embeddings), *map(adding, recalled.states)]
        with model.hooks(fwd_hooks=hooks):
            logits = at_least_float32(
                model(recalled.tokens.expand(len(noise), -1).to(device(model)))
            )
        answer = torch.tensor(recalled.answer).repeat(len(noise))
        probability = (
            log_probabilities(logits.flatten(0, 1), answer).view(len(noise), read).sum(1).exp()
        )
        gradients = torch.autograd.grad(probability.sum(), list(additions.values()))
    effects = []
    for (layer, state), gradient in zip(states.items(), gradients, strict=True):
        change = (recalled.states[layer] - state) * gradient
        effects.append(change.sum(-1, keepdim=component != "z"))
    return probability.detach(), at_least_float32(torch.stack(effects, dim=1))
