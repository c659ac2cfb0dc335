"""``rome-lens trace``: where facts are read out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rome_lens as rl
from rome_lens.commands.choices import choose_bos, trace_window
from rome_lens.commands.console import console, heading, say
from rome_lens.commands.demo import trace_table
from rome_lens.commands.limits import known_records
from rome_lens.data.record_type import Record
from rome_lens.models.hook_names import Component

_COMPONENTS: tuple[Component, ...] = ("mlp", "attn")


def run_trace(
    model_name: str, records: Sequence[Record], *, samples: int, out: Path, progress: bool
) -> None:
    """Trace facts, print where the answer is read out, and write a page of the pictures."""
    model = rl.load_model(model_name)
    bos = choose_bos(model_name)
    window = trace_window(model)
    results: dict[str, Any] = {}
    residual = []
    for record in known_records(model, model_name, records):
        heading(f"Trace of {record.fact.text!r} ({record.fact.target}) on {model_name}")
        options: dict[str, Any] = {"samples": samples, "prepend_bos": bos, "progress": progress}
        trace = rl.causal_trace(model, record, **options)
        parts = [
            rl.causal_trace(model, record, component=component, window=window, **options)
            for component in _COMPONENTS
        ]
        console.print(trace_table(trace))
        for each in (trace, *parts):
            layer, pos = each.peak()
            say(
                f"{each.component}: highest at layer {layer}, token {each.labels[pos]!r}, "
                f"{float(each.scores.max()):.3f}"
            )
        residual.append(trace)
        results[record.fact.text] = [
            rl.viz.trace(trace),
            *map(rl.viz.trace, parts),
            rl.viz.trace_by_layer(trace),
            rl.viz.trace_table(trace),
        ]
    if len(residual) > 1:
        results = {"Averages": rl.viz.averages(rl.average_traces(residual)), **results}
    page = rl.viz.results_page(out, title=f"Where {model_name} reads facts out", results=results)
    say(f"\nPage: {page.resolve()}")
