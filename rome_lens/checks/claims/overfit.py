"""Overfit: does the model now say Rome more than it ever said Paris, or less?

An edit that only replaces a fact would make the new target as likely as the true one was. Three
ways of asking tell whether it does:

* *asked*: the fact's own prompt;
* *loud*: the subject is mentioned, and then another subject is asked about ("The Eiffel Tower is
  famous. The Space Needle is located in the city of"), which should not be about the new target;
* *written*: what the model writes about the subject when nothing is asked.

In each, the new target after the edit is compared with the true target before it, prompt by prompt.
"""

from dataclasses import dataclass, replace
from typing import Any

from rome_lens.arguments import whole_number
from rome_lens.checks.answered import Answers, PromptAnswer, prompt_row
from rome_lens.checks.check import Check, new_target, run_check
from rome_lens.checks.claims.overfit_numbers import (
    Sides,
    compared_row,
    differences_of,
    loud_questions,
    mean_or_none,
    new_before,
    of_exemplars,
    open_of_exemplars,
    where_true,
    written_rows,
)
from rome_lens.checks.result import KNOWN, CheckResult, make_measures
from rome_lens.checks.writing import Continuations
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.editing.reference_edits import is_null_edit
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

LOUD_ANSWER = "loud: change of p(right answer)"
"""The number that tells what a mention of the subject does to the other subject's answer."""


