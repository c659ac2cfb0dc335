"""Write the outputs of a page's Python snippets: python scripts/write_outputs.py README.md docs/...

An output that still holds, up to white space and ``...``, stays as it is. The others are replaced
by what the snippet prints now. Snippets run in a temporary directory.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "house"))

from documents_for_tests import difference, run_python, snippets  # noqa: E402


def main(paths: list[Path]) -> None:
    """Run the snippets of each page, and put their outputs into it."""
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        names: dict[str, Any] = {"__name__": "a_page"}
        shift = 0
        for snippet in snippets(path):
            if snippet.language != "python" or snippet.excuse:
                continue
            with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
                printed = run_python(snippet, names)
            if not difference(snippet.output or "", printed):
                continue
            if snippet.output is None:
                sys.exit(f"{snippet} prints, and no text block follows it:\n{printed}")
            start = lines.index("```text\n", snippet.line + shift) + 1
            end = lines.index("```\n", start)
            new = printed.splitlines(keepends=True)
            lines[start:end] = new
            shift += len(new) - (end - start)
            print(f"{snippet} has a new output")
        path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main([Path(name).resolve() for name in sys.argv[1:]])
