"""The command line: ``rome-lens demo`` traces, edits and questions one fact, ``rome-lens limits`` questions many edits."""

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
from rome_lens.data.record_type import Record
from rome_lens.editing.presets import PRESETS, Preset
from rome_lens.errors import ArgumentError
from rome_lens.forward.answers import top_answers
from rome_lens.models.gguf import cache_root
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel
from rome_lens.viz.page import BeforeAfter

DEFAULT_MODEL = "gemma-3-270m"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on wrong input, whose message goes to standard error."""
    args = _parser().parse_args(argv)
    with warnings.catch_warnings():
        if (
            not sys.warnoptions
        ):  # libraries' deprecation notes are for developers; python -W brings them back
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
        try:
            if args.out.is_dir():
                raise ArgumentError(
                    f"--out {args.out} is a directory, expected the name of a page, such as report.html."
                )
            if args.quiet:
                transformers.utils.logging.disable_progress_bar()
            args.run(args)
        except (ValueError, OSError) as error:
            Console(stderr=True, highlight=False).print(
                f"rome-lens: {escape(str(error))}", soft_wrap=True
            )
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rome-lens",
        description="Where does a model keep a fact, and what does an edit change?",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "demo", help="trace, edit and question one fact, and write a report page"
    )
    one.add_argument(
        "--record",
        default=None,
        help="id of the fact's record (default: eiffel-tower, or the toy model's first)",
    )
    one.set_defaults(out=Path("rome-lens-report.html"), run=_run_demo)
    many = commands.add_parser(
        "limits", help="edit many facts one by one, and ask what each edit does not do"
    )
    many.add_argument(
        "--records",
        type=Path,
        default=None,
        help="a file of records (default: the project's own that the model knows)",
    )
    many.add_argument(
        "--only",
        nargs="+",
        default=None,
        metavar="ID",
        help="ids of the records to take (default: all)",
    )
    many.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="of these, take every N-th, from the first on",
    )
    many.add_argument("--limit", type=int, default=None, help="of these, take the first so many")
    many.add_argument(
        "--directory",
        type=Path,
        default=None,
        help="where finished edits and checks are kept, to go on from there",
    )
    many.set_defaults(out=Path("rome-lens-limits.html"), run=_run_limits)
    for command in (one, many):
        command.add_argument(
            "--model",
            default=DEFAULT_MODEL,
            help=f"toy, gemma-3-270m, smollm2-135m, a directory, or a TransformerLens name (default: {DEFAULT_MODEL})",
        )
        command.add_argument(
            "--layer",
            type=int,
            default=None,
            help="layer to edit (default: the preset's, or chosen from an MLP trace)",
        )
        command.add_argument(
            "--out", type=Path, help=f"the page (default: {command.get_default('out')})"
        )
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _run_demo(args: argparse.Namespace) -> None:
    demo(args.model, record_id=args.record, layer=args.layer, out=args.out, progress=not args.quiet)


def _run_limits(args: argparse.Namespace) -> None:
    if args.out.suffix not in (".html", ".md"):
        raise ArgumentError(
            f"--out {args.out}: expected a name that ends in .html (a page) or .md (tables)."
        )
    for name, number in (("--limit", args.limit), ("--every", args.every)):
        if number is not None and number < 1:
            raise ArgumentError(f"{name} is {number}, expected 1 or more.")
    records = _records(args.model, args.records, args.only)[:: args.every][: args.limit]
    if not records:
        raise ArgumentError("There is no record to take: see --records and --only.")
    limits(
        args.model,
        records,
        layer=args.layer,
        directory=args.directory,
        out=args.out,
        progress=not args.quiet,
    )


def demo(
    model_name: str, *, record_id: str | None, layer: int | None, out: Path, progress: bool
) -> None:
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
        traces.append(
            rl.causal_trace(model, fact, component=component, window=window, progress=progress)
        )
        where, pos = traces[-1].peak()
        console.print(
            f"{component}, windows of {window}: highest at layer {where}, token {traces[-1].labels[pos]!r}, "
            f"p = {float(traces[-1].scores.max()):.3f}"
        )
    chosen = rl.choose_layer(traces[1])
    console.print(
        f"Restoring MLP outputs inside the subject brings back most of the answer around layer {chosen}."
    )
    preset = _preset(model_name, chosen if layer is None else layer, forced=layer is not None)

    _heading(f"2. Edit layer {preset.layer}: {fact.target} -> {fact.new_target}")
    editor = preset.editor(model, cache=cache_root() / "keys", progress=progress)
    console.print(
        f"Key statistics: {editor.statistics.count} keys ({editor.statistics.source})",
        soft_wrap=True,
    )
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
    found = rl.check_limits(
        model, edit, record, texts=_other_texts(model_name, [record]), samples=2, new_tokens=20
    )
    for result in found.results:
        console.print(
            f"[bold]{result.name}[/bold]: {escape(result.asks)}\n  {escape(result.reading)}",
            soft_wrap=True,
        )
        if result.asked:
            console.print(f"  {result.effect_is}: {result.effect}", markup=False, soft_wrap=True)
        if result.control is not None:
            console.print(
                f"  control, {result.control_is}: {result.control}", markup=False, soft_wrap=True
            )
    prompts = [
        fact.text,
        *record.paraphrases,
        *(fact.about(name).text for name in (*record.aliases, *record.descriptions)),
    ]
    firing = rl.edit_firings(model, edit, prompts)
    page = rl.report(
        out,
        model_name=model_name,
        traces=traces,
        edit=edit,
        answers=answers,
        limits=found,
        firing=firing,
    )
    console.print(f"\nReport: {page.resolve()}", markup=False, soft_wrap=True)


def limits(
    model_name: str,
    records: Sequence[Record],
    *,
    layer: int | None,
    directory: Path | None,
    out: Path,
    progress: bool,
) -> None:
    """Edit each record's fact alone and ask every check about it; print the averages and write the page."""
    model = rl.load_model(model_name)
    if layer is not None:
        rl.models.check_layer(model, layer)
    known = rl.knows(model, [record.fact for record in records])
    unknown = [record.id for record, knows in zip(records, known, strict=True) if not knows]
    records = [record for record, knows in zip(records, known, strict=True) if knows]
    if unknown:
        console.print(
            f"Not known to {model_name}, left out: {', '.join(map(str, unknown))}",
            markup=False,
            soft_wrap=True,
        )
    if not records:
        raise ArgumentError(f"{model_name} knows none of these facts: there is nothing to edit.")
    if layer is None and model_name not in PRESETS:
        window = max(1, min(5, model.cfg.n_layers // 3))
        layer = rl.choose_layer(
            rl.causal_trace(
                model, records[0].fact, component="mlp", window=window, progress=progress
            )
        )
        console.print(
            f"Layer {layer}, from the MLP trace of {records[0].fact.text!r}.",
            markup=False,
            soft_wrap=True,
        )
    preset = _preset(model_name, layer or 0, forced=layer is not None)
    editor = preset.editor(model, cache=cache_root() / "keys", progress=progress)
    texts = _other_texts(model_name, records)
    found = rl.check_records(
        model, records, editor, texts=texts, directory=directory, progress=progress
    )
    _heading(f"What {len(records)} edits of {model_name} at layer {preset.layer} do not do")
    for name in found.checks:
        asked = found.of(name)
        console.print(f"\n[bold]{name}[/bold] ({len(asked)} facts)", soft_wrap=True)
        if not asked:
            console.print("  not asked", soft_wrap=True)
            continue
        lines = [(asked[0].effect_is, found.effect(name))]
        lines += [("  where the unedited model knows it", found.effect(name, "effect_where_known"))]
        lines += [(f"control: {asked[0].control_is}", found.effect(name, "control"))]
        names = dict.fromkeys(measure.name for result in asked for measure in result.further)
        lines += [(measure, found.measure(name, measure)) for measure in names]
        for what, value in lines:
            if value is not None:
                console.print(f"  {what}: {value}", markup=False, soft_wrap=True)
    if found.firing_correlation is not None:
        console.print(
            f"\nSpearman's correlation of firing with KL over a fact's prompts: {found.firing_correlation}",
            markup=False,
            soft_wrap=True,
        )
    page = rl.limits_report(out, model_name=model_name, average=found)
    console.print(f"\nReport: {page.resolve()}", markup=False, soft_wrap=True)


def _preset(model_name: str, layer: int, *, forced: bool) -> Preset:
    """The model's preset, at this layer where it is forced; for a model that has none, a cautious one."""
    preset = PRESETS.get(model_name)
    if preset is None:
        return Preset(model=model_name, layer=layer, config=rl.RomeConfig(stop_probability=0.5))
    return replace(preset, layer=layer) if forced else preset


def _records(model_name: str, file: Path | None, only: Sequence[str] | None) -> list[Record]:
    """Those of the file, or of the project's own; the toy knows its own alone, and no other model knows those."""
    if file is not None:
        records = rl.data.read_records(file)
    else:
        records = [
            record
            for record in rl.data.records()
            if ("toy" in record.known_by) == (model_name == "toy")
        ]
    if only is None:
        return records
    if missing := set(only) - {record.id for record in records}:
        raise ArgumentError(
            f"There is no record {sorted(missing)}; there are: {', '.join(str(record.id) for record in records)}."
        )
    return [record for record in records if record.id in only]


def _other_texts(model_name: str, records: Sequence[Record]) -> list[str] | None:
    """Text for the model to read that is about none of the records; the toy, which knows no English, reads its own kind."""
    if model_name != "toy":
        return None
    neighbours = dict.fromkeys(
        f"{q.prompt} {q.target}." for record in records for q in record.neighborhood
    )
    return [
        text for text in neighbours if not any(record.fact.subject in text for record in records)
    ][:12]


def _record(model_name: str, record_id: str | None) -> Record:
    if record_id is not None:
        return rl.data.limits(record_id)
    if model_name == "toy":
        return next(record for record in rl.data.records() if "toy" in record.known_by)
    return rl.data.limits("eiffel-tower")


def _before_and_after(model: LensModel, record: Record, hooks: list[Hook]) -> list[BeforeAfter]:
    asked = [("fact", record.fact.text, record.fact.target)]
    asked += [("paraphrase", prompt, record.fact.target) for prompt in record.paraphrases[:2]]
    asked += [
        ("neighbour", question.prompt, question.target) for question in record.neighborhood[:4]
    ]
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
            escape(trace.labels[pos].strip()) + ("*" if start <= pos < end else ""),
            justify="right",
            no_wrap=True,
        )
    for layer, row in zip(trace.layers, trace.scores.tolist(), strict=True):
        table.add_row(str(layer), *(f"{score:.2f}" for score in row))
    return table


def _answers_table(answers: Sequence[BeforeAfter]) -> Table:
    table = Table("", "prompt", "true answer", "before", "after")
    for row in answers:
        table.add_row(
            row.kind,
            *(
                escape(text)
                for text in (row.before.prompt, row.expected, str(row.before), str(row.after))
            ),
        )
    return table
