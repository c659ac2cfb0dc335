"""Edits of many records at many settings: which layer, which statistics, which variant, how far to push the value."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.new_target import refuse_what_is_said_already
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.rome_method import Choice, rank_one_edits
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.evaluating import check_prompts, evaluate_all
from rome_lens.evaluation.scores import Evaluation, Scores, score_table
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import encode
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.lens import LensModel, check_layer
from rome_lens.results import Result
from rome_lens.stores import Store


@dataclass(frozen=True, kw_only=True)
class EditSetting:
    """One point of a sweep; ``statistics`` is their name in it."""

    layer: int
    statistics: str
    variant: Variant = "rome"
    stop_probability: float | None = None

    def __str__(self) -> str:
        stop = "no stop" if self.stop_probability is None else f"p > {self.stop_probability:g}"
        return f"layer {self.layer}, {self.statistics}, {self.variant}, {stop}"


@dataclass(frozen=True, kw_only=True, repr=False)
class EditSweep(Result):
    """Evaluations of the same records at every setting.

    Attributes:
        evaluations: by setting, in the records' order, without those whose edit failed.
        failures: by setting, where there are any: the facts whose optimisation left the finite numbers, and its error.
        seed: of the bootstrap of S.
    """

    evaluations: Mapping[EditSetting, tuple[Evaluation, ...]]
    failures: Mapping[EditSetting, tuple[tuple[Fact, str], ...]] = field(default_factory=dict)
    seed: int = 0

    @property
    def scores(self) -> dict[EditSetting, Scores]:
        """The averages at every setting."""
        return {
            setting: Scores.of(
                each,
                editor=str(setting),
                seed=self.seed,
                failed=len(self.failures.get(setting, ())),
            )
            for setting, each in self.evaluations.items()
        }

    def best(self, *, least_efficacy: float = 0.99) -> EditSetting:
        """The setting of the highest S among those whose ES is at least ``least_efficacy``.

        Settings at which an edit failed are left out: their averages are over fewer records than the others'.

        Raises:
            ValueError: there is none, or the records lack what S needs.
        """
        whole = {setting: each for setting, each in self.scores.items() if not each.failed}
        known = {
            setting: each
            for setting, each in whole.items()
            if each.S is not None and each.ES is not None
        }
        good = {
            setting: each.S.mean
            for setting, each in known.items()
            if each.ES.mean >= least_efficacy
        }  # type: ignore[union-attr]
        if not good:
            raise ArgumentError(
                f"No setting has S, ES of at least {least_efficacy}, and no failed edit: see table()."
            )
        return max(good, key=lambda setting: good[setting])

    def table(self) -> pd.DataFrame:
        """Settings down, the highest S first, scores across."""
        order = sorted(
            self.scores.values(),
            key=lambda each: -1.0 if each.S is None else each.S.mean,
            reverse=True,
        )
        return score_table(order)


def sweep_edits(
    model: LensModel,
    records: Fact | Record | Iterable[Fact | Record],
    *,
    statistics: Mapping[str, Mapping[int, KeyStatistics]],
    stop_probabilities: Sequence[float | None] = (None,),
    variants: Sequence[Variant] = ("rome",),
    config: RomeConfig = RomeConfig(),
    contexts: Sequence[str] | None = None,
    prepend_bos: bool | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> EditSweep:
    """Edit and evaluate each record at each setting; ``v*`` is optimised once for each record and layer.

    Statistics, variant and stop change nothing of the way that the optimisation takes, only where it ends and what is made
    of its end. The model is not changed. An edit that diverges is no end of the sweep: it is among the result's
    ``failures``, in no average, and tried again by a run that goes on.

    Args:
        statistics: by a name of your own and by layer, such as ``{"texts": collect_key_statistics(model, layer=(3, 4))}``.
        stop_probabilities: each as ``RomeConfig.stop_probability``; that of ``config`` is not used.
        contexts: as for :func:`rome`; None samples them once for all records.
        directory: where each finished evaluation is written at once; a run broken off goes on from there.

    Raises:
        ValueError: no record or no setting; otherwise as for :func:`rome` and :func:`evaluate_all`.
    """
    cases = [with_new_target(record) for record in as_records(records)]
    settings = _settings(statistics, variants, stop_probabilities)
    if not settings:
        raise ArgumentError(
            "There is no setting: give statistics of at least one layer, a variant and a stop_probability."
        )
    for case in cases:  # what cannot be asked or edited fails before anything is edited
        check_prompts(model, case, prepend_bos=prepend_bos)
        refuse_what_is_said_already(
            model, case.fact, encode(model, case.fact, prepend_bos=prepend_bos)
        )
    if contexts is None:
        contexts = random_contexts(model, prepend_bos=prepend_bos)
    store = Store(directory, identity="" if directory is None else model_identity(model))

    def name(setting: EditSetting, record: Any) -> str:
        moment = statistics[setting.statistics][setting.layer]
        return store.name(setting, moment, config, tuple(contexts), prepend_bos, record)

    failures: dict[EditSetting, tuple[tuple[Fact, str], ...]] = {}
    layers = sorted({check_layer(model, setting.layer) for setting in settings})
    for record in tqdm(cases, desc="records", disable=not progress):
        for layer in layers:
            missing = [
                each
                for each in settings
                if each.layer == layer and store.get(Evaluation, name(each, record)) is None
            ]
            if missing:
                found, failed = _evaluated(
                    model,
                    record,
                    missing,
                    statistics,
                    contexts=contexts,
                    config=config,
                    prepend_bos=prepend_bos,
                )
                for setting, evaluation in found.items():
                    store.add(name(setting, record), evaluation)
                for setting, message in failed.items():
                    failures[setting] = (*failures.get(setting, ()), (record.fact, message))
    return EditSweep(
        evaluations={
            setting: tuple(
                kept
                for record in cases
                if (kept := store.get(Evaluation, name(setting, record))) is not None
            )
            for setting in settings
        },
        failures=failures,
    )


def _settings(
    statistics: Mapping[str, Mapping[int, KeyStatistics]],
    variants: Sequence[Variant],
    stop_probabilities: Sequence[float | None],
) -> list[EditSetting]:
    return [
        EditSetting(layer=layer, statistics=name, variant=variant, stop_probability=stop)
        for name, by_layer in statistics.items()
        for layer in by_layer
        for variant in variants
        for stop in stop_probabilities
    ]


def _evaluated(
    model: LensModel,
    record: Record,
    settings: Sequence[EditSetting],
    statistics: Mapping[str, Mapping[int, KeyStatistics]],
    *,
    contexts: Sequence[str],
    config: RomeConfig,
    prepend_bos: bool | None,
) -> tuple[dict[EditSetting, Evaluation], dict[EditSetting, str]]:
    """One record edited and evaluated at some settings of one layer; and why it could not be edited at the others."""
    layer = settings[0].layer
    choices = [
        Choice(
            statistics=statistics[each.statistics][layer],
            variant=each.variant,
            stop_probability=each.stop_probability,
        )
        for each in settings
    ]
    made = rank_one_edits(
        model,
        record.fact,
        layer=layer,
        choices=choices,
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
    )
    by_setting = dict(zip(settings, made, strict=True))
    edits = {setting: edit for setting, edit in by_setting.items() if isinstance(edit, RankOneEdit)}
    failed = {setting: str(error) for setting, error in by_setting.items() if setting not in edits}
    if not edits:
        return {}, failed
    found = evaluate_all(
        model, list(edits.values()), [record] * len(edits), prepend_bos=prepend_bos
    )
    return dict(zip(edits, found, strict=True)), failed
