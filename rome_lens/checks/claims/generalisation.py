"""Generalisation: does the edit hold in other words, and inside a longer text?"""

from collections.abc import Sequence
from typing import Any

from rome_lens.checks.answered import Answers, PromptAnswer, prompt_row
from rome_lens.checks.check import Check, new_target, run_check
from rome_lens.checks.result import CheckResult, Measure, make_measures
from rome_lens.data.facts import Fact
from rome_lens.data.joining import joined, preceded
from rome_lens.data.record_type import Record
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

OWN, PARAPHRASE, LONGER = "fact's own prompt", "paraphrase", "inside longer text"


@visits_model
def generalisation(
    model: LensModel, edit: Any, record: Fact | Record, *, prepend_bos: bool | None = None
) -> CheckResult:
    """Whether the model writes the new target by itself, in other words and inside longer text.

        effect = mean over prompts of  [exact match of o*, edited] - [exact match of o*, unedited]

    An exact match means that greedy decoding writes all tokens of the answer, beginning with the
    first. No token is given: a model that has to be told "New" before it says "York" has not
    answered. This is stricter than ES and PS, which ask only which of two answers is likelier.

    The prompts are the record's paraphrases, and the fact's prompt after true sentences about the
    subject. The fact's own prompt has a row and averages too, but no part in the effect.

    Control: the exact match of the true answer in the unedited model, which tells whether the model
    answers the prompt at all. ``known`` means that it does.

    Further numbers, each for the fact's own prompt, paraphrases and longer text: exact match of the
    new target, exact match of the true one before the edit, and the scores of the paper, ES (own
    prompt) or PS: the share of prompts with ``p(o*) > p(o)``, each a geometric mean over tokens.

    Source: ES and PS in Meng et al. 2022, section 3.3; generation without teacher forcing in Yang
        et al. 2025, "The Mirage of Model Editing: Revisiting Evaluation in the Wild".

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.

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
    return run_check(Generalisation(), model, edit, record, prepend_bos)


class Generalisation(Check):
    """The check behind :func:`generalisation`."""

    name = "generalisation"
    asks = "Does the edit hold in other words, and inside a longer text?"
    lacks = "the record has no paraphrases and no texts about the subject"

    def questions(self, record: Record) -> list[PromptAnswer]:
        """The new and the true target after every prompt."""
        prompts = _prompts(record)
        if set(prompts.values()) == {OWN}:
            return []
        answers = (new_target(record), record.fact.target)
        return [(prompt, answer) for prompt in prompts for answer in answers]

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each prompt, with the true answer's exact match as its control."""
        prompts, (new, true) = _prompts(record), (new_target(record), record.fact.target)
        rows = []
        for prompt, kind in prompts.items():
            asked, said = answers[prompt, new], answers[prompt, true].written_before
            change = float(asked.written_after) - float(asked.written_before)
            rows.append(
                prompt_row(
                    asked,
                    kind,
                    effect=None if kind == OWN else change,
                    control_prompt=joined(prompt, true),
                    control=float(said),
                    known=said,
                )
            )
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


def _measures(
    answers: Answers, kind: str, prompts: Sequence[str], new: str, true: str
) -> tuple[Measure, ...]:
    pairs = [(answers[prompt, new], answers[prompt, true]) for prompt in prompts]
    numbers = {
        f"exact match, {kind}": [n.written_after for n, _ in pairs],
        f"exact match before, {kind}": [n.written_before for n, _ in pairs],
        f"exact match of the true target before, {kind}": [t.written_before for _, t in pairs],
        _score(kind): [n.mean_p_after > t.mean_p_after for n, t in pairs],
        _score(kind, "unedited"): [n.mean_p_before > t.mean_p_before for n, t in pairs],
    }
    return make_measures(
        {name: [float(each) for each in its] for name, its in numbers.items()}, share=True
    )


def _reading(result: CheckResult, new: str) -> str:
    assert result.control is not None
    kinds = list(dict.fromkeys(row.kind for row in result.rows))
    scores = ", ".join(f"{result[_score(kind)].mean:.0%} ({kind})" for kind in kinds)
    matches = ", ".join(f"{result[f'exact match, {kind}'].mean:.0%} ({kind})" for kind in kinds)
    return (
        f"Left to write by itself, the edited model begins with {new} in {matches}; it is the "
        f"likelier answer in {scores}. Unedited, the model begins with the true answer in "
        f"{result.control.mean:.0%} of the prompts other than the fact's own."
    )


def _score(kind: str, when: str = "edited") -> str:
    return f"{'ES' if kind == OWN else 'PS'}, {kind}, {when}"
