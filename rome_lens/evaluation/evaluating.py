"""CounterFact's scores of an edit: does it succeed, generalise, and spare its neighbours?

Source: Meng et al. 2022, section 3.3 and its appendix on metrics.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from rome_lens.arguments import several, whole_number
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.data.relations import relation_of
from rome_lens.errors import ArgumentError, RomeLensError
from rome_lens.evaluation.fluency import ngram_entropy, tfidf_similarity
from rome_lens.evaluation.numbered_edits import NumberedEdits, check_same_fact, prefixed
from rome_lens.evaluation.results import Evaluation, PromptScore
from rome_lens.forward.answers import token_log_probs
from rome_lens.forward.sampling import sample_continuations
from rome_lens.forward.tokens import continuation, token_ids
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel


class EvaluationError(RomeLensError):
    """A probability is not finite, so there is no score."""


class _Question(NamedTuple):
    """A prompt and the two answers whose probabilities are compared."""

    kind: str
    prompt: str
    target: str
    new_target: str


@visits_model
def evaluate(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    generate: int = 0,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> Evaluation:
    """Score one edit on one record. See :func:`evaluate_all` for the arguments and errors.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.record("wanda-brandt")
        >>> statistics = rl.collect_key_statistics(model, layer=2, sample_count=64)
        >>> edit = rl.rome(model, record, layer=2, statistics=statistics, contexts=["{}"])
        >>> before, after = rl.evaluate(model, None, record), rl.evaluate(model, edit, record)
        >>> before.ES, before.PS, before.NS
        (0.0, 0.0, 1.0)
        >>> after.ES, after.PS, after.NS
        (1.0, 1.0, 0.875)
    """
    return evaluate_all(
        model, [edit], [record], generate=generate, seed=seed, prepend_bos=prepend_bos
    )[0]


@visits_model
def evaluate_all(
    model: LensModel,
    edits: Iterable[Any],
    records: Fact | Record | Iterable[Fact | Record],
    *,
    generate: int = 0,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> list[Evaluation]:
    """Score each edit on its record, with all prompts in as few forward passes as possible.

    The weights are not changed. Hooks that are on the model stay on and count as part of it, before
    and after. A record may occur several times with different edits; its prompts are then run only
    once before the edits.

    Args:
        edits: one for each record, in the same order. An edit is a ``RankOneEdit``, a
            ``WeightEdit`` or ``Edits``; or None, which means the model as it is; or any object with
            ``fwd_hooks(model)``. The hooks of such an object must not depend on a row's place in
            the batch. If the object has a ``prefix``, that text is put before every prompt.
        records: facts or records with a new target.
        generate: how many tokens to sample after each generation prompt, for GE and RS. Each token
            is drawn from the 5 most likely ones, as in the original, which samples up to 100
            tokens. With 0 both scores are None.
        seed: of that sampling. A text depends on the seed and on its record, but not on the rest of
            the batch.
        prepend_bos: None takes the model's default.

    Returns:
        An :class:`Evaluation` for each record, in order.

    Raises:
        FactError: the two answers to a prompt are the same tokens; a prompt and its answer share a
            token; a text does not fit in the model's context; or a record has no new target.
        ModelError: an edit was made on another model, or is already in this model's weights.
        EvaluationError: a probability is not finite. The message names the record and the prompt,
            and says whether it happened before or after the edit.
        ArgumentError: there are more edits than records or fewer; an edit has no hooks; or an edit
            changes another fact than its record's.
    """
    edits = several("edits", edits, "a list with an edit, or None, for each record")
    cases = [with_new_target(record) for record in as_records(records)]
    if len(edits) != len(cases):
        raise ArgumentError(
            f"There are {len(edits)} edits for {len(cases)} records: give one edit (or None) for "
            "each record."
        )
    generate, seed = whole_number("generate", generate, least=0), whole_number("seed", seed)
    for edit, case in zip(edits, cases, strict=True):
        check_same_fact(edit, case.fact, case.id)
    numbered = NumberedEdits(model, edits)
    for case in cases:
        check_prompts(model, case, prepend_bos=prepend_bos)
    rows = _prompt_scores(model, edits, numbered, cases, prepend_bos)
    texts = _generated_texts(model, edits, numbered, cases, generate, seed, prepend_bos)
    return [
        _evaluation(case, edit is not None, scores, written)
        for edit, case, scores, written in zip(edits, cases, rows, texts, strict=True)
    ]


def check_prompts(model: LensModel, case: Record, *, prepend_bos: bool | None = None) -> None:
    """Refuse a record whose prompts this model cannot be asked, before any edit is made.

    Raises:
        FactError: a prompt does not fit in the model's context, or its two answers are the same
            tokens.
    """
    questions = _questions(case)
    for question in questions:
        token_ids(model, question.prompt, prepend_bos=prepend_bos)
    for question in {(each.target, each.new_target): each for each in questions}.values():
        ids = continuation(model, question.prompt, question.target)
        if ids == continuation(model, question.prompt, question.new_target):
            raise FactError(
                f"The record {case.id!r}: {question.target!r} and {question.new_target!r} are the "
                f"same tokens {list(ids)} to this model, so it cannot prefer one to the other."
            )


def _questions(case: Record) -> list[_Question]:
    """What is asked about a record. A neighbour whose true answer is the new target is left out."""
    fact, new = case.fact, str(case.fact.new_target)
    return [
        _Question("rewrite", fact.text, fact.target, new),
        *(_Question("paraphrase", prompt, fact.target, new) for prompt in case.paraphrases),
        *(
            _Question("neighborhood", prompt, target, new)
            for prompt, target in case.neighborhood
            if target != new
        ),
    ]


def _prompt_scores(
    model: LensModel,
    edits: Sequence[Any],
    numbered: NumberedEdits,
    cases: Sequence[Record],
    prepend_bos: bool | None,
) -> list[list[PromptScore]]:
    """The probabilities of both answers to each prompt, before (under edit 0) and after."""
    asked = [_questions(case) for case in cases]
    pairs, numbers = [], []
    for edit, number, questions in zip(edits, numbered.numbers, asked, strict=True):
        for _, prompt, target, new in questions:
            after = prefixed(edit, prompt)
            pairs += [(prompt, target), (prompt, new), (after, target), (after, new)]
            numbers += [0, 0, number, number]
    probabilities = [math.nan] * len(pairs)
    for indices, hooks_of_rows in numbered.together(numbers):
        token_logs = token_log_probs(
            model,
            [pairs[i] for i in indices],
            marks=[numbers[i] for i in indices],
            hooks_of_rows=hooks_of_rows,
            prepend_bos=prepend_bos,
        )
        for i, log_probs in zip(indices, token_logs, strict=True):
            probabilities[i] = float(log_probs.double().mean().exp())
    fours = iter(zip(*[iter(probabilities)] * 4, strict=True))
    return [
        [_prompt_score(case, question, next(fours)) for question in questions]
        for case, questions in zip(cases, asked, strict=True)
    ]


def _prompt_score(case: Record, question: _Question, probabilities: Sequence[float]) -> PromptScore:
    """The probabilities of both answers before, and of both after.

    Raises:
        EvaluationError: one of them is not finite.
    """
    for which, pair in (("unedited", probabilities[:2]), ("edited", probabilities[2:])):
        if not all(map(math.isfinite, pair)):
            raise EvaluationError(
                f"The record {case.id!r}: after {question.prompt!r} the {which} model gives "
                f"{question.target!r} and {question.new_target!r} the probabilities {pair}, "
                "expected finite numbers. Look for NaN or inf in the weights or in the edit. Half "
                "precision overflows at 65 504."
            )
    target_before, new_before, target_after, new_after = probabilities
    return PromptScore(
        **question._asdict(),
        target_before=target_before,
        new_before=new_before,
        target_after=target_after,
        new_after=new_after,
    )


def _prompts_to_continue(case: Record) -> tuple[str, tuple[str, ...]]:
    """The prompts from which text is generated, and what they are called."""
    if case.texts_to_continue:
        return "generation prompts", case.texts_to_continue
    if case.paraphrases:
        return "paraphrases", case.paraphrases
    return "rewrite prompt", (case.fact.text,)


def _generated_texts(
    model: LensModel,
    edits: Sequence[Any],
    numbered: NumberedEdits,
    cases: Sequence[Record],
    generate: int,
    seed: int,
    prepend_bos: bool | None,
) -> list[list[str]]:
    """The texts generated for each record, with their prompts but without an edit's prefix."""
    texts: list[list[str]] = [[] for _ in cases]
    if not generate:
        return texts
    jobs = [
        (i, prompt, crc32(f"{seed} {case.id} {j}".encode()))
        for i, case in enumerate(cases)
        for j, prompt in enumerate(_prompts_to_continue(case)[1])
    ]
    numbers = [numbered.numbers[i] for i, _, _ in jobs]
    continuations = [""] * len(jobs)
    for indices, hooks_of_rows in numbered.together(numbers):
        sampled = sample_continuations(
            model,
            [prefixed(edits[jobs[k][0]], jobs[k][1]) for k in indices],
            new_tokens=generate,
            seeds=[jobs[k][2] for k in indices],
            marks=[numbers[k] for k in indices],
            hooks_of_rows=hooks_of_rows,
            prepend_bos=prepend_bos,
        )
        for k, text in zip(indices, sampled, strict=True):
            continuations[k] = text
    for (i, prompt, _), text in zip(jobs, continuations, strict=True):
        texts[i].append(prompt + text)
    return texts


def _evaluation(
    case: Record, edited: bool, rows: Sequence[PromptScore], texts: Sequence[str]
) -> Evaluation:
    references = case.reference_texts
    return Evaluation(
        case_id=case.id,
        edited=edited,
        rows=tuple(rows),
        GE=math.fsum(map(ngram_entropy, texts)) / len(texts) if texts else None,
        RS=tfidf_similarity(texts, references) if texts and references else None,
        texts=tuple(texts),
        continued=_prompts_to_continue(case)[0] if texts else None,
        relation=relation_of(case),
    )
