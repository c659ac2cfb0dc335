"""Editors side by side: what each of them does not do, on the same records.

An effect says little alone. Next to the effects of other editors on the same facts it shows whether
the limit is ROME's, the settings' or the assay's. So the comparison is paired: an editor's
difference from the first one is averaged over the facts that both have.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rome_lens.checks.average import LimitsAverage, average_limits
from rome_lens.checks.limits import Limits, LimitsSettings
from rome_lens.checks.limits_comparison import LimitsComparison
from rome_lens.checks.many_facts import limits_or_errors
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_records, with_new_target
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.comparison import editors_by_name
from rome_lens.forward.identity import model_identity
from rome_lens.forward.tokens import encode
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel
from rome_lens.stores import Store


@visits_model
def compare_limits(
    model: LensModel,
    records: Fact | Record | Iterable[Fact | Record],
    editors: Iterable[Callable[[LensModel, Fact], Any]],
    *,
    texts: Sequence[str] | None = None,
    samples: int = 1,
    new_tokens: int = 20,
    seed: int = 0,
    prepend_bos: bool | None = None,
    directory: str | Path | None = None,
    progress: bool = False,
) -> LimitsComparison:
    """The limits of each editor's edits of the same records, and their paired differences.

    Every editor edits every record, and each edit is checked with :func:`rome_lens.check_limits`.
    An edit that fails is listed in ``failures``, and is tried again when the run resumes.

    Args:
        records: the records, or facts, to edit. Their ids must differ, because facts are paired by
            them.
        editors: editors with different names, such as ``rl.preset("gemma-3-270m").editors(model)``.
            Differences are taken from the first.
        texts, samples, new_tokens, seed: as for :func:`rome_lens.check_limits`.
        prepend_bos: whether the questions start with a BOS token. An editor has a setting of its
            own.
        directory: where each finished edit and each finished check is written at once. An
            interrupted run resumes from there, also with more editors or records.
            :func:`rome_lens.check_records` finds the same results there.
        progress: whether to show progress bars.

    Raises:
        ArgumentError: there is no editor, an editor has no name, or two have the same; two records
            have the same id; a number is out of range.
        RecordError: a fact has no new target.

    Errors of :func:`rome_lens.check_limits` are raised too.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.record("wanda-brandt")
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> rome = rl.RomeEditor(statistics=C, contexts=["{}"])
        >>> editors = [rome, rl.NullEditor(editor=rome)]
        >>> compared = rl.compare_limits(model, record, editors, samples=0, new_tokens=0)
        >>> forward = "change of p(new target), forward"
        >>> round(compared.mean("ROME", "direction", forward).mean, 1)
        1.0
        >>> round(compared.difference("null edit", "direction", forward).mean, 1)
        -1.0
    """
    by_name = editors_by_name(editors)
    cases = [with_new_target(record) for record in as_records(records)]
    ids = [str(case.id) for case in cases]
    if len(set(ids)) < len(ids):
        twice = sorted({each for each in ids if ids.count(each) > 1})
        raise ArgumentError(f"Several records have the id {', '.join(twice)}: give each its own.")
    for case in cases:
        encode(model, case.fact, prepend_bos=prepend_bos)
    settings = LimitsSettings(
        texts=texts, samples=samples, new_tokens=new_tokens, seed=seed, prepend_bos=prepend_bos
    )
    store = Store(directory, identity="" if directory is None else model_identity(model))
    found = limits_or_errors(
        model, cases, by_name, store, settings, stop_at_error=False, progress=progress
    )
    averages: dict[str, LimitsAverage] = {}
    failures: list[tuple[str, str, str]] = []
    for name, its in found.items():
        limits = [each for each in its if isinstance(each, Limits)]
        if limits:
            averages[name] = average_limits(limits)
        failures += [
            (name, number, str(each))
            for number, each in zip(ids, its, strict=True)
            if not isinstance(each, Limits)
        ]
    return LimitsComparison(
        editors=tuple(by_name),
        edited=tuple(averages),
        averages=tuple(averages.values()),
        failures=tuple(failures),
    )
