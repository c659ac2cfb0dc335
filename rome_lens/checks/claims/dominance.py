"""Dominance: does the model now want to say Rome more than it ever wanted to say Paris?"""

import re
from collections.abc import Sequence
from typing import Any

from rome_lens.arguments import whole_number
from rome_lens.checks.asking import Answered, before_and_after, continuations, fact_of, row
from rome_lens.checks.result import CheckResult, CheckRow, Measure, not_asked
from rome_lens.data.facts import SLOT, Fact
from rome_lens.data.record_type import Record
from rome_lens.models.lens import LensModel

NAME = "dominance"
ASKS = "Where the subject is mentioned and nothing is asked, is the new target louder than the true one ever was?"


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
    """What the new target gained beyond what the true one had, on open prompts about the subject.

        effect = mean over open prompts of  p_edited(o* | prompt) - p(o | prompt)

    A row's ``before`` is the unedited ``p(o)`` and its rank, its ``after`` the edited ``p(o*)`` and its; the share of sampled
    continuations that name the targets stands beside. Control: the same with what the unedited model says of subjects of which
    the new target is really true, ``p(o* | prompt about those) - p(o | prompt)``: what the effect would be if it were so.

    Probabilities are of whole answers, so that a new target of more tokens than the true one has less of it from the start; the
    control has the new target too.

    Source: over-optimisation in "But is it really in Rome?".

    Args:
        samples: continuations of each open prompt, each of ``new_tokens`` tokens drawn among the 5 likeliest, with the same
            draws before and after; 0 samples none.

    Raises:
        ValueError: as for :func:`rome_lens.checks.check_limits`; ``samples`` is negative or ``new_tokens`` below 1.
    """
    record, fact, new = fact_of(edit, record)
    samples, new_tokens = (
        whole_number("samples", samples, least=0),
        whole_number("new_tokens", new_tokens, least=1),
    )
    if not record.open_prompts:
        return not_asked(NAME, ASKS, "the record has no open prompts")
    prompts = [prompt.replace(SLOT, fact.subject) for prompt in record.open_prompts]
    really = [
        prompt.replace(SLOT, name) for prompt in record.open_prompts for name in record.exemplars
    ]
    questions = (
        [(p, new) for p in prompts]
        + [(p, fact.target) for p in prompts]
        + [(p, new) for p in really]
    )
    answered = before_and_after(model, edit, questions, prepend_bos=prepend_bos)
    n = len(prompts)
    now, once, exemplars = answered[:n], answered[n : 2 * n], answered[2 * n :]
    names = " / ".join(record.exemplars) or None
    rows = [
        _row(
            a,
            t,
            fact.target,
            names,
            exemplars[i * len(exemplars) // n : (i + 1) * len(exemplars) // n],
        )
        for i, (a, t) in enumerate(zip(now, once, strict=True))
    ]
    further = _numbers(now, once, exemplars)
    if samples:
        jobs = [(prompt, False) for prompt in (*prompts, *really)] + [
            (prompt, True) for prompt in prompts
        ]
        texts = continuations(
            model,
            edit,
            jobs,
            samples=samples,
            new_tokens=new_tokens,
            seed=seed,
            prepend_bos=prepend_bos,
        )
        further += _naming(texts[:n], texts[-n:], texts[n:-n], fact.target, new)
    result = CheckResult(
        name=NAME,
        asks=ASKS,
        measured="p(true target) before, p(new target) after",
        effect_is="p(new target) after minus p(true target) before",
        control_is="p(new target) of subjects of which it is true, unedited, minus p(true target) before",
        rows=(*rows, *(row(x, "exemplar") for x in exemplars)),
        further=tuple(further),
    )
    return result.with_reading(_reading(result, fact.target, new, names))


def _row(
    now: Answered, once: Answered, target: str, names: str | None, exemplars: Sequence[Answered]
) -> CheckRow:
    """An open prompt: the true target before, the new one after, beside what is said of subjects of which that is true."""
    really = sum(each.p_before for each in exemplars) / len(exemplars) if exemplars else None
    return CheckRow(
        kind="open prompt",
        prompt=now.prompt,
        answer=f"{target} -> {now.answer}",
        before=once.p_before,
        after=now.p_after,
        effect=now.p_after - once.p_before,
        control_prompt=names,
        control=None if really is None else really - once.p_before,
        kl=now.kl,
        firing=now.firing,
        fires_at=now.fires_at,
        rank_before=once.rank_before,
        rank_after=now.rank_after,
    )


def _numbers(
    now: Sequence[Answered], once: Sequence[Answered], exemplars: Sequence[Answered]
) -> list[Measure]:
    """Ranks and probabilities of the two targets, and of the new one where it is true."""
    numbers = {
        "rank of the true target, before": [float(t.rank_before) for t in once],
        "rank of the new target, after": [float(a.rank_after) for a in now],
        "p(true target), before": [t.p_before for t in once],
        "p(new target), after": [a.p_after for a in now],
        "change of p(new target)": [a.p_change for a in now],
        "change of p(true target)": [t.p_change for t in once],
        "p(new target), of which it is true": [x.p_before for x in exemplars],
        "rank of the new target, of which it is true": [float(x.rank_before) for x in exemplars],
    }
    return [Measure(name=name, values=tuple(values)) for name, values in numbers.items() if values]


def _naming(
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
    exemplars: Sequence[Sequence[str]],
    target: str,
    new: str,
) -> list[Measure]:
    """By prompt the share of its continuations that name a target."""
    shares = [
        ("continuations that name the true target, before", before, target),
        ("continuations that name the true target, after", after, target),
        ("continuations that name the new target, before", before, new),
        ("continuations that name the new target, after", after, new),
        ("continuations that name the new target, of which it is true", exemplars, new),
    ]
    return [
        Measure(name=name, values=tuple(_share_naming(each, word) for each in some), share=True)
        for name, some, word in shares
        if some
    ]


def _share_naming(texts: Sequence[str], word: str) -> float:
    named = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    return sum(bool(named.search(text)) for text in texts) / len(texts)


def _reading(result: CheckResult, target: str, new: str, names: str | None) -> str:
    assert result.effect is not None
    own = [each for each in result.rows if each.effect is not None]
    reading = (
        f"Unasked, p({new}) after the edit is {sum(r.after for r in own) / len(own):.3f}, p({target}) before it was "
        f"{sum(r.before for r in own) / len(own):.3f}: a difference of {result.effect.mean:+.3f}"
    )
    kinds = ("name the true target, before", "name the new target, after")
    shares = [
        m.average.mean
        for kind in kinds
        for m in result.further
        if m.name == f"continuations that {kind}"
    ]
    if shares:
        reading += f"; {shares[0]:.0%} of sampled continuations named {target} before, {shares[1]:.0%} name {new} after"
    if result.control is not None:
        reading += (
            f". Of subjects of which it is true ({names}) the unedited model says {new} with "
            f"{result['p(new target), of which it is true'].mean:.3f}"
        )
    return reading + "."
