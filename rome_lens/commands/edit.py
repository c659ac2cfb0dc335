"""``rome-lens edit``: rewrite facts, and see what the model says and writes then."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rome_lens as rl
from rome_lens.commands.choices import edit_preset
from rome_lens.commands.console import heading, say
from rome_lens.commands.limits import known_records
from rome_lens.data.record_type import Record
from rome_lens.models.gguf import cache_root


def run_edit(
    model_name: str,
    records: Sequence[Record],
    *,
    layer: int | None,
    new_tokens: int,
    save: Path | None,
    out: Path,
    progress: bool,
) -> None:
    """Edit each fact alone, print the answers and texts before and after, and write a page.

    With ``save``, each edit is written to this directory, for :meth:`rome_lens.RankOneEdit.load`.
    """
    model = rl.load_model(model_name)
    if layer is not None:
        rl.models.check_layer(model, layer)
    known = known_records(model, model_name, records)
    preset = edit_preset(model, model_name, known[0], layer, progress=progress)
    editor = preset.editor(model, cache=cache_root() / "keys", progress=progress)
    results: dict[str, Any] = {}
    for number, record in enumerate(known):
        fact = record.fact
        heading(f"Edit of layer {preset.layer}: {fact.text} {fact.target} -> {fact.new_target}")
        edit = editor(model, fact)
        prompts = [fact.text, *record.paraphrases[:2], f"{fact.subject} is"]
        texts = rl.compare_text(
            model,
            edit,
            [prompt for prompt in prompts if prompt],
            new_tokens=new_tokens,
            prepend_bos=preset.prepend_bos,
        )
        lens = rl.logit_lens(model, edit, prepend_bos=preset.prepend_bos)
        p_true, p_new = lens.before[-1].tolist()
        q_true, q_new = lens.after[-1].tolist()
        say(f"p({fact.target}): {p_true:.3f} -> {q_true:.3f}")
        say(f"p({fact.new_target}): {p_new:.3f} -> {q_new:.3f}")
        say(str(texts))
        firing = rl.edit_firings(model, edit, prompts, prepend_bos=preset.prepend_bos)
        results[f"{fact.text} {fact.target} → {fact.new_target}"] = [
            texts,
            lens,
            rl.viz.firing(firing),
            f"{edit!r}, made with {edit.made_with}",
        ]
        if save is not None:
            say(f"Edit: {edit.save(save / f'{number}.safetensors').resolve()}")
    title = f"Edits of {model_name} at layer {preset.layer}"
    page = rl.viz.results_page(out, title=title, results=results)
    say(f"\nPage: {page.resolve()}")
