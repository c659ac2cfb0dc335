"""What the figure of all checks shows: each check on one scale, with a reference and a verdict.

Checks measure different things: probabilities, shares and nats. For one picture, each is read as a
share between 0 and 1, next to what the model could do at all:

* what should follow from the new fact (generalisation, direction, association, description,
  consequence): how far the new answer came up, next to how well the unedited model knows the true
  answer to the same question. Only prompts that it knows are counted, if a check tells them apart;
* what should stay (bleed-over, specificity): the right answer's probability with the edit, next to
  that without it;
* overfit: the new target with the edit, next to the true one without it;
* fidelity: ``exp(-nats)``, i.e. how far other text's probability stays, next to 1;
* essence: ``exp(-KL)``, next to the same for a random edit of equal norm. Any edit of that norm
  moves the text, so the verdict says whether this one moves it more than the random one does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rome_lens.checks.average import LimitsAverage
from rome_lens.checks.limits import Limits
from rome_lens.checks.result import KNOWN, CheckResult, CheckRow
from rome_lens.intervals import Average, average

HOLDS, FAILS = 0.8, 0.2
"""Shares of the reference from which a check counts as held, and up to which as not held."""
OVER = 0.01
"""How far a value may be from its control, where the verdict is about their difference: the new
target's probability from the true one's (overfit), or from the random edit's (essence)."""
_Pair = tuple[float, float]
_READINGS: dict[str, Callable[[CheckRow], _Pair | None]] = {
    "generalisation": lambda row: _pair(row.effect, row.control),
    "direction": lambda row: _pair(_gain(row, in_nats=True), row.control),
    "association": lambda row: _pair(_gain(row), row.control),
    "description": lambda row: _pair(_gain(row), row.control),
    "consequence": lambda row: _pair(_gain(row, in_nats=True), row.control),
    "overfit": lambda row: (row.after, row.before),
    "bleed-over": lambda row: (row.after, row.before),
    "specificity": lambda row: (row.after, row.before),
    "essence": lambda row: _pair(_kept(row.effect), _kept(row.control)),
    "fidelity": lambda row: _pair(_kept(row.effect), 1.0),
}
_STAYS = ("bleed-over", "specificity", "fidelity")
_GAPS = {
    "overfit": ("▲ over", "▼ under", "● as before"),
    "essence": ("▲ moves less", "▼ moves more", "● as random"),
}
"""The verdicts of checks that are about the difference from the control: above, below, the same."""
_RANGES = {
    **dict.fromkeys(("direction", "association", "description", "consequence"), (-1.0, 1.0)),
    "fidelity": (0.0, math.inf),
}
"""The values that are possible, where that is not from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One check on the common scale."""

    name: str
    """The name of the check."""
    value: Average
    """What happens with the edit, from 0 to 1."""
    reference: Average
    """What the model could do: the control, from 0 to 1."""
    ratio: float | None
    """``value / reference``; None if the reference is below what counts as known."""
    gap: Average
    """``value - reference`` of the same prompts or facts."""
    values: tuple[float, ...] = ()
    """The value of each prompt of one edit, or of each fact, that the mean is of."""
    asked: int = 0
    """The number of prompts or facts that were asked. The mean may be of fewer of them: of those
    that the unedited model knows."""

    @property
    def ends(self) -> tuple[float, float] | None:
        """The 95 % interval of the value, within what is possible; None if there is none."""
        return _within(self.value, _RANGES.get(self.name, (0.0, 1.0)))

    @property
    def reference_ends(self) -> tuple[float, float] | None:
        """The 95 % interval of the reference, from 0 to 1; None if there is none."""
        return _within(self.reference, (0.0, 1.0))

    @property
    def verdict(self) -> str:
        """What holds, in a word or two, with a sign.

        It is called unsure if another value in the 95 % interval would give another verdict.
        """
        if self.ratio is None and self.name != "essence":
            return "? model cannot do it"
        judged = self.gap if self.name in _GAPS else self.value
        ends = [self._verdict_at(each) for each in (judged.low, judged.high) if each is not None]
        own = self._verdict_at(judged.mean)
        return own if all(each == own for each in ends) else f"{own}, unsure"

    def _verdict_at(self, value: float) -> str:
        """The verdict if this were the value, or the difference that is judged."""
        if self.name in _GAPS:
            above, below, same = _GAPS[self.name]
            return above if value > OVER else below if value < -OVER else same
        share = value / self.reference.mean
        if share >= HOLDS:
            return "● stays" if self.name in _STAYS else "● holds"
        if share <= FAILS:
            return "○ is lost" if self.name in _STAYS else "○ does not"
        return "◐ in part"


