"""Pictures from results. Nothing here runs a model or shows a window: figures and HTML are returned."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from circuitsvis.tokens import colored_tokens
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from rome_lens.checks.firing import EditFiring
from rome_lens.traces import CausalTrace

_COLOURS = {"resid": "Purples", "mlp": "Greens", "attn": "Reds"}
_NAMES = {"resid": "residual stream", "mlp": "MLP output", "attn": "attention output"}


@dataclass(frozen=True, repr=False)
class Html:
    """A picture as HTML that needs no network; notebooks show it."""

    source: str

    def __repr__(self) -> str:
        return f"Html({len(self.source)} characters)"

    def _repr_html_(self) -> str:
        return self.source


def trace(result: CausalTrace) -> Figure:
    """Heatmap of a trace: tokens down, layers across, colour the probability of the answer with the state restored.

    The colour scale starts at the corrupted run's probability. Tokens of the subject carry a star.
    """
    scores = result.scores.T.numpy()
    figure = Figure(figsize=(1.9 + 0.32 * len(result.layers), 1.5 + 0.27 * len(result.positions)), layout="constrained")
    axes = figure.add_subplot()
    top = max(float(scores.max()), result.corrupted + 1e-6)
    image = axes.pcolormesh(scores, cmap=_COLOURS[result.component], vmin=min(result.corrupted, top), vmax=top)
    axes.invert_yaxis()
    start, end = result.subject
    labels = [_visible(result.labels[pos]) + ("*" if start <= pos < end else "") for pos in result.positions]
    axes.set_yticks([i + 0.5 for i in range(len(labels))], labels, parse_math=False)
    step = max(1, len(result.layers) // 18)
    axes.set_xticks([i + 0.5 for i in range(0, len(result.layers), step)], [str(i) for i in result.layers[::step]])
    axes.set_xlabel("restored layer" if result.window == 1 else f"centre of {result.window} restored layers")
    axes.set_title(
        f"{_NAMES[result.component]}: clean {result.clean:.2f}, corrupted {result.corrupted:.3f}", fontsize=9
    )
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(f"p({result.answer.strip()})", parse_math=False)
    return figure


def tokens(labels: Sequence[str], values: Float[Tensor, " pos"] | Sequence[float]) -> Html:
    """Tokens coloured by a value each (CircuitsVis): blue above zero, red below.

    Raises:
        ValueError: there are not as many values as tokens.
    """
    if len(labels) != len(values):
        raise ValueError(f"There are {len(labels)} tokens and {len(values)} values, expected as many.")
    # CircuitsVis puts labels into the page as HTML, in which "<bos>" would be an element and not be seen.
    rendered = colored_tokens([html.escape(label) for label in labels], [float(value) for value in values])
    return Html(f"<div>{rendered.local_src}</div></div>")  # CircuitsVis leaves its own div open


def trace_tokens(result: CausalTrace) -> Html:
    """The prompt's tokens, coloured by the largest indirect effect that any layer's state has there."""
    effects = result.indirect_effects.max(0).values
    return tokens([result.labels[pos] for pos in result.positions], effects.clamp(min=0.0))


def firing(results: Sequence[EditFiring]) -> Html:
    """Where an edit fires, for one prompt a line: 1 is how it fires on the fact's own key."""
    labels: list[str] = []
    values: list[float] = []
    for result in results:
        labels += [*result.labels, "\n"]
        values += [*result.values.tolist(), 0.0]
    return tokens(labels, values)


def figure_html(figure: Figure, *, alt: str = "") -> str:
    """A figure as an ``img`` element that holds its own data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _visible(label: str) -> str:
    """A label for an axis; a character that the font lacks shows as its code."""
    font = get_font(findfont(FontProperties()))
    text = label.replace("\n", "↵").strip() or "␣"
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text)
