"""What a model answers: probabilities of whole answers, and the likeliest next tokens, with or without hooks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.arguments import texts, whole_number
from rome_lens.data.facts import Fact, FactError
from rome_lens.forward.runs import chosen_logits
from rome_lens.forward.tokens import continuation, pad_right, token_ids
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel
from rome_lens.results import Result

Read = TypeVar("Read")
_LOGITS_PER_BATCH = 1 << 25
_TOKENS_PER_BATCH = 1 << 12


@dataclass(frozen=True, kw_only=True, repr=False)
class TopAnswers(Result):
    """The likeliest next tokens of a prompt with their probabilities, best first."""

    prompt: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __str__(self) -> str:
        return ", ".join(
            f"{token!r} {p:.3f}" for token, p in zip(self.tokens, self.probabilities, strict=True)
        )


def answer_log_probs(
    model: LensModel,
    questions: Sequence[tuple[str, str]],
    *,
    fwd_hooks: Sequence[Hook] = (),
    prepend_bos: bool | None = None,
) -> Float[Tensor, " question"]:
    """``log p(answer | prompt)``: the sum over the answer's tokens, natural logarithm.

    Args:
        questions: pairs of prompt and answer; one space joins them.

    Raises:
        FactError: there is no question, or a prompt or answer is empty or ends in white space.
    """
    hooks = list(fwd_hooks)
    each = token_log_probs(
        model, questions, hooks_of_rows=lambda _marks: hooks, prepend_bos=prepend_bos
    )
    return torch.stack([log_probs.sum() for log_probs in each])


def knows(
    model: LensModel, facts: Sequence[Fact], *, prepend_bos: bool | None = None
) -> list[bool]:
    """Of each fact, whether the model answers it: every token of the target is the likeliest one there.

    Raises:
        FactError: there is no fact, or one whose target shares a token with its prompt.
    """

    def greedy(
        _question: int, ids: Int[Tensor, " token"], log_p: Float[Tensor, "token d_vocab"]
    ) -> bool:
        return bool((log_p.argmax(-1) == ids).all())

    questions = [(fact.text, fact.target) for fact in facts]
    return read_answers(
        model, questions, greedy, hooks_of_rows=lambda _marks: [], prepend_bos=prepend_bos
    )


def token_log_probs(
    model: LensModel,
    questions: Sequence[tuple[str, str]],
    *,
    hooks_of_rows: Callable[[Sequence[int]], Sequence[Hook]],
    marks: Sequence[int] | None = None,
    prepend_bos: bool | None = None,
) -> list[Float[Tensor, " token"]]:
    """``log p(answer_i | prompt, answer_1 ... answer_i-1)`` of every token of every answer; see :func:`read_answers`."""

    def chosen(
        _question: int, ids: Int[Tensor, " token"], log_p: Float[Tensor, "token d_vocab"]
    ) -> Tensor:
        return log_p.gather(-1, ids[:, None])[:, 0].cpu()

    return read_answers(
        model, questions, chosen, hooks_of_rows=hooks_of_rows, marks=marks, prepend_bos=prepend_bos
    )


def read_answers(
    model: LensModel,
    questions: Sequence[tuple[str, str]],
    read: Callable[[int, Int[Tensor, " token"], Float[Tensor, "token d_vocab"]], Read],
    *,
    hooks_of_rows: Callable[[Sequence[int]], Sequence[Hook]],
    marks: Sequence[int] | None = None,
    prepend_bos: bool | None = None,
) -> list[Read]:
    """What ``read`` makes of each question: its number, its answer's tokens, and ``log p`` of the vocabulary before each.

    Every distinct row of tokens is run once. Questions share a row where one's tokens begin the other's, since in a causal
    model what follows changes nothing before it: two answers to one prompt are read off one row.

    Args:
        questions: pairs of prompt and answer; one space joins them.
        marks: what else tells a question's row apart, such as the number of the edit that it is asked under; questions of
            different marks share no row.
        hooks_of_rows: the hooks of a batch, given its rows' marks; each batch takes rows of any marks.

    Raises:
        FactError: there is no question, or a prompt or answer is empty or ends in white space.
    """
    if not questions:
        raise FactError("There is no question: give at least one pair of prompt and answer.")
    answers = [continuation(model, prompt, answer) for prompt, answer in questions]
    starts = [token_ids(model, prompt, prepend_bos=prepend_bos) for prompt, _ in questions]
    marks = [0] * len(questions) if marks is None else marks
    sequences = [
        (mark, *start, *ids[:-1]) for mark, start, ids in zip(marks, starts, answers, strict=True)
    ]
    asked: dict[tuple[int, ...], list[int]] = {}
    for question, row in enumerate(_longest_rows(sequences)):
        asked.setdefault(row, []).append(question)
    found: dict[int, Read] = {}
    for rows in _batches(asked, answers, model.cfg.d_vocab):
        cells = {
            question: [(i, len(starts[question]) - 1 + j) for j in range(len(answers[question]))]
            for i, row in enumerate(rows)
            for question in asked[row]
        }
        number = {
            cell: i
            for i, cell in enumerate(
                dict.fromkeys(cell for each in cells.values() for cell in each)
            )
        }
        row_of_cell, position = torch.tensor(list(number)).T
        tokens = pad_right([row[1:] for row in rows])
        hooks = hooks_of_rows([row[0] for row in rows])
        logits = chosen_logits(model, tokens, row_of_cell, position, fwd_hooks=hooks)
        normaliser = logits.logsumexp(
            -1, keepdim=True
        )  # not log_softmax, which is less exact over a large vocabulary
        for question, its_cells in cells.items():
            own = torch.tensor([number[cell] for cell in its_cells], device=logits.device)
            ids = torch.tensor(answers[question], device=logits.device)
            found[question] = read(question, ids, logits[own] - normaliser[own])
    return [found[question] for question in range(len(questions))]


def _longest_rows(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each sequence the longest of them that begins with it."""
    longest: dict[tuple[int, ...], tuple[int, ...]] = {}
    following: tuple[int, ...] = ()
    for sequence in sorted(
        set(sequences), reverse=True
    ):  # what begins with a sequence sorts right behind it
        longest[sequence] = (
            longest[following] if following[: len(sequence)] == sequence else sequence
        )
        following = sequence
    return [longest[sequence] for sequence in sequences]


