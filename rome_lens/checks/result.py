"""The result type of all checks: rows, further numbers, and their averages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pandas as pd

from rome_lens.errors import UnknownNameError
from rome_lens.intervals import Average, average, rank_correlation, share
from rome_lens.results import Stored

KNOWN = 0.1
"""Least probability at which the unedited model is said to know an answer."""
_DIGITS = 4
_RENAMED = {"dominance": "overfit"}
_COLUMNS = (
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
    "identified",
    "rank_before",
    "rank_after",
    "kl",
    "firing",
    "fires_at",
    "added",
)


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckRow(Stored):
    """One prompt of a check, without and with the edit."""

    # The logarithm of an impossible answer is infinite. The ratio or difference of two such numbers
    # is undefined.
    unbounded: ClassVar = frozenset(
        {"before", "after", "effect", "control", "kl", "firing", "added"}
    )
    undefined: ClassVar = frozenset({"effect", "control", "firing", "added"})

    kind: str
    """What the prompt is to the check, such as ``"alias"``."""
    prompt: str
    """The prompt."""
    answer: str
    """The answer that was asked for, or a word on what was read instead."""
    before: float
    """The measured number without the edit."""
    after: float
    """The measured number with the edit."""
    effect: float | None = None
    """What the prompt adds to the check's average; None if it is there for comparison only."""
    control_prompt: str | None = None
    """Where the effect could be seen if it could be seen at all."""
    control: float | None = None
    """The number there; None if there is no such place."""
    known: bool | None = None
    """Whether the unedited model can do there what is asked (``p >= 0.1``), if that matters."""
    identified: bool | None = None
    """Whether the unedited model knows who is meant: ``p(subject) >= 0.1`` on a naming prompt."""
    kl: float | None = None
    """``KL(before || after)`` of the next token's distribution, in nats."""
    firing: float | None = None
    """The edit's strongest firing within the prompt; 1 is the firing on its own fact."""
    fires_at: str | None = None
    """The token at which it fires most strongly."""
    added: float | None = None
    """The norm of what the edit adds there, ``|u . k| ||v||``, by which edits can be compared."""
    rank_before: int | None = None
    """Rank of the answer's first token without the edit, 1 for the most likely, if there is one."""
    rank_after: int | None = None
    """The same with the edit."""
    cluster: str = ""
    """The relation of the row's fact, in a check whose rows are facts. Intervals are clustered by
    it. Empty for a row that is a cluster of its own."""

    @property
    def change(self) -> float:
        """``after - before``."""
        return self.after - self.before


@dataclass(frozen=True, kw_only=True, repr=False)
class Measure(Stored):
    """A further number of a check: the average of some values.

    Some numbers are not a mean but computed from many facts at once, such as an R^2. They are the
    only value, and come with their own ``interval`` and ``count``.
    """

    unbounded: ClassVar = frozenset({"values", "interval"})
    undefined: ClassVar = frozenset({"values", "interval"})

    name: str
    """What the number is."""
    values: tuple[float, ...]
    """The values that it is the average of."""
    share: bool = False
    """Whether the values lie between 0 and 1."""
    interval: tuple[float, float] | None = None
    """The number's own 95 % interval, such as one from a bootstrap."""
    count: int | None = None
    """Number of facts that the number was computed from."""
    clusters: tuple[str, ...] = ()
    """The cluster of each value, such as the relation of each fact. Empty if each value is a
    cluster of its own."""

    @classmethod
    def of(cls, name: str, number: Average) -> "Measure":
        """A number that comes with its interval."""
        interval = None if number.low is None or number.high is None else (number.low, number.high)
        return cls(name=name, values=(number.mean,), interval=interval, count=number.count)

    @property
    def average(self) -> Average:
        """The mean of the values. From five values on it has a 95 % interval."""
        if self.count is not None:
            low, high = self.interval or (None, None)
            return Average(mean=self.values[0], low=low, high=high, count=self.count)
        return (share if self.share else average)(list(self.values), self.clusters or None)


