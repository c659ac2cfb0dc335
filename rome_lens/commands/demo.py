"""``rome-lens demo``: trace and edit one fact, and check the edit."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

import rome_lens as rl
from rome_lens.commands.choices import (
    choose_bos,
    choose_preset,
    choose_record,
    trace_window,
    unrelated_texts,
)
from rome_lens.commands.console import console, heading, say
from rome_lens.data.record_type import Record
from rome_lens.models.gguf import cache_root
from rome_lens.models.lens import LensModel


def run_demo(
    model_name: str, *, record_id: str | None, layer: int | None, out: Path, progress: bool
) -> None:
    """Trace a fact, edit it, check the edit, print each step and write a page."""
    record = choose_record(model_name, record_id)
    fact = record.fact
    model = rl.load_model(model_name)
    if layer is not None:
        rl.models.check_layer(model, layer)

    heading(f"1. Trace {fact.text!r} ({fact.target}) on {model_name}")
    bos = choose_bos(model_name)
    traces, suggested = _print_traces(model, record, bos, progress=progress)
    preset = choose_preset(model_name, layer=layer, suggested=suggested)

    heading(f"2. Edit layer {preset.layer}: {fact.target} -> {fact.new_target}")
    say(_why_this_layer(model_name, preset.layer, suggested, asked=layer is not None))
    editor = preset.editor(model, cache=cache_root() / "keys", progress=progress)
    say(f"Key statistics: {editor.statistics.count} keys ({editor.statistics.source})")
    edit = editor(model, fact)
    assert edit.losses is not None
    console.print(
        f"p({escape(str(fact.new_target))}) over the contexts: {edit.probability:.3f} after "
        f"{len(edit.losses)} steps, loss {edit.loss:.3f}; stopped by {edit.stopped}"
    )

    heading("3. Answers before and after")
    answers = _answers(model, record, edit, bos)
    console.print(_answers_table(answers))

    heading("4. What the edit does not do")
    texts = unrelated_texts(model_name, [record])
    limits = rl.check_limits(
        model, edit, record, texts=texts, samples=2, new_tokens=20, prepend_bos=bos
    )
    _print_limits(limits)
    names = (*record.aliases, *record.descriptions)
    prompts = [fact.text, *record.paraphrases, *(fact.about(name).text for name in names)]
    page = rl.report(
        out,
        model_name=model_name,
        traces=traces,
        edit=edit,
        answers=answers,
        limits=limits,
        firing=rl.edit_firings(model, edit, prompts, prepend_bos=bos),
    )
    say(f"\nReport: {page.resolve()}")


def _print_traces(
    model: LensModel, record: Record, prepend_bos: bool | None, *, progress: bool
) -> tuple[list[rl.CausalTrace], int]:
    """Print and return the traces of each component, and the layer that they suggest to edit."""
    traces = [rl.causal_trace(model, record, prepend_bos=prepend_bos, progress=progress)]
    console.print(trace_table(traces[0]))
    window = trace_window(model)
    for component in ("mlp", "attn"):
        trace = rl.causal_trace(
            model,
            record,
            component=component,
            window=window,
            prepend_bos=prepend_bos,
            progress=progress,
        )
        traces.append(trace)
        layer, pos = trace.peak()
        console.print(
            f"{component}, windows of {window}: highest at layer {layer}, "
            f"token {trace.labels[pos]!r}, p = {float(trace.scores.max()):.3f}"
        )
    suggested = rl.choose_layer(traces[1])
    mlp = traces[1]
    start, end = mlp.subject
    restored = mlp.scores[mlp.layers.index(suggested), start:end].max()
    console.print(
        f"Of the MLP outputs inside the subject, those around layer {suggested} bring back most: "
        f"p = {float(restored):.3f}, clean {mlp.clean:.3f}."
    )
    return traces, suggested


def _why_this_layer(model_name: str, layer: int, suggested: int, *, asked: bool) -> str:
    """Why the demo edits this layer, in words."""
    if asked:
        return f"Layer {layer} was asked for; the trace suggests {suggested}."
    if layer == suggested:
        return f"Layer {layer} is also the one that the trace suggests."
    return (
        f"Layer {layer} is the preset's: of the layers tried, edits worked best there on facts of "
        f"{model_name}. The trace suggests layer {suggested}. It shows where the model reads the "
        "fact out, which need not be where an edit works best (Hase et al. 2023; rome-lens sweep "
        "--out page.html compares the two)."
    )


def trace_table(trace: rl.CausalTrace) -> Table:
    """The scores of a trace as a table, a row for each layer."""
    start, end = trace.subject
    table = Table(
        title=f"p({escape(trace.answer.strip())}) with one state restored; "
        f"clean {trace.clean:.3f}, corrupted {trace.corrupted:.3f}"
    )
    table.add_column("layer", justify="right")
    for pos in trace.positions:
        star = "*" if start <= pos < end else ""
        label = escape(trace.labels[pos].strip())
        table.add_column(label + star, justify="right", no_wrap=True)
    for layer, row in zip(trace.layers, trace.scores.tolist(), strict=True):
        table.add_row(str(layer), *(f"{score:.2f}" for score in row))
    return table


def _answers(
    model: LensModel, record: Record, edit: rl.RankOneEdit, prepend_bos: bool | None
) -> list[rl.BeforeAfter]:
    fact = record.fact
    asked = [
        ("fact", fact.text, fact.target),
        *(("paraphrase", prompt, fact.target) for prompt in record.paraphrases[:2]),
        *(("neighbour", each.prompt, each.target) for each in record.neighborhood[:4]),
    ]
    prompts = [prompt for _, prompt, _ in asked]
    before, after = (
        rl.top_answers(model, prompts, count=3, fwd_hooks=hooks, prepend_bos=prepend_bos)
        for hooks in ((), edit.fwd_hooks(model))
    )
    return [
        rl.BeforeAfter(kind=kind, expected=expected, before=b, after=a)
        for (kind, _, expected), b, a in zip(asked, before, after, strict=True)
    ]


def _answers_table(answers: Sequence[rl.BeforeAfter]) -> Table:
    table = Table("", "prompt", "true answer", "before", "after")
    for row in answers:
        cells = (row.before.prompt, row.expected, str(row.before), str(row.after))
        table.add_row(row.kind, *map(escape, cells))
    return table


def _print_limits(limits: rl.Limits) -> None:
    for check in limits.results:
        console.print(
            f"[bold]{check.name}[/bold]: {escape(check.asks)}\n  {escape(check.reading)}",
            soft_wrap=True,
        )
        if check.asked:
            say(f"  {check.effect_is}: {check.effect}")
        if check.control is not None:
            say(f"  control, {check.control_is}: {check.control}")
