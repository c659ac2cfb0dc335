"""Options that several commands have, or that are many."""

import argparse
from pathlib import Path

from rome_lens.commands.own_fact import add_fact_arguments


def add_one_fact_arguments(
    demo: argparse.ArgumentParser, trace: argparse.ArgumentParser, edit: argparse.ArgumentParser
) -> None:
    """Add the options of the commands that are mostly about one fact."""
    demo.add_argument(
        "--record",
        help="the fact's record (default: eiffel-tower; on the toy model, its first record whose "
        "controls can be high)",
    )
    trace.add_argument("--samples", type=int, default=10, help="noise samples (default: 10)")
    edit.add_argument("--new-tokens", type=int, default=20, help="length of texts (default: 20)")
    edit.add_argument("--save", type=Path, help="a directory to keep the edits in")
    for command in (trace, edit):
        add_fact_arguments(command, record=True)


def add_compare_arguments(compare: argparse.ArgumentParser) -> None:
    """Add the options of a comparison of editors."""
    compare.add_argument(
        "--editors",
        help="some of preset, original, matched, r-ROME, C = I, FT+L, in context, null edit, "
        "MEMIT, EMMET and AlphaEdit, with commas (default: all but the last three); the others "
        "are compared with the first. The last three can also run without the preset's stop, as "
        '"MEMIT unstopped" and so on',
    )
    compare.add_argument(
        "--samples", type=int, default=1, help="sampled texts of each open prompt (default: 1)"
    )
    compare.add_argument(
        "--new-tokens",
        type=int,
        default=20,
        help="length of the texts whose entropy is compared (default: 20; 0 writes none)",
    )
    compare.add_argument("--device", default="cpu", help='such as "cuda" (default: cpu)')


def add_record_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options that choose records, and the directory for finished work."""
    command.add_argument(
        "--records",
        type=Path,
        help="a file of records (default: the bundled records that the model may know)",
    )
    command.add_argument(
        "--only", nargs="+", metavar="ID", help="take only the records with these ids"
    )
    command.add_argument(
        "--half",
        choices=("report", "development", "all"),
        help="take the records of this half; presets were chosen on the development half "
        "(default: report for the bundled records of real models, and all of any others)",
    )
    command.add_argument(
        "--every", type=int, default=1, metavar="N", help="take every N-th of these records"
    )
    command.add_argument(
        "--limit", type=int, metavar="N", help="take at most the first N of these records"
    )
    command.add_argument(
        "--per-relation",
        type=int,
        metavar="N",
        help="of these, take the first N facts of each relation that the model knows",
    )
    command.add_argument(
        "--directory",
        type=Path,
        help="keep finished edits and checks here; an interrupted run resumes from them",
    )


def add_sweep_arguments(sweep: argparse.ArgumentParser) -> None:
    """Add the options of a sweep."""
    sweep.add_argument("file", type=Path, nargs="?", help="a file of facts or records")
    add_fact_arguments(sweep)
    sweep.add_argument("--layers", help="the layers, such as 2-14 or 0,3,8-10 (default: all)")
    sweep.add_argument(
        "--editors",
        default="rome",
        help="some of rome, r-rome, ft, memit, emmet and alphaedit, with commas (default: rome)",
    )
    sweep.add_argument(
        "--stages",
        default="trace,edit,evaluate,limits",
        help="some of trace, edit, evaluate and limits, with commas (default: all)",
    )
    sweep.add_argument(
        "--out",
        type=Path,
        required=True,
        help="a name that ends in .html for a page of a quick sweep with C = I; or a directory for "
        "the table and for finished work, from which the same command goes on",
    )
    sweep.add_argument("--workers", type=int, default=1, help="how many processes (default: 1)")
    sweep.add_argument("--limit", type=int, metavar="N", help="take at most the first N facts")


def add_model_arguments(command: argparse.ArgumentParser, default: str) -> None:
    """Add the options that every command has."""
    command.add_argument(
        "--model",
        default=default,
        help="toy, gemma-3-270m, smollm2-135m, a directory, or a name that TransformerLens knows "
        f"(default: {default})",
    )
    command.add_argument("--quiet", action="store_true", help="show no progress bars")
