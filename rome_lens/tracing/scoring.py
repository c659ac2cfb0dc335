"""From final residual streams to the scores of a trace."""

import hashlib
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from rome_lens.data.facts import Fact
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import LensModel
from rome_lens.tracing.cells import Grid
from rome_lens.tracing.clean_run import Recall
from rome_lens.tracing.corruption import noise_for
from rome_lens.tracing.noise import CorruptedPrompt
from rome_lens.tracing.restoring import Restorer

_ROWS_PER_UNEMBEDDING = 2048


def common_fields(
    model: LensModel, fact: Fact, cells: Grid, recalled: Recall, noise: Any
) -> dict[str, Any]:
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
    model: LensModel,
    fact: Fact,
    recalled: Recall,
    noise: Any,
    *,
    samples: int,
    prepend_bos: bool | None,
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
    recalled: Recall,
    cells: Grid,
    restorer: Restorer,
    unrestored: Float[Tensor, " sample"],
    bar: tqdm,
) -> Float[Tensor, "sample layer pos *head"]:
    """The scores of all cells; one that cannot matter has the score of the run with nothing restored."""
    samples = len(unrestored)
    scores = unrestored.view(-1, *(1 for _ in cells.shape)).repeat(1, *cells.shape)
    chosen = cells.cells(causal=restorer.past is not None)
    places, wanted = list(chosen), list(chosen.values())
    waiting: list[tuple[int, Tensor]] = []

    def write() -> None:  # many at once, since each product reads the whole vocabulary's weights
        if waiting:
            found = probabilities(recalled, torch.cat([finals for _, finals in waiting])).split(
                samples
            )
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


def probabilities(
    recalled: Recall, finals: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, " row"]:
    """The answer's probability, from the last positions of final streams."""
    return recalled.forward.answer_log_probs(
        finals[:, -len(recalled.answer) :], recalled.answer
    ).exp()


def progress_bar(description: str, cells: Grid, runs: int, *, shown: bool) -> tqdm:
    """A bar that counts restored runs."""
    return tqdm(desc=description, total=cells.count * runs, unit="run", disable=not shown)
