"""The result of a sweep: a table with a row for each fact, layer and editor."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rome_lens.errors import ArgumentError
from rome_lens.intervals import average, share
from rome_lens.localisation.results import MEASURES, LayerSweep
from rome_lens.results import Result
from rome_lens.storage import StorageError, as_path, file_errors, whole_or_nothing

TABLE = "table.parquet"
SCORES = ("ES", "PS", "NS", "S", "EM", "PM", "NM", "GE", "RS")
_SHARES = ("ES", "PS", "NS", "S")
_EFFECT = " effect"
_KEY = ["editor", "layer"]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Sweep(Result):
    """The result of :func:`sweep`."""

    rows: pd.DataFrame
    """A row for each fact, editor and layer, in this order.

    The columns are the fact (``id``, ``prompt``, ``subject``, ``target``, ``new_target``,
    ``relation``), ``editor`` and ``layer``; ``error``, which is empty if all went well; and those
    of each stage. Numbers that are not known are NaN.

    * trace: ``known`` (whether the model knows the fact; if not, there is no trace), ``clean``,
      ``total_effect``, and the layer's indirect ``effect``;
    * edit: ``norm``, ``loss``, ``probability`` of the new target, ``steps``, ``stopped``;
    * evaluate: ``already`` and the scores of :class:`Evaluation`;
    * limits: each check's mean ``effect`` and ``control``, such as ``"direction effect"``, and in
      ``effects`` what the effects are, in words (as JSON).

    ``record``, ``settings`` and ``versions`` (as JSON), ``model`` and ``model_fingerprint`` say how
    to make the row again.
    """

    def __repr__(self) -> str:
        rows = self.rows
        return (
            f"Sweep({rows.id.nunique()} facts, layers {self.layers}, editors {self.editors}, "
            f"{len(self.errors())} of {len(rows)} rows with an error)"
        )

    @property
    def layers(self) -> list[int]:
        """The layers."""
        return sorted({int(layer) for layer in self.rows.layer})

    @property
    def editors(self) -> list[str]:
        """The names of the editors; ``[""]`` if nothing was edited."""
        return [str(name) for name in self.rows.editor.unique()]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of all stages."""
        settings: dict[str, Any] = json.loads(self.rows.settings.iloc[0])
        return settings

    def errors(self) -> pd.DataFrame:
        """The rows with an error."""
        return self.rows[self.rows.error != ""]

    def to_frame(self) -> pd.DataFrame:
        """A copy of :attr:`rows`."""
        return self.rows.copy()

    @property
    def measures(self) -> list[str]:
        """The columns that :meth:`table` averages: the effect, the scores, the checks' effects."""
        columns = [str(name) for name in self.rows]
        names = ["effect", *SCORES, *(name for name in columns if name.endswith(_EFFECT))]
        return [name for name in names if name in self.rows and self.rows[name].notna().any()]

    @property
    def effects_in_words(self) -> dict[str, str]:
        """What the columns of the checks' effects are, such as ``"direction effect"``."""
        texts: list[str] = list(self.rows.effects.unique()) if "effects" in self.rows else []
        words: dict[str, str] = {}
        for text in texts:
            words |= json.loads(text)
        return {f"{check}{_EFFECT}": each for check, each in words.items()}

    def table(self) -> pd.DataFrame:
        """A row for each editor and layer: facts, known ones, errors, and means with intervals.

        A mean is over the facts that have a number, with a 95 % interval that is clustered
        by relation. Measures that no fact has are left out. S is the mean of the facts' own S.
        """
        lines = []
        for (editor, layer), rows in self.rows.groupby(_KEY, sort=False):
            line: dict[str, Any] = {"editor": editor, "layer": layer, "facts": len(rows)}
            if "known" in rows:
                line["known"] = int(rows.known.sum())
            line["errors"] = int((rows.error != "").sum())
            for name in self.measures:
                measured = rows[rows[name].notna()]
                mean = share if name in _SHARES else average
                found = measured[name].tolist()
                line[name] = str(mean(found, relations(measured))) if found else ""
            lines.append(line)
        return pd.DataFrame(lines).set_index(_KEY[0])

    def layer_sweep(self, editor: str | None = None) -> LayerSweep:
        """The effects and successes of one editor as a :class:`LayerSweep`.

        It is over the facts that the model knows and that have no error.

        Args:
            editor: the editor's name. None takes the only one.

        Raises:
            ArgumentError: there is no such editor, the sweep has no trace or no scores, or no fact
                is left.
        """
        if editor is None and len(self.editors) == 1:
            editor = self.editors[0]
        if editor not in self.editors:
            raise ArgumentError(f"editor is {editor!r}, expected one of {self.editors}.")
        if not {"effect", "EM"} <= set(self.rows):
            raise ArgumentError("A LayerSweep needs the stages 'trace' and 'evaluate'.")
        rows = self.rows[self.rows.editor == editor]
        whole = [name for name, each in rows.groupby("id", sort=False) if (each.error == "").all()]
        known = rows[rows.id.isin(whole) & rows.known.fillna(False)]
        if known.empty:
            raise ArgumentError("No fact is left: the model knows none, or all have errors.")
        settings = self.settings
        fields: dict[str, Any] = {measure: _matrix(known, measure) for measure in MEASURES}
        for name in ("component", "window", "at", "samples", "noise"):
            fields[name] = settings[name]
        return LayerSweep(
            names=tuple(map(str, known.id.unique())),
            unknown=tuple(map(str, rows[~rows.id.isin(known.id)].id.unique())),
            layers=tuple(self.layers),
            effects=_matrix(known, "effect"),
            total_effects=_matrix(known, "total_effect")[:, 0],
            **fields,
            edits=f"{editor}: {settings['editors'][editor]}, {len(settings['contexts'])} contexts",
            model_fingerprint=str(rows.model_fingerprint.iloc[0]),
            model_name=str(rows.model.iloc[0]),
            relations=tuple(relations(known.drop_duplicates("id"))),
        )

    def save(self, path: str | Path) -> Path:
        """Write the table to a parquet file and return the path.

        Raises:
            StorageError: the system refuses to write.
        """
        path = as_path(path)
        with whole_or_nothing(path) as unfinished:
            self.rows.to_parquet(unfinished, index=False)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Sweep":
        """Read a table that a sweep wrote; of its directory or of the file.

        Raises:
            StorageError: there is no such table, or it is damaged.
        """
        path = as_path(path)
        path = path / TABLE if path.is_dir() else path
        with file_errors(path, "read"):
            try:
                rows = pd.read_parquet(path)
                missing = {"id", "error", "settings", *_KEY} - set(rows)
            except ValueError as error:  # pyarrow's errors of a damaged file
                raise StorageError(f"{path} is not the table of a sweep: {error}") from error
        if missing:
            raise StorageError(f"{path} is not the table of a sweep: it lacks {sorted(missing)}.")
        return cls(rows=rows)


def relations(rows: pd.DataFrame) -> list[str]:
    """The relation of each row's fact; its prompt, if the relation has no name."""
    return [str(name or prompt) for name, prompt in zip(rows.relation, rows.prompt, strict=True)]


def _matrix(rows: pd.DataFrame, name: str) -> Tensor:
    """A column as ``[fact, layer]``. The rows are in this order already."""
    count = rows.id.nunique()
    values = rows[name].to_numpy(dtype="float64").reshape(count, -1)
    return torch.tensor(values, dtype=torch.float64, device="cpu")
