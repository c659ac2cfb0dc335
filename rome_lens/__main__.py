"""The command line: ``rome-lens demo`` traces, edits and questions one fact of a model."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import rome_lens as rl
from rome_lens.answers import top_answers
from rome_lens.checks.firing import edit_firing
from rome_lens.data import Record
from rome_lens.models import Hook, LensModel
from rome_lens.presets import PRESETS, Preset
from rome_lens.report import BeforeAfter
from rome_lens.weights import cache_root

DEFAULT_MODEL = "gemma-3-270m"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on wrong input, whose message goes to standard error."""
    args = _parser().parse_args(argv)
    with warnings.catch_warnings():
        if not sys.warnoptions:  # libraries' deprecation notes are for developers; python -W brings them back
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
        try:
            if args.out.is_dir():
                raise ValueError(f"--out {args.out} is a directory, expected the name of a page, such as report.html.")
            if args.quiet:
                transformers.utils.logging.disable_progress_bar()
            demo(args.model, record_id=args.record, layer=args.layer, out=args.out, progress=not args.quiet)
        except (ValueError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"rome-lens: {escape(str(error))}", soft_wrap=True)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rome-lens", description="Where does a model keep a fact, and what does an edit change?"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("demo", help="trace, edit and question one fact, and write a report page")
    run.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"toy, gemma-3-270m, smollm2-135m, a directory, or a TransformerLens name (default: {DEFAULT_MODEL})",
    )
    run.add_argument(
        "--record", default=None, help="id of the fact's record (default: eiffel-tower, or the toy model's first)"
    )
    run.add_argument(
        "--layer", type=int, default=None, help="layer to edit (default: the preset's, or chosen from the MLP trace)"
    )
    run.add_argument(
        "--out", type=Path, default=Path("rome-lens-report.html"), help="the report page (default: %(default)s)"
    )
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def demo(model_name: str, *, record_id: str | None, layer: int | None, out: Path, progress: bool) -> None:
    """The main job, step by step, on one model and one fact."""
    record = _record(model_name, record_id)
    fact = record.fact
    model = rl.load_model(model_name)
    if layer is not None:
        rl.models.check_layer(model, layer)
    window = max(1, min(5, model.cfg.n_layers // 3))
    _heading(f"1. Trace {fact.text!r} ({fact.target}) on {model_name}")
    traces = [rl.causal_trace(model, fact, progress=progress)]
    console.print(_trace_table(traces[0]))
    for component in ("mlp", "attn"):
        traces.append(rl.causal_trace(model, fact, component=component, window=window, progress=progress))
        where, pos = traces[-1].peak()
        console.print(
            f"{component}, windows of {window}: highest at layer {where}, token {traces[-1].labels[pos]!r}, "
            f"p = {float(traces[-1].scores.max()):.3f}"
        )
    chosen = rl.choose_layer(traces[1])
    console.print(f"Restoring MLP outputs inside the subject brings back most of the answer around layer {chosen}.")
    preset = PRESETS.get(model_name)
    if layer is None:
        layer = chosen if preset is None else preset.layer
    if preset is None:
        preset = Preset(model=model_name, layer=layer, config=rl.RomeConfig(stop_probability=0.5))

    _heading(f"2. Edit layer {layer}: {fact.target} -> {fact.new_target}")
    preset = replace(preset, layer=layer)
    editor = preset.editor(model, cache=cache_root() / "keys", progress=progress)
    console.print(f"Key statistics: {editor.statistics.count} keys ({editor.statistics.source})", soft_wrap=True)
    edit = editor(model, fact)
    assert edit.losses is not None
    console.print(
        f"p({fact.new_target}) over the contexts: {edit.probability:.3f} after {len(edit.losses)} steps, loss "
        f"{edit.loss:.3f}; stopped by {edit.stopped}"
    )

    _heading("3. Answers before and after")
    answers = _before_and_after(model, record, edit.fwd_hooks(model))
    console.print(_answers_table(answers))

    _heading("4. What the edit does not do")
    limits = rl.check_limits(model, edit, record)
    for result in limits.results:
        console.print(f"[bold]{result.name}[/bold]: {escape(result.asks)}\n  {escape(result.reading)}", soft_wrap=True)
        if result.asked:
            console.print(f"  mean effect {result.effect}; control {result.control}", markup=False, soft_wrap=True)
    prompts = [
        fact.text,
        *record.paraphrases,
        *(fact.about(name).text for name in (*record.aliases, *record.descriptions)),
    ]
    firing = [edit_firing(model, edit, prompt) for prompt in prompts]
    page = rl.report(
        out, model_name=model_name, traces=traces, edit=edit, answers=answers, limits=limits, firing=firing
    )
    console.print(f"\nReport: {page.resolve()}", markup=False, soft_wrap=True)


def _record(model_name: str, record_id: str | None) -> Record:
    if record_id is not None:
        return rl.data.limits(record_id)
    if model_name == "toy":
        return next(record for record in rl.data.limits() if "toy" in record.known_by)
    return rl.data.limits("eiffel-tower")


def _before_and_after(model: LensModel, record: Record, hooks: list[Hook]) -> list[BeforeAfter]:
    asked = [("fact", record.fact.text, record.fact.target)]
    asked += [("paraphrase", prompt, record.fact.target) for prompt in record.paraphrases[:2]]
    asked += [("neighbour", question.prompt, question.target) for question in record.neighborhood[:4]]
    prompts = [prompt for _, prompt, _ in asked]
    before = top_answers(model, prompts, count=3)
    after = top_answers(model, prompts, count=3, fwd_hooks=hooks)
    return [
        BeforeAfter(kind=kind, expected=expected, before=b, after=a)
        for (kind, _, expected), b, a in zip(asked, before, after, strict=True)
    ]


def _heading(text: str) -> None:
    console.print(f"\n[bold]{escape(text)}[/bold]", soft_wrap=True)


def _trace_table(trace: rl.CausalTrace) -> Table:
    start, end = trace.subject
    table = Table(
        title=f"p({trace.answer.strip()}) with one state restored; clean {trace.clean:.3f}, corrupted {trace.corrupted:.3f}"
    )
    table.add_column("layer", justify="right")
    for pos in trace.positions:
        table.add_column(
            escape(trace.labels[pos].strip()) + ("*" if start <= pos < end else ""), justify="right", no_wrap=True
        )
    for layer, row in zip(trace.layers, trace.scores.tolist(), strict=True):
        table.add_row(str(layer), *(f"{score:.2f}" for score in row))
    return table


def _answers_table(answers: Sequence[BeforeAfter]) -> Table:
    table = Table("", "prompt", "true answer", "before", "after")
    for row in answers:
        table.add_row(
            row.kind, *(escape(text) for text in (row.before.prompt, row.expected, str(row.before), str(row.after)))
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
