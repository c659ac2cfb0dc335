"""The one result type of all checks."""

from dataclasses import dataclass

import pandas as pd

from rome_lens.intervals import Average, average


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One prompt of a check: a probability before and after the edit, and the same quantity where it must be high.

    ``control`` is None where the check has no control for each single prompt.
    """

    prompt: str
    answer: str
    before: float
    after: float
    control_prompt: str | None = None
    control: float | None = None

    @property
    def change(self) -> float:
        """``after - before``."""
        return self.after - self.before


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: of the check; ``asks`` is its question.
        measured: what the rows' numbers are.
        rows: one for each prompt; empty where the record lacks the data, which is "not asked" and never "passed".
        effect: the average that answers the question; ``control`` tells whether the model could have done it at all.
        reading: both in one sentence.
    """

    name: str
    asks: str
    measured: str
    rows: tuple[CheckRow, ...]
    effect: Average | None
    control: Average | None
    reading: str

    @property
    def asked(self) -> bool:
        """Whether the record had data for this check."""
        return bool(self.rows)

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt."""
        columns = ["check", "prompt", "answer", "before", "after", "change", "control_prompt", "control"]
        return pd.DataFrame(
            [
                [self.name, r.prompt, r.answer, r.before, r.after, r.change, r.control_prompt, r.control]
                for r in self.rows
            ],
            columns=columns,
        )


def not_asked(name: str, asks: str, lacking: str) -> CheckResult:
    """The result of a check for which the record has no data."""
    reading = f"Not asked: the record has no {lacking}."
    return CheckResult(name=name, asks=asks, measured="", rows=(), effect=None, control=None, reading=reading)


def control_average(rows: tuple[CheckRow, ...]) -> Average | None:
    """The average over the rows that have a control."""
    values = [row.control for row in rows if row.control is not None]
    return average(values) if values else None
