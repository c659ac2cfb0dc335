"""Fidelity of the patch: does the model still work, or does the edit disable it?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from rome_lens import data
from rome_lens.arguments import several, whole_number
from rome_lens.arguments import texts as several_texts
from rome_lens.checks.answered import Answers, PromptAnswer, text_question, text_row
from rome_lens.checks.check import Check, checked_record, run_check
from rome_lens.checks.result import CheckResult, CheckRow, Measure, make_measures
from rome_lens.checks.writing import Continuations
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.joining import joined
from rome_lens.data.record_type import Record, names_subject, without_article
from rome_lens.editing.edit import Edit, LayerEdit
from rome_lens.editing.firing import edit_firings
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.fluency import ngram_entropy
from rome_lens.forward.tokens import token_ids
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, mlp_output, w_out

NORM = "||delta|| / ||W_out||"
AT_SUBJECT = "||(u . k*) v|| / ||k* W_out + b_out||"
ELSEWHERE = "mean |u . k| / (u . k*) over other text"
LEFT_OUT = "texts left out, which name the edited subject"
SIZES = (NORM, AT_SUBJECT, ELSEWHERE)
OTHER_EDITS = ", other edits"
OPENING = 5
"""Words at the beginning of a text that the model continues."""


@visits_model
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
    """How the edit changes the reading of text that is not about it, and how large the edit is.

        effect = mean over texts of  1/T sum_t [log p(x_t | x_<t) - log p_edited(x_t | x_<t)],  in
        nats per token

    ``exp`` of the effect is the factor by which the perplexity grows. The result also has:

    * the norm ``||delta|| / ||W_out||``, and at the fact's own key ``||(u . k*) v|| / ||k* W_out +
      b_out||``;
    * the mean of ``|u . k| / (u . k*)`` over the tokens of the texts;
    * the entropy of what the model writes after the first words of each text, in bits
      (:func:`rome_lens.evaluation.fluency.ngram_entropy`).

    Control: the same effect for edits of other facts.

    Source: "disabling edits", Gupta et al. 2024, "Rebuilding ROME"; GE in Meng et al. 2022, section
        3.3.

    Args:
        others: edits of other facts on the same model, for comparison. None are made here.
        texts: ordinary texts of several words each. None takes those of ``rl.data.held_texts()``
            that fit the model's context, or, if none fits, the record's neighbours with their
            answers. A text that names the edited subject, or one of the record's aliases, is left
            out, because the edit is meant to change it. The result counts these texts. A control
            edit is read on the texts that do not name its own subject.
        new_tokens: length of what the model writes; 0 writes nothing.
        seed: seed of what the model writes.

    Raises:
        ArgumentError: ``new_tokens`` is negative, or the edit itself is among the others; otherwise
            as for :func:`rome_lens.check_limits`.
        FactError: a text is a single word.
        RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    record = checked_record(edit, record)
    read, left_out = other_texts(model, edit, record, texts, prepend_bos)
    check = Fidelity(
        others=tuple(several("others", others, "a list of edits of other facts")),
        texts=read,
        left_out=left_out,
        new_tokens=new_tokens,
        seed=seed,
    )
    return run_check(check, model, edit, record, prepend_bos)


def other_texts(
    model: LensModel,
    edit: Any,
    record: Record,
    texts: Sequence[str] | None,
    prepend_bos: bool | None,
) -> tuple[tuple[str, ...], int]:
    """The texts that :func:`fidelity` reads, given or default, and how many it leaves out.

    A text that names the edited subject is left out: what the edit does there is its purpose.

    Raises:
        ArgumentError: ``texts`` is a single text.
    """
    if texts is None:
        given = tuple(text for text in data.held_texts() if fits_context(model, text, prepend_bos))
        given = given or tuple(
            f"{joined(each.prompt, each.target)}." for each in record.neighborhood
        )
    else:
        given = several_texts("texts", texts)
    names = (record.fact.subject, *record.aliases, *_subjects(edit))
    read = tuple(text for text in given if not _mentions(text, names))
    return read, len(given) - len(read)


