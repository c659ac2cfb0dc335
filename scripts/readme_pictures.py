"""Make the pictures of the README: python scripts/readme_pictures.py

``docs/images/demo.png`` is what ``rome-lens demo`` finds on Gemma 3 270M, in one picture; it takes
headless Chromium and the extra ``gemma``. ``docs/images/layer-sweep-toy.png`` is the figure of the
README's own snippet.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

import rome_lens as rl
from rome_lens.models.gguf import cache_root

IMAGES = Path(__file__).parent.parent / "docs" / "images"

CARD = """<!doctype html><meta charset="utf-8"><style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 18px 22px; width: 1236px; }
h1 { font-size: 20px; margin: 0 0 10px; } h2 { font-size: 15px; margin: 14px 0 4px; }
.card { display: grid; grid-template-columns: 600px 1fr; gap: 28px; } img { width: 600px; }
table { border-collapse: collapse; font-size: 14px; } td { padding: 3px 10px 3px 0; }
td { border-bottom: 1px solid #eee; vertical-align: top; } td:first-child { max-width: 330px; }
mark { background: #ffe2b8; color: #7a2d00; font-weight: bold; padding: 0 3px; }
</style>
<h1>{{ title }}</h1>
<div class="card">
<div><h2>1. Where is it looked up?</h2>{{ trace|safe }}</div>
<div><h2>2. Rewritten? The most likely next word</h2><table>
{% for b, a in answers %}<tr><td>{{ b.prompt }}</td>
<td>{{ b.tokens[0] }} {{ "%.2f"|format(b.probabilities[0]) }} →</td>
<td>{% if b.tokens[0] != a.tokens[0] %}<mark>{{ a.tokens[0] }}</mark>{% else %}{{ a.tokens[0] }}
{% endif %} {{ "%.2f"|format(a.probabilities[0]) }}</td></tr>
{% endfor %}</table>
<h2>3. Where the edit acts</h2>{{ firing|safe }}</div></div>
"""


def demo_card(model_name: str) -> str:
    """One edit as a page: the trace, answers before and after, and where the edit fires."""
    model = rl.load_model(model_name)
    record = rl.data.record("eiffel-tower")
    fact = record.fact
    trace = rl.causal_trace(model, fact)
    preset = rl.preset(model_name)
    edit = preset.editor(model, cache=cache_root() / "keys")(model, fact)
    prompts = [fact.text, record.paraphrases[0], record.neighborhood[0].prompt]
    others = [fact.about(name).text for name in (*record.aliases, *record.descriptions)]
    known = [answer.tokens[0].strip() == fact.target for answer in rl.top_answers(model, others)]
    prompts += [prompt for prompt, knows in zip(others, known, strict=True) if knows][:2]
    before = rl.top_answers(model, prompts, count=1)
    after = rl.top_answers(model, prompts, count=1, fwd_hooks=edit.fwd_hooks(model))
    return jinja2.Template(CARD, autoescape=True).render(
        title=f"{fact.text} {fact.target} → {fact.new_target} ({model_name})",
        trace=rl.viz.figure_html(rl.viz.trace(trace)),
        answers=list(zip(before, after, strict=True)),
        firing=rl.viz.firing(rl.edit_firings(model, edit, [prompts[0], *prompts[3:]])).source,
    )


def photograph(page: str, path: Path, *, height: int) -> None:
    """Write a picture of a page."""
    chromium = shutil.which("chromium") or "google-chrome"
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "card.html"
        file.write_text(page, encoding="utf-8")
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--user-data-dir={directory}", f"--window-size=1280,{height}"]
        subprocess.run(
            [chromium, *options, f"--screenshot={path}", file.as_uri()],
            check=True,
            capture_output=True,
        )


def sweep_figure() -> Figure:
    """The figure that the README's last snippet makes."""
    from write_outputs import ROOT, run_python, snippets

    names: dict[str, Any] = {"__name__": "a_page"}
    for snippet in snippets(ROOT / "README.md"):
        if snippet.language == "python":
            run_python(snippet, names)
    figure = names["figure"]
    assert isinstance(figure, Figure)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("demo", "sweep"))
    only = parser.parse_args().only
    IMAGES.mkdir(exist_ok=True)
    if only != "demo":
        sweep_figure().savefig(IMAGES / "layer-sweep-toy.png", dpi=100, bbox_inches="tight")
    if only != "sweep":
        photograph(demo_card("gemma-3-270m"), IMAGES / "demo.png", height=405)