def _batches(
    asked: Mapping[tuple[int, ...], Sequence[int]], answers: Sequence[Sequence[int]], d_vocab: int
) -> Iterator[list[tuple[int, ...]]]:
    """Rows of like length together, as many as fit: a large vocabulary times many cells would not fit in memory."""
    batch: list[tuple[int, ...]] = []
    reads = 0
    for row in sorted(asked, key=len, reverse=True):
        more = sum(len(answers[question]) for question in asked[row])
        width = len(batch[0]) if batch else len(row)
        full = (reads + more) * d_vocab > _LOGITS_PER_BATCH or (
            len(batch) + 1
        ) * width > _TOKENS_PER_BATCH
        if batch and full:
            yield batch
            batch, reads = [], 0
        batch.append(row)
        reads += more
    if batch:
        yield batch


def top_answers(
    model: LensModel,
    prompts: Sequence[str],
    *,
    count: int = 5,
    fwd_hooks: Sequence[Hook] = (),
    prepend_bos: bool | None = None,
) -> list[TopAnswers]:
    """The ``count`` likeliest next tokens after each prompt.

    Raises:
        FactError: there is no prompt, or an empty one.
    """
    count = whole_number("count", count, least=1, most=model.cfg.d_vocab)
    prompts = texts("prompts", prompts, error=FactError)
    if not prompts or not all(prompts):
        raise FactError(
            f"The prompts are {list(prompts)!r}, expected at least one, and none empty."
        )
    rows = [token_ids(model, prompt, prepend_bos=prepend_bos) for prompt in prompts]
    row = torch.arange(len(rows))
    position = torch.tensor([len(ids) - 1 for ids in rows])
    logits = _logits_in_batches(model, pad_right(rows), row, position, fwd_hooks)
    best = [part.topk(count) for part in logits]
    log_p = [
        each.values - part.logsumexp(-1, keepdim=True)
        for each, part in zip(best, logits, strict=True)
    ]
    probabilities = torch.cat(log_p).exp().tolist()
    tokens = torch.cat([each.indices for each in best]).tolist()
    return [
        TopAnswers(
            prompt=prompt,
            tokens=tuple(model.tokenizer.decode([i]) for i in ids),
            probabilities=tuple(p),
        )
        for prompt, ids, p in zip(prompts, tokens, probabilities, strict=True)
    ]


def _logits_in_batches(
    model: LensModel,
    tokens: Int[Tensor, "row pos"],
    row: Tensor,
    position: Tensor,
    fwd_hooks: Sequence[Hook],
) -> list[Tensor]:
    """Logits at the read cells, a few at a time: a large vocabulary times many cells would not fit in memory."""
    size = max(1, _LOGITS_PER_BATCH // model.cfg.d_vocab)
    cells = torch.arange(len(row)).split(size)
    return [_some_logits(model, tokens, row[some], position[some], fwd_hooks) for some in cells]


def _some_logits(
    model: LensModel, tokens: Tensor, row: Tensor, position: Tensor, fwd_hooks: Sequence[Hook]
) -> Tensor:
    needed, local = row.unique(return_inverse=True)
    width = int(position.max()) + 1
    return chosen_logits(model, tokens[needed, :width], local, position, fwd_hooks=fwd_hooks).cpu()
