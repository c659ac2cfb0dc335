"""Finished evaluations on disk, so that a long run can be broken off and goes on where it was."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rome_lens.fingerprints import weights_fingerprint
from rome_lens.models import LensModel, has_hooks
from rome_lens.scores import Evaluation, PromptScore
from rome_lens.storage import StorageError, installed_versions, whole_or_nothing
from rome_lens.tokens import tokenizer_fingerprint


class HashNamed:
    """A directory for results, each named by a hash of all that made it; with None for a directory nothing is kept there.

    A run broken off goes on where it was, and one with other settings finds nothing of this one's.

    Raises:
        ValueError: the model has hooks, of which the names could not tell.
    """

    def __init__(self, directory: str | Path | None, model: LensModel) -> None:
        self.directory = None if directory is None else Path(directory)
        self.model = ""
        if directory is not None:
            if has_hooks(model):
                raise ValueError(
                    "The model has hooks, which change what is found and cannot be told from the files: remove them, or give "
                    "no directory."
                )
            dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
            weights = (weights_fingerprint(model), dtypes)
            tokens = (tokenizer_fingerprint(model), model.cfg.default_prepend_bos)
            self.model = repr((weights, tokens, installed_versions()))

    def name(self, made_with: object, what: object) -> str:
        """The hash of the model and the packages' versions, of what made the result, and of what it is about.

        Raises:
            ValueError: a part of it has no ``repr`` that says what it is.
        """
        words = f"{self.model}\n{made_with!r}\n{what!r}"
        if self.directory is not None and " at 0x" in words:
            raise ValueError(
                f"{made_with!r} does not name its settings, so that a later run cannot be compared with it: give its class "
                "a __repr__ that does (a dataclass has one), or no directory."
            )
        return hashlib.sha256(words.encode()).hexdigest()[:24]


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
