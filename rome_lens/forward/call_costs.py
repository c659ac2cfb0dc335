"""What the call of a block costs apart from its tokens, and which padding saves a call."""

from collections.abc import Mapping

from rome_lens.models.lens import LensModel, device

# The call of a block, in multiply-adds that take as long. Measured on a CPU with blocks of 6e4 and
# 7e6 weights. On an H200 the call takes 1 to 2 ms, almost all of it in Python.
_CALL_ON_A_CPU = 12_000_000
_CALL_ON_A_GPU = 30_000_000_000
_CALL_ON_A_GPU_IN_HALF_PRECISION = 300_000_000_000
# Reading a block's weights takes as long as running so many tokens.
_TOKENS_PER_READING = 30


def tokens_per_call(model: LensModel) -> int:
    """The number of tokens that take as long to run as the call of a block itself."""
    weights = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    return _TOKENS_PER_READING + _multiply_adds_per_call(model) // weights


def _multiply_adds_per_call(model: LensModel) -> int:
    """The call of a block, in multiply-adds that take as long on the model's device."""
    if device(model).type == "cpu":
        return _CALL_ON_A_CPU
    in_half = next(model.blocks[0].parameters()).element_size() == 2
    return _CALL_ON_A_GPU_IN_HALF_PRECISION if in_half else _CALL_ON_A_GPU


def merged_widths(tokens: Mapping[int, int], call: int) -> dict[int, int]:
    """For rows of each length, the width to which padding makes all calls together cost least.

    Lengths with the same width are run in one call. The call costs as much as ``call`` tokens, and
    its padding costs what other tokens cost.

    Args:
        tokens: for each length, the number of rows of that length.

    Example:
        Two rows of 3 are worth padding to 4, where there are many rows already. Ten thousand are
        not.

        >>> from rome_lens.forward.call_costs import merged_widths
        >>> merged_widths({3: 2, 4: 500}, call=40)
        {3: 4, 4: 4}
        >>> merged_widths({3: 10_000, 4: 500}, call=40)
        {3: 3, 4: 4}
    """
    lengths = sorted(tokens)
    costs, firsts = [0], [0]  # of the best division of the first i lengths
    for i, width in enumerate(lengths):
        rows, best = 0, []
        for first in range(i, -1, -1):
            rows += tokens[lengths[first]]
            best.append((costs[first] + call + width * rows, first))
        cost, first = min(best)
        costs.append(cost)
        firsts.append(first)
    widths: dict[int, int] = {}
    end = len(lengths)
    while end:
        first = firsts[end]
        widths |= dict.fromkeys(lengths[first:end], lengths[end - 1])
        end = first
    return {length: widths[length] for length in lengths}
