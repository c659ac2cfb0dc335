"""Fidelity of the patch: does the model still work, or is this edit a disabling one?"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rome_lens import data
from rome_lens.arguments import whole_number
from rome_lens.checks.asking import (
    before_and_after,
    continuations,
    fact_of,
    first_and_rest,
    nats_per_token,
)
from rome_lens.checks.result import CheckResult, CheckRow, Measure, not_asked
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record
from rome_lens.editing.edit import LayerEdit
from rome_lens.editing.firing import edit_firings
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.fluency import ngram_entropy
from rome_lens.evaluation.numbered_edits import NumberedEdits
from rome_lens.forward.tokens import token_ids
from rome_lens.models.lens import LensModel, mlp_output, w_out

NAME = "fidelity"
ASKS = "Does the model still read and write other text as it did?"
NORM = "||delta|| / ||W_out||"
AT_SUBJECT = "||(u . k*) v|| / ||k* W_out + b_out||"
ELSEWHERE = "mean |u . k| / (u . k*) over other text"
OTHER_EDITS = ", other edits"
OPENING = 5


def fidelity(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    others: Sequence[Any] = (),
    texts: Sequence[str] | None = None,
    new_tokens: int = 30,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> CheckResult:
    """How the edit changes the reading of text that is not about it, and how large it is.

        effect = mean over texts of  1/T sum_t [log p(x_t | x_<t) - log p_edited(x_t | x_<t)],  in nats per token

    ``exp`` of it is the factor by which the perplexity grows. Beside it: the norms ``||delta|| / ||W_out||`` and, at the fact's
    own key, ``||(u . k*) v|| / ||k* W_out + b_out||``; the mean of ``|u . k| / (u . k*)`` over the tokens of those texts; and
    the entropy (bits, :func:`rome_lens.fluency.ngram_entropy`) of what the model writes behind the texts' first words. Control:
    the same effect of edits of other facts.

    Source: "disabling edits", Gupta et al. 2024, "Rebuilding ROME"; GE of Meng et al. 2022, section 3.3.

    Args:
        others: edits of other facts on the same model, to compare with; none are made here.
        texts: ordinary text of several words each; None takes those of ``data.held_texts()`` that fit the model's context,
            and where none does the record's neighbours with their answers.
        new_tokens: length of what the model writes; 0 writes nothing.

    Raises:
        ValueError: as for :func:`rome_lens.checks.check_limits`; ``new_tokens`` is negative; a text is a single word; the
            edit is among the others.
    """
    record, _, _ = fact_of(edit, record)
    NumberedEdits(model, [edit, *others])  # refused, if so, before the texts are looked at
    if any(other is edit for other in others):
        raise ArgumentError(
            "others holds the edit itself, which is no control of its own: leave it out."
        )
    new_tokens = whole_number("new_tokens", new_tokens, least=0)
    if texts is None:
        texts = _default_texts(model, record, prepend_bos)
    if not texts:
        return not_asked(NAME, ASKS, "there is no text, give texts=[...]")
    for text in texts:
        first_and_rest(text)
    edits = [edit, *others]
    read = [_nats_per_token(model, each, texts, prepend_bos) for each in edits]
    own, rest = read[0], read[1:]
    rows = [
        replace(each, effect=each.change, control=_mean([other[i].change for other in rest]))
        for i, each in enumerate(own)
    ]
    further = []
    for name in (NORM, AT_SUBJECT, ELSEWHERE):
        sizes = [_size(model, each, name, texts, prepend_bos) for each in edits]
        further += [Measure(name=name, values=(sizes[0],))] if sizes[0] is not None else []
        known = tuple(size for size in sizes[1:] if size is not None)
        further += [Measure(name=name + OTHER_EDITS, values=known)] if known else []
    if new_tokens:
        written = _entropies(model, edit, texts, new_tokens, seed, prepend_bos)
        rows += written
        for name, values in (
            ("before", [r.before for r in written]),
            ("after", [r.after for r in written]),
        ):
            further.append(
                Measure(name=f"entropy of generations in bits, {name}", values=tuple(values))
            )
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured="nats per token of a text, or entropy in bits of a generation",
        effect_is="change of other texts' nats per token",
        control_is="the same of edits of other facts",
        rows=tuple(rows),
        further=tuple(further),
    )
    return result.with_reading(_reading(result))


def _default_texts(model: LensModel, record: Record, prepend_bos: bool | None) -> list[str]:
    held = [text for text in data.held_texts() if _fits(model, text, prepend_bos)]
    return held or [f"{question.prompt} {question.target}." for question in record.neighborhood]


def _fits(model: LensModel, text: str, prepend_bos: bool | None) -> bool:
    try:
        token_ids(model, text, prepend_bos=prepend_bos)
    except FactError:
        return False
    return True


def compared(results: Sequence[CheckResult]) -> list[CheckResult]:
    """The same results, each with all the others as its control: what ``others`` would give, at no cost.

    All must have read the same texts.
    """
    asked = [result for result in results if result.asked]
    return [
        _beside(own, [other for other in asked if other is not own]) if own.asked else own
        for own in results
    ]


def _beside(own: CheckResult, others: Sequence[CheckResult]) -> CheckResult:
    if not others:
        return own
    changes = [[row.change for row in other.rows if row.kind == "text"] for other in others]
    rows = [
        replace(row, control=_mean([each[i] for each in changes])) if row.kind == "text" else row
        for i, row in enumerate(own.rows)
    ]
    kept = [measure for measure in own.further if not measure.name.endswith(OTHER_EDITS)]
    further = []
    for measure in kept:
        found = [m for other in others for m in other.further if m.name == measure.name]
        further.append(measure)
        if measure.name in (NORM, AT_SUBJECT, ELSEWHERE) and found:
            further.append(
                Measure(
                    name=measure.name + OTHER_EDITS, values=tuple(m.average.mean for m in found)
                )
            )
    result = replace(own, rows=tuple(rows), further=tuple(further))
    return result.with_reading(_reading(result))


def _nats_per_token(
    model: LensModel, edit: Any, texts: Sequence[str], prepend_bos: bool | None
) -> list[CheckRow]:
    answered = before_and_after(
        model, edit, list(map(first_and_rest, texts)), prepend_bos=prepend_bos
    )
    return [nats_per_token(a, "text") for a in answered]


def _size(
    model: LensModel, edit: Any, name: str, texts: Sequence[str], prepend_bos: bool | None
) -> float | None:
    """How large an edit is in one of three ways; None where an edit of its kind has no such size."""
    if name == NORM and isinstance(edit, LayerEdit):
        norm = math.prod(
            float(tensor.norm()) for tensor in edit.tensors
        )  # of an outer product, the product of norms
        return norm / float(w_out(model, edit.layer).norm())
    if not isinstance(edit, RankOneEdit) or edit.key is None:
        return None
    if name == AT_SUBJECT:
        added = (edit.u @ edit.key).abs() * edit.v.norm()
        return float(added / mlp_output(model, edit.layer, edit.key).norm().to(added))
    if name == ELSEWHERE:
        fired = edit_firings(model, edit, texts, prepend_bos=prepend_bos)
        return _mean([float(value) for each in fired for value in each.values.abs()])
    return None


def _entropies(
    model: LensModel,
    edit: Any,
    texts: Sequence[str],
    new_tokens: int,
    seed: int,
    prepend_bos: bool | None,
) -> list[CheckRow]:
    """Entropy of what the model writes behind the first words of each text, without and with the edit."""
    openings = [" ".join(text.split()[:OPENING]) for text in texts]
    jobs = [(prompt, edited) for prompt in openings for edited in (False, True)]
    found = continuations(
        model, edit, jobs, samples=1, new_tokens=new_tokens, seed=seed, prepend_bos=prepend_bos
    )
    written = [text for (text,) in found]
    return [
        CheckRow(
            kind="generation",
            prompt=prompt,
            answer=written[2 * i + 1].strip(),
            before=ngram_entropy(written[2 * i]),
            after=ngram_entropy(written[2 * i + 1]),
        )
        for i, prompt in enumerate(openings)
    ]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _reading(result: CheckResult) -> str:
    assert result.effect is not None
    names = {measure.name: measure.average.mean for measure in result.further}
    reading = f"Other text: {result.effect.mean:+.4f} nats per token (perplexity times {math.exp(result.effect.mean):.3f})"
    if result.control is not None:
        reading += f", edits of other facts {result.control.mean:+.4f}"
    if NORM in names:
        reading += f"; ||delta|| is {names[NORM]:.2%} of ||W_out||"
        if NORM + OTHER_EDITS in names:
            reading += f" (other edits: {names[NORM + OTHER_EDITS]:.2%})"
    if AT_SUBJECT in names:
        reading += f", and at the subject {names[AT_SUBJECT]:.1f} times W_out's own output there"
    if ELSEWHERE in names:
        reading += f"; on other text it fires with {names[ELSEWHERE]:.3f} on average"
    return reading + "."
