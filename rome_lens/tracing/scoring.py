"""From final residual streams to the scores of a trace, and what all three kinds of trace share."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from rome_lens.data.facts import Fact
from rome_lens.forward.module_hooks import hooks_on
from rome_lens.forward.partial import PartialForward
from rome_lens.models.fingerprints import name_of
from rome_lens.models.lens import LensModel
from rome_lens.tracing.branches import longs
from rome_lens.tracing.cells import Grid
from rome_lens.tracing.clean_run import CleanRun
from rome_lens.tracing.corrupted_run import CorruptedRun
from rome_lens.tracing.corruption import noise_text
from rome_lens.tracing.metrics import metric_text, row_scores
from rome_lens.tracing.noise import Noise
from rome_lens.tracing.restoring import Restorer


def common_fields(
    model: LensModel,
    fact: Fact,
    cells: Grid,
    clean: CleanRun,
    noise: Noise | Tensor,
    model_fingerprint: str,
) -> dict[str, Any]:
    """The fields that every kind of trace has: its fact, its cells, its noise and its model."""
    return {
        "fact": fact,
        "layers": cells.layers,
        "positions": cells.positions,
        "labels": cells.encoded.labels,
        "subject": cells.encoded.subject,
        "answer": model.tokenizer.decode(list(cells.answer.tokens)),
        "answer_tokens": len(cells.answer.tokens),
        "given": model.tokenizer.decode(list(cells.answer.given)),
        "scoring": cells.answer.scoring,
        "metric": metric_text(cells.reading.metric),
        "clean": clean.score,
        "noise": noise_text(noise),
        "model_fingerprint": model_fingerprint,
        "model_name": name_of(model),
    }


def cell_scores(
    restorer: Restorer,
    grids: Sequence[Grid],
    unrestored: Sequence[Float[Tensor, " _sample"]],
    bar: tqdm,
) -> list[Float[Tensor, "_sample _layer _pos ..."]]:
    """The scores of all cells of each fact in a corrupted run, on the CPU.

    Cells that cannot matter keep the score of the run as it is.
    """
    run, size = restorer.run, grids[0].size
    cells = [
        (place, cell)
        for number, grid in enumerate(grids)
        for place, cell in grid.cells(causal=run.past is not None, run=number).items()
    ]
    readings = [fact.reading for fact in run.facts]
    read = max(reading.read for reading in readings)
    # Many cells at once, because each product reads the weights of the whole vocabulary.
    rows_per_product = max(1, size.values // (read * run.streams[0].shape[-1]))
    found: list[tuple[list[int], Tensor]] = []
    waiting: list[tuple[list[int], Tensor]] = []

    def unembed() -> None:
        indices = [i for batch, _ in waiting for i in batch]
        own = [cells[i][1].run for i in indices]
        owners = longs(own).repeat_interleave(longs(run.samples[number] for number in own))
        finals = torch.cat([final for _, final in waiting])
        found.append((indices, row_scores(restorer.forward, readings, finals, owners)))
        waiting.clear()

    with hooks_on(restorer.forward.model, restorer.hooks()):
        for batch, finals in restorer.final_streams(
            [cell for _, cell in cells], size=size, read=read
        ):
            waiting.append((batch, finals))
            bar.update(len(finals))
            if sum(len(final) for _, final in waiting) >= rows_per_product:
                unembed()
    if waiting:
        unembed()
    scores = [
        rearrange(each.cpu(), "sample -> sample" + " 1" * len(grid.shape)).repeat(1, *grid.shape)
        for each, grid in zip(unrestored, grids, strict=True)
    ]
    by_place = [rearrange(each, "sample ... -> ... sample") for each in scores]
    for indices, probabilities in found:
        counts = [run.samples[cells[i][1].run] for i in indices]
        for i, row in zip(indices, probabilities.cpu().split(counts), strict=True):
            place, cell = cells[i]
            by_place[cell.run][place] = row
    bar.update(sum(each.numel() for each in scores) - sum(len(each) for _, each in found))
    return scores


def run_scores(forward: PartialForward, run: CorruptedRun) -> tuple[Float[Tensor, " _sample"], ...]:
    """The scores of a corrupted run as it is, for each fact."""
    readings = [fact.reading for fact in run.facts]
    read = max(reading.read for reading in readings)
    finals = [
        pad(rows[:, : len(fact.tokens)], (0, 0, read, 0))[:, -read:]
        for fact, rows in zip(run.facts, run.streams[-1].split(run.samples), strict=True)
    ]
    owners = longs(range(len(readings))).repeat_interleave(longs(run.samples))
    return row_scores(forward, readings, torch.cat(finals), owners).split(run.samples)


def progress_bar(description: str, total: int, *, progress: bool) -> tqdm:
    """A bar that counts restored runs."""
    return tqdm(desc=description, total=total, unit="run", disable=not progress)
