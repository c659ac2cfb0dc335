"""The result of :func:`rome_lens.mass_edit_curve`: what many facts at once do to each other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import ArgumentError, UnknownNameError
from rome_lens.evaluation.results import Evaluation
from rome_lens.evaluation.scores import Scores, markdown
from rome_lens.intervals import Average, average, share
from rome_lens.results import Stored

SCORES = ("ES", "PS", "NS", "S")
OWN = "exact match"
PARAPHRASES = "exact match, paraphrases"
ESSENCE = "essence"
FIDELITY = "fidelity"
MEASURES = (*SCORES, OWN, PARAPHRASES, ESSENCE, FIDELITY)
_SHARES = (OWN, PARAPHRASES)


@dataclass(frozen=True, kw_only=True, repr=False)
class CurveBatch(Stored):
    """One edit of several facts by one editor, and its scores on some of these facts."""

    axes: ClassVar[Mapping[str, str]] = {"record": "evaluations"}
    undefined: ClassVar[frozenset[str]] = frozenset({"exact", "paraphrases", "essence", "fidelity"})

    editor: str
    """The editor's name."""
    count: int
    """How many facts were to be edited together."""
    repeat: int
    """The number of the batch among those of the same count, which have no fact in common."""
    edited: int
    """How many facts were edited. ROME in sequence leaves out those that it cannot edit."""
    evaluations: tuple[Evaluation, ...]
    """CounterFact's scores of some of the batch's facts. None if there is no edit."""
    exact: Float[Tensor, " record"]
    """Whether greedy decoding writes the new target after the fact's own prompt."""
    paraphrases: Float[Tensor, " record"]
    """The share of paraphrases after which it does. NaN if there are none."""
    essence: Float[Tensor, " record"]
    """KL divergence of the next token about each subject, mean over 5 prompts, in nats."""
    fidelity: Float[Tensor, " text"]
    """Change of each other text's nats per token. NaN where it names an edited subject."""
    seconds: float
    """The time that making the edit took."""
    peak_bytes: float | None = None
    """The most memory meanwhile: of the GPU, or of the whole process on a CPU. None if unknown."""
    error: str = ""
    """Why there is no edit, or why it could not be scored. Empty if there is one."""


