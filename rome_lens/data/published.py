"""The measured numbers that the documentation's page on limits is made from."""

from pathlib import Path

import pandas as pd

from rome_lens.errors import ArgumentError

_RESULTS = Path(__file__).parent / "results"
_RUNS = ("limits", "later")


def published_limits(model: str) -> pd.DataFrame:
    """The numbers by fact behind the tables of ``docs/limits.md`` and ``docs/later-editors.md``.

    Several editors edit the same facts of the report half, each fact alone. No model is needed to
    average them again: :func:`rome_lens.checks.average_by_fact` does, and
    :func:`rome_lens.viz.means_by_editor` draws them.

    MEMIT, EMMET and AlphaEdit were measured in another run than the others. No texts were sampled
    in that run.

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
    paths = [_RESULTS / f"{run}-{model}.parquet" for run in _RUNS]
    if not paths[0].is_file():
        known = sorted(_RESULTS.glob(f"{_RUNS[0]}-*.parquet"))
        models = ", ".join(each.stem.removeprefix(f"{_RUNS[0]}-") for each in known)
        raise ArgumentError(f"There are no published numbers of {model!r}, there are {models}.")
    frames = [pd.read_parquet(path) for path in paths if path.is_file()]
    categories = frames[0].select_dtypes("category").columns
    return pd.concat(
        [frame.astype(dict.fromkeys(categories, str)) for frame in frames], ignore_index=True
    )
