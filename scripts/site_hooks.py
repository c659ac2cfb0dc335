"""What mkdocs does besides: notebooks become pages, and equations become MathML.

Everything is made when the site is built. The pages load no script for equations, and nothing from
the network.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File

DEMOS = Path(__file__).parent.parent / "demos"

_FENCED = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_DISPLAY = re.compile(r"^\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$([^$\n]+?)\$")


def on_config(config: Any) -> Any:
    """List the notebooks under "Tutorials", in the order of their names."""
    for section in config.nav:
        if "Tutorials" in section:
            section["Tutorials"] = [{_title(p): f"tutorials/{p.stem}.md"} for p in _notebooks()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook, and a file for each output that has a script of its own."""
    for path in _notebooks():
        page, frames = notebook_page(nbformat.read(path, as_version=4), path.stem)
        for name, content in {f"{path.stem}.md": page, **frames}.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write equations as MathML, except in code."""
    return markdown if page.file.src_uri.startswith("tutorials/") else with_equations(markdown)


def notebook_page(notebook: Any, name: str) -> tuple[str, dict[str, str]]:
    """A notebook as Markdown with its stored outputs, and the outputs that are files."""
    parts, frames = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(with_equations(cell.source))
        elif cell.cell_type == "code" and cell.source.strip():
            parts.append(f"```python\n{cell.source}\n```")
            for output in cell.outputs:
                source = output.get("data", {}).get("text/html", "")
                if "<script" in source:
                    file = f"{name}/{len(frames)}.html"
                    frames[file] = f'<!doctype html>\n<meta charset="utf-8">\n{source}\n'
                    parts.append(f'<iframe class="output" src="{file}" title="output"></iframe>')
                elif shown := _output(output):
                    parts.append(shown)
    return "\n\n".join(parts) + "\n", frames


def _output(output: Any) -> str:
    """One output of a cell that needs no script."""
    data = output.get("data", {})
    if "text/html" in data:
        source = re.sub(r"\n\s*", "\n", data["text/html"])
        return f'<div class="output">{source}</div>'
    if "image/png" in data:
        picture = data["image/png"].replace("\n", "")
        return f'<div class="output"><img alt="" src="data:image/png;base64,{picture}"></div>'
    text = output.get("text", data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def with_equations(markdown: str) -> str:
    """The text with equations as MathML, except in code."""
    parts, last = [], 0
    for code in _FENCED.finditer(markdown):
        parts += [_equations(markdown[last : code.start()]), code.group()]
        last = code.end()
    return "".join([*parts, _equations(markdown[last:])])


def _equations(text: str) -> str:
    text = _DISPLAY.sub(
        lambda m: f'<div class="equation">{convert(m.group(1), display="block")}</div>', text
    )
    # In a span, because Markdown takes a line that begins with <math> for a block of its own.
    return _INLINE.sub(lambda m: f"<span>{convert(m.group(1))}</span>", text)


def _notebooks() -> list[Path]:
    return sorted(DEMOS.glob("*.ipynb"))


def _title(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    heading = next(c.source for c in cells if c.cell_type == "markdown")
    return heading.splitlines()[0].lstrip("# ")
