"""The snippets of the README and the docs: what they are, and how one is run."""

import contextlib
import doctest
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_EXCUSE = re.compile(r"<!-- not run: (.+?) -->\s*\Z")


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a document."""

    path: Path
    line: int
    """The line of its first line of code."""
    language: str
    code: str
    output: str | None
    """The text block that follows it: what it prints."""
    excuse: str | None
    """Why it is not run: the words of a comment ``<!-- not run: ... -->`` before it."""

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def snippets(path: Path) -> list[Snippet]:
    """The fenced blocks of a document. A ``text`` block right after code is its output."""
    source = path.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(source))
    found = []
    for fence, following in zip(fences, [*fences[1:], None], strict=False):
        indent, language, code = fence.groups()
        output = None
        if following is not None and following.group(2) == "text":
            between = source[fence.end() : following.start()]
            output = following.group(3) if between.strip() == "" else None
        excuse = _EXCUSE.search(source[: fence.start()])
        found.append(
            Snippet(
                path=path,
                line=source[: fence.start(3)].count("\n") + 1,
                language=language,
                code=re.sub(rf"^{indent}", "", code, flags=re.MULTILINE),
                output=output,
                excuse=None if excuse is None else excuse.group(1),
            )
        )
    return found


def run_python(snippet: Snippet, names: dict[str, Any]) -> str:
    """Run Python with these names, and return what it printed."""
    code = compile("\n" * (snippet.line - 1) + snippet.code, str(snippet.path), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    return out.getvalue()


def sessions(snippet: Snippet) -> list[tuple[list[str], str]]:
    """Each command of a ``console`` block, and the output that stands below it."""
    parts = re.split(r"^\$ (.*)\n", snippet.code, flags=re.MULTILINE)
    assert parts[0] == "", f"{snippet} does not begin with a command"
    return [
        (shlex.split(command), output)
        for command, output in zip(parts[1::2], parts[2::2], strict=True)
    ]


def run_command(command: list[str]) -> str:
    """Run one ``rome-lens`` command, and return what it printed."""
    assert command[0] == "rome-lens", command
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(command[1:])
    assert status == 0, command
    return out.getvalue()


def commands(snippet: Snippet) -> list[list[str]]:
    """The command lines of a ``bash`` block, split at ``&&`` and without comments."""
    joined = snippet.code.replace("\\\n", " ")
    lines = [part for line in joined.splitlines() for part in line.split("&&")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def difference(wanted: str, got: str) -> str:
    """Nothing if the output is as wanted, up to white space and ``...``; otherwise, both."""
    if doctest.OutputChecker().check_output(wanted, got, OPTIONS):
        return ""
    return f"expected:\n{wanted}\ngot:\n{got}"
