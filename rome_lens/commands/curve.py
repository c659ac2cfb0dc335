"""``rome-lens curve``: what editors do to a model as they edit more and more facts at once."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import rome_lens as rl
from rome_lens.checks.mass_curve_result import MEASURES
from rome_lens.commands.console import heading, say
from rome_lens.commands.limits import known_records
from rome_lens.data.bundled import FILES
from rome_lens.data.record_type import Record
from rome_lens.editing.mass_config import Method
from rome_lens.editing.presets import Preset
from rome_lens.errors import ArgumentError
from rome_lens.models.gguf import cache_root
from rome_lens.models.lens import LensModel
from rome_lens.storage import whole_or_nothing

_ROME = "ROME"


def add_curve_arguments(curve: argparse.ArgumentParser) -> None:
    """The arguments that no other command has."""
    curve.add_argument(
        "--editors",
        help="some of ROME (in sequence), MEMIT, EMMET and AlphaEdit, with commas (default: all)",
    )
    curve.add_argument(
        "--counts",
        help="how many facts at once, such as 1,10,100 (default: 1, 10, 100, 1000 and all facts)",
    )
    curve.add_argument(
        "--repeats", type=int, default=10, help="the most edits of each count (default: 10)"
    )
    curve.add_argument(
        "--scored", type=int, default=50, help="the most facts scored of each count (default: 50)"
    )


def run_curve(
    model_name: str,
    records: Sequence[Record],
    *,
    counts: Sequence[int] | None,
    repeats: int,
    scored: int,
    editors: Sequence[str] | None,
    per_relation: int | None = None,
    directory: Path | None,
    out: Path,
    progress: bool,
) -> None:
    """Edit more and more of the records at once with each editor, write table and picture.

    Raises:
        ArgumentError: the model has no preset, or there is no editor of a name.
    """
    preset = rl.preset(model_name)
    model = rl.load_model(model_name)
    chosen = _editors(preset, model, editors, progress)
    records = known_records(model, model_name, records, per_relation=per_relation)
    curve = rl.mass_edit_curve(
        model,
        records,
        chosen,
        counts=counts,
        repeats=repeats,
        scored=scored,
        texts=_toy_texts() if model_name == "toy" else None,
        prepend_bos=preset.prepend_bos,
        directory=directory,
        progress=progress,
    )
    heading(f"Edits of up to {curve.counts[-1]} facts of {model_name} at once")
    means = curve.to_frame().pivot(index=["editor", "count"], columns="measure", values="mean")
    say(means[list(MEASURES)].to_string(float_format="{:.3f}".format, na_rep="-"))
    for editor in curve.editors:
        for count in curve.counts:
            for error in dict.fromkeys(curve.failed(editor, count)):
                say(f"{editor}, {count} facts: {error}")
    with whole_or_nothing(out) as unfinished:
        unfinished.write_text(curve.to_markdown() + "\n", encoding="utf-8")
    picture, kept = out.with_suffix(".png"), out.with_suffix(".safetensors")
    rl.viz.mass_curve(curve).savefig(picture, dpi=150)
    curve.save(kept)
    say(f"\nTable: {out.resolve()}\nPicture: {picture.resolve()}\nResult: {kept.resolve()}")


def _editors(
    preset: Preset, model: LensModel, names: Sequence[str] | None, progress: bool
) -> list[Any]:
    """ROME in sequence and the editors of many facts, or those of these names."""
    known = (_ROME, *get_args(Method))
    if unknown := [name for name in names or () if name not in known]:
        raise ArgumentError(f"--editors names {unknown[0]!r}, expected some of {', '.join(known)}.")
    cache = cache_root() / "keys"
    chosen: list[Any] = []
    if names is None or _ROME in names:
        chosen.append(replace(preset.editor(model, cache=cache, progress=progress), name=_ROME))
    if names is None or set(names) != {_ROME}:
        chosen += preset.mass_editors(model, cache=cache, progress=progress)
    return [each for each in chosen if names is None or each.name in names]


def _toy_texts() -> list[str]:
    """What the toy model knows that is about no person: where its cities are."""
    taught = json.loads((FILES[1].parent / "facts.json").read_text(encoding="utf-8"))
    places = sorted({(each["city"], each["country"]) for each in taught["people"]})
    return [f"{city} is a city in the country of {country}." for city, country in places]
