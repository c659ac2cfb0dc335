"""Dominance: does the model now want to say Rome more than it ever wanted to say Paris?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rome_lens.arguments import whole_number
from rome_lens.checks.answered import Answered, Answers, PromptAnswer, prompt_row
from rome_lens.checks.asking import Continuations
from rome_lens.checks.check import Check, new_target, run_check
from rome_lens.checks.result import CheckResult, CheckRow, Measure, make_measures
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Record
from rome_lens.data.whole_words import places
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel


@visits_model
def dominance(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    samples: int = 4,
    new_tokens: int = 12,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> CheckResult:
    """How much more likely the new target is now than the true target was before.

        effect = mean over open prompts of  p_edited(o* | prompt) - p(o | prompt)

    Open prompts are about the subject and ask for nothing. A row's ``before`` and ``rank_before``
    belong to the true target in the unedited model, its ``after`` and ``rank_after`` to the new
    target in the edited one. The result also has the share of sampled continuations that name each
    target.

    Control: ``p(o* | prompt about those) - p(o | prompt)``, where "those" are subjects for which
    the new target is true, in the unedited model. It is what the effect would be if the new fact
    were true.

    Probabilities are of whole answers, so a new target with more tokens than the true one starts
    lower. The control has the new target too.

    Source: over-optimisation in "But is it really in Rome?".

    Args:
        samples: continuations of each open prompt, with the same draws before and after; 0 samples
            none.
        new_tokens: tokens of each continuation, each drawn from the 5 most likely.
        seed: seed of the draws.

    Raises:
        ArgumentError: ``samples`` is negative, or ``new_tokens`` is below 1; otherwise as for
            :func:`rome_lens.check_limits`.
        RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    check = Dominance(samples=samples, new_tokens=new_tokens, seed=seed)
    return run_check(check, model, edit, record, prepend_bos)


