"""What a check is: the questions that it asks, and how it reads the answers.

:func:`run_checks` puts the two halves together. It collects the questions of all checks, asks all
of them together without and with the edit, and hands each check the answers to its own. So a check
never runs a model to get an answer, and its ``read`` can be tested with answers that are written
down by hand.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rome_lens.checks.answered import Answers, PromptAnswer
from rome_lens.checks.asking import UneditedAnswers, before_and_after
from rome_lens.checks.result import CheckResult, Measure, not_asked
from rome_lens.checks.writing import Continuations, UneditedTexts, continuations
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_record, with_new_target
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.numbered_edits import NumberedEdits, check_same_fact
from rome_lens.models.lens import LensModel


class Check(ABC):
    """One claim about what an edit does not do.

    Every check has the three texts below, ``questions`` and ``read``. Only a few need one of the
    other methods.
    """

    name: ClassVar[str]
    """The name of the check in results and tables."""
    asks: ClassVar[str]
    """The question that the check answers, in words."""
    lacks: ClassVar[str] = "the record has no prompts for it"
    """What is missing if the check has no questions, such as ``"the record has no aliases"``."""

    def of_edit(self, edit: Any, record: Record) -> "Check":
        """The check itself, or one with what it must know of the edit."""
        return self

    @abstractmethod
    def questions(self, record: Record) -> list[PromptAnswer]:
        """The questions about this record. Without any, the result is "not asked"."""

    @abstractmethod
    def read(self, record: Record, answers: Answers) -> CheckResult:
        """The result, computed from the answers to :meth:`questions` alone."""

    def control_edits(self, edit: Any, record: Record) -> list[Any]:
        """Other edits under which the same questions are asked, for comparison."""
        return []

    def wanted_texts(self, record: Record) -> Continuations | None:
        """Prompts that the model is to continue."""
        return None

    def measures(self, model: LensModel, edit: Any, prepend_bos: bool | None) -> list[Measure]:
        """Numbers that no answer can give, such as the size of the edit."""
        return []


class UneditedModel:
    """What one model writes and answers without an edit. All edits of a record share it."""

    def __init__(self) -> None:
        self.texts: UneditedTexts = {}
        self._answers: list[tuple[Record, UneditedAnswers]] = []

    def answers(self, record: Record) -> UneditedAnswers:
        """Its answers to the questions about a record."""
        for known, answers in self._answers:
            if known == record:
                return answers
        self._answers.append((record, {}))
        return self._answers[-1][1]

    def forget_answers(self) -> None:
        """Forget all answers. They hold the whole vocabulary for each prompt."""
        self._answers.clear()


def run_checks(
    checks: Sequence[Check],
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    prepend_bos: bool | None = None,
) -> list[CheckResult]:
    """The result of every check. The questions of all checks are asked together.

    Raises:
        ArgumentError: the edit is not an edit, or the record is not a record; the record is about
            another fact than the edit.
        RecordError: the record's fact has no new target.
        ModelError: as for :func:`rome_lens.checks.asking.before_and_after`.
    """
    job = (checks, edit, record)
    return next(run_checks_of_each(model, [job], prepend_bos=prepend_bos))


def run_checks_of_each(
    model: LensModel,
    jobs: Sequence[tuple[Sequence[Check], Any, Fact | Record]],
    *,
    unedited: UneditedModel | None = None,
    prepend_bos: bool | None = None,
) -> Iterator[list[CheckResult]]:
    """What :func:`run_checks` returns for each of several edits.

    The texts of all edits are written in one batch, at the first step. Writing takes one forward
    pass a token, however many texts there are.

    Args:
        jobs: the checks, the edit and the record, for each edit.
        unedited: what this model is known to write and answer, with the same ``prepend_bos``. What
            is new is added.
    """
    cases = [_Case.of(*job) for job in jobs]
    NumberedEdits(model, [edit for case in cases for its in case.edits for edit in its])  # checks
    texts = iter(
        continuations(
            model,
            [(case.edit, wanted) for case in cases for wanted in case.texts if wanted is not None],
            unedited=None if unedited is None else unedited.texts,
            prepend_bos=prepend_bos,
        )
    )
    for case in cases:
        written = [{} if wanted is None else next(texts) for wanted in case.texts]
        answers = {} if unedited is None else unedited.answers(case.record)
        yield _results(model, case, written, answers, prepend_bos)


@dataclass(frozen=True)
class _Case:
    """An edit with its checks, and what each check asks, under which edits, and wants written."""

    checks: Sequence[Check]
    edit: Any
    record: Record
    edits: Sequence[Sequence[Any]]
    questions: Sequence[Sequence[PromptAnswer]]
    texts: Sequence[Continuations | None]

    @classmethod
    def of(cls, checks: Sequence[Check], edit: Any, record: Fact | Record) -> "_Case":
        record = checked_record(edit, record)
        checks = [check.of_edit(edit, record) for check in checks]
        edits = [[edit, *check.control_edits(edit, record)] for check in checks]
        questions = [check.questions(record) for check in checks]
        texts = [
            check.wanted_texts(record) if asked else None
            for check, asked in zip(checks, questions, strict=True)
        ]
        return cls(checks, edit, record, edits, questions, texts)


def _results(
    model: LensModel,
    case: _Case,
    texts: Sequence[Mapping[tuple[str, bool], Sequence[str]]],
    unedited: UneditedAnswers,
    prepend_bos: bool | None,
) -> list[CheckResult]:
    """The result of every check of one edit, with the texts that are written already."""
    edit, record = case.edit, case.record
    asked = [
        (each, its)
        for its_edits, its in zip(case.edits, case.questions, strict=True)
        for each in its_edits
    ]
    answered = iter(
        before_and_after(
            model,
            asked,
            firing_of=edit,
            rivals=_rivals(record),
            unedited=unedited,
            prepend_bos=prepend_bos,
        )
    )
    results = []
    for check, its_edits, its_questions, its_texts in zip(
        case.checks, case.edits, case.questions, texts, strict=True
    ):
        own, *under_controls = [next(answered) for _ in its_edits]
        if not its_questions:
            results.append(not_asked(check.name, check.asks, check.lacks))
            continue
        answers = Answers(
            answered=own,
            under_controls=under_controls,
            continuations=its_texts,
            measures=check.measures(model, edit, prepend_bos),
        )
        results.append(check.read(record, answers))
    return results


def run_check(
    check: Check, model: LensModel, edit: Any, record: Fact | Record, prepend_bos: bool | None
) -> CheckResult:
    """The result of one check alone."""
    return run_checks([check], model, edit, record, prepend_bos=prepend_bos)[0]


def _rivals(record: Record) -> dict[str, str]:
    """By answer, the one that it competes with: true and new target, true and new consequence."""
    pairs = [(each.target, each.new_target) for each in record.consequences]
    pairs.append((record.fact.target, record.fact.new_target))
    both = [*pairs, *((new, true) for true, new in pairs)]
    return {one: other for one, other in both if one is not None and other is not None}


def new_target(record: Record) -> str:
    """The new target of the record's fact; :func:`checked_record` has made sure that it has one."""
    assert record.fact.new_target is not None
    return record.fact.new_target


def checked_record(edit: Any, record: Any) -> Record:
    """The record, or a bare fact as a record, after a check that it goes with the edit.

    Raises:
        ArgumentError: the edit is not an edit, or the record is not a record; the record is about
            another fact than the edit.
        RecordError: the record's fact has no new target.
    """
    if edit is not None and not callable(getattr(edit, "fwd_hooks", None)):
        raise ArgumentError(
            f"The edit is of type {type(edit).__name__}, expected an edit such as "
            "rl.rome(model, fact, ...) returns. A check takes model, edit and record, in this "
            "order."
        )
    if not isinstance(record, Fact | Record):
        given = (
            f"the text {record!r}"
            if isinstance(record, str)
            else f"of type {type(record).__name__}"
        )
        raise ArgumentError(
            f'The record is {given}, expected a record such as rl.data.record("eiffel-tower"), or '
            "one of your own from rl.data.read_records(path). A check takes model, edit and "
            "record, in this order."
        )
    record = with_new_target(as_record(record))
    check_same_fact(edit, record.fact, record.id)
    return record
