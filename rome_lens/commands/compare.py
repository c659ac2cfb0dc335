"""``rome-lens compare``: what the edits of several editors do not do, on the same facts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import rome_lens as rl
from rome_lens.commands.choices import unrelated_texts
from rome_lens.commands.console import heading, say
from rome_lens.commands.limits import known_records
from rome_lens.data.record_type import Record
from rome_lens.editing.mass_config import Method
from rome_lens.editing.presets import Preset
from rome_lens.errors import ArgumentError
from rome_lens.models.gguf import cache_root
from rome_lens.models.lens import LensModel
from rome_lens.storage import whole_or_nothing

_MASS = get_args(Method)
_UNSTOPPED = tuple(f"{method} unstopped" for method in _MASS)


def run_compare(
    model_name: str,
    records: Sequence[Record],
    *,
    editors: Sequence[str] | None,
    samples: int,
    new_tokens: int,
    device: str,
    per_relation: int | None = None,
    directory: Path | None,
    out: Path,
    progress: bool,
) -> None:
    """Edit each record's fact with each editor, check the edits, write tables and a picture.

    Raises:
        ArgumentError: the model has no preset, or there is no editor of a name.
    """
    preset = rl.preset(model_name)
    model = rl.load_model(model_name, device=device)
    chosen = _editors(preset, model, editors, progress)
    records = known_records(model, model_name, records, per_relation=per_relation)
    compared = rl.compare_limits(
        model,
        records,
        chosen,
        texts=unrelated_texts(model_name, records),
        samples=samples,
        new_tokens=new_tokens,
        prepend_bos=preset.prepend_bos,
        directory=directory,
        progress=progress,
    )
    heading(f"What edits of {len(records)} facts of {model_name} do not do, by editor")
    for check, number in compared.numbers:
        say(f"\n{check}: {compared.words(check, number)}")
        for editor in compared.editors:
            mean = compared.mean(editor, check, number)
            difference = compared.difference(editor, check, number)
            line = f"  {editor}: {mean or 'not asked'}"
            if editor != compared.editors[0] and difference is not None:
                line += f"; minus {compared.editors[0]}: {difference}"
            say(line)
    for editor, record, message in compared.failures:
        say(f"{editor} made no edit of {record}: {message}")
    with whole_or_nothing(out) as unfinished:
        unfinished.write_text(compared.to_markdown() + "\n", encoding="utf-8")
    picture = out.with_suffix(".png")
    rl.viz.limits_by_editor(compared).savefig(picture, dpi=150)
    by_fact = out.with_suffix(".parquet")
    compared.by_fact().to_parquet(by_fact)
    say(f"\nTable: {out.resolve()}\nPicture: {picture.resolve()}\nBy fact: {by_fact.resolve()}")


def _editors(
    preset: Preset, model: LensModel, names: Sequence[str] | None, progress: bool
) -> list[Any]:
    """The editors of these names. None takes all but those that write many facts at once.

    Raises:
        ArgumentError: there is no editor of a name.
    """
    cache = cache_root() / "keys"
    chosen: list[Any] = [*preset.editors(model, cache=cache, progress=progress)]
    if names is None:
        return chosen
    if set(names) & set(_MASS):  # their statistics are of more layers
        chosen += preset.mass_editors(model, cache=cache, progress=progress)
    if set(names) & set(_UNSTOPPED):
        chosen += preset.mass_editors(model, stopped=False, cache=cache, progress=progress)
    by_name = {editor.name: editor for editor in chosen}
    known = dict.fromkeys((*by_name, *_MASS, *_UNSTOPPED))
    if unknown := [name for name in names if name not in known]:
        raise ArgumentError(f"--editors names {unknown[0]!r}, expected some of {', '.join(known)}.")
    return [by_name[name] for name in names]
