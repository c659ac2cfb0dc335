"""Where the commands print."""

import sys

from rich.console import Console
from rich.markup import escape

# A pipe has no width of its own, so tables that are written to one have a fixed width.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def say(text: str) -> None:
    """Print a line as it is, without markup. A long line is left to the terminal to wrap."""
    console.print(text, markup=False, soft_wrap=True)


def heading(text: str) -> None:
    """Print a heading, after an empty line."""
    console.print(f"\n[bold]{escape(text)}[/bold]", soft_wrap=True)
