"""Words that are coloured by numbers, as plain HTML without any script."""

import html
import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from rome_lens.arguments import real_number
from rome_lens.editing.firing import EditFiring
from rome_lens.errors import ArgumentError
from rome_lens.tracing.results import CausalTrace
from rome_lens.viz.html import Html
from rome_lens.viz.trace_plots import score_label

_ABOVE, _BELOW = "33,102,172", "179,88,6"  # blue and brown, which colour blindness does not merge
_STRONGEST = 0.75  # of the colour's opacity, so that black letters stay readable
_FRAME = '<div style="background:#fff;color:#000;padding:4px;line-height:1.9">'


def tokens(
    labels: Sequence[str],
    values: Float[Tensor, " pos"] | Sequence[float],
    *,
    limit: float = 1.0,
    what: str = "",
) -> Html:
    """Colour each token by its value: blue above zero, brown below, and white at zero.

    Both colours use one scale, which ends at ``-limit`` and ``limit`` whatever the values are.
    Values beyond an end have its colour. The number shows when the pointer is on a token.

    Args:
        labels: the tokens. A line break starts a new line.
        values: a number for each token.
        limit: where the scale ends.
        what: what the values are, for the legend.

    Raises:
        ArgumentError: there are more tokens than values, or fewer; the limit is not above 0.

    Example:
        >>> import rome_lens as rl
        >>> picture = rl.viz.tokens(["The", " Louvre"], [0.0, 0.5])
        >>> 'title="+0.500"' in picture.source
        True
    """
    if len(labels) != len(values):
        raise ArgumentError(
            f"There are {len(labels)} tokens and {len(values)} values, expected one for each token."
        )
    limit = real_number("limit", limit, finite=True)
    if limit <= 0.0:
        raise ArgumentError(f"limit is {limit}, expected a number above 0.")
    words = [
        "<br>" if label == "\n" else _word(label, float(value), limit)
        for label, value in zip(labels, values, strict=True)
    ]
    return Html(f"{_FRAME}{''.join(words)}{_legend(limit, what)}</div>")


def trace_tokens(result: CausalTrace) -> Html:
    """Colour the prompt's tokens by the largest indirect effect there, over all layers.

    The scale ends at the trace's total effect.
    """
    effects = (
        result.indirect_effects.amax((0, 2)) if result.heads else result.indirect_effects.amax(0)
    )
    return tokens(
        _on_one_line([result.labels[pos] for pos in result.positions]),
        effects.clamp(min=0.0),
        limit=max(abs(result.total_effect), 1e-6),
        what=f"largest indirect effect on {score_label(result)} at any layer, of "
        f"“{result.fact.text.rstrip()} → {result.fact.target.strip()}”; the scale ends at the "
        "total effect",
    )


def firing(results: EditFiring | Sequence[EditFiring]) -> Html:
    """Colour the tokens of one prompt, or of several on a line each, by how the edit fires there.

    1 is how the edit fires on its own key, and the scale is fixed to -1 to 1.
    """
    results = [results] if isinstance(results, EditFiring) else list(results)
    labels: list[str] = []
    values: list[float] = []
    for result in results:
        labels += [*_on_one_line(result.labels), "\n"]
        values += [*result.values.tolist(), 0.0]
    what = "firing of the edit, (u · k) / (u · k*); 1 is its own fact, 0 is not at all"
    return tokens(labels, values, what=what)


def _on_one_line(labels: Sequence[str]) -> list[str]:
    """The tokens of a prompt, with a sign for each line break, because a prompt has one line."""
    return [label.replace("\n", "↵") for label in labels]


def _word(label: str, value: float, limit: float) -> str:
    """A token with its colour, and its number on hover."""
    shown = html.escape(label.replace("\n", "↵")) or "␣"
    return (
        f'<span title="{value:+.3f}" style="white-space:pre-wrap;background:'
        f'{_colour(value, limit)}">{shown}</span>'
    )


def _colour(value: float, limit: float) -> str:
    share = 0.0 if math.isnan(value) else min(abs(value) / limit, 1.0)
    return f"rgba({_ABOVE if value > 0 else _BELOW},{_STRONGEST * share:.2f})"


def _legend(limit: float, what: str) -> str:
    """The colours of the ends, the middle and the quarters of the scale, and what they mean."""
    steps = "".join(
        f'<span style="background:{_colour(share * limit, limit)};padding:0 6px">'
        f"{format(share * limit, '+.2g') if share else '0'}</span>"
        for share in (-1.0, -0.5, 0.0, 0.5, 1.0)
    )
    return f'<div style="font-size:80%">{steps} {html.escape(what)}</div>'