def _subjects(edit: Any) -> list[str]:
    """The subjects of an edit or of its parts, as far as it names its facts."""
    parts = edit.parts if isinstance(edit, Edit) else (edit,)
    facts = [getattr(part, "fact", None) for part in parts]
    if isinstance(edit, MassEdit):
        facts = list(edit.facts)
    return [fact.subject for fact in facts if isinstance(fact, Fact)]


def _mentions(text: str, names: Iterable[str]) -> bool:
    """Whether a text holds one of the names as whole words, in any case, with or without "the"."""
    return any(names_subject(without_article(name.strip()), text) for name in names)


@dataclass(frozen=True, kw_only=True)
class Fidelity(Check):
    """The check behind :func:`fidelity`."""

    others: Sequence[Any] = ()
    """Edits of other facts, the control."""
    texts: Sequence[str] = ()
    """The texts to read, without those that name the edited subject."""
    left_out: int = 0
    """How many texts were left out because they name it."""
    new_tokens: int = 30
    """Length of what the model writes after the first words of each text."""
    seed: int = 0
    """Seed of what the model writes."""

    name = "fidelity"
    asks = "Does the model still read and write other text as it did?"
    lacks = "there is no text to read without the edited subject, give some: texts=[...]"

    def __post_init__(self) -> None:
        whole_number("new_tokens", self.new_tokens, least=0)
        object.__setattr__(self, "seed", whole_number("seed", self.seed))

    def questions(self, record: Record) -> list[PromptAnswer]:
        """Every text: its first word, and the rest as the answer."""
        return [text_question(text) for text in self.texts]

    def control_edits(self, edit: Any, record: Record) -> list[Any]:
        """The edits of other facts."""
        if any(other is edit for other in self.others):
            raise ArgumentError(
                "others holds the edit itself, which cannot be its own control. Leave it out."
            )
        return list(self.others)

    def wanted_texts(self, record: Record) -> Continuations | None:
        """Continuations of the first words of each text, before and after."""
        if not self.new_tokens:
            return None
        openings = [_opening(text) for text in self.texts]
        return Continuations(
            before=openings, after=openings, samples=1, new_tokens=self.new_tokens, seed=self.seed
        )

    def measures(self, model: LensModel, edit: Any, prepend_bos: bool | None) -> list[Measure]:
        """The sizes of the edit and of the others."""
        found: list[Measure] = []
        for name in SIZES:
            own, *others = [
                _size(model, each, name, self._read_by(each), prepend_bos)
                for each in (edit, *self.others)
            ]
            known = [size for size in others if size is not None]
            sizes = {name: [] if own is None else [own], name + OTHER_EDITS: known}
            found += make_measures(sizes)
        return found

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each text, with the other edits as control, and for each continuation."""
        rows = []
        for text in self.texts:
            question = text_question(text)
            own = text_row(answers[question], "text")
            others = [
                text_row(each[question], "text")
                for other, each in zip_longest(self.others, answers.under_controls)
                if text in self._read_by(other)
            ]
            control = _mean([other.change for other in others])
            rows.append(replace(own, effect=own.change, control=control))
        written = self._written(answers)
        entropies = {
            "entropy of generations in bits, before": [row.before for row in written],
            "entropy of generations in bits, after": [row.after for row in written],
        }
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="nats per token of a text, or entropy in bits of a generation",
            effect_is="change of other texts' nats per token",
            control_is="the same for edits of other facts",
            rows=(*rows, *written),
            further=(*answers.measures, *make_measures(entropies), *self._left_out()),
        )
        return result.with_reading(_reading(result))

    def _left_out(self) -> tuple[Measure, ...]:
        return make_measures({LEFT_OUT: [float(self.left_out)] if self.left_out else []})

    def _read_by(self, edit: Any) -> list[str]:
        """The texts that tell something of an edit: those that do not name its subject."""
        names = _subjects(edit)
        return [text for text in self.texts if not _mentions(text, names)]

    def _written(self, answers: Answers) -> list[CheckRow]:
        """Entropy of what the model writes after each text's first words, before and after."""
        if not answers.continuations:
            return []
        rows = []
        for text in self.texts:
            opening = _opening(text)
            (before,) = answers.continuations[opening, False]
            (after,) = answers.continuations[opening, True]
            rows.append(
                CheckRow(
                    kind="generation",
                    prompt=opening,
                    answer=after.strip(),
                    before=ngram_entropy(before),
                    after=ngram_entropy(after),
                )
            )
        return rows


