"""The figure of an edit's value."""

from matplotlib.figure import Figure

from rome_lens.localisation.edit_value import ValueComparison
from rome_lens.viz.axes import visible


def values(result: ValueComparison) -> Figure:
    """Draw what each value does in the edited fact's place, and how much of its change is dormant.

    The left panel shows the probabilities of the new and of the true target, and the right one the
    shares of dormant directions. Its lines are the shares of the model's own changes (dashed) and
    of a random direction (dotted).
    """
    names = [visible(name) for name in result.names]
    figure = Figure(figsize=(8.4, 1.0 + 0.28 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(names))
    left.plot(result.new_probabilities.tolist(), rows, "o", color="tab:blue", label="p(new target)")
    left.plot(
        result.true_probabilities.tolist(), rows, "x", color="tab:grey", label="p(true target)"
    )
    left.set_xlim(-0.05, 1.05)
    left.set_xlabel(f"with the value at layer {result.layer}")
    left.legend(fontsize=7)
    left.set_yticks(list(rows), names, fontsize=8, parse_math=False)
    left.invert_yaxis()
    right.barh(rows, result.dormant_shares.tolist(), color="tab:orange")
    right.axvline(result.held_dormant, color="black", linestyle="--", linewidth=0.8)
    right.axvline(result.random_dormant, color="black", linestyle=":", linewidth=0.8)
    right.set_xlim(0.0, 1.0)
    right.set_xlabel(f"dormant share ({result.d_model - result.active} of {result.d_model})")
    return figure
