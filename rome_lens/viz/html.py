"""HTML that loads nothing from the network: coloured tokens and figures."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from circuitsvis.tokens import colored_tokens
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from rome_lens.editing.firing import EditFiring
from rome_lens.errors import ArgumentError
from rome_lens.tracing.results import CausalTrace


@dataclass(frozen=True, repr=False)
class Html:
    """A picture as HTML that loads nothing from the network. Notebooks show it."""

    source: str
    """The HTML."""

    def __repr__(self) -> str:
        return f"Html({len(self.source)} characters)"

    def _repr_html_(self) -> str:
        return self.source


def tokens(labels: Sequence[str], values: Float[Tensor, " pos"] | Sequence[float]) -> Html:
    """Colour each token by its value, blue above zero and red below, with CircuitsVis.

    Raises:
        ArgumentError: there are more tokens than values, or fewer.
    """
    if len(labels) != len(values):
        raise ArgumentError(
            f"There are {len(labels)} tokens and {len(values)} values, expected one for each token."
        )
    # CircuitsVis puts labels into the page as HTML, where "<bos>" would be an invisible element.
    rendered = colored_tokens(
        [html.escape(label) for label in labels], [float(value) for value in values]
    )
    return Html(f"<div>{rendered.local_src}</div></div>")  # CircuitsVis leaves its own div open


def trace_tokens(result: CausalTrace) -> Html:
    """Colour the prompt's tokens by the largest indirect effect there, over all layers."""
    effects = (
        result.indirect_effects.amax((0, 2)) if result.heads else result.indirect_effects.amax(0)
    )
    return tokens([result.labels[pos] for pos in result.positions], effects.clamp(min=0.0))


def firing(results: EditFiring | Sequence[EditFiring]) -> Html:
    """Colour the tokens of one prompt, or of several on a line each, by how the edit fires there.

    1 is how the edit fires on its own key.
    """
    if isinstance(results, EditFiring):
        return tokens(results.labels, results.values)
    labels: list[str] = []
    values: list[float] = []
    for result in results:
        labels += [*result.labels, "\n"]
        values += [*result.values.tolist(), 0.0]
    return tokens(labels, values)


def figure_html(figure: Figure, *, alt: str = "") -> str:
    """A figure as an ``img`` element that contains the picture's data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
