"""Questions without and with an edit, both in one batch, and how strongly the edit fires on each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.checks.result import CheckRow
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_record, with_new_target
from rome_lens.editing.firing import EditFiring, edit_firings
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.numbered_edits import NumberedEdits, check_same_fact, prefixed
from rome_lens.forward.answers import read_answers
from rome_lens.forward.sampling import sample_continuations
from rome_lens.models.lens import LensModel

Question = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question without and with the edit.

    Attributes:
        before, after: ``log p(answer | prompt)``, summed over the answer's tokens, natural logarithm.
        rank_before, rank_after: place of the answer's first token among all tokens; 1 is the likeliest.
        kl: ``KL(before || after)`` of the next token's distribution behind the prompt, in nats.
        tokens: how many the answer has.
        firing: the edit's firing at the prompt's token where it is strongest; None of an edit without a key.
        fires_at: that token.
    """

    prompt: str
    answer: str
    before: float
    after: float
    rank_before: int
    rank_after: int
    kl: float
    tokens: int
    firing: float | None = None
    fires_at: str | None = None

    @property
    def mean_p_before(self) -> float:
        """Geometric mean of the answer's tokens' probabilities without the edit, as CounterFact's scores compare answers."""
        return math.exp(self.before / self.tokens)

    @property
    def mean_p_after(self) -> float:
        """The same with the edit."""
        return math.exp(self.after / self.tokens)

    @property
    def change(self) -> float:
        """``after - before``, in nats."""
        return self.after - self.before

    @property
    def p_change(self) -> float:
        """The change of the probability."""
        return self.p_after - self.p_before

    @property
    def p_before(self) -> float:
        """Probability of the answer without the edit."""
        return math.exp(self.before)

    @property
    def p_after(self) -> float:
        """Probability of the answer with the edit."""
        return math.exp(self.after)


def row(
    answered: Answered,
    kind: str,
    *,
    in_nats: bool = False,
    effect: float | None = None,
    control_prompt: str | None = None,
    control: float | None = None,
    known: bool | None = None,
) -> CheckRow:
    """A check's row of an answered question: its probabilities, or their logarithms."""
    return CheckRow(
        kind=kind,
        prompt=answered.prompt,
        answer=answered.answer,
        before=answered.before if in_nats else answered.p_before,
        after=answered.after if in_nats else answered.p_after,
        effect=effect,
        control_prompt=control_prompt,
        control=control,
        known=known,
        kl=answered.kl,
        firing=answered.firing,
        fires_at=answered.fires_at,
        rank_before=answered.rank_before,
        rank_after=answered.rank_after,
    )


def nats_per_token(answered: Answered, kind: str, *, control: float | None = None) -> CheckRow:
    """The row of a text whose first word was the prompt and whose rest the answer: ``-log p`` by token, lower is better."""
    return CheckRow(
        kind=kind,
        prompt=f"{answered.prompt} {answered.answer}",
        answer="(all but the first word)",
        before=-answered.before / answered.tokens,
        after=-answered.after / answered.tokens,
        control=control,
    )


def first_and_rest(text: str) -> Question:
    """A text as a question: behind its first word all others, as they are written.

    Raises:
        FactError: it is a single word, or none.
    """
    words = text.split(maxsplit=1)
    if len(words) < 2:
        raise FactError(
            f"The text is {text!r}, expected several words: the first is the prompt for the others."
        )
    return words[0], words[1].rstrip()


def fact_of(edit: Any, record: Any) -> tuple[Record, Fact, str]:
    """The record, its fact, and the new target.

    Raises:
        ValueError: the edit is none, or the record; the record has no new target, or is about another fact than the edit.
    """
    if edit is not None and not callable(getattr(edit, "fwd_hooks", None)):
        raise ArgumentError(
            f"The edit is of type {type(edit).__name__}, expected what an editor gives, such as rl.rome(model, fact, ...): a "
            "check takes model, edit and record, in this order."
        )
    if not isinstance(record, Fact | Record):
        given = (
            f"the text {record!r}"
            if isinstance(record, str)
            else f"of type {type(record).__name__}"
        )
        raise ArgumentError(
            f'The record is {given}, expected a record such as rl.data.record("eiffel-tower"), or one of your own from '
            "rl.data.read_records(path): a check takes model, edit and record, in this order."
        )
    record = with_new_target(as_record(record))
    fact = record.fact
    check_same_fact(edit, fact, record.id)
    return record, fact, str(fact.new_target)


