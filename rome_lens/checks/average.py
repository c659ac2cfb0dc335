"""Averages of the checks over the edits of many facts."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from rome_lens.arguments import one_of, whole_number
from rome_lens.checks.claims.bleed_over import BleedOver
from rome_lens.checks.claims.essence import Essence
from rome_lens.checks.claims.fidelity import OTHER_EDITS, Fidelity
from rome_lens.checks.claims.generalisation import Generalisation
from rome_lens.checks.claims.overfit import Overfit
from rome_lens.checks.claims.specificity import Specificity
from rome_lens.checks.firing_by_kind import firing_by_kind
from rome_lens.checks.limits import Limits
from rome_lens.checks.result import (
    CheckResult,
    average_cells,
    matching_name,
)
from rome_lens.errors import ArgumentError
from rome_lens.intervals import (
    Average,
    average,
    average_correlation,
    share,
)
from rome_lens.models.fingerprints import exact
from rome_lens.results import Stored

Averaged = Literal["effect", "effect_where_known", "control", "before", "after"]
"""The numbers of a check that are averaged over facts."""
_IN_TABLE: tuple[Averaged, ...] = ("effect", "effect_where_known", "control")
_COMPARABLE = frozenset(
    check.name for check in (Overfit, BleedOver, Essence, Generalisation, Specificity)
)
"""The checks whose control is in the unit of the effect."""
_RESAMPLES = 200
_Number = tuple[str, float]
"""A number of a fact, and the fact's relation."""


