"""Essence: does the subject stay what it is, apart from the one thing that was edited?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from rome_lens.arguments import whole_number
from rome_lens.checks.answered import (
    Answered,
    Answers,
    PromptAnswer,
    prompt_row,
    text_question,
    text_row,
)
from rome_lens.checks.check import Check, run_check
from rome_lens.checks.result import CheckResult, CheckRow, make_measures
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Record
from rome_lens.editing.mass_edit import MassEdit
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel

SENTENCES = "change of the sentences' nats per token"
PROMPTS = ("{} is a", "{} is", "{} was", "{} has", "{} and")


@visits_model
def essence(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> CheckResult:
    """``KL(before || after)`` of the next token after the subject.

        effect = mean over prompts of  KL(p || p_edited),  in nats

    The prompts are "{subject} is a", "... is", "... was", "... has" and "... and". The first is the
    prompt that ROME's own loss holds in place; the others are not.

    Control: the same for an edit of equal norm at the same place with a random target, i.e. ``u``
    with a random direction for ``v``. That edit is not optimised. It tells what a push of this size
    does, not what another fact would do. Only edits of ROME, MEMIT, EMMET and AlphaEdit have this
    control.

    True sentences about the subject (the record's ``texts``) are read without and with the edit, in
    nats per token. ``exp`` of that is the perplexity.

    Source: essence drift, Meng et al. 2022, section 3.1 and appendix E.5 (the KL term of equation
        4).

    Args:
        seed: seed of the random direction. Each fact has a direction of its own.

    Raises:
        ArgumentError, RecordError, ModelError: as for :func:`rome_lens.check_limits`.
    """
    return run_check(Essence(seed=seed), model, edit, record, prepend_bos)


@dataclass(frozen=True, kw_only=True)
class Essence(Check):
    """The check behind :func:`essence`."""

    seed: int = 0
    """Seed of the random direction."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_number("seed", self.seed))

    name = "essence"
    asks = "Does what the model says about the subject stay, apart from the edited fact?"

    def questions(self, record: Record) -> list[PromptAnswer]:
        """The prompts after the subject, and the sentences about it."""
        return [*_prompts(record), *_sentences(record)]

    def control_edits(self, edit: Any, record: Record) -> list[Any]:
        """The edit with a random direction, if it is made of keys and directions."""
        return random_controls(edit, seed=crc32(f"{self.seed} {record.fact.text}".encode()))

    def read(self, record: Record, answers: Answers) -> CheckResult:
        """One row for each prompt and each sentence, with the random direction as its control."""
        control = answers.under_controls[0] if answers.under_controls else None
        rows: list[CheckRow] = []
        for question in _prompts(record):
            row = prompt_row(
                answers[question],
                "essence",
                effect=answers[question].kl,
                control=None if control is None else control[question].kl,
            )
            # No answer is asked for here: the numbers are of the whole distribution.
            rows.append(
                replace(
                    row,
                    answer="(next token)",
                    before=0.0,
                    after=answers[question].kl,
                    rank_before=None,
                    rank_after=None,
                )
            )
        sentences = _sentences(record)
        for question in sentences:
            after = None if control is None else control[question].nats_after
            rows.append(text_row(answers[question], "sentence", control=after))
        changes = {SENTENCES: [_nats_change(answers.answered, each) for each in sentences]}
        if control is not None:
            name = f"{SENTENCES}, random direction"
            changes[name] = [_nats_change(control, each) for each in sentences]
        result = CheckResult(
            name=self.name,
            asks=self.asks,
            measured="KL(before || after), or nats per token of a sentence",
            effect_is="KL(before || after) after the subject, in nats",
            control_is="the same for an edit of equal norm in a random direction",
            rows=tuple(rows),
            further=make_measures(changes),
        )
        return result.with_reading(_reading(result))


def random_controls(edit: Any, *, seed: int) -> list[Any]:
    """An edit as strong as this one that acts at the same place, but is about nothing.

    None for an edit that is not made of keys and directions.
    """
    if isinstance(edit, RankOneEdit):
        return [random_direction(edit, seed=seed)]
    return [_random_rotation(edit, seed=seed)] if isinstance(edit, MassEdit) else []


def random_direction(edit: RankOneEdit, *, seed: int = 0) -> RankOneEdit:
    """The same edit with a random direction of equal length for ``v``.

    It acts at the same place and is as strong, but is about nothing.
    """
    drawn = _drawn(len(edit.v), seed=seed).to(edit.v)
    return replace(
        edit,
        v=drawn * (edit.v.norm() / drawn.norm()),
        value=None,
        losses=None,
        probability=None,
        alignment=None,
    )


def _random_rotation(edit: MassEdit, *, seed: int) -> MassEdit:
    """The same edit with all its directions turned by one random rotation."""
    width = edit.values.shape[1]
    rotation = torch.linalg.qr(_drawn(width, width, seed=seed)).Q
    turned = tuple(
        replace(part, delta=(part.delta.double() @ rotation).to(part.delta), alignment=None)
        for part in edit.edits
    )
    return replace(edit, edits=turned)


def _drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def _prompts(record: Record) -> list[PromptAnswer]:
    # Only the next token's distribution is read, so any answer will do.
    return [(each.replace(SLOT, record.fact.subject), record.fact.target) for each in PROMPTS]


def _sentences(record: Record) -> list[PromptAnswer]:
    return [text_question(text) for text in record.texts]


def _nats_change(answered: Mapping[PromptAnswer, Answered], question: PromptAnswer) -> float:
    each = answered[question]
    return (each.before - each.after) / each.tokens


def _reading(result: CheckResult) -> str:
    assert result.effect is not None
    first = result.rows[0]
    reading = (
        f"After the subject's name, the next token's distribution moves by "
        f"{result.effect.mean:.3f} nats ({first.after:.3f} on {first.prompt!r})"
    )
    if result.control is not None:
        reading += (
            f"; an edit as strong in a random direction moves it by {result.control.mean:.3f}"
        )
    for measure in result.further:
        if measure.name == SENTENCES:
            change = measure.average.mean
            reading += f". True sentences about the subject change by {change:+.3f} nats per token"
    return reading + "."
