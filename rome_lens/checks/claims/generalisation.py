"""Generalisation: does the edit hold in other words, and inside a longer text?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rome_lens.arguments import whole_number
from rome_lens.checks.answered import Answered, Answers, PromptAnswer, prompt_row
from rome_lens.checks.asking import Continuations
from rome_lens.checks.check import Check, new_target, run_check
from rome_lens.checks.result import CheckResult, CheckRow, Measure, make_measures
from rome_lens.data.facts import Fact
from rome_lens.data.joining import preceded
from rome_lens.data.record_type import Record
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

OWN, PARAPHRASE, LONGER = "fact's own prompt", "paraphrase", "inside longer text"


@visits_model
def generalisation(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    new_tokens: int = 8,
    prepend_bos: bool | None = None,
) -> CheckResult:
    """Whether the model writes the new target by itself, in other words and inside longer text.

        effect = mean over prompts of  [exact match of o*, edited] - [exact match of o*, unedited]

    An exact match means that the greedy continuation begins with the answer as whole words. Nothing
    is teacher-forced: the model has to find the first token, and then all others.

    The prompts are the record's paraphrases, and the fact's prompt after true sentences about the
    subject. The fact's own prompt has a row and averages too, but no part in the effect.

    Control: the exact match of the true answer in the unedited model, which tells whether the model
    answers the prompt at all. ``known`` means that it does.

    Further numbers, each for the fact's own prompt, paraphrases and longer text: exact match of the
    new target, exact match of the true one before the edit, and the scores of the paper, ES (own
    prompt) or PS: the share of prompts with ``p(o*) > p(o)``, each a geometric mean over tokens.

    Source: ES and PS in Meng et al. 2022, section 3.3; generation without teacher forcing in Yang
        et al. 2025, "The Mirage of Model Editing: Revisiting Evaluation in the Wild".

    Args:
        new_tokens: how many tokens the model writes. An answer with more is never matched. With 0
            nothing is written, and the check has its scores but no effect.

    Raises:
        ArgumentError: ``new_tokens`` is negative; otherwise as for :func:`rome_lens.check_limits`.
        RecordError, ModelError: as for :func:`rome_lens.check_limits`.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.records(known_by="toy")[0]
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=C, contexts=["{}"])
        >>> result = rl.checks.generalisation(model, edit, record)
        >>> result["exact match, fact's own prompt"].mean
        1.0
    """
    return run_check(Generalisation(new_tokens=new_tokens), model, edit, record, prepend_bos)


@dataclass(frozen=True, kw_only=True)
class Generalisation(Check):
    """The check behind :func:`generalisation`."""

    new_tokens: int = 8
    """How many tokens the model writes after each prompt."""

    name = "generalisation"
    asks = "Does the edit hold in other words, and inside a longer text?"
    lacks = "the record has no paraphrases and no texts about the subject"

    def __post_init__(self) -> None:
        whole_number("new_tokens", self.new_tokens, least=0)

    def questions(self, record: Record) -> list[PromptAnswer]:
        """The new and the true target after every prompt."""
        prompts = _prompts(record)
        if set(prompts.values()) == {OWN}:
            return []
        answers = (new_target(record), record.fact.target)
        return [(prompt, answer) for prompt in prompts for answer in answers]

    def wanted_texts(self, record: Record) -> Continuations | None:
        """The greedy continuation of every prompt, before and after."""
        if not self.new_tokens:
            return None
        prompts = list(_prompts(record))
        return Continuations(
            before=prompts, after=prompts, samples=1, new_tokens=self.new_tokens, seed=0, top_k=1
        )

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each prompt, with the true answer's exact match as its control."""
        prompts, (new, true) = _prompts(record), (new_target(record), record.fact.target)
        rows = [_row(answers, prompt, kind, new, true) for prompt, kind in prompts.items()]
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="p(new target)",
            effect_is="exact match of the new target in greedy text, edited minus unedited",
            control_is="exact match of the true target in greedy text, unedited",
            rows=tuple(rows),
            further=tuple(
                measure
                for kind in dict.fromkeys(prompts.values())
                for measure in _measures(
                    answers, kind, [p for p, its in prompts.items() if its == kind], new, true
                )
            ),
        )
        return result.with_reading(_reading(result, new))


def begins_with(text: str, answer: str) -> bool:
    """Whether a text begins with an answer as whole words, after white space.

    Example:
        >>> begins_with(" Rome. It", "Rome"), begins_with(" Romeo", "Rome")
        (True, False)
    """
    return re.match(rf"\s*{re.escape(answer)}(?!\w)", text) is not None


def _prompts(record: Record) -> dict[str, str]:
    """Every prompt and its kind."""
    own = record.fact.text
    kinds = {own: OWN}
    for kind, prompts in (
        (PARAPHRASE, record.paraphrases),
        (LONGER, [preceded(own, f"{text} ") for text in record.texts]),
    ):
        for prompt in prompts:
            kinds.setdefault(prompt, kind)
    return kinds


def _match(answers: Answers, prompt: str, answer: str, *, edited: bool) -> float | None:
    """1 if the greedy text begins with the answer, else 0; None if nothing was written."""
    texts = answers.continuations.get((prompt, edited))
    return None if texts is None else float(begins_with(texts[0], answer))


def _row(answers: Answers, prompt: str, kind: str, new: str, true: str) -> CheckRow:
    before, after = (_match(answers, prompt, new, edited=edited) for edited in (False, True))
    said = _match(answers, prompt, true, edited=False)
    return prompt_row(
        answers[prompt, new],
        kind,
        effect=None if kind == OWN or before is None or after is None else after - before,
        control_prompt=prompt,
        control=said,
        known=None if said is None else bool(said),
    )


def _measures(
    answers: Answers, kind: str, prompts: Sequence[str], new: str, true: str
) -> tuple[Measure, ...]:
    matched = [_match(answers, prompt, new, edited=True) for prompt in prompts]
    knew = [_match(answers, prompt, true, edited=False) for prompt in prompts]
    pairs: list[tuple[Answered, Answered]] = [
        (answers[prompt, new], answers[prompt, true]) for prompt in prompts
    ]
    return make_measures(
        {
            f"exact match, {kind}": [each for each in matched if each is not None],
            f"exact match of the true target before, {kind}": [k for k in knew if k is not None],
            _score(kind): [float(n.mean_p_after > t.mean_p_after) for n, t in pairs],
            _score(kind, "unedited"): [float(n.mean_p_before > t.mean_p_before) for n, t in pairs],
        },
        share=True,
    )


def _reading(result: CheckResult, new: str) -> str:
    kinds = list(dict.fromkeys(row.kind for row in result.rows))
    scores = [f"{result[_score(kind)].mean:.0%} ({kind})" for kind in kinds]
    if result.effect is None or result.control is None:
        return f"Nothing was written. {new} is the likelier answer in {', '.join(scores)}."
    matches = [f"{result[f'exact match, {kind}'].mean:.0%} ({kind})" for kind in kinds]
    return (
        f"Left to write by itself, the edited model begins with {new} in {', '.join(matches)}; it "
        f"is the likelier answer in {', '.join(scores)}. Unedited, the model begins with the true "
        f"answer in {result.control.mean:.0%} of the prompts other than the fact's own."
    )


def _score(kind: str, when: str = "edited") -> str:
    return f"{'ES' if kind == OWN else 'PS'}, {kind}, {when}"
