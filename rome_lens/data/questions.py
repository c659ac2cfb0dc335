"""The parts of a record: questions with their answers, and decoys."""

from collections.abc import Iterator
from dataclasses import dataclass

from rome_lens.arguments import check_characters
from rome_lens.data.facts import FactError


class RecordError(FactError):
    """A record in the wrong form. The message names the record and the field."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and its true answer. It unpacks as a pair: ``prompt, target = question``.

    White space around the targets is ignored, as for :class:`~rome_lens.data.facts.Fact`.

    Raises:
        RecordError: the prompt or a target is not a text.
    """

    prompt: str
    """The text that the answer follows."""
    target: str
    """The true answer."""
    new_target: str | None = None
    """The answer that belongs to the new fact as ``target`` belongs to the true one.

    Among consequences it follows from the new fact; among false consequences it does not.
    """

    def __post_init__(self) -> None:
        texts = [self.prompt, self.target, *([] if self.new_target is None else [self.new_target])]
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise RecordError(f"A question's prompt and answers are words, got {wrong[0]!r}.")
        for text in texts:
            check_characters("A question's prompt or answer", text, error=RecordError)
        object.__setattr__(self, "target", self.target.strip())
        if self.new_target is not None:
            object.__setattr__(self, "new_target", self.new_target.strip())

    def __iter__(self) -> Iterator[str]:
        return iter((self.prompt, self.target))


@dataclass(frozen=True, kw_only=True)
class Decoys:
    """Names or descriptions of other subjects, which an edit should not reach.

    An alias or a description of the edited subject is compared with them. If the decoys take up the
    new target as much as the alias does, the edit spills and does not follow its subject.

    Raises:
        RecordError: a field does not hold several texts.
    """

    same_answer: tuple[str, ...] = ()
    """Other subjects with the same true answer."""
    other_answer: tuple[str, ...] = ()
    """Other subjects with another answer, which is not the new target."""
    invented: tuple[str, ...] = ()
    """Names or descriptions of nothing that exists, of the same kind and with the same cues."""

    def __post_init__(self) -> None:
        for name in DECOY_GROUPS:
            texts = getattr(self, name)
            if not isinstance(texts, tuple | list) or not all(isinstance(t, str) for t in texts):
                raise RecordError(
                    f"Decoys, field {name!r}: expected several texts, (text,), got "
                    f"{str(texts)[:80]!r}."
                )
            for text in texts:
                check_characters(f"Decoys, field {name!r}: a text", text, error=RecordError)
                if not text.strip() or text != text.strip():
                    raise RecordError(
                        f"Decoys, field {name!r}: {text!r} is empty or has white space around it. "
                        "Expected a name or a description."
                    )
            object.__setattr__(self, name, tuple(texts))


DECOY_GROUPS = ("same_answer", "other_answer", "invented")
"""The fields of :class:`Decoys`."""