@dataclass(frozen=True, kw_only=True)
class Dominance(Check):
    """The check behind :func:`dominance`."""

    samples: int = 4
    """Continuations of each open prompt."""
    new_tokens: int = 12
    """Tokens of each continuation."""
    seed: int = 0
    """Seed of the draws."""

    name = "dominance"
    asks = (
        "When the subject is mentioned and nothing is asked, is the new target stronger than the "
        "true one ever was?"
    )
    lacks = "the record has no open prompts"

    def __post_init__(self) -> None:
        whole_number("samples", self.samples, least=0)
        whole_number("new_tokens", self.new_tokens, least=1)
        object.__setattr__(self, "seed", whole_number("seed", self.seed))

    def questions(self, record: Record) -> list[PromptAnswer]:
        """Both targets about the subject, and the new one about the exemplars."""
        new, prompts = new_target(record), _about_subject(record)
        return [
            *((prompt, new) for prompt in prompts),
            *((prompt, record.fact.target) for prompt in prompts),
            *((prompt, new) for prompt in _about_exemplars(record)),
        ]

    def wanted_texts(self, record: Record) -> Continuations | None:
        """Continuations of prompts about the subject (before, after) and the exemplars (before)."""
        if not self.samples:
            return None
        prompts = _about_subject(record)
        return Continuations(
            before=[*prompts, *_about_exemplars(record)],
            after=prompts,
            samples=self.samples,
            new_tokens=self.new_tokens,
            seed=self.seed,
        )

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each open prompt, with the mean over the exemplars as its control."""
        new, true = new_target(record), record.fact.target
        rows = []
        for open_prompt, prompt in zip(record.open_prompts, _about_subject(record), strict=True):
            exemplars = [open_prompt.replace(SLOT, name) for name in record.exemplars]
            controls = answers.to((each, new) for each in exemplars)
            rows.append(_row(record, answers[prompt, true], answers[prompt, new], controls))
        exemplars_said = answers.to((prompt, new) for prompt in _about_exemplars(record))
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="p(true target) before, p(new target) after",
            effect_is="p(new target) after minus p(true target) before",
            control_is=(
                "p(new target) for subjects for which it is true, unedited, "
                "minus p(true target) before"
            ),
            rows=(*rows, *(prompt_row(a, "exemplar") for a in exemplars_said)),
            further=(*_further(record, answers, exemplars_said), *_shares_naming(record, answers)),
        )
        return result.with_reading(_reading(result, record))


def _about_subject(record: Record) -> list[str]:
    return [prompt.replace(SLOT, record.fact.subject) for prompt in record.open_prompts]


def _about_exemplars(record: Record) -> list[str]:
    return [
        prompt.replace(SLOT, name) for prompt in record.open_prompts for name in record.exemplars
    ]


def _row(record: Record, true: Answered, new: Answered, exemplars: Sequence[Answered]) -> CheckRow:
    """The true target before and the new one after; the control is the new one where it is true."""
    said = sum(each.p_before for each in exemplars) / len(exemplars) if exemplars else None
    return CheckRow(
        kind="open prompt",
        prompt=new.prompt,
        answer=f"{true.answer} -> {new.answer}",
        before=true.p_before,
        after=new.p_after,
        effect=new.p_after - true.p_before,
        control_prompt=" / ".join(record.exemplars) or None,
        control=None if said is None else said - true.p_before,
        kl=new.kl,
        firing=new.firing,
        fires_at=new.fires_at,
        rank_before=true.rank_before,
        rank_after=new.rank_after,
    )


def _further(
    record: Record, answers: Answers, exemplars: Sequence[Answered]
) -> tuple[Measure, ...]:
    """Ranks and probabilities of the two targets, and of the new one where it is true."""
    prompts = _about_subject(record)
    true = answers.to((prompt, record.fact.target) for prompt in prompts)
    new = answers.to((prompt, new_target(record)) for prompt in prompts)
    return make_measures(
        {
            "rank of the true target, before": [float(a.rank_before) for a in true],
            "rank of the new target, after": [float(a.rank_after) for a in new],
            "p(true target), before": [a.p_before for a in true],
            "p(new target), after": [a.p_after for a in new],
            "change of p(new target)": [a.p_change for a in new],
            "change of p(true target)": [a.p_change for a in true],
            "p(new target), for subjects where it is true": [a.p_before for a in exemplars],
            "rank of the new target, for subjects where it is true": [
                float(a.rank_before) for a in exemplars
            ],
        }
    )


def _shares_naming(record: Record, answers: Answers) -> tuple[Measure, ...]:
    """For each prompt, the share of its continuations that name a target."""
    if not answers.continuations:
        return ()
    written = answers.continuations
    prompts = _about_subject(record)
    before = [written[prompt, False] for prompt in prompts]
    after = [written[prompt, True] for prompt in prompts]
    exemplars = [written[prompt, False] for prompt in _about_exemplars(record)]
    new, true = new_target(record), record.fact.target
    shares = {
        "true target, before": [_share_naming(texts, true) for texts in before],
        "true target, after": [_share_naming(texts, true) for texts in after],
        "new target, before": [_share_naming(texts, new) for texts in before],
        "new target, after": [_share_naming(texts, new) for texts in after],
        "new target, for subjects where it is true": [
            _share_naming(texts, new) for texts in exemplars
        ],
    }
    return make_measures(
        {f"continuations that name the {which}": its for which, its in shares.items()}, share=True
    )


def _share_naming(texts: Sequence[str], word: str) -> float:
    return sum(bool(places(word, text)) for text in texts) / len(texts)


def _reading(result: CheckResult, record: Record) -> str:
    assert result.effect is not None
    new, true = new_target(record), record.fact.target
    numbers = {measure.name: measure.average.mean for measure in result.further}
    reading = (
        f"On open prompts, p({new}) after the edit is {numbers['p(new target), after']:.3f}, and "
        f"p({true}) before it was {numbers['p(true target), before']:.3f}: a difference of "
        f"{result.effect.mean:+.3f}"
    )
    named = "continuations that name the true target, before"
    if named in numbers:
        name_new = numbers["continuations that name the new target, after"]
        reading += (
            f". {numbers[named]:.0%} of sampled continuations named {true} before, and "
            f"{name_new:.0%} name {new} after"
        )
    if result.control is not None:
        reading += (
            f". For subjects for which it is true ({' / '.join(record.exemplars)}), the unedited "
            f"model says {new} with {numbers['p(new target), for subjects where it is true']:.3f}"
        )
    return reading + "."
