"""The command line: ``demo`` examines one edit; ``trace``, ``edit`` and others do one thing.

This module parses arguments and reports errors. ``commands/`` does the work.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import transformers
from rich.console import Console
from rich.markup import escape

from rome_lens.arguments import check_characters
from rome_lens.commands.choices import choose_records, read_layers
from rome_lens.commands.compare import run_compare
from rome_lens.commands.curve import add_curve_arguments, run_curve
from rome_lens.commands.demo import run_demo
from rome_lens.commands.edit import run_edit
from rome_lens.commands.limits import run_limits
from rome_lens.commands.options import (
    add_compare_arguments,
    add_model_arguments,
    add_one_fact_arguments,
    add_record_arguments,
    add_sweep_arguments,
)
from rome_lens.commands.own_fact import add_fact_arguments, asked_records, own_fact
from rome_lens.commands.sweep import run_quick_sweep, run_sweep
from rome_lens.commands.trace import run_trace
from rome_lens.data.record_type import Record
from rome_lens.errors import ArgumentError, RomeLensError
from rome_lens.version import __version__

DEFAULT_MODEL = "gemma-3-270m"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 for success, 2 for wrong input.

    A sweep in which a fact failed returns 1. An error is reported as one line on standard error.
    """
    args = _parser().parse_args(argv)
    _print_what_the_encoding_lacks()
    with warnings.catch_warnings():
        if not sys.warnoptions:
            # Deprecation warnings of libraries are for developers. python -W brings them back.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
        try:
            _check_texts(args)
            _check_writable(args)
            if args.quiet:
                transformers.utils.logging.disable_progress_bar()
            status = args.run(args)
        except (RomeLensError, OSError) as error:
            message = " ".join(str(error).split())
            console = Console(stderr=True, highlight=False)
            console.print(f"rome-lens: {escape(message)}", soft_wrap=True)
            return 2
    return status or 0


