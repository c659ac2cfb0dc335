"""Severed traces: what a restored state does while later modules at its position stay corrupted."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from rome_lens.arguments import one_of
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_fact
from rome_lens.errors import ArgumentError
from rome_lens.forward.runs import evaluating, weights_laid_out
from rome_lens.forward.tokens import Answer, encode
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.hook_names import Component, Hook, capture_hooks, component_hook
from rome_lens.models.lens import LensModel, check_has_mlp
from rome_lens.tracing.cells import Grid, grid
from rome_lens.tracing.clean_run import CleanRun, run_one
from rome_lens.tracing.corrupted_run import CorruptedRun, clean_rows, run_corrupted
from rome_lens.tracing.corruption import corrupted_embeddings, draw_noise, noise_text
from rome_lens.tracing.metrics import Metric
from rome_lens.tracing.noise import GaussianNoise, Noise, NoiseError
from rome_lens.tracing.passes import pass_size
from rome_lens.tracing.restoring import Restorer
from rome_lens.tracing.results import Direction, HeldLayers, Severed, SeveredTrace
from rome_lens.tracing.scoring import (
    cell_scores,
    common_fields,
    progress_bar,
    run_scores,
)

_MODULES: dict[Severed, tuple[Component, ...]] = {
    "mlp": ("mlp",),
    "attn": ("attn",),
    "both": ("mlp", "attn"),
}


@visits_model
def severed_trace(
    model: LensModel,
    fact: Fact | Record,
    *,
    severed: Severed = "mlp",
    noise: Noise | Tensor = GaussianNoise(),
    held_noise: Noise | Tensor | None = None,
    held_layers: HeldLayers = "later",
    direction: Direction = "denoising",
    samples: int = 10,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    answer: Answer = "first_token",
    metric: Metric = "probability",
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    require_correct: bool = True,
) -> SeveredTrace:
    """The residual stream's trace while later MLPs (or attentions) at the restored position stay
    corrupted.

    With the state at ``(layer, pos)`` restored, the outputs of the severed modules at ``pos`` in
    all later layers are held at their values in the corrupted run. What the score loses against the
    ordinary trace went through them.

    Args:
        model, fact: the model, which is left as it was, and the fact to trace.
        severed: the modules that stay corrupted: ``"mlp"``, ``"attn"`` or ``"both"``.
        noise: the noise of the scored runs.
        held_noise: the noise of the runs that the held values are taken from. None takes the noise
            of the scored runs.
        held_layers: ``"later"`` holds the layers after the restored one, ``"all"`` holds every
            layer. The two agree unless ``held_noise`` is given, because up to the restored layer
            nothing differs from the corrupted run.
        direction: ``"noising"`` is the other way round. The corrupted state is put into the clean
            run, and the severed modules stay clean there. It takes no ``held_noise``.
        positions: None takes the last token of the subject, as the study does.
        samples, layers, answer, metric, prepend_bos, batch_size, progress, require_correct: as for
            :func:`causal_trace`.

    Returns:
        The trace: ``scores`` with the modules severed, ``ordinary_scores`` without, and their
        difference ``lost``, each ``Float[Tensor, "layer pos"]``.

    Raises:
        FactNotKnownError, ArgumentError, FactError, NoiseError, ModelError: as for
            :func:`causal_trace`.

    Source: Meng et al. 2022, section 2.2 and figure 3 (the modified graph). The study takes the
    held values from a first draw of noise and runs the scored passes on a second one. Here one draw
    serves both, unless ``held_noise`` is given. At the last layer, after which nothing is held, the
    study's code scores its first draw; here it is always ``noise``.

    Example:
        Restoring the subject's last token in an early layer works mostly through the MLPs above it.

        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> fact = rl.Fact("{} lives in the city of", subject="Wanda Brandt", target="Pralec")
        >>> trace = rl.severed_trace(model, fact, severed="mlp", layers=(0, 2, 4))
        >>> [round(lost, 2) for lost in trace.lost[:, 0].tolist()]
        [0.6, 0.06, 0.0]
    """
    fact = as_fact(fact)
    _check_severed(model, severed, held_layers, direction, held_noise)
    encoded = encode(model, fact, prepend_bos=prepend_bos)
    cells = grid(
        model,
        encoded,
        component="resid",
        window=1,
        layers=layers,
        positions=[encoded.subject_last] if positions is None else positions,
        heads=None,
        answer=answer,
        metric=metric,
        size=pass_size(model, batch_size=batch_size),
    )
    with evaluating(model), weights_laid_out(model), torch.no_grad():
        clean = run_one(model, fact, cells, prepend_bos, require_correct=require_correct)
        scored_noise = first_noise = draw_noise(
            model, fact, clean, noise, samples=samples, prepend_bos=prepend_bos
        )
        if held_noise is not None:
            first_noise = draw_noise(
                model, fact, clean, held_noise, samples=samples, prepend_bos=prepend_bos
            )
        if len(first_noise) != len(scored_noise):
            raise NoiseError(
                f"held_noise has {len(first_noise)} samples, but noise has {len(scored_noise)}: "
                "expected equal numbers."
            )
        parts = []
        total = cells.count * 2 * len(scored_noise)
        with progress_bar(f"severed {severed}", total, progress=progress) as bar:
            for noise_part, first_part in zip(
                scored_noise.split(cells.rows), first_noise.split(cells.rows), strict=True
            ):
                if direction == "noising":
                    parts.append(_noising_scores(clean, cells, noise_part, severed, bar))
                    continue
                held = _module_outputs(clean, severed, first_part)
                parts.append(_scores(clean, cells, noise_part, held, held_layers, bar))
    corrupted, ordinary, cut = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    return SeveredTrace(
        severed=severed,
        held_layers=held_layers,
        direction=direction,
        corrupted_samples=corrupted,
        ordinary_sample_scores=ordinary,
        sample_scores=cut,
        held_noise=noise_text(noise if held_noise is None else held_noise),
        **common_fields(model, fact, cells, clean, noise, fingerprint(model)),
    )


def _scores(
    clean: CleanRun,
    cells: Grid,
    noise: Float[Tensor, "sample subject d_model"],
    held: dict[str, Tensor],
    held_layers: HeldLayers,
    bar: tqdm,
) -> tuple[
    Float[Tensor, " sample"], Float[Tensor, "sample layer pos"], Float[Tensor, "sample layer pos"]
]:
    """The corrupted scores, the ordinary scores, and those with severed modules held."""
    forward = clean.forward
    run = run_corrupted(forward, [clean], [corrupted_embeddings(clean, noise)])
    corrupted = run_scores(forward, run)
    [ordinary] = cell_scores(Restorer(forward, "resid", run), [cells], corrupted, bar)
    columns = []
    for pos in cells.positions:
        base = run if held_layers == "later" else _run_with_held(clean, noise, held, pos)
        restorer = Restorer(forward, "resid", base, held=held)
        unrestored = run_scores(forward, base)
        columns += cell_scores(restorer, [cells.at(pos)], unrestored, bar)
    return corrupted[0], ordinary, torch.cat(columns, dim=2)


def _noising_scores(
    clean: CleanRun,
    cells: Grid,
    noise: Float[Tensor, "sample subject d_model"],
    severed: Severed,
    bar: tqdm,
) -> tuple[
    Float[Tensor, " sample"], Float[Tensor, "sample layer pos"], Float[Tensor, "sample layer pos"]
]:
    """What :func:`_scores` returns, with corrupted states in the clean run."""
    forward, n_layers = clean.forward, clean.forward.model.cfg.n_layers
    names = [component_hook("resid", layer) for layer in range(n_layers)]
    states: dict[str, Tensor] = {}
    embeddings = corrupted_embeddings(clean, noise)
    run = run_corrupted(forward, [clean], [embeddings], hooks=capture_hooks(names, states))
    [corrupted] = run_scores(forward, run)
    held: dict[str, Tensor] = {}
    rows = clean_rows(
        forward,
        [clean] * len(noise),
        names,
        states,
        hooks=capture_hooks(_module_hooks(clean, severed), held),
    )
    base = run_scores(forward, rows)
    every = [cells] * len(noise)
    ordinary = cell_scores(Restorer(forward, "resid", rows), every, base, bar)
    cut = cell_scores(Restorer(forward, "resid", rows, held=held), every, base, bar)
    return corrupted, torch.cat(ordinary), torch.cat(cut)


def _module_hooks(clean: CleanRun, severed: Severed) -> list[str]:
    """The hooks at the severed modules' outputs, layer by layer."""
    return [
        component_hook(module, layer)
        for layer in range(clean.forward.model.cfg.n_layers)
        for module in _MODULES[severed]
    ]