@dataclass(frozen=True, kw_only=True, repr=False)
class MassCurve(Stored):
    """Scores of several editors as the number of facts that are edited together grows."""

    editors: tuple[str, ...]
    """The editors' names."""
    counts: tuple[int, ...]
    """The numbers of facts, in ascending order."""
    batches: tuple[CurveBatch, ...]
    """Every edit, by editor and count."""
    model_name: str = ""
    """The model's name for captions. Empty if it has none."""

    def of(self, editor: str, count: int) -> list[CurveBatch]:
        """The edits of one editor and one number of facts.

        Raises:
            UnknownNameError: there is no such editor.
            ArgumentError: there is no such count.
        """
        if editor not in self.editors:
            raise UnknownNameError(
                f"There is no editor {editor!r}, there are {', '.join(self.editors)}."
            )
        if count not in self.counts:
            raise ArgumentError(f"count is {count}, expected one of {list(self.counts)}.")
        return [each for each in self.batches if (each.editor, each.count) == (editor, count)]

    def mean(self, editor: str, count: int, measure: str) -> Average | None:
        """A measure's mean, with an interval clustered by relation; None if nothing has it.

        For ``"fidelity"``, each text is a cluster, because all edits are read on the same texts. An
        edit that could not be made is in no mean (:attr:`failed`). ``"S"`` combines ES and PS of
        all facts with NS of those that have neighbours which are not edited themselves.

        Raises:
            UnknownNameError: there is no such editor or measure.
            ArgumentError: there is no such count.
        """
        batches = self.of(editor, count)
        if measure not in MEASURES:
            raise UnknownNameError(
                f"There is no measure {measure!r}, there are {', '.join(MEASURES)}."
            )
        if measure in SCORES:
            evaluations = [each for batch in batches for each in batch.evaluations]
            return getattr(Scores.of(evaluations), measure) if evaluations else None
        known = list(_values(batches, measure).values())
        if not known:
            return None
        clusters, numbers = zip(*known, strict=True)
        return (share if measure in _SHARES else average)(list(numbers), list(clusters))

    def difference(self, editor: str, count: int, measure: str, *, minus: str) -> Average | None:
        """The mean of an editor's measure minus another editor's for the same facts in the same
        batches, clustered like :meth:`mean`. For ``"S"``, it is that of the facts' own S.

        Facts that only one of the two could edit are left out. None if no fact is left.

        Raises:
            UnknownNameError: there is no such editor or measure.
            ArgumentError: there is no such count.
        """
        own, other = (self.of(name, count) for name in (editor, minus))
        if measure not in MEASURES:
            raise UnknownNameError(
                f"There is no measure {measure!r}, there are {', '.join(MEASURES)}."
            )
        values, subtracted = _values(own, measure), _values(other, measure)
        pairs = [
            (cluster, value - subtracted[key][1])
            for key, (cluster, value) in values.items()
            if key in subtracted
        ]
        if not pairs:
            return None
        clusters, numbers = zip(*pairs, strict=True)
        return average(list(numbers), list(clusters))

    def failed(self, editor: str, count: int) -> list[str]:
        """The errors of the edits that could not be made or scored."""
        return [batch.error for batch in self.of(editor, count) if batch.error]

    def seconds_per_fact(self, editor: str, count: int) -> float | None:
        """The time that making an edit took, divided by the number of its facts."""
        made = [each.seconds / each.count for each in self.of(editor, count) if not each.error]
        return math.fsum(made) / len(made) if made else None

    def peak_bytes(self, editor: str, count: int) -> float | None:
        """The most memory that making an edit took; None if that is unknown."""
        made = [each.peak_bytes for each in self.of(editor, count) if not each.error]
        known = [each for each in made if each is not None]
        return max(known, default=None)

    def table(self) -> pd.DataFrame:
        """A table of text with a row for each editor and count, and a column for each measure."""
        return pd.DataFrame([self._line(*place) for place in self._places()]).set_index("editor")

    def to_markdown(self) -> str:
        """The table as Markdown."""
        return markdown(self.table())

    def to_frame(self) -> pd.DataFrame:
        """One row for each editor, count and measure: mean, interval, and the number of values."""
        lines = []
        for editor, count in self._places():
            for measure in MEASURES:
                mean = self.mean(editor, count, measure)
                line: dict[str, object] = {"editor": editor, "count": count, "measure": measure}
                lines.append(
                    line
                    | {name: getattr(mean, name, None) for name in ("mean", "low", "high")}
                    | {"values": getattr(mean, "count", 0)}
                )
        return pd.DataFrame(lines)

    def _places(self) -> Sequence[tuple[str, int]]:
        return [(editor, count) for editor in self.editors for count in self.counts]

    def _line(self, editor: str, count: int) -> dict[str, object]:
        batches, seconds = self.of(editor, count), self.seconds_per_fact(editor, count)
        peak = self.peak_bytes(editor, count)
        return {
            "editor": editor,
            "facts": count,
            "edits": len(batches) - len(self.failed(editor, count)),
            "failed": len(self.failed(editor, count)),
            **{measure: str(self.mean(editor, count, measure) or "-") for measure in MEASURES},
            "seconds per fact": "-" if seconds is None else f"{seconds:.2f}",
            "peak GB": "-" if peak is None else f"{peak / 1e9:.2f}",
        }


_Values = dict[tuple[int, str], tuple[str, float]]
"""By batch and fact (or text): the cluster and the value."""


def _values(batches: Sequence[CurveBatch], measure: str) -> _Values:
    """A measure of every fact, or of every text for fidelity, that has it."""
    found: _Values = {}
    for batch in batches:
        if measure == FIDELITY:
            places = [(str(i), str(i)) for i in range(len(batch.fidelity))]
            values = batch.fidelity.tolist()
        else:
            places = [(str(e.case_id), e.relation or str(e.case_id)) for e in batch.evaluations]
            values = _of_facts(batch, measure)
        for (place, cluster), value in zip(places, values, strict=True):
            if value is not None and not math.isnan(value):
                found[batch.repeat, place] = cluster, value
    return found


def _of_facts(batch: CurveBatch, measure: str) -> list[float | None]:
    if measure in SCORES:
        return [getattr(each, measure) for each in batch.evaluations]
    name = {OWN: "exact", PARAPHRASES: "paraphrases", ESSENCE: "essence"}[measure]
    values: list[float | None] = getattr(batch, name).tolist()
    return values
