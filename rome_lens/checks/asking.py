"""Asks a model for answers without and with an edit, and for the edit's firing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.checks.answered import Answered, AnsweredQuestions, PromptAnswer, question_key
from rome_lens.editing.firing import EditFiring, edit_firings
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.evaluation.numbered_edits import NumberedEdits, prefixed
from rome_lens.forward.answers import read_answers
from rome_lens.forward.runs import finite_logits
from rome_lens.forward.tokens import begins_with_bos, continuation, shared_length, token_labels
from rome_lens.models.lens import LensModel, starts_with_bos

_Job: TypeAlias = tuple[int, str, str]
"""The number of an edit (0 is the model as it stands), the prompt as asked under it, the answer."""


@dataclass(frozen=True)
class _Read:
    log_p: float
    rank: int
    written: bool
    tokens: int
    next_token: Float[Tensor, " d_vocab"]


UneditedAnswers: TypeAlias = dict[_Job, _Read]
"""One model's answers without an edit. They hold the whole vocabulary for each prompt."""


def before_and_after(
    model: LensModel,
    asked: Sequence[tuple[Any, Sequence[PromptAnswer]]],
    *,
    firing_of: Any = None,
    rivals: Mapping[str, str] | None = None,
    unedited: UneditedAnswers | None = None,
    prepend_bos: bool | None = None,
) -> list[AnsweredQuestions]:
    """For each edit, the answers to its questions without and with that edit.

    What is asked without an edit is read apart from what is asked under the edits, so these numbers
    do not depend on the edits. The weights stay untouched. Hooks that the caller has on stay on and
    are part of "before" as well as "after". They must not depend on a row's number, on the batch
    size, or on positions counted from the end, because rows are padded on the right and shared by
    questions that begin alike.

    Args:
        asked: pairs of an edit and its questions. An edit may come more than once, and equal
            questions are asked once.
        firing_of: the edit whose firing on each prompt is computed too, in a run that ends at the
            edited layer.
        rivals: by answer, the answer that it competes with, such as the new target with the true
            one. Ranks are those of the first token in which the two differ.
        unedited: answers of this model without an edit, with the same rivals. New ones are added.

    Raises:
        FactError: a prompt or an answer is empty or ends in white space.
        ModelError: an edit was made on another model, or is already in this model's weights; or the
            caller has a hook on the very output that an edit adds to, where it would act too early.
    """
    numbered = NumberedEdits(model, [edit for edit, _ in asked])
    jobs = [
        [((0, prompt, answer), (number, prefixed(edit, prompt), answer)) for prompt, answer in its]
        for (edit, its), number in zip(asked, numbered.numbers, strict=True)
    ]
    unedited = {} if unedited is None else unedited
    plain = {_job_key(job): job for its in jobs for job, _ in its}
    new = [job for key, job in plain.items() if key not in unedited]
    unedited |= _read_jobs(model, numbered, new, rivals or {}, prepend_bos)
    under_edits = {_job_key(job): job for its in jobs for _, job in its}
    edited = [job for key, job in under_edits.items() if key not in plain]
    reads = unedited | _read_jobs(model, numbered, edited, rivals or {}, prepend_bos)
    prompts = dict.fromkeys(prompt for edit, its in asked if edit is firing_of for prompt, _ in its)
    firing = _strongest_firings(model, firing_of, list(prompts), prepend_bos)
    return [
        AnsweredQuestions(
            (
                question,
                _answered(
                    *question,
                    reads[_job_key(before)],
                    reads[_job_key(after)],
                    firing.get(question[0]) if edit is firing_of else None,
                ),
            )
            for question, (before, after) in zip(its, pairs, strict=True)
        )
        for (edit, its), pairs in zip(asked, jobs, strict=True)
    ]


def kl_divergence(p: Float[Tensor, " d_vocab"], q: Float[Tensor, " d_vocab"]) -> float:
    """``KL(p || q) = sum_i p_i (log p_i - log q_i)`` in nats, from log probabilities."""
    p, q = p.double(), q.double()
    return float((p.exp() * (p - q)).sum().clamp(min=0.0))


