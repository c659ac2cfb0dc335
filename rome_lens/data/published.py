"""The measured numbers that the documentation's page on limits is made from."""

from pathlib import Path

import pandas as pd

from rome_lens.errors import ArgumentError

_RESULTS = Path(__file__).parent / "results"


def published_limits(model: str) -> pd.DataFrame:
    """The numbers by fact behind the tables of ``docs/limits.md``.

    Eight editors edit the same facts of the report half, each fact alone. No model is needed to
    average them again: :func:`rome_lens.checks.average_by_fact` does.

    Args:
        model: ``"gemma-3-270m"`` (71 facts) or ``"smollm2-135m"`` (49 facts).

    Returns:
        One row for each editor, fact, check and number, as
        :meth:`rome_lens.checks.LimitsComparison.by_fact` returns them.

    Raises:
        ArgumentError: there are no numbers of this model.

    Example:
        >>> import rome_lens as rl
        >>> frame = rl.data.published_limits("gemma-3-270m")
        >>> asked = frame[(frame["check"] == "overfit") & (frame["number"] == "effect")]
        >>> means = rl.checks.average_by_fact(asked).set_index("editor")["text"]
        >>> means["original"], means["null edit"]
        ('0.266 [0.172, 0.360]', '0.281 [0.184, 0.378]')
    """
    path = _RESULTS / f"limits-{model}.parquet"
    if not path.is_file():
        known = sorted(each.stem.removeprefix("limits-") for each in _RESULTS.glob("*.parquet"))
        raise ArgumentError(
            f"There are no published numbers of {model!r}, there are {', '.join(known)}."
        )
    frame = pd.read_parquet(path)
    return frame.astype(dict.fromkeys(frame.select_dtypes("category").columns, str))
