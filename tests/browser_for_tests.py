"""A page in headless Chromium: what a reader would see, at any width, with the network off."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
"""Where pictures of the pages are kept, to be looked at."""
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_WRAPPER = """<!doctype html>
<meta charset="utf-8">
<style>body { margin: 0 } iframe { border: 0; width: WIDTHpx; height: 900px }</style>
<iframe id="page" src="SOURCE"></iframe>
<pre id="found" hidden></pre>
<script>
const frame = document.getElementById("page")
frame.addEventListener("load", () => setTimeout(() => {
  const inside = frame.contentDocument, width = inside.documentElement.clientWidth
  const scrolls = element => {
    for (let each = element; each; each = each.parentElement)
      if (/auto|scroll/.test(inside.defaultView.getComputedStyle(each).overflowX)) return true
    return false
  }
  const cut = []
  const texts = inside.createTreeWalker(inside.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const node = texts.currentNode, parent = node.parentElement
    if (!node.data.trim() || /SCRIPT|STYLE|NOSCRIPT|TITLE/i.test(parent.tagName)) continue
    const range = inside.createRange()
    range.selectNodeContents(node)
    const outside = [...range.getClientRects()].some(r => r.right > width + 1 || r.left < -1)
    if (outside && !scrolls(parent)) cut.push(node.data.trim().slice(0, 60))
  }
  const pictures = [...inside.images].map(each => [each.alt, each.naturalWidth, each.clientWidth])
  const asked = inside.defaultView.performance.getEntriesByType("resource").map(each => each.name)
  document.getElementById("found").textContent = JSON.stringify({
    width, full: inside.documentElement.scrollWidth, cut, pictures, asked,
  })
  frame.style.height = inside.documentElement.scrollHeight + "px"
}, 300))
</script>
"""


@dataclass(frozen=True)
class Seen:
    """What the browser reports about a page."""

    width: int
    """How wide the page's window is, in CSS pixels."""
    full: int
    """How wide its content is; more than ``width`` if it scrolls sideways."""
    cut: list[str]
    """Texts that lie outside and cannot be scrolled to."""
    pictures: list[tuple[str, int, int]]
    """Each picture: its words, its own width, and the width at which it is shown."""
    asked: list[str]
    """The addresses of what the page loaded."""
    console: list[str]
    """What was written on the console, errors included."""

    @property
    def outside(self) -> list[str]:
        """What the page loaded, or tried to load, from elsewhere than its own files."""
        return [each for each in self.asked if not re.match(r"(file|data|blob):", each)]


def browser() -> str:
    """The path of a Chromium; without one, the test is skipped."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed (none of {', '.join(_NAMES)}): apt install chromium")
    return found


def look(page: Path, *, width: int, scratch: Path, name: str, height: int = 2400) -> Seen:
    """Open a page in a window of this width, keep a screenshot, and report what is there."""
    wrapper = scratch / f"{name}-{width}.html"
    source = html.escape(page.resolve().as_uri())
    wrapper.write_text(_WRAPPER.replace("WIDTH", str(width)).replace("SOURCE", source))
    dumped = _run(wrapper, scratch, "--dump-dom")
    found = re.search(r'<pre id="found" hidden="">(.*?)</pre>', dumped.stdout, re.DOTALL)
    assert found is not None, f"{page} did not load: {dumped.stderr[-2000:]}"
    said: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = SCREENSHOTS / f"{name}-{width}.png"
    _run(wrapper, scratch, f"--screenshot={picture}", f"--window-size={max(width, 500)},{height}")
    assert picture.stat().st_size > 1000
    said["pictures"] = [tuple(each) for each in said["pictures"]]
    console = re.findall(r":CONSOLE[^\]]*\] (.*)", dumped.stderr)
    return Seen(**said, console=[each for each in console if "GL Driver Message" not in each])


def _run(page: Path, scratch: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            browser(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-unsafe-swiftshader",  # widgets draw with WebGL, which has no card here
            "--allow-file-access-from-files",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={scratch / 'profile'}",
            "--virtual-time-budget=10000",
            "--enable-logging=stderr",
            *options,
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