def make_measures(
    numbers: Mapping[str, Sequence[float]], *, share: bool = False
) -> tuple[Measure, ...]:
    """One measure for each name, leaving out names without any value."""
    return tuple(
        Measure(name=name, values=tuple(values), share=share)
        for name, values in numbers.items()
        if values
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckResult(Stored):
    """What one check found: rows of prompts, an effect and its control, and a sentence."""

    name: str
    """The name of the check."""
    asks: str
    """The question that the check answers, in words."""
    measured: str
    """What the rows' ``before`` and ``after`` are."""
    effect_is: str
    """What the average of the rows' ``effect`` is."""
    control_is: str
    """What the average of the rows' ``control`` is."""
    rows: tuple[CheckRow, ...]
    """One row for each prompt. Without data there is none: "not asked", which is never "passed"."""
    further: tuple[Measure, ...] = ()
    """Other numbers that help to answer the question."""
    reading: str = ""
    """Effect and control in one or two sentences."""

    @property
    def asked(self) -> bool:
        """Whether the record had data for this check."""
        return any(row.effect is not None for row in self.rows)

    @property
    def effect(self) -> Average | None:
        """The average that answers the question; None if it was not asked."""
        return _average((row.effect, row.cluster) for row in self.rows)

    @property
    def effect_where_known(self) -> Average | None:
        """The same over the prompts with ``known``; None if there are none."""
        return _average((row.effect, row.cluster) for row in self.rows if row.known)

    @property
    def effect_where_identified(self) -> Average | None:
        """The same over the prompts with ``identified``; None if there are none."""
        return _average((row.effect, row.cluster) for row in self.rows if row.identified)

    @property
    def control(self) -> Average | None:
        """The average that tells whether the model could have done it at all, if there is one."""
        return _average((row.control, row.cluster) for row in self.rows if row.effect is not None)

    @property
    def before(self) -> Average | None:
        """The average of ``before`` over the prompts that are asked."""
        return _average((row.before, row.cluster) for row in self.rows if row.effect is not None)

    @property
    def after(self) -> Average | None:
        """The average of ``after`` over the prompts that are asked."""
        return _average((row.after, row.cluster) for row in self.rows if row.effect is not None)

    @property
    def firing_correlation(self) -> float | None:
        """Spearman's correlation of ``|firing|`` with ``kl`` over the prompts; None below five."""
        return firing_correlation(self.rows)

    @property
    def firing_effect_correlation(self) -> float | None:
        """The same with ``|after - before|`` instead of ``kl``, over the questions."""
        return firing_correlation(self.rows, "change")

    def with_reading(self, reading: str) -> "CheckResult":
        """A copy of the result with this sentence."""
        return replace(self, reading=reading)

    def __getitem__(self, name: str) -> Average:
        """The further number of this name.

        Raises:
            UnknownNameError: there is no number of this name.
        """
        for measure in self.further:
            if measure.name == name:
                return measure.average
        raise UnknownNameError(
            f"There is no number {name!r}; there are {[measure.name for measure in self.further]}."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt."""
        values = [[self.name, *(getattr(row, name) for name in _COLUMNS)] for row in self.rows]
        return pd.DataFrame(values, columns=["check", *_COLUMNS])

    def table(self) -> pd.DataFrame:
        """One line each for effect, effect where known (or identified), control, and all others."""
        effect, where_known, control = average_cells(
            [self.effect, self.effect_where_known, self.control], [self]
        )
        lines = [
            ["effect", self.effect_is, effect],
            ["effect where known", self.effect_is, where_known],
            ["control", self.control_is, control],
        ]
        if self.effect_where_identified is not None:
            identified = str(self.effect_where_identified)
            lines.insert(2, ["effect where identified", self.effect_is, identified])
        lines += [["further", measure.name, str(measure.average)] for measure in self.further]
        return pd.DataFrame(lines, columns=["number", "of", "mean"]).set_index("number")


def matching_name(name: str, checks: Sequence[str]) -> str:
    """The check of this name, or of its function's: ``"bleed_over"`` for ``"bleed-over"``.

    The name that a check had in an older version works too.

    Raises:
        UnknownNameError: there is no check of this name.
    """
    for wanted in (name, _RENAMED.get(name, name)):
        for check in checks:
            if check.replace("_", "-") == wanted.replace("_", "-"):
                return check
    raise UnknownNameError(f"There is no check {name!r}; there are {list(checks)}.")


def not_asked(name: str, asks: str, lacks: str) -> CheckResult:
    """The result of a check for which there is no data."""
    reading = f"Not asked: {lacks}."
    return CheckResult(
        name=name, asks=asks, measured="", effect_is="", control_is="", rows=(), reading=reading
    )


def average_cells(values: Sequence[Average | None], results: Sequence[CheckResult]) -> list[str]:
    """Effect, effect where known, and control as the cells of a table.

    "not asked" stands only where no result was asked, "none known" where the model knows no answer.
    """
    asked = [result for result in results if result.asked]
    if not asked:
        return ["not asked" if value is None else str(value) for value in values]
    cells = ["none" if value is None else str(value) for value in values]
    if values[1] is None:
        looked = any(row.known is not None for result in asked for row in result.rows)
        cells[1] = "none known" if looked else ""
    return cells


def firing_correlation(
    rows: Sequence[CheckRow], of: Literal["kl", "change"] = "kl"
) -> float | None:
    """Spearman's correlation of ``|firing|`` with ``kl``, or with ``|change|``.

    It is over distinct prompts for ``kl`` and over distinct questions for the change; None below
    five. All numbers are rounded first: prompts that begin with the subject fire alike, and
    rounding errors must not rank them.
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


def _average(values: Iterable[tuple[float | None, str]]) -> Average | None:
    """The average of values with their clusters, without those that are None."""
    kept = [(value, cluster) for value, cluster in values if value is not None]
    if not kept:
        return None
    numbers, clusters = zip(*kept, strict=True)
    return average(numbers, clusters)