def with_each_other_as_control(results: Sequence[CheckResult]) -> list[CheckResult]:
    """The same results, each with all others as its control.

    This is what ``others`` would give, without another run. All results must be of the same texts,
    apart from those that name their subjects.
    """
    asked = [result for result in results if result.asked]
    return [
        _with_control(own, [other for other in asked if other is not own]) if own.asked else own
        for own in results
    ]


def _with_control(own: CheckResult, others: Sequence[CheckResult]) -> CheckResult:
    if not others:
        return own
    changes: dict[str, list[float]] = {}
    for row in (row for other in others for row in other.rows if row.kind == "text"):
        changes.setdefault(row.prompt, []).append(row.change)
    rows = [
        replace(row, control=_mean(changes.get(row.prompt, []))) if row.kind == "text" else row
        for row in own.rows
    ]
    further = []
    for measure in own.further:
        if measure.name.endswith(OTHER_EDITS):
            continue
        further.append(measure)
        if measure.name in SIZES:
            theirs = [m.average.mean for o in others for m in o.further if m.name == measure.name]
            further += make_measures({measure.name + OTHER_EDITS: theirs})
    result = replace(own, rows=tuple(rows), further=tuple(further))
    return result.with_reading(_reading(result))


def fits_context(model: LensModel, text: str, prepend_bos: bool | None) -> bool:
    """Whether the model's context has room for a text."""
    try:
        token_ids(model, text, prepend_bos=prepend_bos)
    except FactError:
        return False
    return True


def _opening(text: str) -> str:
    return " ".join(text.split()[:OPENING])


def _size(
    model: LensModel, edit: Any, name: str, texts: Sequence[str], prepend_bos: bool | None
) -> float | None:
    """One of the three sizes of an edit; None if an edit of its kind does not have it."""
    if name == NORM and isinstance(edit, LayerEdit):
        # The norm of an outer product is the product of the norms.
        norm = math.prod(float(tensor.norm()) for tensor in edit.tensors)
        return norm / float(w_out(model, edit.layer).norm())
    if name == NORM and isinstance(edit, MassEdit):
        norm = math.hypot(*(float(edit.delta(layer).norm()) for layer in edit.layers))
        return norm / math.hypot(*(float(w_out(model, layer).norm()) for layer in edit.layers))
    if not isinstance(edit, RankOneEdit) or edit.key is None:
        return None
    if name == AT_SUBJECT:
        added = (edit.u @ edit.key).abs() * edit.v.norm()
        return float(added / mlp_output(model, edit.layer, edit.key).norm().to(added))
    if name == ELSEWHERE and texts:
        firings = edit_firings(model, edit, texts, prepend_bos=prepend_bos)
        return _mean([float(value) for each in firings for value in each.values.abs()])
    return None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _reading(result: CheckResult) -> str:
    assert result.effect is not None
    numbers = {measure.name: measure.average.mean for measure in result.further}
    factor = math.exp(result.effect.mean)
    reading = (
        f"Other text: {result.effect.mean:+.4f} nats per token (perplexity times {factor:.3f})"
    )
    if result.control is not None:
        reading += f", edits of other facts {result.control.mean:+.4f}"
    if NORM in numbers:
        reading += f"; ||delta|| is {numbers[NORM]:.2%} of ||W_out||"
        if NORM + OTHER_EDITS in numbers:
            reading += f" (other edits: {numbers[NORM + OTHER_EDITS]:.2%})"
    if AT_SUBJECT in numbers:
        reading += (
            f"; at the subject it adds {numbers[AT_SUBJECT]:.1f} times W_out's own output there"
        )
    if ELSEWHERE in numbers:
        reading += f"; on other text it fires with {numbers[ELSEWHERE]:.3f} on average"
    if LEFT_OUT in numbers:
        count = round(numbers[LEFT_OUT])
        which = "text that names" if count == 1 else "texts that name"
        reading += f"; {count} {which} the subject left out"
    return reading + "."
