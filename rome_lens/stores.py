"""Finished evaluations on disk, so that a long run can be broken off and goes on where it was."""

import hashlib
from pathlib import Path

from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import tokenizer_fingerprint
from rome_lens.models.fingerprints import weights_fingerprint
from rome_lens.models.hook_names import has_hooks
from rome_lens.models.lens import LensModel
from rome_lens.storage import installed_versions


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
                raise ArgumentError(
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
            raise ArgumentError(
                f"{made_with!r} does not name its settings, so that a later run cannot be compared with it: give its class "
                "a __repr__ that does (a dataclass has one), or no directory."
            )
        return hashlib.sha256(words.encode()).hexdigest()[:24]
