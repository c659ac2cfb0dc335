"""One thread at a time on a model, and nothing of ours left on it, whatever interrupts a call.

A call of a public function is a *visit* (see ``door.py``). What the package puts on a model for a
while, such as hooks, evaluation mode or an edit in the weights, is a :class:`Temporary`. The visit
notes it before it is put on. When the visit ends, it takes off whatever is still noted.

Ctrl-C may strike at any instruction, also inside a clean-up. So every clean-up can be repeated. A
``with`` block takes its own change off. The end of the visit does so again, twice. Where even that
was interrupted, the next call finds the unfinished visit and ends it.

Each model has one lock. The thread that holds it may enter again, and other threads wait. So a
thread inside ``with edit.applied(model):`` must not wait for another one that uses the model. A
call of the model that bypasses this package, such as ``model(tokens)`` in a thread of the caller's,
does not wait.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

from rome_lens.models.model_argument import checked_model
from rome_lens.warning import warn

Value = TypeVar("Value")

_SECONDS_BETWEEN_TRIES = 0.002
_SECONDS_BEFORE_A_WARNING = 20.0
_MOST_REMEMBERED = 10_000
_WAITS_FOR_A_BLOCK = (
    "This thread waits for the model, because another thread is inside a block such as 'with "
    "edit.applied(model):'. If that thread in turn waits for this one, neither will go on: start "
    "threads outside the block, or enter the block in each thread."
)
# What a TransformerBridge sets on itself or on its blocks during a forward pass.
_SET_BY_A_BRIDGE = ("_stop_at_layer_idx", "_capture_hf_cache", "_last_hf_cache")


class Room:
    """The lock of one model, and the visit that goes on there.

    ``threading.RLock`` counts how often it is held, and an interrupt between two instructions can
    lose the count. Here, each holder is noted by itself, so that releasing may be repeated.
    """

    def __init__(self) -> None:
        self.visit: Visit | None = None
        self._owner: dict[str, int] = {}
        self._holders: set[Any] = set()

    def claim(self, holder: Any) -> None:
        """Wait until no other thread holds the model, and hold it."""
        me = threading.get_ident()
        patience = time.monotonic() + _SECONDS_BEFORE_A_WARNING
        while (owner := self._owner.setdefault("thread", me)) != me:  # setdefault is atomic
            visit, frame = self.visit, sys._current_frames().get(owner)
            if visit is not None and visit.is_over(frame):
                visit.end()
            elif frame is None:  # the thread has ended inside a block that it never left
                self._holders.clear()
                self._owner.pop("thread", None)
            elif visit is None and time.monotonic() > patience:
                patience = math.inf
                warn(_WAITS_FOR_A_BLOCK, UserWarning)
            time.sleep(_SECONDS_BETWEEN_TRIES)
        self._holders.add(holder)

    def release(self, holder: Any) -> None:
        """Hold the model no longer, and let others in if nobody else in this thread holds it."""
        was_held = holder in self._holders
        self._holders.discard(holder)
        mine = was_held or self._owner.get("thread") == threading.get_ident()
        if mine and not self._holders:
            self._owner.pop("thread", None)

    def is_visited(self) -> bool:
        """Whether the calling code runs inside a visit."""
        visit = self.visit  # another thread may end it between two looks
        return visit is not None and visit.is_below(sys._getframe())


_rooms: WeakKeyDictionary[Any, Room] = WeakKeyDictionary()


def room_of(model: Any) -> Room:
    """The room of a model. Two bridges around one transformers model share theirs."""
    return _rooms.setdefault(_key(model), Room())


def is_visited(model: Any) -> bool:
    """Whether the calling code runs inside a visit of the model."""
    try:
        room = _rooms.get(_key(model))
    except TypeError:  # not a model at all, but None or a text
        return False
    return room is not None and room.is_visited()


def hook_points(model: Any) -> Mapping[str, Any]:
    """The hook points of a model by name, aliases included.

    A TransformerBridge resolves hundreds of aliases whenever it is asked for its ``hook_dict``. No
    hook point comes or goes during a visit, so each visit asks once.
    """
    room = _rooms.get(_key(model))
    visit = room.visit if room is not None and room.is_visited() else None
    if visit is None:
        return model.hook_dict
    if not any(each is model for each, _ in visit.hook_points):  # bridges may share a visit
        visit.hook_points.append((model, model.hook_dict))
    return next(points for each, points in visit.hook_points if each is model)


def remembered_ids(model: Any) -> dict[Any, list[int]]:
    """Token ids that this visit has asked for already. Outside a visit, none are remembered.

    The checks of an edit ask for the ids of the same few texts thousands of times. No tokenizer
    changes during a visit.
    """
    room = _rooms.get(_key(model))
    visit = room.visit if room is not None and room.is_visited() else None
    if visit is None:
        return {}
    if len(visit.ids) >= _MOST_REMEMBERED:
        visit.ids.clear()
    return visit.ids


def _key(model: Any) -> Any:
    return getattr(model, "__dict__", {}).get("original_model", model)


class Visit:
    """One call of a public function, from ``begin`` to ``end``. Both may be repeated.

    Args:
        frame: the frame of the call. Once it is on no stack, the visit is over.
    """

    def __init__(self, model: Any, frame: FrameType) -> None:
        self._model = model
        self._room = room_of(model)
        self._frame = frame
        self._bottom = list(_frames_below(frame))[-1]
        self._settings: list[_Settings] = []
        self._gradients = torch.is_grad_enabled()
        self.changes: dict[Temporary[Any], None] = {}
        self.hook_points: list[tuple[Any, Mapping[str, Any]]] = []
        self.ids: dict[Any, list[int]] = {}

    def begin(self) -> None:
        """Wait for the model, take off what an interrupted call left, and note what passes."""
        self._room.claim(self)
        if self._room.visit is not None and self._room.visit is not self:
            self._room.visit.end()
        self._settings = _passing_settings(self._model)
        self._room.visit = self

    def end(self) -> None:
        """Take off what is still on the model, and let others in."""
        for change in reversed(list(self.changes)):
            change.close()
        for setting in self._settings:
            setting.restore()
        self._settings = []
        if self.is_below(sys._getframe()):  # else it belongs to other code by now
            torch.set_grad_enabled(self._gradients)
        if self._room.visit is self:
            self._room.visit = None
        self._room.release(self)

    def is_below(self, frame: FrameType) -> bool:
        """Whether the call is still running, on the stack whose top is this frame."""
        each: FrameType | None = frame
        while each is not None and each is not self._frame:  # asked in every inner call
            each = each.f_back
        return each is not None

    def is_over(self, frame: FrameType | None) -> bool:
        """Whether the call has ended, seen from another thread.

        Args:
            frame: the top of the stack of the call's own thread; None if that has ended. It runs on
                while we look, and a generator that has just yielded hides what lies below it. So
                only a stack that is seen down to its bottom counts.
        """
        if frame is None:
            return True
        stack = list(_frames_below(frame))
        return stack[-1] is self._bottom and self._frame not in stack


def _frames_below(top: FrameType) -> Iterator[FrameType]:
    """A frame and the frames below it, from the top of the stack down."""
    frame: FrameType | None = top
    while frame is not None:
        yield frame
        frame = frame.f_back


class Temporary(AbstractContextManager[Value], Generic[Value]):
    """A change of a model for the length of a ``with`` block, during which other threads wait.

    Args:
        put: makes the change, and returns what the block gets.
        take: takes the change back. It is called at least once if ``put`` was begun, even where
            ``put`` did not finish, and may be called several times.
    """

    def __init__(self, model: Any, *, put: Callable[[], Value], take: Callable[[], None]) -> None:
        self._room = room_of(checked_model(model))
        self._put, self._take = put, take
        self._visit: Visit | None = None
        self._is_on = False

    def __enter__(self) -> Value:
        try:
            self._room.claim(self)
            if self._room.is_visited():
                self._visit = self._room.visit
            if self._visit is not None:
                self._visit.changes[self] = None
            self._is_on = True
            return self._put()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        finally:
            self.close()

    def close(self) -> None:
        """Take the change back, unless that is done. May be repeated."""
        if self._is_on:
            self._take()
        self.keep()

    def keep(self) -> None:
        """Let the change stay for good."""
        self._is_on = False
        if self._visit is not None:
            self._visit.changes.pop(self, None)
        self._room.release(self)


class _Settings:
    """Plain attributes of an object, and their values at the beginning of a visit."""

    def __init__(self, owner: Any, *names: str) -> None:
        self._state: dict[str, Any] = getattr(owner, "__dict__", {})
        self._names = names
        self._were = {name: self._state[name] for name in names if name in self._state}

    def restore(self) -> None:
        self._state.update(self._were)
        for name in self._names:
            if name not in self._were:
                self._state.pop(name, None)


def _passing_settings(model: Any) -> list[_Settings]:
    """What TransformerLens changes during a call and restores afterwards, if nothing stops it."""
    return [
        _Settings(model.cfg, "default_prepend_bos"),
        _Settings(model.tokenizer, "padding_side"),
        _Settings(model, "context_level", *_SET_BY_A_BRIDGE),
        *(_Settings(block, *_SET_BY_A_BRIDGE) for block in model.blocks),
    ]
