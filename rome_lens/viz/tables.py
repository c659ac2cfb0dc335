"""Tables in HTML that load nothing: texts before and after, and a trace whose cells tell more."""

import html
import re

from rome_lens.composing.texts import TextComparison
from rome_lens.tracing.results import CausalTrace
from rome_lens.viz.axes import named_model
from rome_lens.viz.html import Html
from rome_lens.viz.trace_plots import scale_ends, score_label, star_of, star_words, trace_caption

_CELL = "padding:3px 8px;vertical-align:top;text-align:left;border-bottom:1px solid #ddd"
_FRAME = "background:#fff;color:#000;border-collapse:collapse;font-size:13px"
_TRUE = "background:#cfe3f5;color:#000"  # blue and not bold
_NEW = "background:#fbdcc4;color:#000;font-weight:bold;text-decoration:underline"
_HUES = {"resid": "84,39,143", "mlp": "0,109,44", "attn": "165,15,21", "z": "166,54,3"}
_WHITE_FROM = 0.6


def text(result: TextComparison) -> Html:
    """Show what the model writes before and after the edit, with both answers marked.

    The true answer is marked in blue. The new one is marked in orange, bold and underlined.

    Example:
        >>> import rome_lens as rl
        >>> comparison = rl.TextComparison(
        ...     prompts=("Paris is in",), before=((" France.",),), after=((" Italy.",),),
        ...     target="France", new_target="Italy", new_tokens=2, seed=0, edit="an edit",
        ... )
        >>> "<mark" in rl.viz.text(comparison).source
        True
    """
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in ("", "before", "after"))
    rows = [f"<tr>{head}</tr>"]
    for prompt, before, after in zip(result.prompts, result.before, result.after, strict=True):
        rows.append(
            f'<tr><td colspan="3" style="{_CELL};font-weight:bold">{html.escape(prompt)}</td></tr>'
        )
        for draw, was, now in zip(result.draws, before, after, strict=True):
            cells = "".join(
                f'<td style="{_CELL};overflow-wrap:anywhere">{_marked(each, result)}</td>'
                for each in (was, now)
            )
            rows.append(f'<tr><td style="{_CELL};white-space:nowrap">{draw}</td>{cells}</tr>')
    legend = ""
    if result.target is not None:
        legend = f"; marked: {_mark(result.target, _TRUE)} (true)"
        if result.new_target is not None:
            legend += f", {_mark(result.new_target, _NEW)} (new)"
    of = html.escape(f"{named_model(result.model_name)}, {result.new_tokens} tokens")
    how = f'<span title="{html.escape(result.edit)}">the edit</span>'
    title = f"What the model writes without and with {how}: {of}{legend}"
    return _titled(title, f"{''.join(rows)}")


def _titled(title: str, rows: str) -> Html:
    """Rows as a table with a title above it, on white, whatever the page's colours are."""
    return Html(
        f'<div style="background:#fff;color:#000;padding:4px;font-size:13px">{title}'
        f'<table style="{_FRAME}">{rows}</table></div>'
    )


def _marked(words: str, result: TextComparison) -> str:
    """The text as HTML, with the answers marked where they stand as whole words."""
    styles = {result.target: _TRUE, result.new_target: _NEW}
    answers = sorted((each for each in styles if each), key=len, reverse=True)
    shown = words.strip().replace("\n", "↵")
    if not answers:
        return html.escape(shown)
    pattern = "|".join(rf"(?<!\w){re.escape(answer)}(?!\w)" for answer in answers)
    parts: list[str] = []
    end = 0
    for found in re.finditer(pattern, shown):
        parts += [html.escape(shown[end : found.start()]), _mark(found[0], styles[found[0]])]
        end = found.end()
    return "".join([*parts, html.escape(shown[end:])])


def _mark(words: str, style: str) -> str:
    return f'<mark style="{style}">{html.escape(words)}</mark>'


def trace_table(result: CausalTrace) -> Html:
    """Draw a trace as a table whose cells tell layer, token, score and interval on hover.

    It needs neither a script nor the network. The colours are those of :func:`trace`. In a trace of
    single heads, each cell shows its best head.
    """
    low, high = scale_ends(result, "runs")
    rows = []
    layers = "".join(f"<th style='font-weight:normal'>{layer}</th>" for layer in result.layers)
    for column, pos in enumerate(result.positions):
        label = result.labels[pos].replace("\n", "↵").strip() or "␣"
        star = star_of(result, pos)
        cells = "".join(
            _cell(result, row, column, label, low, high) for row in range(len(result.layers))
        )
        name = f'<th style="text-align:right;font-weight:normal">{html.escape(label)}{star}</th>'
        rows.append(f"<tr>{name}{cells}</tr>")
    words = "<br>".join(map(html.escape, (*trace_caption(result), *star_words(result))))
    scale = f"white: {low:.3f}, full colour: {high:.3f}"
    return _titled(
        f"{words}<br>{html.escape(score_label(result))} with the state of a layer (columns) and "
        f"token (rows); {scale}; point at a cell for its numbers",
        f"<tr><th>layer</th>{layers}</tr>{''.join(rows)}",
    )


def _cell(result: CausalTrace, row: int, column: int, label: str, low: float, high: float) -> str:
    """A cell with its colour, and its numbers on hover."""
    place: tuple[int, ...] = (row, column)
    head = ""
    if result.heads:
        scores = result.scores[row, column]
        best = int(scores.argmin() if result.direction == "noising" else scores.argmax())
        place, head = (row, column, best), f", head {result.heads[best]}"
    score = float(result.scores[place])
    effect, half = float(result.indirect_effects[place]), float(result.half_widths[place])
    interval = "" if half != half else f" [{effect - half:+.3f}, {effect + half:+.3f}]"
    share = min(max((score - low) / (high - low), 0.0), 1.0)
    if result.direction == "noising":
        share = 1.0 - share
    title = (
        f"layer {result.layers[row]}{head}, {label}: {score:.3f}, effect {effect:+.3f}{interval}"
    )
    colour = f"rgba({_HUES[result.component]},{share:.2f})"
    text_colour = ";color:#fff" if share > _WHITE_FROM else ""
    shown = f"{score:.2f}".removeprefix("0")
    return (
        f'<td title="{html.escape(title)}" style="background:{colour}{text_colour};'
        f'padding:3px 5px;font-size:10px">{shown}</td>'
    )