def _module_outputs(
    clean: CleanRun, severed: Severed, noise: Float[Tensor, "sample subject d_model"]
) -> dict[str, Float[Tensor, "sample pos d_model"]]:
    """The severed modules' outputs in the corrupted run, by hook name."""
    kept: dict[str, Tensor] = {}
    hooks = capture_hooks(_module_hooks(clean, severed), kept)
    run_corrupted(clean.forward, [clean], [corrupted_embeddings(clean, noise)], hooks=hooks)
    return kept


def _run_with_held(
    clean: CleanRun,
    noise: Float[Tensor, "sample subject d_model"],
    held: dict[str, Tensor],
    pos: int,
) -> CorruptedRun:
    """The corrupted run with the severed modules held at one position, in every layer."""

    def holding(name: str) -> Hook:
        def hold(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, pos] = held[name][:, pos]
            return value

        return name, hold

    hooks = [holding(name) for name in held]
    embeddings = corrupted_embeddings(clean, noise)
    return run_corrupted(clean.forward, [clean], [embeddings], hooks=hooks)


def _check_severed(
    model: LensModel,
    severed: Severed,
    held_layers: HeldLayers,
    direction: Direction,
    held_noise: Noise | Tensor | None,
) -> None:
    one_of("severed", severed, Severed)
    one_of("held_layers", held_layers, HeldLayers)
    one_of("direction", direction, Direction)
    if direction == "noising" and held_noise is not None:
        raise ArgumentError(
            "held_noise is given, but in noising the held values are those of the clean run: leave "
            "it out."
        )
    if "mlp" in _MODULES[severed]:
        check_has_mlp(model)
