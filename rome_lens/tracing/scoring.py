"""From final residual streams to the scores of a trace, and what all three kinds of trace share."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from rome_lens.data.facts import Fact
from rome_lens.forward.module_hooks import hooks_on
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel
from rome_lens.tracing.cells import Grid
from rome_lens.tracing.clean_run import CleanRun
from rome_lens.tracing.corruption import noise_text
from rome_lens.tracing.noise import Noise
from rome_lens.tracing.restoring import Restorer

_ROWS_PER_UNEMBEDDING = 2048


def common_fields(
    model: LensModel, fact: Fact, cells: Grid, clean: CleanRun, noise: Noise | Tensor
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
        "clean": clean.probability,
        "noise": noise_text(noise),
        "model_fingerprint": fingerprint(model),
    }


def cell_scores(
    clean: CleanRun,
    cells: Grid,
    restorer: Restorer,
    unrestored: Float[Tensor, " sample"],
    bar: tqdm,
) -> Float[Tensor, "sample layer pos *head"]:
    """The scores of all cells. Cells that cannot matter keep the score of the run as it is."""
    samples = len(unrestored)
    scores = unrestored.view(-1, *(1 for _ in cells.shape)).repeat(1, *cells.shape)
    by_place = rearrange(scores, "sample ... -> ... sample")
    chosen = cells.cells(causal=restorer.past is not None)
    places, wanted = list(chosen), list(chosen.values())
    waiting: list[tuple[int, Tensor]] = []

    def write() -> None:
        # Many cells at once, because each product reads the weights of the whole vocabulary.
        if waiting:
            finals = torch.cat([final for _, final in waiting])
            rows = answer_probabilities(clean, finals).split(samples)
            for (i, _), row in zip(waiting, rows, strict=True):
                by_place[places[i]] = row
            waiting.clear()

    bar.update(samples * (cells.count - len(places)))
    with hooks_on(clean.forward.model, restorer.hooks()):
        for batch, finals in restorer.final_streams(
            wanted, rows=cells.rows, read=len(clean.answer)
        ):
            waiting += zip(batch, finals, strict=True)
            bar.update(samples * len(batch))
            if len(waiting) * samples >= _ROWS_PER_UNEMBEDDING:
                write()
    write()
    return scores


def answer_probabilities(
    clean: CleanRun, finals: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, " row"]:
    """The answer's probability, read from the last positions of final streams."""
    read = finals[:, -len(clean.answer) :]
    return clean.forward.answer_log_probs(read, clean.answer).exp()


def progress_bar(description: str, cells: Grid, runs: int, *, progress: bool) -> tqdm:
    """A bar that counts restored runs."""
    return tqdm(desc=description, total=cells.count * runs, unit="run", disable=not progress)
