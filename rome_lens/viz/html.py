"""HTML that loads nothing from the network, and figures in it."""

import base64
import html
from dataclasses import dataclass

from matplotlib.figure import Figure

from rome_lens.viz.axes import small_png


@dataclass(frozen=True, repr=False)
class Html:
    """A picture as HTML that loads nothing from the network. Notebooks show it."""

    source: str
    """The HTML."""

    def __repr__(self) -> str:
        return f"Html({len(self.source)} characters)"

    def _repr_html_(self) -> str:
        return self.source


def figure_html(figure: Figure, *, alt: str = "") -> str:
    """A figure as an ``img`` element that contains the picture's data."""
    data = base64.b64encode(small_png(figure, dpi=120)).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
