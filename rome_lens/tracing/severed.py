"""Severed traces: what a restored state does while later modules at its position stay corrupted."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import one_of
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.forward.runs import evaluating
from rome_lens.forward.tokens import Answer, encode
from rome_lens.models.hook_names import Hook, capture_hooks, component_hook
from rome_lens.models.lens import LensModel, check_has_mlp
from rome_lens.tracing.cells import grid
from rome_lens.tracing.clean_run import Recall, recall
from rome_lens.tracing.noise import GaussianNoise, NoiseError
from rome_lens.tracing.restoring import CorruptedRun, Restorer, corrupted_run
from rome_lens.tracing.results import SeveredTrace
from rome_lens.tracing.scoring import (
    common_fields,
    corrupted_embeddings,
    described,
    drawn_noise,
    probabilities,
    progress_bar,
    scores_of,
)

Severed = Literal["mlp", "attn", "both"]
HeldLayers = Literal["later", "all"]
_SEVERED = {"mlp": ("mlp",), "attn": ("attn",), "both": ("mlp", "attn")}


def severed_trace(
    model: LensModel,
    fact: Fact | Record,
    *,
    severed: Severed = "mlp",
    noise: Any = GaussianNoise(),
    held_noise: Any = None,
    held_layers: HeldLayers = "later",
    samples: int = 10,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    answer: Answer = "first_token",
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
    fact = as_fact(fact)
    _check_severed(model, severed, held_layers)
    cells = grid(
        model,
        fact,
        component="resid",
        window=1,
        layers=layers,
        positions=[encode(model, fact, prepend_bos=prepend_bos).subject_last]
        if positions is None
        else positions,
        heads=None,
        answer=answer,
        prepend_bos=prepend_bos,
        batch_size=batch_size,
    )
    with evaluating(model), torch.no_grad():
        recalled = recall(
            model, fact, cells.encoded, cells.answer, "resid", require_correct=require_correct
        )
        drawn = drawn_noise(model, fact, recalled, noise, samples=samples, prepend_bos=prepend_bos)
        first = drawn
        if held_noise is not None:
            first = drawn_noise(
                model, fact, recalled, held_noise, samples=samples, prepend_bos=prepend_bos
            )
        if len(first) != len(drawn):
            raise NoiseError(
                f"held_noise has {len(first)} samples, noise {len(drawn)}: expected as many."
            )
        corrupted, ordinary, cut = [], [], []
        with progress_bar(f"severed {severed}", cells, 2 * len(drawn), shown=progress) as bar:
            for part, held_part in zip(
                drawn.split(cells.rows), first.split(cells.rows), strict=True
            ):
                run = corrupted_run(
                    recalled.forward, recalled.tokens, corrupted_embeddings(recalled, part)
                )
                corrupted.append(probabilities(recalled, run.streams[-1]))
                restorer = Restorer(recalled.forward, "resid", recalled.states, run)
                ordinary.append(scores_of(recalled, cells, restorer, corrupted[-1], bar))
                held = _outputs(recalled, severed, held_part)
                columns = []
                for pos in cells.positions:
                    base = (
                        run if held_layers == "later" else _run_with_held(recalled, part, held, pos)
                    )
                    restorer = Restorer(recalled.forward, "resid", recalled.states, base, held=held)
                    unrestored = probabilities(recalled, base.streams[-1])
                    columns.append(scores_of(recalled, cells.at(pos), restorer, unrestored, bar))
                cut.append(torch.cat(columns, dim=2))
    return SeveredTrace(
        severed=severed,
        held_layers=held_layers,
        corrupted_samples=torch.cat(corrupted).cpu(),
        ordinary_sample_scores=torch.cat(ordinary).cpu(),
        sample_scores=torch.cat(cut).cpu(),
        held_noise=described(noise if held_noise is None else held_noise),
        **common_fields(model, fact, cells, recalled, noise),
    )


def _outputs(
    recalled: Recall, severed: str, noise: Float[Tensor, "sample subject d_model"]
) -> dict[str, Float[Tensor, "sample pos d_model"]]:
    """The severed modules' outputs in the corrupted run, by hook name."""
    n_layers = recalled.forward.model.cfg.n_layers
    names = [
        component_hook(module, layer) for layer in range(n_layers) for module in _SEVERED[severed]
    ]
    kept: dict[str, Tensor] = {}
    embeddings = corrupted_embeddings(recalled, noise)
    corrupted_run(recalled.forward, recalled.tokens, embeddings, hooks=capture_hooks(names, kept))
    return kept


def _run_with_held(
    recalled: Recall,
    noise: Float[Tensor, "sample subject d_model"],
    held: dict[str, Tensor],
    pos: int,
) -> CorruptedRun:
    """The corrupted run with one position's severed modules held in every layer."""

    def holding(name: str) -> Hook:
        def hold(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, pos] = held[name][:, pos]
            return value

        return name, hold

    hooks = [holding(name) for name in held]
    return corrupted_run(
        recalled.forward, recalled.tokens, corrupted_embeddings(recalled, noise), hooks=hooks
    )


def _check_severed(model: LensModel, severed: str, held_layers: str) -> None:
    one_of("severed", severed, Severed)
    one_of("held_layers", held_layers, HeldLayers)
    if "mlp" in _SEVERED[severed]:
        check_has_mlp(model)
