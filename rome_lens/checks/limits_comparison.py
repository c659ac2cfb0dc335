"""The result of :func:`rome_lens.compare_limits`: the means of several editors, and their pairs."""

from dataclasses import dataclass

import pandas as pd

from rome_lens.checks.average import LimitsAverage, clustered
from rome_lens.checks.claims.association import Association, Description
from rome_lens.checks.claims.bleed_over import SAME, BleedOver
from rome_lens.checks.claims.consequence import CHANGE_OF_FALSE, Consequence
from rome_lens.checks.claims.direction import Direction
from rome_lens.checks.claims.generalisation import LONGER, PARAPHRASE, Generalisation
from rome_lens.checks.claims.overfit import Overfit
from rome_lens.checks.claims.specificity import PRESERVED, Specificity
from rome_lens.checks.claims.spill import DECOY_KINDS
from rome_lens.checks.numbers_by_fact import by_fact
from rome_lens.checks.result import CheckResult, matching_name
from rome_lens.errors import ArgumentError, UnknownNameError
from rome_lens.evaluation.scores import markdown
from rome_lens.intervals import Average
from rome_lens.results import Stored

EFFECT = "effect"
"""The number of a check that is its effect. Any other is the name of a further number."""
_MINUS_DECOYS = tuple(f"share kept minus {kind}" for kind in DECOY_KINDS)
_ALSO = {
    Generalisation.name: tuple(f"exact match, {kind}" for kind in (PARAPHRASE, LONGER)),
    Direction.name: ("change of p(subject), reverse, minus another target",),
    Association.name: (*_MINUS_DECOYS, "share kept where identified"),
    Description.name: (*_MINUS_DECOYS, "share kept where identified"),
    Overfit.name: ("loud: difference", "sampled: difference"),
    BleedOver.name: (f"change of p(true answer), {SAME}",),
    Consequence.name: (CHANGE_OF_FALSE,),
    Specificity.name: (PRESERVED,),
}


