"""ROME at many settings: layers, key statistics, variants, and how far to push the value."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.arguments import templates
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.editing.config import RomeConfig, Variant
from rome_lens.editing.contexts import random_contexts
from rome_lens.editing.new_target import refuse_what_is_said_already
from rome_lens.editing.rank_one_edit import RankOneEdit
from rome_lens.editing.side_by_side import Choice, rank_one_edits
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.comparison import finished_evaluations
from rome_lens.evaluation.evaluating import check_prompts, evaluate_all
from rome_lens.evaluation.results import Evaluation
from rome_lens.evaluation.scores import Scores, score_table
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import encode
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, check_layer
from rome_lens.results import Result
from rome_lens.stores import Store


@dataclass(frozen=True, kw_only=True)
class EditSetting:
    """One setting of a sweep."""

    layer: int
    """The edited layer."""
    statistics: str
    """The name of the key statistics in the sweep."""
    variant: Variant = "rome"
    """The variant of ROME."""
    stop_probability: float | None = None
    """The new target's probability at which the value's optimisation stops; None for no stop."""

    def __str__(self) -> str:
        stop = "no stop" if self.stop_probability is None else f"p > {self.stop_probability:g}"
        return f"layer {self.layer}, {self.statistics}, {self.variant}, {stop}"


@dataclass(frozen=True, kw_only=True, repr=False)
class EditSweep(Result):
    """The evaluations of the same records at every setting."""

    evaluations: Mapping[EditSetting, tuple[Evaluation, ...]]
    """By setting, in the order of the records, without the records whose edit failed."""
    failures: Mapping[EditSetting, tuple[tuple[Fact, str], ...]] = field(default_factory=dict)
    """By setting: each fact whose edit failed, with the error's message."""

    @property
    def scores(self) -> dict[EditSetting, Scores]:
        """The averages over the records, by setting."""
        return {
            setting: Scores.of(
                each,
                editor=str(setting),
                failed=len(self.failures.get(setting, ())),
            )
            for setting, each in self.evaluations.items()
        }

    def best(self, *, least_efficacy: float = 0.99) -> EditSetting:
        """The setting with the highest S among those whose ES is at least ``least_efficacy``.

        Settings at which an edit failed are left out, because their averages cover fewer records.

        Raises:
            ArgumentError: no setting is left, or the records lack prompts that S needs.
        """
        s_of = {
            setting: each.S.mean
            for setting, each in self.scores.items()
            if not each.failed
            and each.S is not None
            and each.ES is not None
            and each.ES.mean >= least_efficacy
        }
        if not s_of:
            raise ArgumentError(
                f"No setting has an S, an ES of at least {least_efficacy}, and no failed edit: see "
                "table(), or lower least_efficacy."
            )
        return max(s_of, key=lambda setting: s_of[setting])

    def table(self) -> pd.DataFrame:
        """A table of text with a row for each setting, highest S first."""
        order = sorted(
            self.scores.values(),
            key=lambda each: -1.0 if each.S is None else each.S.mean,
            reverse=True,
        )
        return score_table(order)


_RECORDS_AT_ONCE = 16


