"""Read what a model answers: the log probabilities of whole answers, and whether it knows facts."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.arguments import text_pairs
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_facts
from rome_lens.forward.call_costs import merged_widths, tokens_per_call
from rome_lens.forward.memory import rows_per_batch
from rome_lens.forward.runs import chosen_logits, finite_logits
from rome_lens.forward.tokens import continuation, pad_right, token_ids
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel, device

Read = TypeVar("Read")
_TOKENS_PER_BATCH = 1 << 12  # on a CPU


@visits_model
def answer_log_probs(
    model: LensModel,
    questions: Sequence[tuple[str, str]],
    *,
    fwd_hooks: Sequence[Hook] = (),
    prepend_bos: bool | None = None,
) -> Float[Tensor, " question"]:
    """The natural log probability of each answer given its prompt, ``log p(answer | prompt)``.

    The log probabilities of the answer's tokens are summed.

    Args:
        questions: pairs of a prompt and an answer. The answer is tokenised as it continues the
            prompt. The end of the prompt decides whether a space stands between them, as for
            :class:`~rome_lens.data.facts.Fact`.
        fwd_hooks: hooks to run the model with, such as ``edit.fwd_hooks(model)``.
        prepend_bos: whether a BOS token comes first. None means the model's default.

    Returns:
        One number per question, in at least float32 and on the CPU.

    Raises:
        FactError: the list is empty or holds something other than pairs of texts; an answer is
            blank; or a prompt is empty or ends in a space.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> prompt = "Wanda Brandt lives in the city of"
        >>> log_probs = rl.answer_log_probs(model, [(prompt, "Pralec"), (prompt, "Ondavel")])
        >>> [round(p, 2) for p in log_probs.tolist()]
        [-0.01, -9.12]
    """
    hooks = list(fwd_hooks)
    questions = text_pairs("questions", questions, error=FactError)
    each = token_log_probs(
        model, questions, hooks_of_rows=lambda _marks: hooks, prepend_bos=prepend_bos
    )
    totals = torch.stack([log_probs.sum() for log_probs in each])
    finite_logits(totals.nan_to_num(nan=torch.nan, neginf=0.0)[:, None])  # probability 0 is one
    return totals


@visits_model
def knows(
    model: LensModel,
    facts: Fact | Record | Iterable[Fact | Record],
    *,
    prepend_bos: bool | None = None,
) -> list[bool]:
    """Whether the model answers each fact correctly, i.e. greedy decoding yields the target.

    Args:
        facts: one or several facts or records.
        prepend_bos: whether a BOS token comes first. None means the model's default.

    Raises:
        FactError: there is no fact, an entry is neither a fact nor a record, or a target shares a
            token with the end of its prompt.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> prompt = "{} lives in the city of"
        >>> true = rl.Fact(prompt, subject="Wanda Brandt", target="Pralec")
        >>> false = rl.Fact(prompt, subject="Wanda Brandt", target="Ondavel")
        >>> rl.knows(model, [true, false])
        [True, False]
    """

    def greedy(
        _question: int, ids: Int[Tensor, " token"], log_p: Float[Tensor, "token d_vocab"]
    ) -> tuple[Tensor, Tensor]:
        best = log_p.max(-1)
        return best.values, (best.indices == ids).all()

    # Moved to the host at the end, because each move makes it wait for a GPU.
    best, known = zip(*_read_facts(model, as_facts(facts), greedy, prepend_bos), strict=True)
    finite_logits(torch.cat(best)[:, None])
    return torch.stack(known).tolist()


def answer_distributions(
    model: LensModel, facts: Sequence[Fact], *, prepend_bos: bool | None = None
) -> list[tuple[Int[Tensor, " token"], Float[Tensor, "token d_vocab"]]]:
    """The tokens of each fact's target, and the log probabilities of the vocabulary before each."""
    return _read_facts(model, facts, lambda _question, ids, log_p: (ids, log_p), prepend_bos)


def _read_facts(
    model: LensModel,
    facts: Sequence[Fact],
    read: Callable[[int, Int[Tensor, " token"], Float[Tensor, "token d_vocab"]], Read],
    prepend_bos: bool | None,
) -> list[Read]:
    questions = [(fact.text, fact.target) for fact in facts]
    return read_answers(
        model, questions, read, hooks_of_rows=lambda _marks: [], prepend_bos=prepend_bos
    )


def token_log_probs(
    model: LensModel,
    questions: Sequence[tuple[str, str]],
    *,
    hooks_of_rows: Callable[[Sequence[int]], Sequence[Hook]],
    marks: Sequence[int] | None = None,
    prepend_bos: bool | None = None,
) -> list[Float[Tensor, " token"]]:
    """``log p(answer_i | prompt, answer_1 ... answer_i-1)`` of every token of every answer.

    The arguments are those of :func:`read_answers`.
    """

    def of_answer(
        _question: int, ids: Int[Tensor, " token"], log_p: Float[Tensor, "token d_vocab"]
    ) -> Tensor:
        return log_p.gather(-1, ids[:, None])[:, 0]

    found = read_answers(
        model,
        questions,
        of_answer,
        hooks_of_rows=hooks_of_rows,
        marks=marks,
        prepend_bos=prepend_bos,
    )
    return list(torch.cat(found).cpu().split([len(each) for each in found]))


