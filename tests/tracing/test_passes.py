"""How cells are gathered into forward passes."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from rome_lens.forward.call_costs import merged_widths
from rome_lens.tracing.passes import PassSize, packed

SIZE = PassSize(
    rows=100, values=1200, call=10, per_token=4, per_pair=1, per_past=2, kept=600, per_kept_token=3
)


def cost(rows: dict[int, int], widths: dict[int, int], call: int) -> int:
    return call * len(set(widths.values())) + sum(widths[each] * rows[each] for each in rows)


@given(
    st.dictionaries(st.integers(1, 9), st.integers(0, 40), min_size=1, max_size=4),
    st.integers(0, 60),
)
def test_no_other_padding_costs_less(rows: dict[int, int], call: int) -> None:
    lengths = sorted(rows)
    found = merged_widths(rows, call)
    assert all(length <= found[length] in lengths for length in lengths)
    every = (
        dict(zip(lengths, widths, strict=True))
        for widths in product(lengths, repeat=len(lengths))
        if all(length <= width for length, width in zip(lengths, widths, strict=True))
    )
    assert cost(rows, found, call) == min(cost(rows, widths, call) for widths in every)


@given(st.lists(st.integers(1, 9)), st.integers(1, 20))
def test_packs_keep_the_order_and_the_bound(sizes: list[int], most: int) -> None:
    packs = list(packed(range(len(sizes)), sizes, most))
    assert [i for pack in packs for i in pack] == list(range(len(sizes)))
    for pack, following in zip(packs, [*packs[1:], []], strict=False):
        filled = sum(sizes[i] for i in pack)
        assert filled <= most or len(pack) == 1
        assert not following or filled + sizes[following[0]] > most, "there was room for more"


def test_the_largest_tensor_of_a_pass_bounds_its_rows() -> None:
    assert SIZE.rows_of(3) == 100, "the rows themselves"
    assert SIZE.rows_of(6) == 1200 // (6 * 6), "pairs of tokens: 36 against 24 values of tokens"
    assert SIZE.rows_of(1, past=300) == 1200 // (300 * 2), "keys and values of the past"
    assert SIZE.rows_of(50) == 1, "a row that does not fit is run alone"
    assert SIZE.whole_rows(4) == 600 // (4 * 3), "what all layers keep"
