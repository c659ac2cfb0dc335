"""CounterFact's scores of an edit: does it hold, does it carry over to paraphrases, does it leave neighbours alone.

Source: Meng et al. 2022, section 3.3 and its appendix on metrics.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

from rome_lens.arguments import whole_number
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.errors import ArgumentError, RomeLensError
from rome_lens.evaluation.fluency import ngram_entropy, tfidf_similarity
from rome_lens.evaluation.numbered_edits import NumberedEdits, check_same_fact, prefixed
from rome_lens.evaluation.scores import Evaluation, PromptScore
from rome_lens.forward.answers import token_log_probs
from rome_lens.forward.sampling import sample_continuations
from rome_lens.forward.tokens import continuation, token_ids
from rome_lens.models.lens import LensModel


class EvaluationError(RomeLensError):
    """A probability that is no number, so that no score may count it."""


def evaluate(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    generate: int = 0,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> Evaluation:
    """The scores of one edit on one record; see :func:`evaluate_all`."""
    found = evaluate_all(
        model, [edit], [record], generate=generate, seed=seed, prepend_bos=prepend_bos
    )
    return found[0]


def evaluate_all(
    model: LensModel,
    edits: Iterable[Any],
    records: Fact | Record | Iterable[Fact | Record],
    *,
    generate: int = 0,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> list[Evaluation]:
    """The scores of each edit on the record beside it, all in as few forward passes as they fit into.

    The weights stay untouched, and hooks that the caller has on stay on: they, too, are part of "before". Give a record
    several times with several edits, and its prompts before the edits are run once.

    Args:
        edits: as many as records: a ``RankOneEdit`` or ``WeightEdit``; None, the model as it stands; or any object with
            ``fwd_hooks(model)``, which gives hooks that do not depend on a row's place in the batch, and perhaps a
            ``prefix``, which then stands before every prompt.
        generate: how many tokens to sample behind each generation prompt for GE and RS, among the 5 likeliest as the
            original does (up to 100 tokens); 0 asks neither.
        seed: of that sampling. A text depends on it and on its record, not on the batch or on the edit.
        prepend_bos: None takes the model's default.

    Raises:
        FactError: the two answers to a prompt are the same tokens; a prompt and its answer share a token; a text does not
            fit the model's context; a record is given by a form that it cannot have.
        ModelError: an edit was made on another model, or is in this one's weights already.
        EvaluationError: a probability is not finite; the message names the record, the prompt and whether it was edited.
        ValueError: not as many edits as records, an edit without hooks, or one of another fact than its record's.
    """
    edits, cases = list(edits), [with_new_target(record) for record in as_records(records)]
    if len(edits) != len(cases):
        raise ArgumentError(
            f"There are {len(edits)} edits for {len(cases)} records: give one (or None) for each record."
        )
    generate = whole_number("generate", generate, least=0)
    for edit, case in zip(edits, cases, strict=True):
        check_same_fact(edit, case.fact, case.id)
    numbered = NumberedEdits(model, edits)
    for case in cases:
        check_prompts(model, case, prepend_bos=prepend_bos)
    rows = _scored(model, edits, numbered, [_asked(case) for case in cases], prepend_bos)
    for case, scores in zip(cases, rows, strict=True):
        _refuse_what_is_no_number(case, scores)
    texts = _written(model, edits, numbered, cases, generate, seed, prepend_bos)
    return [
        Evaluation(
            case_id=case.id,
            edited=edit is not None,
            rows=tuple(scores),
            GE=math.fsum(map(ngram_entropy, written)) / len(written) if written else None,
            RS=tfidf_similarity(written, case.reference_texts)
            if written and case.reference_texts
            else None,
            texts=tuple(written),
            continued=_to_continue(case)[0] if written else None,
        )
        for edit, case, scores, written in zip(edits, cases, rows, texts, strict=True)
    ]


def _asked(case: Record) -> list[tuple[str, str, str, str]]:
    """Kind, prompt, true answer and new target of every prompt."""
    fact, new = case.fact, str(case.fact.new_target)
    return [
        ("rewrite", fact.text, fact.target, new),
        *(("paraphrase", prompt, fact.target, new) for prompt in case.paraphrases),
        *(
            ("neighborhood", prompt, target, new)
            for prompt, target in case.neighborhood
            if target != new
        ),
    ]


def check_prompts(model: LensModel, case: Record, *, prepend_bos: bool | None = None) -> None:
    """Refuse a record that this model cannot be asked, before anything is edited.

    Raises:
        FactError: a prompt does not fit the model's context, or the two answers to one are the same tokens.
    """
    for _, prompt, _, _ in _asked(case):
        token_ids(model, prompt, prepend_bos=prepend_bos)
    asked = {(target, new): (prompt, target, new) for _, prompt, target, new in _asked(case)}
    for prompt, target, new in asked.values():
        ids = continuation(model, prompt, target)
        if ids == continuation(model, prompt, new):
            raise FactError(
                f"The record {case.id!r}: {target!r} and {new!r} are the same tokens {list(ids)} to this model, which "
                "cannot prefer one to the other."
            )


def _refuse_what_is_no_number(case: Record, rows: Sequence[PromptScore]) -> None:
    for row in rows:
        for edited, found in (
            ("unedited", (row.target_before, row.new_before)),
            ("edited", (row.target_after, row.new_after)),
        ):
            if not all(map(math.isfinite, found)):
                raise EvaluationError(
                    f"The record {case.id!r}: behind {row.prompt!r} the {edited} model gives {row.target!r} and "
                    f"{row.new_target!r} the probabilities {found}. Look for NaN or inf in the weights or in the edit; half "
                    "precision overflows at 65 504."
                )


def _scored(
    model: LensModel,
    edits: Sequence[Any],
    numbered: NumberedEdits,
    asked: Sequence[Sequence[tuple[str, str, str, str]]],
    prepend_bos: bool | None,
) -> list[list[PromptScore]]:
    """Four probabilities for each prompt: of both answers, before (as edit 0) and after."""
    questions, numbers = [], []
    for edit, number, prompts in zip(edits, numbered.numbers, asked, strict=True):
        for _, prompt, target, new in prompts:
            after = prefixed(edit, prompt)
            questions += [(prompt, target), (prompt, new), (after, target), (after, new)]
            numbers += [0, 0, number, number]
    found = [math.nan] * len(questions)
    for some, hooks_of_rows in numbered.together(numbers):
        marks = [numbers[i] for i in some]
        part = [questions[i] for i in some]
        each = token_log_probs(
            model, part, marks=marks, hooks_of_rows=hooks_of_rows, prepend_bos=prepend_bos
        )
        for i, log_probs in zip(some, each, strict=True):
            found[i] = float(log_probs.double().mean().exp())
    values = iter(zip(*[iter(found)] * 4, strict=True))
    return [
        [
            PromptScore(
                kind=kind,
                prompt=prompt,
                target=target,
                new_target=new,
                target_before=target_before,
                new_before=new_before,
                target_after=target_after,
                new_after=new_after,
            )
            for (kind, prompt, target, new), (
                target_before,
                new_before,
                target_after,
                new_after,
            ) in zip(prompts, values, strict=False)
        ]
        for prompts in asked
    ]


def _to_continue(case: Record) -> tuple[str, tuple[str, ...]]:
    if case.texts_to_continue:
        return "generation prompts", case.texts_to_continue
    if case.paraphrases:
        return "paraphrases", case.paraphrases
    return "rewrite prompt", (case.fact.text,)


def _written(
    model: LensModel,
    edits: Sequence[Any],
    numbered: NumberedEdits,
    cases: Sequence[Record],
    generate: int,
    seed: int,
    prepend_bos: bool | None,
) -> list[list[str]]:
    """The generated texts of each record, with the prompts that they continue, but without an edit's prefix."""
    texts: list[list[str]] = [[] for _ in cases]
    if not generate:
        return texts
    jobs = [
        (i, prompt, crc32(f"{seed} {case.id} {j}".encode()))
        for i, case in enumerate(cases)
        for j, prompt in enumerate(_to_continue(case)[1])
    ]
    numbers = [numbered.numbers[i] for i, _, _ in jobs]
    behind = [""] * len(jobs)
    for some, hooks_of_rows in numbered.together(numbers):
        found = sample_continuations(
            model,
            [prefixed(edits[jobs[k][0]], jobs[k][1]) for k in some],
            new_tokens=generate,
            seeds=[jobs[k][2] for k in some],
            marks=[numbers[k] for k in some],
            hooks_of_rows=hooks_of_rows,
            prepend_bos=prepend_bos,
        )
        for k, text in zip(some, found, strict=True):
            behind[k] = text
    for (i, prompt, _), text in zip(jobs, behind, strict=True):
        texts[i].append(prompt + text)
    return texts