@dataclass(frozen=True, kw_only=True, repr=False)
class LimitsComparison(Stored):
    """The limits of several editors' edits of the same records."""

    editors: tuple[str, ...]
    """The names of the editors. Differences are taken from the first."""
    edited: tuple[str, ...]
    """The names of those that could edit at least one of the facts."""
    averages: tuple[LimitsAverage, ...]
    """The limits of the edits, by editor in ``edited``."""
    failures: tuple[tuple[str, str, str], ...] = ()
    """Each edit that failed: the editor, the record's ``id``, and the error's message."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.editors or not set(self.edited) <= set(self.editors):
            raise ArgumentError(
                f"editors is {self.editors} and edited is {self.edited}, expected at least one "
                "editor, and some of the same names."
            )
        if len(self.edited) != len(self.averages):
            raise ArgumentError(
                f"edited has {len(self.edited)} names and averages has {len(self.averages)} "
                "entries, expected one for each."
            )

    def __getitem__(self, editor: str) -> LimitsAverage:
        """The limits of this editor's edits.

        Raises:
            UnknownNameError: there is no editor of this name, or it could edit no fact.
        """
        average = self._average(editor)
        if average is None:
            raise UnknownNameError(f"{editor!r} could edit none of the facts.")
        return average

    def _average(self, editor: str) -> LimitsAverage | None:
        if editor not in self.editors:
            raise UnknownNameError(
                f"There is no editor {editor!r}, there are {', '.join(self.editors)}."
            )
        return dict(zip(self.edited, self.averages, strict=True)).get(editor)

    @property
    def numbers(self) -> list[tuple[str, str]]:
        """What the table shows, as pairs of a check and ``"effect"`` or a further number.

        These are the effects of all checks that were asked of any edit, and the further numbers
        without which an effect may mislead, such as the share kept minus that of decoys.
        """
        checks = dict.fromkeys(name for editor in self.edited for name in self[editor].checks)
        every = [(check, name) for check in checks for name in (EFFECT, *_ALSO.get(check, ()))]
        return [number for number in every if any(self._by_record(e, *number) for e in self.edited)]

    def mean(self, editor: str, check: str, number: str = EFFECT) -> Average | None:
        """The mean over facts of an editor's number, clustered by relation.

        None if no fact has it.
        """
        average = self._average(editor)
        if average is None or matching_name(check, average.checks) not in average.checks:
            return None
        return average.effect(check) if number == EFFECT else average.measure(check, number)

    def difference(
        self, editor: str, check: str, number: str = EFFECT, *, minus: str | None = None
    ) -> Average | None:
        """The mean over facts of an editor's number minus another editor's on the same fact.

        Args:
            minus: the other editor; None takes the first.

        Returns:
            The mean over the facts for which both have the number, clustered by relation; None if
            there is none.

        Raises:
            UnknownNameError: there is no editor or no check of this name.
        """
        own = self._by_record(editor, check, number)
        other = self._by_record(self.editors[0] if minus is None else minus, check, number)
        return clustered(
            [
                (relation, value - other[record][1])
                for record, (relation, value) in own.items()
                if record in other
            ]
        )

    def table(self) -> pd.DataFrame:
        """A table of text with a row for each number and a column for each editor.

        A cell holds the editor's mean with its interval, and after a semicolon its paired
        difference from the first editor.
        """
        return pd.DataFrame(
            [self._line(check, number) for check, number in self.numbers]
        ).set_index("check")

    def to_markdown(self) -> str:
        """The table as Markdown."""
        return markdown(self.table())

    def to_frame(self) -> pd.DataFrame:
        """One row for each number and editor: means, paired differences, intervals and counts."""
        lines = []
        for check, number in self.numbers:
            for editor in self.edited:
                line: dict[str, object] = {"check": check, "number": number, "editor": editor}
                for prefix, value in (
                    ("", self.mean(editor, check, number)),
                    ("minus first: ", self.difference(editor, check, number)),
                ):
                    for name in ("mean", "low", "high", "count"):
                        line[prefix + name] = getattr(value, name, None)
                lines.append(line)
        return pd.DataFrame(lines)

    def by_fact(self) -> pd.DataFrame:
        """One row for each editor, fact, check and number, with its mean over the fact's prompts.

        The columns are ``editor``, ``record``, ``relation``, ``check``, ``number``, ``value`` and
        ``share`` (whether the value lies between 0 and 1). The number ``"effect"`` is the check's
        effect. Numbers about the edits of other facts are left out.
        :func:`rome_lens.checks.average_by_fact` averages such a table again.
        """
        return by_fact(dict(zip(self.edited, self.averages, strict=True)))

    def _line(self, check: str, number: str) -> dict[str, str]:
        line = {"check": check, "number": self.words(check, number)}
        for editor in self.edited:
            cell = str(self.mean(editor, check, number) or "not asked")
            difference = self.difference(editor, check, number)
            if editor != self.editors[0] and difference is not None:
                cell += f"; {difference}"
            line[editor] = cell
        return line

    def words(self, check: str, number: str = EFFECT) -> str:
        """What a number of a check is, in words."""
        if number != EFFECT:
            return number
        asked = [result for editor in self.edited for result in self[editor].of(check)]
        return asked[0].effect_is if asked else number

    def _by_record(self, editor: str, check: str, number: str) -> dict[str, tuple[str, float]]:
        """The relation and an editor's number of each fact that has it, by the record's id."""
        average = self._average(editor)
        if average is None:
            return {}
        name = matching_name(check, average.checks)
        return {
            limits.record_id: (limits.relation, value)
            for limits in average.limits
            for result in limits.results
            if result.name == name and (value := _value(result, number)) is not None
        }


def _value(result: CheckResult, number: str) -> float | None:
    if number == EFFECT:
        return None if result.effect is None else result.effect.mean
    means = [measure.average.mean for measure in result.further if measure.name == number]
    return means[0] if means else None