def before_and_after(
    model: LensModel, edit: Any, questions: Sequence[Question], *, prepend_bos: bool | None = None
) -> list[Answered]:
    """Every question without and with the edit; the weights stay untouched, and hooks that the caller has on stay on.

    Such hooks are part of "before" as of "after". They must not depend on a row's number, on the batch's size, or on positions
    counted from the end: rows are padded on the right, and shared by questions that begin alike.

    Raises:
        FactError: there is no question, or a prompt or answer is empty or ends in white space.
        ModelError: the edit was made on another model, or is already in this one's weights; or a hook of the caller's is on the
            very output that the edit adds to, on which it would act too early.
    """
    numbered = NumberedEdits(model, [None, edit])
    numbers = [number for _ in questions for number in numbered.numbers]
    asked = [
        q
        for prompt, answer in questions
        for q in ((prompt, answer), (prefixed(edit, prompt), answer))
    ]
    found: dict[int, _Read] = {}
    for some, hooks_of_rows in numbered.together(numbers):
        part, marks = [asked[i] for i in some], [numbers[i] for i in some]
        reads = read_answers(
            model, part, _read, hooks_of_rows=hooks_of_rows, marks=marks, prepend_bos=prepend_bos
        )
        found |= dict(zip(some, reads, strict=True))
    firing = strongest_firing(
        model, edit, [prompt for prompt, _ in questions], prepend_bos=prepend_bos
    )
    return [
        Answered(
            prompt=prompt,
            answer=answer,
            before=found[2 * i].log_p,
            after=found[2 * i + 1].log_p,
            rank_before=found[2 * i].rank,
            rank_after=found[2 * i + 1].rank,
            kl=kl_divergence(found[2 * i].next_token, found[2 * i + 1].next_token),
            tokens=found[2 * i].tokens,
            firing=firing[i][0],
            fires_at=firing[i][1],
        )
        for i, (prompt, answer) in enumerate(questions)
    ]


def continuations(
    model: LensModel,
    edit: Any,
    jobs: Sequence[tuple[str, bool]],
    *,
    samples: int,
    new_tokens: int,
    seed: int,
    prepend_bos: bool | None = None,
) -> list[list[str]]:
    """For each prompt, without the edit (False) or with it, so many continuations; the same draws either way."""
    numbered = NumberedEdits(model, [None, edit])
    each = [(prompt, edited, k) for prompt, edited in jobs for k in range(samples)]
    numbers = [numbered.numbers[edited] for _, edited, _ in each]
    texts = [""] * len(each)
    for some, hooks_of_rows in numbered.together(numbers):
        found = sample_continuations(
            model,
            [prefixed(edit, each[i][0]) if each[i][1] else each[i][0] for i in some],
            new_tokens=new_tokens,
            seeds=[crc32(f"{seed} {each[i][0]} {each[i][2]}".encode()) for i in some],
            marks=[numbers[i] for i in some],
            hooks_of_rows=hooks_of_rows,
            prepend_bos=prepend_bos,
        )
        for i, text in zip(some, found, strict=True):
            texts[i] = text
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def strongest_firing(
    model: LensModel, edit: Any, texts: Sequence[str], *, prepend_bos: bool | None = None
) -> list[tuple[float | None, str | None]]:
    """For each text the firing that is largest by its size, and its token; None where the edit names no key.

    A BOS before the text is left out: its key is the same in every prompt.
    """
    if not isinstance(edit, RankOneEdit) or edit.key is None:
        return [(None, None)] * len(texts)
    bos = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    return [
        _strongest(each, int(bos))
        for each in edit_firings(model, edit, texts, prepend_bos=prepend_bos)
    ]


def kl_divergence(p: Float[Tensor, " d_vocab"], q: Float[Tensor, " d_vocab"]) -> float:
    """``KL(p || q) = sum_i p_i (log p_i - log q_i)`` in nats, of two distributions given by their logarithms."""
    p, q = p.double(), q.double()
    return float((p.exp() * (p - q)).sum().clamp(min=0.0))


@dataclass(frozen=True)
class _Read:
    log_p: float
    rank: int
    tokens: int
    next_token: Float[Tensor, " d_vocab"]


def _read(
    _question: int, ids: Int[Tensor, " token"], log_p: Float[Tensor, "token d_vocab"]
) -> _Read:
    chosen = log_p.gather(-1, ids[:, None])[:, 0].double()
    rank = 1 + int((log_p[0] > log_p[0, ids[0]]).sum())
    return _Read(float(chosen.sum()), rank, len(ids), log_p[0].cpu().clone())


def _strongest(firing: EditFiring, start: int) -> tuple[float, str]:
    place = start + int(torch.argmax(firing.values[start:].abs()))
    return float(firing.values[place]), firing.labels[place]
