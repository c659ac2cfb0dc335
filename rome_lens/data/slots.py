"""The slot of a prompt, and the error of everything that reads facts."""

from rome_lens.errors import RomeLensError

SLOT = "{}"
"""What stands for the subject in the template of a prompt."""


class FactError(RomeLensError):
    """A fact that cannot be asked or edited.

    For example, its prompt has no slot, its subject or an answer is empty, or its new target is its
    target.
    """
