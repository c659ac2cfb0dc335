"""Essence: what the subject is stays, beside the one thing that was edited?"""

from dataclasses import replace
from typing import Any
from zlib import crc32

import torch

from rome_lens.checks.asking import (
    Answered,
    before_and_after,
    fact_of,
    first_and_rest,
    nats_per_token,
    row,
)
from rome_lens.checks.result import CheckResult, Measure
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Record
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.models.lens import LensModel

NAME = "essence"
ASKS = "Does what the model says of the subject, beside the edited fact, stay?"
SENTENCES = "change of the sentences' nats per token"
PROMPTS = ("{} is a", "{} is", "{} was", "{} has", "{} and")


def essence(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> CheckResult:
    """``KL(before || after)`` of the next token behind the subject, and the perplexity of true sentences about it.

        effect = mean over "{subject} is a", "... is", "... was", "... has", "... and" of  KL(p || p_edited), in nats

    "{subject} is a" is the prompt that ROME's own loss holds in place, the others are not. Control: the same for an edit at
    the same place and of equal norm with a random target: ``u`` with a random direction for ``v``, which is no optimised
    one and asks what a push of this size does, not what another fact would. Sentences about
    the subject (the record's ``texts``) are read without and with the edit, in nats per token; ``exp`` of that is the perplexity.

    Source: essence drift, Meng et al. 2022, section 3.1 and appendix E.5 (the KL term of equation 4).

    Args:
        seed: of the random direction, of which each fact has its own.
    """
    record, fact, _ = fact_of(edit, record)
    questions = [(prompt.replace(SLOT, fact.subject), fact.target) for prompt in PROMPTS]
    sentences = [first_and_rest(text) for text in record.texts]
    asked = [*questions, *sentences]
    answered = before_and_after(model, edit, asked, prepend_bos=prepend_bos)
    n = len(questions)
    blind: list[Answered] | None = None
    if isinstance(edit, RankOneEdit):
        drawn = random_direction(
            edit, seed=crc32(f"{seed} {fact.text}".encode())
        )  # each fact's own
        blind = before_and_after(model, drawn, asked, prepend_bos=prepend_bos)
    rows = []
    for i, a in enumerate(answered[:n]):
        its = row(a, "essence", effect=a.kl, control=None if blind is None else blind[i].kl)
        rows.append(
            replace(
                its,
                answer="(next token)",
                before=0.0,
                after=a.kl,
                rank_before=None,
                rank_after=None,
            )
        )
    for i, a in enumerate(answered[n:], start=n):
        rows.append(
            nats_per_token(
                a, "sentence", control=None if blind is None else -blind[i].after / a.tokens
            )
        )
    further = []
    if sentences:
        told = [(a.before - a.after) / a.tokens for a in answered[n:]]
        further.append(Measure(name=SENTENCES, values=tuple(told)))
        if blind is not None:
            other = [(b.before - b.after) / b.tokens for b in blind[n:]]
            further.append(Measure(name=f"{SENTENCES}, random direction", values=tuple(other)))
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured="KL(before || after), or nats per token of a sentence",
        effect_is="KL(before || after) behind the subject, in nats",
        control_is="the same of an edit of equal norm in a random direction",
        rows=tuple(rows),
        further=tuple(further),
    )
    return result.with_reading(_reading(result))


def random_direction(edit: RankOneEdit, *, seed: int = 0) -> RankOneEdit:
    """The same edit with a random direction, of equal length, for ``v``: at the same place as strong, and about nothing."""
    drawn = torch.randn(
        len(edit.v), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(edit.v)
    return replace(
        edit, v=drawn * (edit.v.norm() / drawn.norm()), value=None, losses=None, probability=None
    )


def _reading(result: CheckResult) -> str:
    assert result.effect is not None
    first = result.rows[0]
    reading = f"Behind the subject's name the next token moves by {result.effect.mean:.3f} nats"
    reading += f" ({first.after:.3f} on {first.prompt!r})"
    if result.control is not None:
        reading += (
            f"; an edit as strong in a random direction moves it by {result.control.mean:.3f}"
        )
    told = [measure.average.mean for measure in result.further if measure.name == SENTENCES]
    if told:
        reading += f". True sentences about it change by {told[0]:+.3f} nats per token"
    return reading + "."
