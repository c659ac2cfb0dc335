"""Finished evaluations on disk, so that an interrupted run can be resumed."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rome_lens.evaluation.scores import Evaluation, PromptScore
from rome_lens.models.lens import LensModel
from rome_lens.storage import StorageError, whole_or_nothing
from rome_lens.stores import HashNamed


class EvaluationStore(HashNamed):
    """Finished evaluations, in memory, or in a directory as one JSON file each."""

    def __init__(self, directory: str | Path | None, model: LensModel) -> None:
        super().__init__(directory, model)
        self.found: dict[str, Evaluation] = {}

    def get(self, name: str) -> Evaluation | None:
        """The evaluation of this name, where it is finished."""
        if self.directory is not None and name not in self.found and (self.directory / f"{name}.json").is_file():
            path = self.directory / f"{name}.json"
            try:
                plain = json.loads(path.read_text(encoding="utf-8"))
                rows = tuple(PromptScore(**row) for row in plain.pop("rows"))
                self.found[name] = Evaluation(rows=rows, **{**plain, "texts": tuple(plain["texts"])})
            except (ValueError, TypeError, KeyError) as error:
                raise StorageError(f"{path} is no evaluation; remove it to have it made again: {error}") from error
        return self.found.get(name)

    def all(self, names: Sequence[str]) -> tuple[Evaluation, ...]:
        """The finished ones among these, in their order."""
        return tuple(self.found[name] for name in names if name in self.found)

    def add(self, name: str, evaluation: Evaluation) -> None:
        """Keep it, on disk at once where there is a directory."""
        self.found[name] = evaluation
        if self.directory is not None:
            with whole_or_nothing(self.directory / f"{name}.json") as unfinished:
                unfinished.write_text(json.dumps(asdict(evaluation), ensure_ascii=False), encoding="utf-8")
