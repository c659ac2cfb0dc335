"""How the API pages read docstrings: examples as code, and roles as links.

A griffe extension, which ``mkdocs.yml`` names.
"""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?(?:rome_lens\.)?([^`]+)`")
_SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+):(.*(?:\n\1 +.*)*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Write docstrings as mkdocstrings expects them."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Name the examples as Google's style does, and link what a role names."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(_link, _SEVERAL.sub(_each, text))


def _each(entry: re.Match[str]) -> str:
    """An entry for each of several arguments that share one, so that each has its type."""
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}:{text}" for name in names.split(", "))


def _link(role: re.Match[str]) -> str:
    """A link to the public name, where a page has it; otherwise the name alone."""
    name = role.group(1)
    return f'<autoref identifier="rome_lens.{name}" optional><code>{name}</code></autoref>'
