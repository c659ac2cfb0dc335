"""Every snippet of the README and the docs runs, and prints what stands below it.

The Python snippets of a page share their names, as the cells of a notebook do. They use the toy
model, so that all pages together take seconds.
"""

import functools
import re
from pathlib import Path
from typing import Any

import documents_for_tests as documents
import pytest
import statistics_for_tests
from documents_for_tests import DOCUMENTS, ROOT, Snippet, snippets

import rome_lens as rl
from rome_lens import cli
from rome_lens.commands.console import console
from rome_lens.models.loading import load_model

pytestmark = pytest.mark.xdist_group("documents")

KNOWN_LANGUAGES = {"python", "console", "bash", "text", "toml", "json", "bibtex"}
REASONS = {"needs a cluster", "needs a model from a hub", "needs another package"}


@pytest.fixture
def a_newcomers_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, a cache of its own, and a model that is loaded once for all pages."""
    loaded = functools.cache(load_model)
    statistics_for_tests.share(monkeypatch.setattr)
    monkeypatch.setattr(rl, "load_model", loaded)
    monkeypatch.setenv("ROME_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "width", 140)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def runnable(path: Path) -> list[Snippet]:
    return [s for s in snippets(path) if s.language in ("python", "console")]


@pytest.mark.real  # the slower part
@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if runnable(p)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_page_s_snippets_run_and_print_what_stands_below_them(
    path: Path, a_newcomers_machine: None
) -> None:
    names: dict[str, Any] = {"__name__": "a_page"}
    for snippet in runnable(path):
        if snippet.excuse:
            compile(snippet.code, str(snippet), "exec")
        elif snippet.language == "python":
            said = documents.difference(snippet.output or "", documents.run_python(snippet, names))
            assert said == "", f"{snippet} {said}"
        else:
            for command, output in documents.sessions(snippet):
                said = documents.difference(output, documents.run_command(command))
                assert said == "", f"{snippet} {said}"


def every(language: str) -> list[Snippet]:
    return [s for path in DOCUMENTS for s in snippets(path) if s.language == language]


def test_a_snippet_is_left_out_only_for_a_known_reason_and_python_never_hides() -> None:
    excuses = {str(s): s.excuse for path in DOCUMENTS for s in snippets(path) if s.excuse}
    assert {name: why for name, why in excuses.items() if why not in REASONS} == {}
    languages = {s.language for path in DOCUMENTS for s in snippets(path)}
    assert languages - KNOWN_LANGUAGES == set()


def test_every_command_of_the_docs_is_one_that_the_command_line_knows() -> None:
    wrong = []
    for snippet in every("bash"):
        for words in documents.commands(snippet):
            if words[0] == "rome-lens":
                try:
                    cli._parser().parse_args(words[1:])
                except SystemExit:
                    wrong.append(f"{snippet}: {' '.join(words)}")
            elif words[0] == "python" and words[1].endswith(".py") and words[1][0] not in "./":
                wrong += [] if (ROOT / words[1]).is_file() else [f"{snippet}: {words[1]}"]
    assert wrong == []


def test_every_link_to_a_file_leads_to_one() -> None:
    wrong = []
    for path in DOCUMENTS:
        source = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", source):
            file = "".join(target).partition("#")[0]
            if file and not re.match(r"\w+:", file) and not (path.parent / file).exists():
                wrong.append(f"{path.relative_to(ROOT)}: {file}")
    assert wrong == []


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "got:\n1"),
        ("```python\nprint(1)\n```\n", "got:\n1"),
        ("```python\nx = 1\n```\n\n```text\n1\n```\n", "expected:\n1"),
    ],
    ids=["other output", "output that is not shown", "no output"],
)
def test_a_page_that_shows_something_else_is_found(page: str, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(page)
    snippet = snippets(file)[0]
    printed = documents.run_python(snippet, {})
    assert fault in documents.difference(snippet.output or "", printed)


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 900