@visits_model
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
    """Edit each record's fact at each setting, and score all of the edits.

    The value ``v*`` is optimised only once for each record and layer. Key statistics, variant and
    stop do not change the path of the optimisation. They change only where it ends, and which edit
    is made from the value there.

    The model is not changed. An edit that diverges does not stop the sweep. It is listed in
    ``failures``, is in no average, and is tried again when the run resumes.

    Args:
        records: facts or records with a new target.
        statistics: key statistics by a name of your choice and by layer, such as
            ``{"texts": collect_key_statistics(model, layer=(3, 4))}``.
        stop_probabilities: values for ``RomeConfig.stop_probability``. The one in ``config`` is
            ignored.
        variants: variants of ROME.
        config: the other hyperparameters.
        contexts: as for :func:`rome`. None samples them once, for all records.
        prepend_bos: None takes the model's default.
        directory: where each evaluation is written as soon as it is finished. An interrupted run
            resumes from there.
        progress: whether to show a progress bar.

    Raises:
        ArgumentError: there is no record or no setting.
        FactError: a record cannot be asked or edited. This is checked before any edit.

    The errors of :func:`rome` and :func:`evaluate_all` are raised too, except a divergence.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> layers = {layer: rl.KeyStatistics.identity(model, layer=layer) for layer in (2, 5)}
        >>> sweep = rl.sweep_edits(
        ...     model,
        ...     rl.data.records(known_by="toy")[:2],
        ...     statistics={"C = I": layers},
        ...     config=rl.RomeConfig(steps=8),
        ...     contexts=["{}"],
        ... )
        >>> print(sweep.best())
        layer 2, C = I, rome, no stop
    """
    cases = [with_new_target(record) for record in as_records(records)]
    settings = _settings(statistics, variants, stop_probabilities)
    for case in cases:
        check_prompts(model, case, prepend_bos=prepend_bos)
        encoded = encode(model, case.fact, prepend_bos=prepend_bos)
        refuse_what_is_said_already(model, case.fact, encoded)
    contexts = (
        random_contexts(model, prepend_bos=prepend_bos) if contexts is None else templates(contexts)
    )
    store = Store(directory, identity="" if directory is None else model_identity(model))

    def stored_as(setting: EditSetting, case: Record) -> str:
        moment = statistics[setting.statistics][setting.layer]
        return store.name(setting, moment, config, tuple(contexts), prepend_bos, case)

    failures: dict[EditSetting, tuple[tuple[Fact, str], ...]] = {}
    layers = sorted({check_layer(model, setting.layer) for setting in settings})
    with tqdm(total=len(cases), desc="records", disable=not progress) as bar:
        for first in range(0, len(cases), _RECORDS_AT_ONCE):
            batch = cases[first : first + _RECORDS_AT_ONCE]
            for layer in layers:
                here = [each for each in settings if each.layer == layer]
                missing = {
                    (each, r)
                    for each in here
                    for r, case in enumerate(batch)
                    if store.get(Evaluation, stored_as(each, case)) is None
                }
                if not missing:
                    continue
                # All are edited again even if one is missing: the last bits of an edit depend on
                # what is in its batch, and a resumed sweep should give the uninterrupted one's.
                edits, failed = _edits_at_settings(
                    model,
                    batch,
                    here,
                    statistics,
                    contexts=contexts,
                    config=config,
                    prepend_bos=prepend_bos,
                )
                for (setting, r), message in failed.items():
                    failures[setting] = (*failures.get(setting, ()), (batch[r].fact, message))
                for r, case in enumerate(batch):
                    own = {
                        each: edits[each, r] for each in here if (each, r) in missing & set(edits)
                    }
                    evaluations = (
                        evaluate_all(
                            model, list(own.values()), [case] * len(own), prepend_bos=prepend_bos
                        )
                        if own
                        else []
                    )
                    for setting, evaluation in zip(own, evaluations, strict=True):
                        store.add(stored_as(setting, case), evaluation)
            bar.update(len(batch))
    return EditSweep(
        evaluations={
            setting: finished_evaluations(store, [stored_as(setting, case) for case in cases])
            for setting in settings
        },
        failures=failures,
    )


def _settings(
    statistics: Mapping[str, Mapping[int, KeyStatistics]],
    variants: Sequence[Variant],
    stop_probabilities: Sequence[float | None],
) -> list[EditSetting]:
    settings = [
        EditSetting(layer=layer, statistics=name, variant=variant, stop_probability=stop)
        for name, by_layer in statistics.items()
        for layer in by_layer
        for variant in variants
        for stop in stop_probabilities
    ]
    if not settings:
        raise ArgumentError(
            "There is no setting: give the statistics of at least one layer, at least one variant "
            "and at least one stop probability (None for no stop)."
        )
    return settings


def _edits_at_settings(
    model: LensModel,
    cases: Sequence[Record],
    settings: Sequence[EditSetting],
    statistics: Mapping[str, Mapping[int, KeyStatistics]],
    *,
    contexts: Sequence[str],
    config: RomeConfig,
    prepend_bos: bool | None,
) -> tuple[dict[tuple[EditSetting, int], RankOneEdit], dict[tuple[EditSetting, int], str]]:
    """The edits of some records at some settings of one layer, by setting and number of the record.

    The second dictionary holds the error's message where an edit failed.
    """
    layer = settings[0].layer
    choices = [
        Choice(
            statistics=statistics[each.statistics][layer],
            variant=each.variant,
            stop_probability=each.stop_probability,
        )
        for each in settings
    ]
    edits_of_facts = rank_one_edits(
        model,
        [case.fact for case in cases],
        layer=layer,
        choices=choices,
        contexts=contexts,
        config=config,
        prepend_bos=prepend_bos,
        stop_at_error=True,
    )
    edits: dict[tuple[EditSetting, int], RankOneEdit] = {}
    failed: dict[tuple[EditSetting, int], str] = {}
    for r, of_fact in enumerate(edits_of_facts):
        assert isinstance(of_fact, list)
        for setting, edit in zip(settings, of_fact, strict=True):
            if isinstance(edit, RankOneEdit):
                edits[setting, r] = edit
            else:
                failed[setting, r] = str(edit)
    return edits, failed
