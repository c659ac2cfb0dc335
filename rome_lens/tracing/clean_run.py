"""The clean run of a fact: whether the model knows the answer, and through which states."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.data.facts import Fact, FactError
from rome_lens.forward.answers import answer_distributions
from rome_lens.forward.module_hooks import hooks_on
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import finite_logits
from rome_lens.forward.tokens import FactTokens, pad_right
from rome_lens.models.hook_names import EMBED, capture_hooks, component_hook
from rome_lens.models.lens import LensModel, ModelError
from rome_lens.tracing.cells import Grid
from rome_lens.tracing.metrics import Reading
from rome_lens.tracing.passes import packed


class FactNotKnownError(FactError):
    """The model's first choice is another answer, so there is no fact to trace."""


@dataclass(frozen=True, kw_only=True)
class CleanRun:
    """A fact's prompt as it is run, and what the model computes on it without corruption."""

    encoded: FactTokens
    """The fact as the model's tokens."""
    tokens: Int[Tensor, " pos"]
    """The input: the prompt, then the answer's tokens up to the last scored one, without it."""
    answer: tuple[int, ...]
    """The scored tokens. They are predicted at the last ``len(answer)`` positions of ``tokens``."""
    embeddings: Float[Tensor, "pos d_model"]
    """The output of ``hook_embed`` for ``tokens``."""
    states: dict[int, Tensor]
    """The clean outputs of the traced component, by layer."""
    reading: Reading
    """How runs are scored."""
    score: float
    """The score of the clean run, such as the probability of the answer."""
    forward: PartialForward
    """The model, ready to run from any layer on."""


Outcome = CleanRun | FactNotKnownError | ModelError
"""A fact's clean run, or why it has none."""


def run_clean(
    model: LensModel,
    facts: Sequence[Fact],
    grids: Sequence[Grid],
    prepend_bos: bool | None,
    *,
    require_correct: bool,
) -> list[Outcome]:
    """Run facts without corruption, together where the model allows it.

    Returns:
        Each fact's run, or an error. With ``require_correct``, that is ``FactNotKnownError`` if the
        model does not know the fact, as :func:`rome_lens.knows` decides it. ``ModelError`` says
        that the fact's logits are not finite.

    Raises:
        ModelError: the model's forward pass cannot be resumed from a layer.
    """
    outcomes: dict[int, Outcome] = {}
    asked = [i for i, cells in enumerate(grids) if not cells.scores_whole_answer]
    if require_correct and asked:
        answers = answer_distributions(model, [facts[i] for i in asked], prepend_bos=prepend_bos)
        for i, (ids, log_probs) in zip(asked, answers, strict=True):
            if unknown := _not_known(model, facts[i], log_probs, ids.tolist()):
                outcomes[i] = unknown
    left = [i for i in range(len(grids)) if i not in outcomes]
    runs = _whole_runs(model, [grids[i] for i in left]) if left else ()
    for i, (forward, kept, logits) in zip(left, runs, strict=True):
        cells, answer = grids[i], grids[i].answer.tokens
        error: FactNotKnownError | ModelError | None = _not_finite(facts[i], logits)
        if error is None and require_correct and cells.scores_whole_answer:
            error = _not_known(model, facts[i], logits.log_softmax(-1), answer)
        if error is not None:
            outcomes[i] = error
            continue
        reading = cells.reading
        if reading.metric == "kl":
            reading = replace(reading, clean=logits.log_softmax(-1))
        outcomes[i] = CleanRun(
            encoded=cells.encoded,
            tokens=cells.tokens,
            answer=answer,
            embeddings=kept[EMBED],
            states={layer: kept[name] for layer, name in _state_names(model, cells).items()},
            reading=reading,
            score=_score(reading, logits),
            forward=forward,
        )
    return [outcomes[i] for i in range(len(grids))]


def run_one(
    model: LensModel,
    fact: Fact,
    cells: Grid,
    prepend_bos: bool | None,
    *,
    require_correct: bool,
) -> CleanRun:
    """Run one fact without corruption.

    Raises:
        FactNotKnownError, ModelError: as :func:`run_clean` returns or raises them.
    """
    [clean] = run_clean(model, [fact], [cells], prepend_bos, require_correct=require_correct)
    if isinstance(clean, Exception):
        raise clean
    return clean


def _whole_runs(
    model: LensModel, grids: Sequence[Grid]
) -> Iterator[tuple[PartialForward, dict[str, Tensor], Float[Tensor, "read d_vocab"]]]:
    """For each fact, the model ready to run later layers, the activations, and the logits read."""
    longest = max(grids, key=lambda cells: cells.length)
    names = [EMBED, *_state_names(model, longest).values()]
    read = len(longest.answer.tokens)
    forward = PartialForward(model, longest.tokens, keep=names, read=read, check="past")
    if len(grids) == 1:
        kept = {name: value[0] for name, value in forward.kept.items()}
        yield forward, kept, forward.read_logits
    elif not forward.has_past:
        for cells in grids:
            yield from _whole_runs(model, [cells])
    else:
        for batch in packed(grids, [1] * len(grids), longest.rows):
            rows: dict[str, Tensor] = {}
            with hooks_on(model, capture_hooks(names, rows)):
                streams, _ = forward.run(pad_right([cells.tokens.tolist() for cells in batch]))
            reads = [
                streams[-1][row, cells.first_read : cells.length] for row, cells in enumerate(batch)
            ]
            logits = forward.logits(torch.cat(reads)).split([len(read) for read in reads])
            for row, cells in enumerate(batch):
                kept = {name: value[row, : cells.length] for name, value in rows.items()}
                yield forward, kept, logits[row]


def _state_names(model: LensModel, cells: Grid) -> dict[int, str]:
    return {layer: component_hook(cells.component, layer) for layer in range(model.cfg.n_layers)}


def _score(reading: Reading, logits: Float[Tensor, "read d_vocab"]) -> float:
    if reading.metric == "probability" and reading.read > 1:
        # The product over a long answer would underflow float32.
        return math.exp(float(replace(reading, metric="log_prob").scores(logits[None])))
    return float(reading.scores(logits[None]))


def _not_finite(fact: Fact, logits: Float[Tensor, "read d_vocab"]) -> ModelError | None:
    """The error for logits that are not finite in this fact's run, if there are any."""
    try:
        finite_logits(logits)
    except ModelError as error:
        return ModelError(f"{fact.text!r}: {error}")
    return None


def _not_known(
    model: LensModel, fact: Fact, log_probs: Float[Tensor, "read d_vocab"], answer: Sequence[int]
) -> FactNotKnownError | None:
    """The error for a fact of whose answer a token is not the model's first choice in its place."""
    for i, (row, token) in enumerate(zip(log_probs, answer, strict=True)):
        best = int(row.argmax())
        if best != token:
            said = model.tokenizer.decode([*answer[:i], best])
            return FactNotKnownError(
                f"The model answers {fact.text!r} with {said!r} (p = "
                f"{float(row[best].exp()):.3f}), not with {fact.target!r} (p = "
                f"{float(row[token].exp()):.3f}). Choose a fact that it knows, or trace this "
                "answer anyway with require_correct=False."
            )
    return None