@dataclass(frozen=True, kw_only=True, repr=False)
class LimitsAverage(Stored):
    """The limits of many facts, and their averages over facts.

    All intervals are over facts and clustered by relation (:func:`rome_lens.intervals.average`).
    """

    limits: tuple[Limits, ...]
    """The limits of each fact's edit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.limits:
            raise ArgumentError(
                "limits is empty, expected what check_limits returned for at least one edit."
            )
        models = {exact(each.model_fingerprint) for each in self.limits} - {None}
        if len(models) > 1:
            raise ArgumentError(
                f"The edits were made on {len(models)} models ({sorted(map(str, models))}). "
                "Average those of each model on their own."
            )

    @property
    def checks(self) -> list[str]:
        """The names of the checks, in their order."""
        return list(dict.fromkeys(result.name for each in self.limits for result in each.results))

    def of(self, check: str) -> list[CheckResult]:
        """The results of one check for the facts that it was asked of.

        Raises:
            UnknownNameError: there is no check of this name.
        """
        return [result for result in self._results(check) if result.asked]

    def effect(self, check: str, which: Averaged = "effect") -> Average | None:
        """The mean over facts of a check's effect, effect where known, control, before or after.

        None if no fact has it. It is also None for fidelity's control: each fact's control is the
        effect of the other facts' edits, so its mean would be the effect itself.

        Raises:
            UnknownNameError: there is no check of this name.
            ArgumentError: ``which`` is none of them.
        """
        one_of("which", which, Averaged)
        return clustered(list(self._numbers(check, which).values()))

    def difference(
        self,
        check: str,
        which: Averaged = "effect",
        *,
        minus: Averaged | None = None,
        of: str | None = None,
        other: "LimitsAverage | None" = None,
    ) -> Average | None:
        """The mean over facts of one number minus another number of the same fact.

        It compares effect and control, two checks, or two editors. The numbers of a fact go up and
        down together, so the interval of their difference tells more than the two intervals do.

        Args:
            check, which: the number that the other one is subtracted from.
            minus: which number is subtracted. None takes the control of the same check; if another
                check or other limits are given, it takes ``which``.
            of: the check that it is a number of. None takes the same check.
            other: the limits that it is taken from, such as those of another editor's edits of the
                same records. None takes these.

        Returns:
            The mean over the facts that have both numbers; None if there is none. Facts are the
            same if their records have the same id and relation.

        Raises:
            UnknownNameError: there is no check of this name.
            ArgumentError: ``which`` or ``minus`` is no number of a check; or neither ``minus`` nor
                anything else is given, and the check's control is in another unit than its effect.

        Example:
            ``average.difference("overfit")`` is effect minus control,
            ``average.difference("direction", "after", minus="before")`` what the edit changed, and
            ``average.difference("association", other=other_average)`` one editor minus another.
        """
        same = of is None and other is None
        name = matching_name(check, self.checks)
        if same and minus is None and name not in _COMPARABLE:
            raise ArgumentError(
                f"The control of {name!r} is in another unit than its effect, so there is no "
                'difference of the two. Give minus=, such as minus="before".'
            )
        minus = ("control" if same else which) if minus is None else minus
        first = self._numbers(check, which)
        second = (other or self)._numbers(check if of is None else of, minus)
        return clustered(
            [
                (relation, value - second[fact][1])
                for fact, (relation, value) in first.items()
                if fact in second
            ]
        )

    def measure(self, check: str, name: str) -> Average | None:
        """The mean over facts of one of a check's further numbers.

        None if no fact has it, or if it is about the edits of the other facts.

        Raises:
            UnknownNameError: there is no check of this name.
        """
        own_name = matching_name(check, self.checks)
        found = [
            (each.relation, measure)
            for each in self.limits
            for result in each.results
            if result.name == own_name
            for measure in result.further
            if measure.name == name
        ]
        if not found or name.endswith(OTHER_EDITS):
            return None
        mean = share if all(measure.share for _, measure in found) else average
        return mean(
            [measure.average.mean for _, measure in found], [relation for relation, _ in found]
        )

    @property
    def firing_correlation(self) -> Average | None:
        """The mean over facts of :attr:`Limits.firing_correlation`."""
        found = [
            (each.relation, value)
            for each in self.limits
            if (value := each.firing_correlation) is not None
        ]
        return average_correlation([value for _, value in found], [each for each, _ in found])

    def firing(self, *, seed: int = 0) -> pd.DataFrame:
        """Spearman's correlation of ``|firing|`` with KL, one line for each kind of prompt.

        :attr:`firing_correlation` is over a fact's prompts of all kinds. It is high even if all
        that matters is which kinds contain the subject. Within one kind, this does not matter. The
        correlation of a kind is over its prompts of all facts. A kind whose prompts all fire alike,
        because all of them or none of them contain the subject, has no correlation. The 95 %
        interval is a bootstrap over relations.

        Args:
            seed: seed of the bootstrap.
        """
        seed = whole_number("seed", seed, least=0)
        return firing_by_kind(self.limits, seed)

    def table(self) -> pd.DataFrame:
        """One line for each check: facts, prompts, effect, effect where known, and control.

        The last column is effect minus control, paired by fact.
        """
        return pd.DataFrame([self._line(name) for name in self.checks]).set_index("check")

    def _line(self, name: str) -> dict[str, object]:
        asked = self.of(name)
        effect, where_known, control = average_cells(
            [self.effect(name, which) for which in _IN_TABLE], asked
        )
        if name == Fidelity.name and asked:
            control = "by fact"
        correlations = [
            (each.relation, value)
            for each in self.limits
            for result in each.results
            if result.name == name
            and result.asked
            and (value := result.firing_correlation) is not None
        ]
        firing = average_correlation(
            [value for _, value in correlations], [each for each, _ in correlations]
        )
        return {
            "check": name,
            "facts": len(asked),
            "prompts": sum(row.effect is not None for result in asked for row in result.rows),
            "effect is": asked[0].effect_is if asked else "",
            "effect": effect,
            "where known": where_known,
            "facts known": sum(r.effect_where_known is not None for r in asked) or "",
            "control is": asked[0].control_is if asked else "",
            "control": control,
            "effect - control": str(self.difference(name) or "") if name in _COMPARABLE else "",
            "firing and KL": str(firing or ""),
        }

    def further(self) -> pd.DataFrame:
        """One line for each further number: its mean over facts, and how many facts have it."""
        lines = []
        for check in self.checks:
            for name in dict.fromkeys(
                measure.name for result in self._results(check) for measure in result.further
            ):
                value = self.measure(check, name)
                if value is not None:
                    lines.append([check, name, str(value), value.count])
        return pd.DataFrame(lines, columns=["check", "number", "mean", "facts"]).set_index("check")

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt of each check of each fact."""
        frames = []
        for each in self.limits:
            frame = each.to_frame()
            frame.insert(0, "record", each.record_id)
            frame.insert(1, "relation", each.relation)
            frames.append(frame)
        rows = [row for frame in frames for row in frame.to_dict("records")]
        return pd.DataFrame(rows, columns=frames[0].columns)

    def _numbers(self, check: str, which: Averaged) -> dict[tuple[Hashable, ...], "_Number"]:
        """By fact: its relation, and one of the numbers of a check, where it has one."""
        one_of("which", which, Averaged)
        name = matching_name(check, self.checks)
        if which == "control" and name == Fidelity.name:
            return {}
        repeats: Counter[tuple[str, str]] = Counter()
        found: dict[tuple[Hashable, ...], _Number] = {}
        for each in self.limits:
            fact = (each.record_id, each.relation)
            repeats[fact] += 1
            for result in each.results:
                value = getattr(result, which) if result.name == name and result.asked else None
                if value is not None:
                    key = (*fact, repeats[fact])
                    found[key] = (each.relation, value.mean)
        return found

    def _results(self, check: str) -> list[CheckResult]:
        name = matching_name(check, self.checks)
        return [result for each in self.limits for result in each.results if result.name == name]


def average_limits(limits: Limits | Iterable[Limits]) -> LimitsAverage:
    """Averages over facts, with 95 % intervals from five facts on.

    Args:
        limits: what :func:`rome_lens.check_limits` returned for each edit; one alone is taken too.

    Raises:
        ArgumentError: there is nothing to average, an entry is something else, or the edits were
            made on different models.
    """
    each = (
        (limits,)
        if isinstance(limits, Limits) or not isinstance(limits, Iterable)
        else tuple(limits)
    )
    if wrong := [type(one).__name__ for one in each if not isinstance(one, Limits)]:
        raise ArgumentError(
            f"limits holds {', '.join(wrong)}, expected what check_limits returned for each edit."
        )
    return LimitsAverage(limits=each)


def clustered(numbers: Sequence[_Number]) -> Average | None:
    """The average of numbers of facts, clustered by relation; None if there is none."""
    relations, values = zip(*numbers, strict=True) if numbers else ((), ())
    return average(values, relations) if values else None
