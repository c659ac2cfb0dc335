"""The documentation site builds without a warning and without the network, and shows every page."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import browser_for_tests as browser
import pytest
from documents_for_tests import ROOT

import rome_lens as rl

API = sorted((ROOT / "docs" / "api").glob("*.md"))


def documented() -> list[str]:
    """The names that the API pages describe."""
    return [
        name
        for page in API
        for name in re.findall(r"^::: rome_lens\.(\S+)$", page.read_text(encoding="utf-8"), re.M)
    ]


def test_every_public_name_is_on_one_page_of_the_api() -> None:
    found = documented()
    assert sorted({name for name in found if found.count(name) > 1}) == []
    modules = {name for name in rl.__all__ if hasattr(getattr(rl, name), "__path__")}
    assert sorted(set(rl.__all__) - modules - {"__version__"} - set(found)) == []
    drawn = {f"viz.{name}" for name in rl.viz.__all__}
    assert sorted(drawn - set(found)) == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert listed == pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in strict mode by a process that cannot open a connection."""
    if "CI" not in os.environ:
        pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    directory = tmp_path_factory.mktemp("site")
    build = (
        "import socket, sys, mkdocs.__main__ as mkdocs\n"
        "def refuse(*_): raise OSError('the build asks for the network')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "sys.argv = ['mkdocs', 'build', '--strict', '--site-dir', sys.argv[1]]\n"
        "mkdocs.cli()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(directory)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.mark.real  # the slower part
@pytest.mark.xdist_group("site")
def test_the_site_has_every_page_and_every_function_and_loads_nothing_from_elsewhere(
    site: Path,
) -> None:
    pages = {str(path.relative_to(site)): path for path in site.rglob("*.html")}
    missing = [
        p.stem for p in (ROOT / "demos").glob("*.ipynb") if f"tutorials/{p.stem}.html" not in pages
    ]
    assert missing == []
    api = "".join(pages[f"api/{page.stem}.html"].read_text(encoding="utf-8") for page in API)
    assert [name for name in documented() if f'id="rome_lens.{name}"' not in api] == []
    assert re.findall(r":(?:func|class|meth):", api) == []
    assert re.findall(r"<code>\w+, \w+.*?</code>\s*</td>", api) == [], "arguments share an entry"
    concepts = pages["concepts.html"].read_text(encoding="utf-8")
    assert concepts.count("<math") > 20
    assert "$" not in re.sub(r"<code>.*?</code>|<script.*?</script>", "", concepts, flags=re.S)
    for name, path in pages.items():
        source = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="(https?:[^"]+)"', source)
        loaded += re.findall(
            r'<link[^>]* rel="(?:stylesheet|preconnect)"[^>]*href="(http[^"]+)"', source
        )
        assert loaded == [], name


@pytest.mark.real
@pytest.mark.xdist_group("site")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("page", ["start", "tutorials"])
def test_pages_of_the_site_are_quiet_and_as_wide_as_the_window(
    page: str, width: int, site: Path, tmp_path: Path
) -> None:
    paths = (
        sorted((site / "tutorials").glob("*.html"))
        if page == "tutorials"
        else [site / f"{page}.html"]
    )
    for path in paths:
        seen = browser.look(path, width=width, scratch=tmp_path, name=f"site-{path.stem}")
        assert (path.name, seen.console, seen.outside) == (path.name, [], [])
        assert seen.full <= seen.width, f"{path.name} scrolls sideways"
        assert [p for p in seen.pictures if min(p[1:]) < 20] == [], f"{path.name}: no size"


def test_mkdocs_reads_no_file_that_is_not_there() -> None:
    """Hooks and extensions are named by path, so a renamed script would show only in a build."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"\[(scripts/\S+?\.py)\]", config)
    assert len(named) == 2
    for name in named:
        ast.parse((ROOT / name).read_text(encoding="utf-8"))
