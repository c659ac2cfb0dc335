"""Edits of any kind side by side: which questions can share a forward pass, and under which hooks."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from rome_lens.data.facts import Fact
from rome_lens.editing.edit import Edit, LayerEdit
from rome_lens.editing.rows import row_hooks
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import has_hooks_where_edits_add, hook_behind_edits
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel, ModelError
from rome_lens.warning import warn

HooksOfRows = Callable[[Sequence[int]], Sequence[Hook]]


class Edited(Protocol):
    """What can be evaluated: anything that gives the hooks under which a model runs edited.

    Where it has an attribute ``prefix``, that text and a space stand before every prompt, as in-context edits need it.
    """

    def fwd_hooks(self, model: LensModel) -> list[Hook]:
        """The hooks, for ``run_with_hooks``."""


class OtherPromptWarning(UserWarning):
    """An edit evaluated or checked with a record whose prompt is not the one that it was made with."""


class NumberedEdits:
    """The edits of one run by number, 0 being the model as it stands; equal objects have one number.

    Edits that :func:`row_hooks` knows can share a forward pass, each on rows of its own; any other needs its own.

    Raises:
        ValueError: an edit gives no hooks.
        ModelError: an edit was made on another model, or is already in this one's weights.
    """

    def __init__(self, model: LensModel, edits: Sequence[Any]) -> None:
        self._model = model
        self._by_row: list[Edit | None] = [None]
        self._alone: dict[int, list[Hook]] = {}
        numbers: dict[int, int] = {}
        for edit in edits:
            if id(edit) not in numbers:
                numbers[id(edit)] = self._number(edit)
        self.numbers = [numbers[id(edit)] for edit in edits]

    def _number(self, edit: Any) -> int:
        if edit is None:
            return 0
        if not callable(getattr(edit, "fwd_hooks", None)):
            raise ArgumentError(
                f"The edit is {edit!r}, expected None (the model as it stands) or an object with fwd_hooks(model), such as "
                "what rome(...) gives."
            )
        if isinstance(edit, Edit):
            edit.check(self._model)
        parts = edit.parts if isinstance(edit, Edit) else (edit,)
        if any(hasattr(part, "is_applied") and part.is_applied(self._model) for part in parts):
            raise ModelError(
                "The model's weights carry the edit already, or a part of it, so that 'before' would be after it: leave "
                "edit.applied(model), or call edit.revert(model), first."
            )
        for part in parts:
            if isinstance(part, LayerEdit) and has_hooks_where_edits_add(self._model, part.layer):
                raise ModelError(
                    f"The model has a hook on the MLP's output at layer {part.layer}, where the edit's own hook adds to it and "
                    "comes after: it would not see what the edit adds, as it does on edited weights. Put it on "
                    f"{hook_behind_edits(self._model, part.layer)!r}, which does; or remove it, or evaluate by hand inside "
                    "edit.applied(model)."
                )
        hooks = edit.fwd_hooks(self._model)
        if not hooks:
            return 0
        self._by_row.append(edit if isinstance(edit, Edit) else None)
        number = len(self._by_row) - 1
        if not isinstance(edit, Edit):
            self._alone[number] = list(hooks)
        return number

    def together(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], HooksOfRows]]:
        """Indices of questions, given each one's edit, that can share a forward pass; and its rows' hooks."""
        shared = [i for i, number in enumerate(numbers) if number not in self._alone]
        if shared:
            yield shared, self._row_hooks
        for number, hooks in self._alone.items():
            own = [i for i, each in enumerate(numbers) if each == number]
            if own:
                yield own, partial(_same, hooks)

    def _row_hooks(self, numbers: Sequence[int]) -> list[Hook]:
        return row_hooks(self._model, [self._by_row[number] for number in numbers])


def _same(hooks: list[Hook], _numbers: Sequence[int]) -> list[Hook]:
    return hooks


def prefixed(edit: Any, prompt: str) -> str:
    """The prompt as it is asked under an edit: behind its ``prefix``, where it has one."""
    prefix = getattr(edit, "prefix", "")
    return f"{prefix} {prompt}" if prefix else prompt


def check_same_fact(edit: Any, fact: Fact, name: object) -> None:
    """Refuse an edit that says what it changes, where that is another subject or new target than the record's.

    Where only the prompt is another, it may be the same relation in other words, or another relation: that gives a warning.
    """
    of = getattr(edit, "fact", None)
    if not isinstance(of, Fact) or (of.text, of.subject, of.new_target) == (
        fact.text,
        fact.subject,
        fact.new_target,
    ):
        return
    if (of.subject, of.new_target) == (fact.subject, fact.new_target):
        warn(
            "The edit was made with another prompt than the record's. If that is not the same relation in other words, evaluate "
            "the edit with its own record.",
            OtherPromptWarning,
        )
        return
    raise ArgumentError(
        f"The edit makes {of.text!r} say {of.new_target!r}; the record {name!r} is about {fact.text!r} and "
        f"{fact.new_target!r}. Evaluate an edit with its own record."
    )
