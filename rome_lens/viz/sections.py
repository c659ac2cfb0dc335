"""A page of any results, one below the other, as a notebook would show them."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from rome_lens.arguments import check_characters
from rome_lens.errors import ArgumentError
from rome_lens.storage import installed_versions, whole_or_nothing
from rome_lens.viz.html import Html, figure_html


def results_page(path: str | Path, *, title: str, results: Mapping[str, Any]) -> Path:
    """Write any results as a page that loads nothing from the network, and return its path.

    An existing file is replaced only when the new page is complete.

    Args:
        path: where to write.
        title: the title of the page.
        results: by heading, a result of this package, a figure, or text for a paragraph. A list
            stands for several below one heading.

    Raises:
        ArgumentError: there is nothing to show, or a value cannot be shown.

    Example:
        >>> import rome_lens as rl
        >>> page = rl.viz.results_page(
        ...     "page.html", title="Two words", results={"Firing": rl.viz.tokens(["a"], [1.0])}
        ... )
        >>> page.name
        'page.html'
    """
    if not results:
        raise ArgumentError("results is empty: give at least one, with its heading.")
    check_characters("title", title)
    sections = [
        (heading, "\n".join(map(_shown, body if isinstance(body, list) else [body])))
        for heading, body in results.items()
    ]
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("rome_lens.viz"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("results.html")
    page = template.render(title=title, sections=sections, versions=installed_versions())
    path = Path(path)
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _shown(value: Any) -> str:
    """A value as HTML."""
    if isinstance(value, str):
        return f"<p>{html.escape(value)}</p>"
    if isinstance(value, Html):
        return value.source
    if hasattr(value, "savefig"):
        return figure_html(value, alt=value.get_suptitle())
    shown = getattr(value, "_repr_html_", None)
    if shown is None:
        raise ArgumentError(
            f"A result is of type {type(value).__name__}, expected one that a notebook shows, a "
            "figure, or text."
        )
    return str(shown())