def readings(result: Limits | LimitsAverage) -> list[Reading]:
    """Each check that was asked, on the common scale, in the order of the checks."""
    found = []
    for name in _names(result):
        if name not in _READINGS:
            continue
        pairs = _pairs(result, name)
        if not pairs:
            continue
        values, references, clusters = zip(*pairs, strict=True)
        value, reference = average(values, clusters), average(references, clusters)
        known = reference.mean >= KNOWN
        found.append(
            Reading(
                name=name,
                value=value,
                reference=reference,
                ratio=value.mean / reference.mean if known else None,
                gap=average([own - other for own, other, _ in pairs], clusters),
                values=values,
                asked=_count_asked(result, name),
            )
        )
    return found


def not_drawn(result: Limits | LimitsAverage) -> list[str]:
    """The checks without a number on the common scale."""
    drawn = {reading.name for reading in readings(result)}
    return [name for name in _names(result) if name not in drawn]


def _names(result: Limits | LimitsAverage) -> Sequence[str]:
    if isinstance(result, LimitsAverage):
        return result.checks
    return [check.name for check in result.results]


def _pairs(result: Limits | LimitsAverage, name: str) -> list[tuple[float, float, str]]:
    """Value and reference of each prompt of one edit, or of each fact, with its cluster."""
    if isinstance(result, Limits):
        check = result[name]
        return [(*pair, "") for pair in _of_rows(check, _tells_known([check]))]
    own = [
        (check, each.relation)
        for each in result.limits
        for check in each.results
        if check.name == name
    ]
    known_only = _tells_known([check for check, _ in own])
    found = []
    for check, relation in own:
        if pairs := _of_rows(check, known_only):
            value, reference = (math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True))
            found.append((value, reference, relation))
    return found


def _count_asked(result: Limits | LimitsAverage, name: str) -> int:
    """How many prompts of one edit, or facts, were asked."""
    if isinstance(result, LimitsAverage):
        return len(result.of(name))
    return sum(row.effect is not None for row in result[name].rows)


def _within(mean: Average, bounds: tuple[float, float]) -> tuple[float, float] | None:
    if mean.low is None or mean.high is None:
        return None
    return max(mean.low, bounds[0]), min(mean.high, bounds[1])


def _tells_known(checks: Sequence[CheckResult]) -> bool:
    """Whether there is a prompt that the model is known to answer."""
    return any(row.known and row.effect is not None for check in checks for row in check.rows)


def _of_rows(check: CheckResult, known_only: bool) -> list[_Pair]:
    """Value and reference of each prompt that counts."""
    rows = [row for row in check.rows if row.effect is not None and (row.known or not known_only)]
    pairs = [_READINGS[check.name](row) for row in rows]
    return [pair for pair in pairs if pair is not None and all(map(math.isfinite, pair))]


def _pair(value: float | None, reference: float | None) -> _Pair | None:
    return None if value is None or reference is None else (value, reference)


def _gain(row: CheckRow, *, in_nats: bool = False) -> float:
    """How much more probable the answer became."""
    return math.exp(row.after) - math.exp(row.before) if in_nats else row.after - row.before


def _kept(nats: float | None) -> float | None:
    return None if nats is None else math.exp(-nats)
