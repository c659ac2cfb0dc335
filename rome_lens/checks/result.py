"""The one result type of all checks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from rome_lens.errors import UnknownNameError
from rome_lens.intervals import Average, average, rank_correlation, share
from rome_lens.results import Stored

KNOWN = 0.1
_DIGITS = 4


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckRow(Stored):
    """One prompt of a check, without and with the edit.

    Attributes:
        kind: what the prompt is to the check, such as ``"alias"``.
        before, after: the measured number without and with the edit.
        effect: what the prompt adds to the check's average; None where it stands beside it only, for comparison.
        control_prompt, control: where the same could be seen if it could be seen at all; None without such a place.
        known: whether the unedited model can do there what is asked (p of at least 0.1); None where that is not the question.
        kl: ``KL(before || after)`` of the next token's distribution, in nats.
        firing, fires_at: the edit's strongest firing within the prompt, 1 being that on its own fact, and its token.
        rank_before, rank_after: place of the answer's first token among all tokens, 1 being the likeliest; None where there is
            no single answer.
    """

    kind: str
    prompt: str
    answer: str
    before: float
    after: float
    effect: float | None = None
    control_prompt: str | None = None
    control: float | None = None
    known: bool | None = None
    kl: float | None = None
    firing: float | None = None
    fires_at: str | None = None
    rank_before: int | None = None
    rank_after: int | None = None

    @property
    def change(self) -> float:
        """``after - before``."""
        return self.after - self.before


@dataclass(frozen=True, kw_only=True, repr=False)
class Measure(Stored):
    """A further number of a check, with the values that it is the average of; ``share`` marks values between 0 and 1.

    Where the number is no mean but one of many facts, such as an R^2, it is the only value; ``count`` says how many they are,
    and ``interval`` is the number's own, of a bootstrap.
    """

    name: str
    values: tuple[float, ...]
    share: bool = False
    interval: tuple[float, float] | None = None
    count: int | None = None

    @classmethod
    def of(cls, name: str, found: Average) -> "Measure":
        """A number that comes with its interval."""
        interval = None if found.low is None or found.high is None else (found.low, found.high)
        return cls(name=name, values=(found.mean,), interval=interval, count=found.count)

    @property
    def average(self) -> Average:
        """Their mean, with its 95 % interval from five values on."""
        if self.count is not None:
            low, high = self.interval or (None, None)
            return Average(mean=self.values[0], low=low, high=high, count=self.count)
        return (share if self.share else average)(list(self.values))


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckResult(Stored):
    """What one check found.

    Attributes:
        name: of the check; ``asks`` is its question.
        measured: what the rows' numbers are; ``effect_is`` and ``control_is`` what their averages are.
        rows: one for each prompt; empty where the record lacks the data, which is "not asked" and never "passed".
        further: other numbers that answer the question.
        reading: effect and control in one sentence.
    """

    name: str
    asks: str
    measured: str
    effect_is: str
    control_is: str
    rows: tuple[CheckRow, ...]
    further: tuple[Measure, ...] = ()
    reading: str = ""

    @property
    def asked(self) -> bool:
        """Whether the record had data for this check."""
        return any(row.effect is not None for row in self.rows)

    @property
    def effect(self) -> Average | None:
        """The average that answers the question."""
        return _average(row.effect for row in self.rows)

    @property
    def effect_where_known(self) -> Average | None:
        """The same over the prompts of which the unedited model can do what is asked; None where there are none."""
        return _average(row.effect for row in self.rows if row.known)

    @property
    def control(self) -> Average | None:
        """Whether the model could have done it at all."""
        return _average(row.control for row in self.rows if row.effect is not None)

    @property
    def firing_correlation(self) -> float | None:
        """Spearman's correlation of ``|firing|`` with ``kl`` over the prompts; None below five."""
        return firing_correlation(self.rows)

    @property
    def firing_effect_correlation(self) -> float | None:
        """The same with ``|after - before|`` of the check's own number."""
        return firing_correlation(self.rows, "change")

    def with_reading(self, reading: str) -> "CheckResult":
        """The same result with this sentence."""
        return replace(self, reading=reading)

    def __getitem__(self, name: str) -> Average:
        for measure in self.further:
            if measure.name == name:
                return measure.average
        raise UnknownNameError(
            f"There is no number {name!r}; there are {[measure.name for measure in self.further]}."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt."""
        names = [
            "kind",
            "prompt",
            "answer",
            "before",
            "after",
            "change",
            "effect",
            "control_prompt",
            "control",
            "known",
        ]
        names += ["rank_before", "rank_after", "kl", "firing", "fires_at"]
        values = [[self.name, *(getattr(row, name) for name in names)] for row in self.rows]
        return pd.DataFrame(values, columns=["check", *names])

    def table(self) -> pd.DataFrame:
        """One line for each number: effect, effect where the model could, control, and the further ones."""
        values = shown([self.effect, self.effect_where_known, self.control], [self])
        lines = [
            ["effect", self.effect_is, values[0]],
            ["effect where known", self.effect_is, values[1]],
        ]
        lines += [["control", self.control_is, values[2]]]
        lines += [["further", measure.name, str(measure.average)] for measure in self.further]
        return pd.DataFrame(lines, columns=["number", "of", "mean"]).set_index("number")


def named(name: str, checks: Sequence[str]) -> str:
    """The check of this name, which may also be spelled as its function is: ``"bleed_over"`` for ``"bleed-over"``.

    Raises:
        KeyError: there is none.
    """
    for check in checks:
        if check.replace("_", "-") == name.replace("_", "-"):
            return check
    raise UnknownNameError(f"There is no check {name!r}; there are {list(checks)}.")


def not_asked(name: str, asks: str, lacking: str) -> CheckResult:
    """The result of a check for which there is no data."""
    reading = f"Not asked: {lacking}."
    return CheckResult(
        name=name, asks=asks, measured="", effect_is="", control_is="", rows=(), reading=reading
    )


def shown(values: Sequence[Average | None], results: Sequence[CheckResult]) -> list[str]:
    """Effect, effect where known and control as a table's cells: "not asked" is said of what was not asked alone."""
    asked = [result for result in results if result.asked]
    cells = [
        "not asked" if value is None and not asked else str(value or "none") for value in values
    ]
    if asked and values[1] is None:
        ask = any(row.known is not None for result in asked for row in result.rows)
        cells[1] = "none known" if ask else ""
    return cells


def firing_correlation(rows: Sequence[CheckRow], of: str = "kl") -> float | None:
    """Spearman's correlation of ``|firing|`` with ``kl`` over distinct prompts, or with ``|change|`` over distinct questions.

    None below five. Both are rounded first, so that what differs by rounding alone is no rank: prompts that all begin with the
    subject fire alike.
    """
    pairs = {
        (row.prompt, of == "kl" or row.answer): (
            round(abs(row.firing), _DIGITS),
            round(abs(moved), _DIGITS),
        )
        for row in rows
        if row.firing is not None and row.kl is not None and (moved := getattr(row, of)) is not None
    }
    return rank_correlation(list(pairs.values()))


def _average(values: Iterable[float | None]) -> Average | None:
    kept = [value for value in values if value is not None]
    return average(kept) if kept else None
