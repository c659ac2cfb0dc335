"""``rome-lens sweep``: trace and edit many facts at many layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rome_lens as rl
from rome_lens.commands.choices import choose_preset, trace_window, unrelated_texts
from rome_lens.commands.console import console, heading, say
from rome_lens.data.record_type import Record
from rome_lens.editing.presets import Preset
from rome_lens.errors import ArgumentError
from rome_lens.evaluation.scores import markdown
from rome_lens.models.gguf import cache_root
from rome_lens.models.lens import LensModel, named_layers
from rome_lens.models.sources import Loaded
from rome_lens.storage import whole_or_nothing
from rome_lens.sweeps.planning import chosen_stages
from rome_lens.sweeps.results import TABLE
from rome_lens.viz.html import Html

_PRINTED = ("effect", "ES", "PS", "NS", "S")


def run_sweep(
    model_name: str,
    records: Sequence[Record],
    *,
    layers: Sequence[int] | None,
    editors: Sequence[str],
    stages: Sequence[Any],
    directory: Path,
    workers: int,
    progress: bool,
) -> int:
    """Sweep, print the means by layer, and write them with their picture.

    Returns:
        The exit status: 1 if a fact failed, else 0.
    """
    chosen = chosen_stages(stages)
    model = rl.load_model(model_name)
    layers = named_layers(model, layers)
    preset = choose_preset(model_name, layer=layers[0], suggested=0)
    options: dict[str, Any] = {}
    if chosen != ("trace",):
        options = _editing(model, preset, editors, layers, progress)
    result = rl.sweep(
        Loaded(model, again=rl.ModelSource(name=model_name)),
        records,
        layers=layers,
        directory=directory,
        stages=chosen,
        window=trace_window(model),
        prepend_bos=preset.prepend_bos,
        texts=unrelated_texts(model_name, records),
        workers=workers,
        progress=progress,
        **options,
    )
    heading(f"{len(records)} facts, {len(layers)} layers on {model_name}")
    _print_means(result)
    _write_summary(result, directory, model_name)
    say(f"\nTable: {(directory / TABLE).resolve()}")
    return _tell_errors(result)


def run_quick_sweep(
    model_name: str,
    records: Sequence[Record],
    *,
    layers: Sequence[int] | None,
    out: Path,
    progress: bool,
) -> None:
    """Trace and edit the facts at each layer with C = I, print the means, and write a page."""
    model = rl.load_model(model_name)
    preset = choose_preset(model_name, layer=0, suggested=0)
    result = rl.layer_sweep(
        model,
        records,
        layers=layers,
        config=preset.config,
        prepend_bos=preset.prepend_bos,
        progress=progress,
    )
    heading(f"{len(result.names)} facts, {len(result.layers)} layers on {model_name}, C = I")
    console.print(result.table().to_string(), markup=False)
    results: dict[str, Any] = {"By layer": result, "Table": Html(result.table().to_html())}
    if len(result.names) > 1:
        results["Does tracing tell where to edit?"] = rl.checks.localisation(result)
    of = records[0].fact.text if len(records) == 1 else f"{len(result.names)} facts"
    page = rl.viz.results_page(out, title=f"Layers of {model_name}: {of}", results=results)
    say(f"\nPage: {page.resolve()}")


def _editing(
    model: LensModel, preset: Preset, editors: Sequence[str], layers: Sequence[int], progress: bool
) -> dict[str, Any]:
    """The editors with the preset's settings, and what they need."""
    by_name: dict[str, Any] = {
        "rome": rl.RomeSetting(config=preset.config),
        "r-rome": rl.RomeSetting(variant="r-rome", config=preset.config),
        "ft": preset.fine_tuning,
        **{
            name: rl.MassSetting(config=config)
            for name, config in zip(
                ("memit", "emmet", "alphaedit"), preset.mass_configs, strict=True
            )
        },
    }
    if unknown := [name for name in editors if name not in by_name]:
        raise ArgumentError(f"--editors has {unknown[0]!r}, expected some of {', '.join(by_name)}.")
    options: dict[str, Any] = {"editors": [by_name[name] for name in editors]}
    if set(editors) != {"ft"}:
        options["contexts"] = preset.contexts(model)
        options["statistics"] = rl.collect_key_statistics(
            model,
            layer=layers,
            texts=preset.texts,
            max_length=1024,
            prepend_bos=preset.prepend_bos,
            cache=cache_root() / "keys",
            progress=progress,
        )
    return options


def _print_means(result: rl.Sweep) -> None:
    shown = [name for name in _PRINTED if name in result.measures]
    means = result.rows.groupby(["editor", "layer"], sort=False)[shown].mean()
    if shown:
        console.print(means.to_string(float_format="{:.3f}".format, na_rep=""), markup=False)


def _write_summary(result: rl.Sweep, directory: Path, model_name: str) -> None:
    """Write ``summary.md``, a table by layer, and its picture, ``summary.png``."""
    text = f"# Sweep of {model_name}\n\n{result!r}\n\n{markdown(result.table())}\n"
    if result.measures:
        with whole_or_nothing(directory / "summary.png") as unfinished:
            rl.viz.sweep(result).savefig(unfinished, format="png", dpi=120)
        text += "\n![Measures by layer and editor](summary.png)\n"
    with whole_or_nothing(directory / "summary.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    say(f"\nSummary: {(directory / 'summary.md').resolve()}")


def _tell_errors(result: rl.Sweep) -> int:
    errors = result.errors()
    for error, rows in errors.groupby("error", sort=False):
        first = rows.iloc[0]
        text = first.prompt.replace("{}", first.subject)
        say(f"{len(rows)} rows, the first of {text!r}: {error}")
    return int(len(errors) > 0)
