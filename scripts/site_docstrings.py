"""How the API pages read docstrings: examples as code, and roles as links.

A griffe extension, which ``mkdocs.yml`` names.
"""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?(?:rome_lens\.)?([^`]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Write docstrings as mkdocstrings expects them."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Name the examples as Google's style does, and link what a role names."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(_link, text)


def _link(role: re.Match[str]) -> str:
    """A link to the public name, where a page has it; otherwise the name alone."""
    name = role.group(1)
    return f'<autoref identifier="rome_lens.{name}" optional><code>{name}</code></autoref>'
