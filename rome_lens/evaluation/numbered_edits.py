"""Several edits in one batch: which prompts can share a forward pass, and under which hooks.

Each row of a batch can run under another edit. A row is therefore marked with the number of its
edit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from rome_lens.data.facts import Fact
from rome_lens.data.joining import preceded
from rome_lens.editing.edit import Edit, LayerEdit
from rome_lens.editing.reference_edits import is_null_edit
from rome_lens.editing.rows import row_hooks
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import first_hook_after_edits, has_hooks_where_edits_add
from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel, ModelError
from rome_lens.warning import warn

HooksOfRows = Callable[[Sequence[int]], Sequence[Hook]]


class Edited(Protocol):
    """What can be evaluated: any object that gives the hooks under which a model runs edited.

    If it has an attribute ``prefix``, that text and a space are put before every prompt. In-context
    editing needs this.
    """

    def fwd_hooks(self, model: LensModel) -> list[Hook]:
        """The hooks, in the form that ``run_with_hooks`` takes."""


class OtherPromptWarning(UserWarning):
    """An edit is evaluated or checked with another prompt than the one it was made with."""


class NumberedEdits:
    """The edits of one run, each with a number. Number 0 is the model as it is.

    An object that occurs several times has one number. Edits that :func:`row_hooks` can apply row
    by row share a forward pass. Every other edit needs a pass of its own.

    Raises:
        ArgumentError: an edit has no ``fwd_hooks``.
        ModelError: an edit was made on another model, or is already in this model's weights; or the
            caller's hook stands where the edit's own hook comes later.
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
        self._check(edit)
        hooks = edit.fwd_hooks(self._model)
        if not hooks:
            return 0
        self._by_row.append(edit if isinstance(edit, Edit) else None)
        number = len(self._by_row) - 1
        if not isinstance(edit, Edit):
            self._alone[number] = list(hooks)
        return number

    def _check(self, edit: Any) -> None:
        if isinstance(edit, type) or not callable(getattr(edit, "fwd_hooks", None)):
            raise ArgumentError(
                f"The edit is {edit!r}, expected None (the model as it is) or an object with "
                "fwd_hooks(model), such as the result of rome(...)."
            )
        if isinstance(edit, Edit):
            edit.check(self._model)
        parts = edit.parts if isinstance(edit, Edit) else (edit,)
        if any(hasattr(part, "is_applied") and part.is_applied(self._model) for part in parts):
            raise ModelError(
                "The model's weights carry the edit already, or a part of it, so 'before' would be "
                "after the edit. Leave edit.applied(model), or call edit.revert(model), first."
            )
        for part in parts:
            if isinstance(part, LayerEdit) and has_hooks_where_edits_add(self._model, part.layer):
                raise ModelError(
                    f"The model has a hook on the MLP's output at layer {part.layer}. The edit's "
                    "hook adds to that output later, so yours would not see what the edit adds, "
                    "although it would on edited weights. Put it on "
                    f"{first_hook_after_edits(self._model, part.layer)!r}, which sees it; remove "
                    "it; or evaluate by hand inside edit.applied(model)."
                )

    def together(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], HooksOfRows]]:
        """Split prompts into groups that share forward passes, by the numbers of their edits.

        Yields:
            The indices of a group's prompts, and the function that gives the hooks of its rows.
        """
        shared = [i for i, number in enumerate(numbers) if number not in self._alone]
        if shared:
            yield shared, self._row_hooks
        for number, hooks in self._alone.items():
            own = [i for i, each in enumerate(numbers) if each == number]
            if own:
                yield own, partial(_same_hooks, hooks)

    def _row_hooks(self, numbers: Sequence[int]) -> list[Hook]:
        return row_hooks(self._model, [self._by_row[number] for number in numbers])


def _same_hooks(hooks: list[Hook], _numbers: Sequence[int]) -> list[Hook]:
    return hooks


def prefixed(edit: Any, prompt: str) -> str:
    """The prompt as it is asked under an edit: after the edit's ``prefix``, if it has one."""
    prefix = getattr(edit, "prefix", "")
    return preceded(prompt, f"{prefix} ") if prefix else prompt


def check_same_fact(edit: Any, fact: Fact, name: object) -> None:
    """Check that an edit which names its fact changes the record's fact.

    A null edit rewrites the true target of the record's fact, and goes with the record too. If only
    the prompt differs, the edit may be of the same relation in other words or of another relation.
    That gives a warning.

    Raises:
        ArgumentError: the edit has another subject or another new target.
    """
    edited = getattr(edit, "fact", None)
    if not isinstance(edited, Fact) or (edited.text, edited.subject, edited.new_target) == (
        fact.text,
        fact.subject,
        fact.new_target,
    ):
        return
    if is_null_edit(edit, fact):
        return
    if (edited.subject, edited.new_target) == (fact.subject, fact.new_target):
        warn(
            "The edit was made with another prompt than the record's. Unless that prompt is the "
            "same relation in other words, evaluate the edit with its own record.",
            OtherPromptWarning,
        )
        return
    raise ArgumentError(
        f"The edit makes {edited.text!r} say {edited.new_target!r}, but the record {name!r} is "
        f"about {fact.text!r} and {fact.new_target!r}. Evaluate an edit with its own record."
    )