def read_answers(
    model: LensModel,
    questions: Sequence[tuple[str, str]],
    read: Callable[[int, Int[Tensor, " token"], Float[Tensor, "token d_vocab"]], Read],
    *,
    hooks_of_rows: Callable[[Sequence[int]], Sequence[Hook]],
    marks: Sequence[int] | None = None,
    prepend_bos: bool | None = None,
) -> list[Read]:
    """What ``read`` returns for each question.

    Every distinct row of tokens is run once. Two questions share a row where the tokens of one
    begin those of the other, because in a causal model later tokens change nothing before them. So
    two answers to one prompt may be read from one row.

    Args:
        questions: pairs of a prompt and an answer.
        read: a function of the question's index, the tokens of its answer, and the log
            probabilities of the whole vocabulary before each of these tokens.
        hooks_of_rows: a function from the marks of a batch's rows to the hooks of that batch. A
            batch may hold rows with different marks.
        marks: one number per question, such as that of the edit it is asked under. Questions with
            different marks share no row.

    Raises:
        FactError: the list is empty or holds something other than pairs of texts; an answer is
            blank; or a prompt is empty or ends in a space.
    """
    if not questions:
        raise FactError("There is no question: give at least one pair of prompt and answer.")
    answers = [continuation(model, prompt, answer) for prompt, answer in questions]
    starts = [token_ids(model, prompt, prepend_bos=prepend_bos) for prompt, _ in questions]
    marks = [0] * len(questions) if marks is None else marks
    sequences = [
        (mark, *start, *ids[:-1]) for mark, start, ids in zip(marks, starts, answers, strict=True)
    ]
    questions_of: dict[tuple[int, ...], list[int]] = {}
    for question, row in enumerate(_longest_rows(sequences)):
        questions_of.setdefault(row, []).append(question)
    results: dict[int, Read] = {}
    for rows in _batches(model, questions_of, answers):
        cells = {
            question: [(i, len(starts[question]) - 1 + j) for j in range(len(answers[question]))]
            for i, row in enumerate(rows)
            for question in questions_of[row]
        }
        number = {
            cell: i
            for i, cell in enumerate(
                dict.fromkeys(cell for each in cells.values() for cell in each)
            )
        }
        row_of_cell, position = torch.tensor(list(number), dtype=torch.long, device="cpu").T
        tokens = pad_right([row[1:] for row in rows])
        hooks = hooks_of_rows([row[0] for row in rows])
        logits = chosen_logits(model, tokens, row_of_cell, position, fwd_hooks=hooks)
        # Not log_softmax, which is less exact over a large vocabulary.
        normaliser = logits.logsumexp(-1, keepdim=True)
        own = torch.tensor(
            [number[cell] for its_cells in cells.values() for cell in its_cells],
            dtype=torch.long,
            device=logits.device,
        )
        ids = torch.tensor(
            [i for question in cells for i in answers[question]],
            dtype=torch.long,
            device=logits.device,
        )
        lengths = [len(answers[question]) for question in cells]
        for question, some, its_ids in zip(
            cells, own.split(lengths), ids.split(lengths), strict=True
        ):
            results[question] = read(question, its_ids, logits[some] - normaliser[some])
    return [results[question] for question in range(len(questions))]


def _longest_rows(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each sequence, the longest one that begins with it."""
    longest: dict[tuple[int, ...], tuple[int, ...]] = {}
    following: tuple[int, ...] = ()
    # In ascending order, the sequences that begin with a given one come right after it.
    for sequence in sorted(set(sequences), reverse=True):
        longest[sequence] = (
            longest[following] if following[: len(sequence)] == sequence else sequence
        )
        following = sequence
    return [longest[sequence] for sequence in sequences]


def _batches(
    model: LensModel,
    questions_of: Mapping[tuple[int, ...], Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> Iterator[list[tuple[int, ...]]]:
    """Batches of rows of similar length, each as large as memory allows.

    Rows of different lengths share a batch where its padding costs less than another call. The
    logits of many cells over a large vocabulary would not fit.
    """
    most_reads = logits_per_batch(model)
    most_tokens = _tokens_per_batch(model)
    widths = merged_widths(Counter(map(len, questions_of)), tokens_per_call(model))
    batch: list[tuple[int, ...]] = []
    reads = 0
    for row in sorted(questions_of, key=len, reverse=True):
        more = sum(len(answers[question]) for question in questions_of[row])
        width = len(batch[0]) if batch else len(row)
        full = reads + more > most_reads or (len(batch) + 1) * width > most_tokens
        if batch and (full or widths[len(row)] != widths[width]):
            yield batch
            batch, reads = [], 0
        batch.append(row)
        reads += more
    if batch:
        yield batch


def logits_per_batch(model: LensModel) -> int:
    """How many rows of logits one forward pass may return."""
    return rows_per_batch(4 * model.cfg.d_vocab, device(model))


def _tokens_per_batch(model: LensModel) -> int:
    """How many tokens one forward pass may read, padding included."""
    place = device(model)
    # A layer holds a few tensors of the width of its MLP at once.
    width = 4 * 4 * max(model.cfg.d_mlp or 0, 4 * model.cfg.d_model)
    return _TOKENS_PER_BATCH if place.type == "cpu" else rows_per_batch(width, place)