def _print_what_the_encoding_lacks() -> None:
    """Let a terminal that is not in UTF-8 show the characters it lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_texts(args: argparse.Namespace) -> None:
    """Refuse arguments that are not text, such as a name in another encoding than the terminal's.

    Raises:
        ArgumentError: an argument holds bytes that are no characters, or a null character.
    """
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str | Path):
                check_characters(f"--{name}", str(text))
                if "\0" in str(text):
                    raise ArgumentError(f"--{name} is {str(text)!r}, which holds a null character.")


def _check_writable(args: argparse.Namespace) -> None:
    """Refuse, before any work, a page or a directory that cannot be written.

    Raises:
        ArgumentError: ``--out`` is a directory; ``--out`` or ``--directory`` would be in a place
            that is a file or that is read-only.
    """
    places = {}
    keeps_a_directory = args.command == "sweep" and args.out.suffix != ".html"
    if hasattr(args, "out") and args.out.is_dir() and not keeps_a_directory:
        raise ArgumentError(
            f"--out {args.out} is a directory, expected the name of a page, such as report.html."
        )
    if hasattr(args, "out"):
        places["--out"] = args.out.absolute() if keeps_a_directory else args.out.absolute().parent
    for name in ("directory", "save"):
        if getattr(args, name, None) is not None:
            places[f"--{name}"] = getattr(args, name).absolute()
    for name, place in places.items():
        nearest = next(each for each in (place, *place.parents) if each.exists())
        if not nearest.is_dir():
            raise ArgumentError(f"{name} would be in {nearest}, which is a file.")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ArgumentError(f"{name} would be in {nearest}, where you may not write.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rome-lens",
        description="Where does a model keep a fact, and what does an edit of it change?",
    )
    parser.add_argument("--version", action="version", version=f"rome-lens {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="trace and edit one fact, check the edit, and write a page"
    )
    demo.set_defaults(out=Path("rome-lens-report.html"), run=_demo)
    trace = commands.add_parser("trace", help="trace where facts are read out, and write a page")
    trace.set_defaults(out=Path("rome-lens-trace.html"), run=_trace)
    edit = commands.add_parser("edit", help="rewrite facts, and write what the model says then")
    edit.set_defaults(out=Path("rome-lens-edit.html"), run=_edit)
    limits = commands.add_parser(
        "limits", help="edit many facts one by one, and check what each edit does not do"
    )
    limits.set_defaults(out=Path("rome-lens-limits.html"), run=_limits)
    compare = commands.add_parser(
        "compare",
        help="edit many facts with several editors, and compare what their edits do not do",
    )
    add_compare_arguments(compare)
    compare.set_defaults(out=Path("rome-lens-compare.md"), run=_compare)
    curve = commands.add_parser(
        "curve", help="edit more and more facts at once, and measure what is lost"
    )
    add_curve_arguments(curve)
    curve.set_defaults(out=Path("rome-lens-curve.md"), run=_curve)
    for command in (limits, compare, curve):
        add_record_arguments(command)
    add_one_fact_arguments(demo, trace, edit)
    add_fact_arguments(limits)
    for command in (demo, edit, limits):
        command.add_argument(
            "--layer",
            type=int,
            help="the layer to edit (default: the preset's, or one chosen from an MLP trace)",
        )
    for command in (demo, trace, edit, limits, compare, curve):
        command.add_argument(
            "--out", type=Path, help=f"the page to write (default: {command.get_default('out')})"
        )
    sweep = commands.add_parser(
        "sweep",
        help="trace and edit facts at many layers: one page for a quick look, or a directory for "
        "many facts, which goes on after an interruption",
    )
    add_sweep_arguments(sweep)
    sweep.set_defaults(run=_sweep)
    for command in (demo, trace, edit, limits, compare, curve, sweep):
        add_model_arguments(command, DEFAULT_MODEL)
    return parser


def _trace(args: argparse.Namespace) -> None:
    run_trace(
        args.model,
        asked_records(args, edited=False),
        samples=args.samples,
        out=args.out,
        progress=not args.quiet,
    )


def _edit(args: argparse.Namespace) -> None:
    run_edit(
        args.model,
        asked_records(args, edited=True),
        layer=args.layer,
        new_tokens=args.new_tokens,
        save=args.save,
        out=args.out,
        progress=not args.quiet,
    )


def _demo(args: argparse.Namespace) -> None:
    run_demo(
        args.model,
        record_id=args.record,
        layer=args.layer,
        out=args.out,
        progress=not args.quiet,
    )


def _limits(args: argparse.Namespace) -> None:
    if args.out.suffix not in (".html", ".md"):
        raise ArgumentError(
            f"--out is {args.out}, expected a name that ends in .html (a page) or .md (tables)."
        )
    _check_positive(args, "per_relation")
    named = own_fact(args) is not None or args.facts is not None
    records = asked_records(args, edited=True) if named else _chosen_records(args)
    run_limits(
        args.model,
        records,
        layer=args.layer,
        per_relation=args.per_relation,
        directory=args.directory,
        out=args.out,
        progress=not args.quiet,
    )


def _compare(args: argparse.Namespace) -> None:
    if args.out.suffix != ".md":
        raise ArgumentError(f"--out is {args.out}, expected a name that ends in .md, for a table.")
    run_compare(
        args.model,
        _chosen_records(args),
        editors=None if args.editors is None else args.editors.split(","),
        samples=args.samples,
        new_tokens=args.new_tokens,
        device=args.device,
        per_relation=args.per_relation,
        directory=args.directory,
        out=args.out,
        progress=not args.quiet,
    )


def _curve(args: argparse.Namespace) -> None:
    if args.out.suffix != ".md":
        raise ArgumentError(f"--out is {args.out}, expected a name that ends in .md, for a table.")
    run_curve(
        args.model,
        _chosen_records(args, many=True),
        counts=None if args.counts is None else read_layers(args.counts, name="--counts"),
        repeats=args.repeats,
        scored=args.scored,
        editors=None if args.editors is None else args.editors.split(","),
        per_relation=args.per_relation,
        directory=args.directory,
        out=args.out,
        progress=not args.quiet,
    )


def _check_positive(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        number = getattr(args, name)
        if number is not None and number < 1:
            option = "--" + name.replace("_", "-")
            raise ArgumentError(f"{option} is {number}, expected 1 or more.")


def _chosen_records(args: argparse.Namespace, *, many: bool = False) -> list[Record]:
    _check_positive(args, "limit", "every", "per_relation")
    records = choose_records(args.model, args.records, args.only, args.half, many=many)
    records = records[:: args.every][: args.limit]
    if not records:
        raise ArgumentError("No record is left: give another --records, --only or --half.")
    return records


def _sweep(args: argparse.Namespace) -> int:
    _check_positive(args, "limit", "workers")
    layers = None if args.layers is None else read_layers(args.layers)
    if args.file is not None:
        if args.facts is not None:
            raise ArgumentError(f"Two files of facts are given, {args.file} and {args.facts}.")
        args.facts = args.file
    edits = args.out.suffix == ".html" or args.stages != "trace"
    records = asked_records(args, edited=edits)[: args.limit]
    if args.out.suffix == ".html":
        run_quick_sweep(args.model, records, layers=layers, out=args.out, progress=not args.quiet)
        return 0
    return run_sweep(
        args.model,
        records,
        layers=layers,
        editors=args.editors.split(","),
        stages=args.stages.split(","),
        directory=args.out,
        workers=args.workers,
        progress=not args.quiet,
    )
