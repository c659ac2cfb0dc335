"""``rome-lens limits``: edit many facts one by one, and check what each edit does not do."""

from collections.abc import Sequence
from pathlib import Path

import rome_lens as rl
from rome_lens.commands.choices import (
    choose_bos,
    edit_preset,
    first_of_each_relation,
    unrelated_texts,
)
from rome_lens.commands.console import console, heading, say
from rome_lens.data.record_type import Record
from rome_lens.errors import ArgumentError
from rome_lens.models.gguf import cache_root
from rome_lens.models.lens import LensModel


def run_limits(
    model_name: str,
    records: Sequence[Record],
    *,
    layer: int | None,
    per_relation: int | None = None,
    directory: Path | None,
    out: Path,
    progress: bool,
) -> None:
    """Edit each record's fact alone, check every edit, print the averages and write the page."""
    model = rl.load_model(model_name)
    if layer is not None:
        rl.models.check_layer(model, layer)
    records = known_records(model, model_name, records, per_relation=per_relation)
    preset = edit_preset(model, model_name, records[0], layer, progress=progress)
    average = rl.check_records(
        model,
        records,
        preset.editor(model, cache=cache_root() / "keys", progress=progress),
        texts=unrelated_texts(model_name, records),
        prepend_bos=preset.prepend_bos,
        directory=directory,
        progress=progress,
    )
    heading(f"What {len(records)} edits of {model_name} at layer {preset.layer} do not do")
    _print_average(average)
    page = rl.limits_report(out, model_name=model_name, average=average)
    say(f"\nReport: {page.resolve()}")


def known_records(
    model: LensModel,
    model_name: str,
    records: Sequence[Record],
    *,
    per_relation: int | None = None,
) -> list[Record]:
    """The records whose facts the model knows, or the first of them in each relation.

    The facts that it does not know are named.
    """
    knows = rl.knows(model, [record.fact for record in records], prepend_bos=choose_bos(model_name))
    unknown = [str(record.id) for record, known in zip(records, knows, strict=True) if not known]
    if unknown:
        say(f"Not known to {model_name}, left out: {', '.join(unknown)}")
    if len(unknown) == len(records):
        raise ArgumentError(
            f"{model_name} knows none of these facts, so there is nothing to edit: give others."
        )
    chosen = [record for record, known in zip(records, knows, strict=True) if known]
    return chosen if per_relation is None else first_of_each_relation(chosen, per_relation)


def _print_average(average: rl.LimitsAverage) -> None:
    for name in average.checks:
        asked = average.of(name)
        console.print(f"\n[bold]{name}[/bold] ({len(asked)} facts)", soft_wrap=True)
        if not asked:
            say("  not asked")
            continue
        lines = [
            (asked[0].effect_is, average.effect(name)),
            ("  where the unedited model knows it", average.effect(name, "effect_where_known")),
            (f"control: {asked[0].control_is}", average.effect(name, "control")),
        ]
        measures = dict.fromkeys(measure.name for result in asked for measure in result.further)
        lines += [(measure, average.measure(name, measure)) for measure in measures]
        for label, value in lines:
            if value is not None:
                say(f"  {label}: {value}")
    if average.firing_correlation is not None:
        say(
            "\nSpearman's correlation of firing with KL over a fact's prompts: "
            f"{average.firing_correlation}"
        )
