"""The limits of the edits of many facts: each on disk as soon as it is done, then averaged over facts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checks.claims.fidelity import OTHER_EDITS, Fidelity, with_each_other_as_control
from rome_lens.checks.limits import Limits, check_limits
from rome_lens.checks.result import (
    CheckResult,
    CheckRow,
    average_cells,
    firing_correlation,
    matching_name,
)
from rome_lens.data.bundled import held_texts
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.edit import RankOneEdit
from rome_lens.errors import ArgumentError
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import encode
from rome_lens.intervals import FEWEST, Average, average, average_correlation, share
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored
from rome_lens.stores import Store

_AVERAGED = ("effect", "effect_where_known", "control")
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True, repr=False)
class LimitsAverage(Stored):
    """Averages over facts of what the checks found on each; intervals are over facts.

    Attributes:
        limits: of each fact.
    """

    limits: tuple[Limits, ...]

    def __post_init__(self) -> None:
        if not self.limits:
            raise ArgumentError(
                "limits is empty, expected what check_limits gave for at least one edit."
            )
        models = {each.model_fingerprint for each in self.limits} - {None}
        if len(models) > 1:
            raise ArgumentError(
                f"The edits were made on {len(models)} models ({sorted(map(str, models))}): average each on its own."
            )

    @property
    def checks(self) -> list[str]:
        """The names of the checks, in their order."""
        return list(dict.fromkeys(result.name for each in self.limits for result in each.results))

    def of(self, check: str) -> list[CheckResult]:
        """The results of one check on the facts that it was asked of.

        Raises:
            KeyError: there is no check of this name.
        """
        return [result for result in self._results(check) if result.asked]

    def _results(self, check: str) -> list[CheckResult]:
        name = matching_name(check, self.checks)
        return [result for each in self.limits for result in each.results if result.name == name]

    def effect(self, check: str, which: str = "effect") -> Average | None:
        """The mean over facts of ``"effect"``, ``"effect_where_known"`` or ``"control"``; None where no fact was asked.

        Where each fact's control is the other facts' own effects (fidelity), their mean would be
        the effect itself: None.

        Raises:
            KeyError: there is no check of this name.
            ValueError: ``which`` is none of the three.
        """
        if which not in _AVERAGED:
            raise ArgumentError(
                f"which is {which!r}, expected one of {', '.join(map(repr, _AVERAGED))}."
            )
        asked = self.of(check)
        if which == "control" and check == Fidelity.name:
            return None
        values = [value.mean for result in asked if (value := getattr(result, which)) is not None]
        return average(values) if values else None

    def measure(self, check: str, name: str) -> Average | None:
        """The mean over facts of one of the check's further numbers; None where no fact has it, or it is the other facts'.

        Raises:
            KeyError: there is no check of this name.
        """
        found = [m for result in self._results(check) for m in result.further if m.name == name]
        if not found or name.endswith(OTHER_EDITS):
            return None
        means = [measure.average.mean for measure in found]
        return (share if all(measure.share for measure in found) else average)(means)

    @property
    def firing_correlation(self) -> Average | None:
        """The mean over facts of :attr:`Limits.firing_correlation`."""
        return average_correlation(
            [value for each in self.limits if (value := each.firing_correlation) is not None]
        )

    def firing(self, *, seed: int = 0) -> pd.DataFrame:
        """One line for each kind of prompt: Spearman's correlation of ``|firing|`` with KL over its prompts of all facts.

        Over a fact's prompts of all kinds (:attr:`firing_correlation`) it also counts that some
        kinds hold the subject and others do not; within a kind it does not. The 95 % interval is a
        bootstrap over facts. A kind whose prompts all fire alike, since all hold the subject, or
        none of them, has none.
        """
        kinds: dict[tuple[str, str], list[list[CheckRow]]] = {}
        for result in (result for each in self.limits for result in each.results):
            for kind in dict.fromkeys(
                row.kind for row in result.rows if row.firing is not None and row.kl is not None
            ):
                rows = [row for row in result.rows if row.kind == kind]
                kinds.setdefault((result.name, kind), []).append(rows)
        lines = []
        for (check, kind), by_fact in kinds.items():
            found = _resampled_correlation(by_fact, np.random.default_rng(seed))
            lines.append(
                [check, kind, sum(map(len, by_fact)), str(found or "all fire alike"), len(by_fact)]
            )
        return pd.DataFrame(
            lines, columns=["check", "prompts of kind", "prompts", "firing and KL", "facts"]
        ).set_index("check")

    def table(self) -> pd.DataFrame:
        """One line for each check: how many facts and prompts, the effect, the effect where the model could, the control."""
        lines = []
        for name in self.checks:
            asked = self.of(name)
            prompts = sum(row.effect is not None for result in asked for row in result.rows)
            values = [
                self.effect(name, which) for which in ("effect", "effect_where_known", "control")
            ]
            known = sum(result.effect_where_known is not None for result in asked)
            cells = average_cells(values, asked)
            if name == Fidelity.name and asked:
                cells[2] = "by fact"
            effect_is, control_is = (asked[0].effect_is, asked[0].control_is) if asked else ("", "")
            correlation = [
                value for result in asked if (value := result.firing_correlation) is not None
            ]
            line = [
                name,
                len(asked),
                prompts,
                effect_is,
                cells[0],
                cells[1],
                known or "",
                control_is,
                cells[2],
            ]
            lines.append([*line, str(average_correlation(correlation) or "")])
        columns = [
            "check",
            "facts",
            "prompts",
            "effect is",
            "effect",
            "where known",
            "facts known",
            "control is",
            "control",
        ]
        return pd.DataFrame(lines, columns=[*columns, "firing and KL"]).set_index("check")

    def further(self) -> pd.DataFrame:
        """One line for each further number of each check: its mean over facts, and how many facts have it."""
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


def _resampled_correlation(
    by_fact: Sequence[Sequence[CheckRow]], generator: np.random.Generator
) -> Average | None:
    """Over the rows of all facts, between the 2.5th and the 97.5th percentile of what resampled facts give."""
    whole = firing_correlation(_each_its_own(by_fact))
    if whole is None:
        return None
    count = len(by_fact)
    plain = Average(mean=whole, low=None, high=None, count=count)
    if count < FEWEST:
        return plain
    draws = [
        firing_correlation(
            _each_its_own([by_fact[i] for i in generator.integers(count, size=count)])
        )
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile([each for each in draws if each is not None], [2.5, 97.5]).tolist()
    return replace(plain, low=min(whole, low), high=max(whole, high))


def _each_its_own(by_fact: Iterable[Sequence[CheckRow]]) -> list[CheckRow]:
    """All rows, those of a fact that was drawn twice counted twice."""
    return [
        replace(row, prompt=f"{i} {row.prompt}") for i, rows in enumerate(by_fact) for row in rows
    ]


def average_limits(limits: Limits | Iterable[Limits]) -> LimitsAverage:
    """Averages over facts, with 95 % intervals over facts; below five facts, such as of a single one, there is none.

    Raises: ValueError: there is nothing to average, or something else than what
        :func:`check_limits` gives.
    """
    each = (
        (limits,)
        if isinstance(limits, Limits) or not isinstance(limits, Iterable)
        else tuple(limits)
    )
    if wrong := [type(one).__name__ for one in each if not isinstance(one, Limits)]:
        raise ArgumentError(
            f"limits holds {', '.join(wrong)}, expected what check_limits gave for each edit."
        )
    return LimitsAverage(limits=each)


def check_records(
    model: LensModel,
    records: Fact | Record | Iterable[Fact | Record],
    editor: Callable[[Any, Any], Any],
    *,
    texts: Sequence[str] | None = None,
    samples: int = 1,
    new_tokens: int = 20,
    seed: int = 0,
    prepend_bos: bool | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> LimitsAverage:
    """Edit each record's fact alone, and ask :func:`check_limits` about it; the other records' edits are fidelity's control.

    Args: editor: makes an edit from ``(model, fact)``, such as ``rl.preset(...).editor(model)``.
        texts, samples, new_tokens, seed: as for :func:`check_limits`. prepend_bos: of the questions
        alone; the editor has its own. directory: where each finished edit and each finished check
        is written at once; a run broken off goes on there.

    Raises: ValueError: there is no record, or something that is none; the editor cannot be called;
        otherwise as for :func:`check_limits`, before the first edit where it can be seen then.
    """
    cases = [with_new_target(record) for record in as_records(records)]
    if not callable(editor):
        raise ArgumentError(
            f"The editor is of type {type(editor).__name__}, expected what makes an edit from (model, fact), such as "
            "rl.preset(...).editor(model)."
        )
    for record in cases:
        encode(model, record.fact, prepend_bos=prepend_bos)
    store = Store(directory, identity="" if directory is None else model_identity(model))
    names = [store.name(editor, record.fact) for record in cases]
    edits = [
        _kept(store, RankOneEdit, name, partial(editor, model, record.fact))
        for name, record in zip(names, tqdm(cases, desc="edits", disable=not progress), strict=True)
    ]
    settings = (
        editor,
        tuple(held_texts() if texts is None else texts),
        samples,
        new_tokens,
        seed,
        prepend_bos,
    )
    found = []
    for record, edit in zip(tqdm(cases, desc="checks", disable=not progress), edits, strict=True):

        def asked(record: Record = record, edit: Any = edit) -> Limits:
            return check_limits(
                model,
                edit,
                record,
                texts=texts,
                samples=samples,
                new_tokens=new_tokens,
                seed=seed,
                prepend_bos=prepend_bos,
            )

        found.append(_kept(store, Limits, store.name(*settings, record), asked))
    return average_limits(_with_other_edits(found))


def _with_other_edits(limits: Sequence[Limits]) -> list[Limits]:
    """Every fact's fidelity beside that of the other facts' edits, which read the same texts."""
    fidelities = iter(with_each_other_as_control([each["fidelity"] for each in limits]))
    return [
        replace(
            each,
            results=tuple(next(fidelities) if r.name == "fidelity" else r for r in each.results),
        )
        for each in limits
    ]


def _kept(store: Store, kind: type[Stored], name: str, make: Callable[[], Any]) -> Any:
    """The finished result from the store, or a new one, which is kept there if it is of the kind that files can hold."""
    found = store.get(kind, name)
    if found is not None:
        return found
    made = make()
    if isinstance(made, kind):
        store.add(name, made)
    return made
