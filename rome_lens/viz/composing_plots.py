"""Figures of analyses without and with an edit: logit lens, logit attribution, attention."""

from matplotlib.figure import Figure

from rome_lens.arguments import whole_number
from rome_lens.composing.attention import AttentionComparison
from rome_lens.composing.attribution import LogitAttribution
from rome_lens.composing.lens import LogitLens
from rome_lens.data.facts import Fact
from rome_lens.data.joining import joined
from rome_lens.viz.axes import (
    GREY,
    LINES,
    caption,
    interval_line,
    legend_below,
    named_model,
    picture,
    visible,
)


def lens(result: LogitLens) -> Figure:
    """Draw both answers' probabilities along the layers, without and with the edit.

    The word above each layer is the one that the edited model would answer there. A vertical line
    marks the edited layers. The caption says from which layer on the new answer is more likely than
    the true answer.
    """
    count = len(result.states)
    figure = picture(max(6.4, 1.6 + 0.36 * count), 3.2)
    axes = figure.add_subplot()
    x = list(range(count))
    true, new = (visible(answer) for answer in result.answers)
    for line, values, label in (
        (LINES[0], result.after[:, 1], f"p({new}), new answer, with the edit"),
        (LINES[1], result.after[:, 0], f"p({true}), true answer, with the edit"),
        (LINES[2], result.before[:, 0], f"p({true}), unedited"),
        (LINES[3], result.before[:, 1], f"p({new}), unedited"),
    ):
        interval_line(axes, x, values, None, label=label, line=line)
    for i, layer in enumerate(result.edited_layers):
        axes.axvline(layer + 1, color=GREY, linewidth=0.8, label="_" if i else "edited layer")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks(x, result.states, fontsize=8)
    axes.set_xlabel("state of the residual stream after this layer, at the last position")
    axes.set_ylabel("probability read out there", fontsize=8)
    above = axes.secondary_xaxis("top")
    above.set_xticks(
        x, [visible(word) for word in result.top_after], fontsize=7, rotation=60, ha="left"
    )
    above.tick_params(length=0, pad=1)
    for word in above.get_xticklabels():
        word.set_parse_math(False)
    over = result.takes_over
    where = "not more likely than the true answer after the last layer"
    if over is not None:
        where = f"more likely than the true answer from {_state(over)} on"
    caption(
        figure,
        "Logit lens, without and with the edit",
        _question(result.fact, result.model_name, result.edited_layers),
        f"With the edit, the new answer is {where}. Words on top: the edited model's first choice.",
    )
    legend_below(figure, axes)
    return figure


def logit_attribution(result: LogitAttribution, *, count: int = 10) -> Figure:
    """Draw what the components add to the new answer's logit minus the true one's.

    Args:
        result: the attribution.
        count: how many components to draw: those that the edit changes most.

    Raises:
        ArgumentError: ``count`` is not a whole number of at least 1.
    """
    count = whole_number("count", count, least=1)
    changes = (result.after - result.before).abs()
    chosen = sorted(changes.topk(min(count, len(changes))).indices.tolist())
    figure = picture(6.4, 0.9 + 0.34 * len(chosen))
    axes = figure.add_subplot()
    rows = range(len(chosen))
    for line, values, label, hatch, shift in (
        (LINES[2], result.before, f"unedited (sum with biases {result.total_before:+.2f})", "", 0),
        (LINES[0], result.after, f"edited ({result.total_after:+.2f})", "//", 1),
    ):
        axes.barh(
            [row + 0.36 * shift - 0.18 for row in rows],
            values[chosen].tolist(),
            height=0.34,
            color=line.colour if shift else "#bbbbbb",
            hatch=hatch,
            edgecolor="white",
            label=label,
        )
    axes.axvline(0.0, color="black", linewidth=0.6)
    axes.set_yticks(rows, [_component(result.components[i]) for i in chosen], fontsize=8)
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    true, new = (visible(answer) for answer in result.answers)
    axes.set_xlabel(f"adds to logit({new}) - logit({true})", fontsize=8, parse_math=False)
    caption(
        figure,
        "Direct logit attribution, without and with the edit",
        _question(result.fact, result.model_name, result.edited_layers),
        f"The {len(chosen)} of {len(changes)} components that the edit changes most",
    )
    legend_below(figure, axes)
    return figure


def attention(result: AttentionComparison, head: int | None = None) -> Figure:
    """Draw a head's attention pattern without and with the edit, on one scale from 0 to 1.

    Args:
        result: the patterns of a layer.
        head: the head; None takes the one whose look from the last token changes most.

    Raises:
        ArgumentError: there is no such head.
    """
    if head is None:
        head = int(result.changes.argmax())
    head = whole_number("head", head, least=0, most=len(result.before) - 1)
    size = 0.26 * len(result.labels)
    figure = picture(max(6.4, 2.6 + 2 * size), 1.2 + max(1.6, size))
    panels = figure.subplots(1, 2, sharey=True)
    labels = [visible(label) for label in result.labels]
    places = [i + 0.5 for i in range(len(labels))]
    for axes, values, name in zip(
        panels, (result.before, result.after), ("unedited", "edited"), strict=True
    ):
        image = axes.pcolormesh(values[head].numpy(), cmap="Greys", vmin=0.0, vmax=1.0)
        axes.set_xticks(places, labels, rotation=90, fontsize=7, parse_math=False)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("looks at", fontsize=8)
    panels[0].set_yticks(places, labels, fontsize=7, parse_math=False)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("from", fontsize=8)
    figure.colorbar(image, ax=list(panels)).set_label("attention", fontsize=8)
    caption(
        figure,
        f"Attention of head {head} of layer {result.layer}, without and with the edit",
        f"“{result.text}”; {named_model(result.model_name)}",
        f"From the last token, {float(result.changes[head]):.0%} of its attention moves.",
    )
    return figure


def _state(name: str) -> str:
    return "the embedding" if name == "embed" else f"layer {name}"


def _component(name: str) -> str:
    if name == "embed":
        return "embedding"
    layer, part = name.split()
    return f"layer {layer}, {'attention' if part == 'attn' else 'MLP'}"


def _question(fact: Fact, model_name: str, edited_layers: tuple[int, ...]) -> str:
    edited = ", ".join(map(str, edited_layers))
    layers = f"edited at layer {edited}" if edited_layers else "no edit of its weights"
    prompt = joined(fact.text, fact.target)
    return f"“{prompt} → {fact.new_target}”; {named_model(model_name)}, {layers}"