@visits_model
def overfit(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    samples: int = 4,
    new_tokens: int = 40,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> CheckResult:
    """How much more, or less, the model says the new target now than it said the true one before.

        effect = p_edited(o* | prompt) - p(o | prompt)        at the fact's own prompt

    This is *asked*. Two further ways of asking have numbers of their own:

    * *loud*: ``p_edited(o* | mention, question) - p(o | mention, question)``, where the mention is
      "{subject} is famous." and the question is about a neighbour whose right answer is neither
      target. The change of the right answer's probability is reported too.
    * *written*: the share of texts that name the new target after the edit, minus the share that
      named the true one before it. Texts continue the open prompts about the subject, or the
      generation prompts. One text of each prompt is greedy, the others are sampled. The *family*
      numbers also count texts with a related word, such as "Roman" or "Italy"
      (:mod:`rome_lens.data.families`).

    Each way of asking has both sides of the comparison, what the new target had before the edit,
    a mean difference, a mean ``|difference|``, and the shares of prompts
    that are over and under by more than 0.01. A mean alone would hide an edit that is over at one
    fact and under at another. For one edit the shares are over its prompts; an average over facts
    (:func:`rome_lens.average_limits`) shows the share of facts.

    Control: ``p(o* | prompt about those) - p(o | prompt)``, where "those" are subjects for which
    the new target is true, in the unedited model. It is what the effect would be if the new fact
    were true. Two edits serve as references too. One with ``RomeConfig(stop="matched")`` stops
    at the first step at which the new target, averaged over the contexts, is as likely as the true
    one was. With a small ``lr`` its effect is small, so that little of what it is over by in the
    other two ways comes from a late stop. A null edit (:func:`rome_lens.null_edit`) rewrites the
    true target as itself. It is compared with the true target on both sides, and what it is over by
    is due to the optimisation and not to the new fact.

    Probabilities are of whole answers, so a new target with more tokens than the true one starts
    lower. The control has the new target too.

    Source: over-optimisation in "But is it really in Rome?". The published form of the question is
        Zhang et al. 2025, "Uncovering Overfitting in Large Language Model Editing" (EVOKE), which
        asks whether the new target turns up where something else is asked.

    Args:
        samples: sampled continuations of each open prompt, with the same draws before and after,
            in addition to a greedy one; 0 writes nothing.
        new_tokens: tokens of each continuation. Sampled ones are drawn from the 5 most likely.
        seed: seed of the draws.

    Raises:
        ArgumentError: ``samples`` is negative, or ``new_tokens`` is below 1; otherwise as for
            :func:`rome_lens.check_limits`.
        FactError: an open prompt and ``new_tokens`` more tokens do not fit the model's context.
        RecordError, ModelError: as for :func:`rome_lens.check_limits`.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.records(known_by="toy")[0]
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=C, contexts=["{}"])
        >>> result = rl.checks.overfit(model, edit, record, samples=0)
        >>> (row,) = [row for row in result.rows if row.kind == "asked"]
        >>> row.answer, round(row.before, 2), round(row.after, 2)
        ('Pralec -> Ondavel', 0.99, 0.99)
        >>> result["loud: over"].mean  # and where another subject is asked about?
        1.0
    """
    check = Overfit(samples=samples, new_tokens=new_tokens, seed=seed)
    return run_check(check, model, edit, record, prepend_bos)


@dataclass(frozen=True, kw_only=True)
class Overfit(Check):
    """The check behind :func:`overfit`."""

    samples: int = 4
    """Sampled continuations of each open prompt, in addition to a greedy one."""
    new_tokens: int = 40
    """Tokens of each continuation."""
    seed: int = 0
    """Seed of the draws."""
    null: bool = False
    """Whether the edit is a null edit, whose new target is the true one."""

    name = "overfit"
    asks = "Does the model now say the new target more than it ever said the true one, or less?"
    lacks = "the record's fact has no new target"

    def __post_init__(self) -> None:
        whole_number("samples", self.samples, least=0)
        whole_number("new_tokens", self.new_tokens, least=1)
        object.__setattr__(self, "seed", whole_number("seed", self.seed))

    def of_edit(self, edit: Any, record: Record) -> "Overfit":
        """The same check, which knows whether the edit is a null edit."""
        return replace(self, null=is_null_edit(edit, record.fact))

    def _sides(self, record: Record) -> "Sides":
        if self.null:
            return Sides(record=record, new=record.fact.target, exemplars=())
        return Sides(record=record, new=new_target(record), exemplars=record.exemplars)

    def questions(self, record: Record) -> list[PromptAnswer]:
        """Both targets, asked and loud; the right answers; the new target about the exemplars."""
        sides = self._sides(record)
        both = dict.fromkeys((record.fact.target, sides.new))
        loud = loud_questions(record, record.fact.subject)
        return [
            *((record.fact.text, target) for target in both),
            *((prompt, target) for prompt, _ in loud for target in both),
            *((prompt, right) for prompt, right in loud),
            *of_exemplars(sides),
        ]

    def wanted_texts(self, record: Record) -> Continuations | None:
        """Continuations of prompts about the subject (before, after) and the exemplars (before)."""
        prompts = record.texts_to_continue
        if not self.samples or not prompts:
            return None
        return Continuations(
            before=[*prompts, *open_of_exemplars(self._sides(record))],
            after=prompts,
            samples=self.samples,
            greedy=True,
            new_tokens=self.new_tokens,
            seed=self.seed,
        )

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """A row for each prompt and way of asking; those of exemplars are for comparison."""
        sides = self._sides(record)
        exemplars = answers.to(of_exemplars(sides))
        own = compared_row(sides, answers, record.fact.text, "asked")
        said = mean_or_none([each.p_before for each in exemplars[: len(sides.exemplars)]])
        loud = loud_questions(record, record.fact.subject)
        right = answers.to(loud)
        compared = [
            replace(
                own,
                effect=own.change,
                known=own.before >= KNOWN,
                control_prompt=" / ".join(sides.exemplars) or None,
                control=None if said is None else said - own.before,
            ),
            *(compared_row(sides, answers, prompt, "loud") for prompt, _ in loud),
            *written_rows(sides, answers),
        ]
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="p(true target), or share of texts that name it, before; the new target after",
            effect_is="asked: p(new target) after minus p(true target) before",
            control_is=(
                "p(new target) for subjects for which it is true, unedited, "
                "minus p(true target) before"
            ),
            rows=(
                *compared,
                *(prompt_row(each, "loud, right answer") for each in right),
                *(prompt_row(each, "exemplar") for each in exemplars),
            ),
            further=(
                *differences_of(compared),
                *new_before(sides, answers, [prompt for prompt, _ in loud]),
                *make_measures({LOUD_ANSWER: [each.p_change for each in right]}),
                *where_true(sides, answers, exemplars),
            ),
        )
        return result.with_reading(_reading(result, sides))


def _reading(result: CheckResult, sides: Sides) -> str:
    numbers = {measure.name: measure.average.mean for measure in result.further}

    def compared(kind: str) -> str:
        before, after = (
            numbers[f"{kind}: {name}"] for name in ("true target, before", "new target, after")
        )
        return f"{before:.3f} for {sides.true} before, {after:.3f} for {sides.new} after"

    reading = f"Asked: {compared('asked')}"
    if result.control is not None:
        said = numbers["asked: new target, for subjects where it is true"]
        reading += f" ({said:.3f} for {sides.new} where it is true)"
    if "loud: over" in numbers:
        reading += (
            f". Another subject asked about after a mention: {compared('loud')}; "
            f"p(right answer) {numbers[LOUD_ANSWER]:+.3f}"
        )
    if "sampled: over" in numbers:
        reading += f". Share of sampled texts that name it: {compared('sampled')}"
    return reading + "."