def strongest_firing(firing: EditFiring, *, start: int = 0) -> tuple[float, str]:
    """The firing of the largest size from token ``start`` on, with its sign, and that token."""
    place = start + int(torch.argmax(firing.values[start:].abs()))
    return float(firing.values[place]), firing.labels[place]


def _job_key(job: _Job) -> _Job:
    number, prompt, answer = job
    return (number, *question_key((prompt, answer)))


def _read_jobs(
    model: LensModel,
    numbered: NumberedEdits,
    jobs: Sequence[_Job],
    rivals: Mapping[str, str],
    prepend_bos: bool | None,
) -> dict[_Job, _Read]:
    # Kept once per prompt: with a large vocabulary, one per question would take much memory.
    next_token: dict[tuple[int, str], Tensor] = {}
    reads: dict[_Job, _Read] = {}
    for some, hooks_of_rows in numbered.together([number for number, _, _ in jobs]):
        own = [jobs[i] for i in some]

        def read(
            question: int,
            ids: Int[Tensor, " token"],
            log_p: Float[Tensor, "token d_vocab"],
            own: Sequence[_Job] = own,
        ) -> _Read:
            number, prompt, answer = own[question]
            finite_logits(log_p)
            if (number, prompt) not in next_token:
                next_token[number, prompt] = log_p[0].cpu().clone()
            chosen = log_p.gather(-1, ids[:, None])[:, 0].double()
            rival = rivals.get(answer)
            other = () if rival is None else continuation(model, prompt, rival)
            first = _first_telling(model, ids.tolist(), other)
            rank = 1 + int((log_p[first] > log_p[first, ids[first]]).sum())
            written = bool((log_p.argmax(-1) == ids).all())
            return _Read(float(chosen.sum()), rank, written, len(ids), next_token[number, prompt])

        found = read_answers(
            model,
            [(prompt, answer) for _, prompt, answer in own],
            read,
            hooks_of_rows=hooks_of_rows,
            marks=[number for number, _, _ in own],
            prepend_bos=prepend_bos,
        )
        reads |= {_job_key(job): each for job, each in zip(own, found, strict=True)}
    return reads


def _first_telling(model: LensModel, ids: Sequence[int], other: Sequence[int]) -> int:
    """The index of the first token that is not white space alone and that the other answer lacks.

    If there is none, as for an answer that another one continues, it is the first token with text.
    """
    telling = [i for i, label in enumerate(token_labels(model, ids)) if label.strip()] or [0]
    shared = shared_length(ids, other)
    return next((i for i in telling if i >= shared), telling[0])


def _answered(
    prompt: str, answer: str, before: _Read, after: _Read, firing: tuple[float, str, float] | None
) -> Answered:
    strongest, fires_at, added = firing or (None, None, None)
    return Answered(
        prompt=prompt,
        answer=answer,
        before=before.log_p,
        after=after.log_p,
        rank_before=before.rank,
        rank_after=after.rank,
        written_before=before.written,
        written_after=after.written,
        kl=kl_divergence(before.next_token, after.next_token),
        tokens=before.tokens,
        firing=strongest,
        fires_at=fires_at,
        added=added,
    )


def _strongest_firings(
    model: LensModel, edit: Any, prompts: Sequence[str], prepend_bos: bool | None
) -> dict[str, tuple[float, str, float]]:
    """For each prompt, the firing of the largest size, its token, and the norm of what is added.

    Empty if the edit has no key.

    A BOS token at the start is left out, because its key is the same in every prompt.
    """
    if not isinstance(edit, RankOneEdit) or edit.key is None or not prompts:
        return {}
    firings = edit_firings(model, edit, prompts, prepend_bos=prepend_bos)
    bos = starts_with_bos(model, prepend_bos)
    found = {}
    for each in firings:
        start = int(bos or begins_with_bos(model, each.text))
        value, token = strongest_firing(each, start=start)
        found[each.text] = (value, token, abs(value * each.scale) * float(edit.v.norm()))
    return found
