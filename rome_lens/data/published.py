"""The measured numbers that the documentation's page on limits is made from."""

from pathlib import Path

import pandas as pd

from rome_lens.errors import ArgumentError

_RESULTS = Path(__file__).parent / "results"
_RUNS = ("limits", "later")


def published_limits(model: str) -> pd.DataFrame:
    """The numbers by fact behind the tables of ``docs/limits.md`` and ``docs/later-editors.md``.

    Several editors edit facts of the report half, each fact alone. No model is needed to
    average them again: :func:`rome_lens.checks.average_by_fact` does, and
    :func:`rome_lens.viz.means_by_editor` draws them.

    MEMIT, EMMET and AlphaEdit were measured in another run than the others, on the first five facts
    of each relation. No texts were sampled in that run.

    Args:
        model: ``"gemma-3-270m"`` (71 facts, 40 of the later editors) or ``"smollm2-135m"`` (49
            facts, 37 of the later editors).

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
        known = _models(_RUNS[0])
        raise ArgumentError(f"There are no published numbers of {model!r}, there are {known}.")
    frames = [pd.read_parquet(path) for path in paths if path.is_file()]
    categories = frames[0].select_dtypes("category").columns
    return pd.concat(
        [frame.astype(dict.fromkeys(categories, str)) for frame in frames], ignore_index=True
    )


def published_curve(model: str) -> Path:
    """The file with the curve of ``docs/later-editors.md``: edits of more and more facts at once.

    Args:
        model: ``"toy"`` (up to 100 facts at once) or ``"smollm2-135m"`` (up to 49).

    Returns:
        The path of a :class:`rome_lens.MassCurve`.

    Raises:
        ArgumentError: no curve of this model is published.

    Example:
        >>> import rome_lens as rl
        >>> curve = rl.MassCurve.load(rl.data.published_curve("toy"))
        >>> curve.editors
        ('ROME', 'MEMIT', 'EMMET', 'AlphaEdit')
    """
    path = _RESULTS / f"curve-{model}.safetensors"
    if not path.is_file():
        raise ArgumentError(
            f"No curve of {model!r} is published. Curves of these models are: {_models('curve')}."
        )
    return path


def _models(run: str) -> str:
    """The names of the models that a run was made with."""
    return ", ".join(
        sorted(each.stem.removeprefix(f"{run}-") for each in _RESULTS.glob(f"{run}-*"))
    )
