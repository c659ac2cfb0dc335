"""The figure of an edit's value."""

from matplotlib.figure import Figure

from rome_lens.data.joining import joined
from rome_lens.localisation.edit_value import ValueComparison
from rome_lens.viz.axes import LINES, caption, legend_below, picture, visible


def values(result: ValueComparison) -> Figure:
    """Draw what each value does in the edited fact's place, and how much of its change is dormant.

    The left panel shows the probabilities of the new and of the true target, and the right one the
    shares of dormant directions. Its lines are the shares of the model's own changes (dashed) and
    of a random direction (dotted).
    """
    names = [visible(name) for name in result.names]
    figure = picture(8.4, 0.8 + 0.28 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(names))
    new, true = result.new_probabilities.tolist(), result.true_probabilities.tolist()
    left.plot(new, rows, "o", color=LINES[0].colour, label="p(new target)")
    left.plot(true, rows, "x", color=LINES[1].colour, label="p(true target)")
    left.set_xlim(-0.05, 1.05)
    left.set_xlabel(f"with the value at layer {result.layer}")
    left.set_yticks(list(rows), names, fontsize=8, parse_math=False)
    left.invert_yaxis()
    right.barh(rows, result.dormant_shares.tolist(), color="#bbbbbb")
    for share, style, label in (
        (result.held_dormant, "--", "dormant share of the model's own changes"),
        (result.random_dormant, ":", "dormant share of a random direction"),
    ):
        right.axvline(share, color="black", linestyle=style, linewidth=1.2, label=label)
    right.set_xlim(0.0, 1.0)
    right.set_xlabel(f"dormant share ({result.d_model - result.active} of {result.d_model})")
    fact = result.fact
    caption(
        figure,
        "Is the edit's value one that the model itself would write?",
        f"“{joined(fact.text, fact.target)} → {fact.new_target}”, each value put in its place",
    )
    legend_below(figure, left, right)
    return figure
