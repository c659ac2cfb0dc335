"""The limits of an edit: what it does not do, each check beside its control.

Inspired by the critique "But is it really in Rome?"; the prompts are this project's own.
"""

from dataclasses import dataclass

import pandas as pd

from rome_lens.checks.direction import direction
from rome_lens.checks.dominance import dominance
from rome_lens.checks.renaming import association, description
from rome_lens.checks.result import CheckResult, CheckRow
from rome_lens.data import Record
from rome_lens.edits import RankOneEdit
from rome_lens.models import LensModel, ModelError

__all__ = ["CheckResult", "CheckRow", "Limits", "check_limits"]

CHECKS = (direction, association, description, dominance)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The results of every check on one edit."""

    record_id: str
    results: tuple[CheckResult, ...]

    def __getitem__(self, name: str) -> CheckResult:
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"There is no check {name!r}; there are {[result.name for result in self.results]}.")

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt of each check that was asked."""
        return pd.concat([result.to_frame() for result in self.results], ignore_index=True)


def check_limits(model: LensModel, edit: RankOneEdit, record: Record, *, prepend_bos: bool | None = None) -> Limits:
    """Ask every check about an edit; the weights stay untouched, and hooks that the caller has on stay on.

    Raises:
        ModelError: the edit was made on another model, or is already in this one's weights.
        ValueError: the record has no new target, or is about another fact than the edit.
    """
    fact = record.fact
    if fact.new_target is None:
        raise ValueError(f"The record {record.id!r} has no new target: its fact needs one.")
    if edit.fact is not None and (edit.fact.subject, edit.fact.new_target) != (fact.subject, fact.new_target):
        raise ValueError(
            f"The edit makes {edit.fact.text!r} say {edit.fact.new_target!r}; the record {record.id!r} is about "
            f"{fact.text!r} and {fact.new_target!r}. Check an edit with its own record."
        )
    if edit.is_applied(model):
        raise ModelError(
            "The model's weights carry the edit already, so that 'before' would be after it: leave edit.applied(model) first."
        )
    hooks = edit.fwd_hooks(model)
    return Limits(
        record_id=record.id,
        results=tuple(check(model, hooks, record, prepend_bos=prepend_bos) for check in CHECKS),
    )
