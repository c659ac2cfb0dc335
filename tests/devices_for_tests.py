"""A device that is not the CPU, for machines without one.

Inside :class:`FakeDevice`, tensors are marked as lying on the device: the model's, those that code
moves or creates there, and all that is computed from marked tensors. Really everything lies on the
CPU. As on a GPU, an operation on tensors of both places raises, and so does ``numpy()`` of a marked
tensor, or a draw there from a generator of the CPU. As on a GPU, these may be mixed: a tensor
without axes on the CPU, indices on the CPU into a marked tensor, and both sides of ``copy_``.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda")
_MARK = "_on_fake_device"
_MOVES = {"to", "cpu", "cuda"}
_INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_", "index_fill_"}
_SHAPED_LIKE = {"expand_as", "reshape_as", "view_as"}  # of the second tensor, only the shape counts
_FREE = {"copy_", "__set__", "_make_subclass", *_SHAPED_LIKE}


def is_marked(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and getattr(tensor, _MARK, False)


def mark(tensor: Tensor, on_device: bool = True) -> Tensor:
    setattr(tensor, _MARK, on_device)
    return tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or results of a call."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


class FakeDevice(TorchFunctionMode):
    """Inside, the model is on :data:`DEVICE`. Afterwards it is on the CPU again."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model, self._before = model, model.cfg.device

    def __enter__(self) -> Any:
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            mark(tensor)
        self._model.cfg.device = str(DEVICE)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._model.cfg.device = self._before
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            mark(tensor, False)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        owner = args[0] if args and isinstance(args[0], Tensor) else None
        if func == Tensor.device.__get__:
            return DEVICE if is_marked(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return is_marked(args[0])
        if name in _MOVES and owner is not None:
            return self._move(func, name, args, kwargs)
        if name == "numpy" and is_marked(owner):
            raise RuntimeError("fake device: numpy() of a tensor that is not on the CPU")
        place = kwargs.get("device")
        if place is not None:
            kwargs["device"] = "cpu"
        tensors = list(tensors_in((args, kwargs)))
        if name not in _FREE:
            self._refuse_mixed(name, args, tensors)
        on_device = any(map(is_marked, tensors))
        if name in _SHAPED_LIKE:
            on_device = is_marked(owner)
        if place is not None:
            on_device = torch.device(place).type == DEVICE.type
        if on_device and kwargs.get("generator") is not None:
            raise RuntimeError(f"fake device: {name} draws there from a generator of the CPU")
        result = func(*args, **kwargs)
        if name == "__set__" or result is owner:
            return result
        for tensor in tensors_in(result):
            mark(tensor, on_device)
        return result

    def _move(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        on_device = {"cpu": False, "cuda": True}.get(name, is_marked(args[0]))
        rest = []
        for value in args[1:]:
            if isinstance(value, Tensor):
                on_device = is_marked(value)
                rest.append(value.dtype)
            elif isinstance(value, str | torch.device):
                on_device = torch.device(value).type == DEVICE.type
            else:
                rest.append(value)
        if kwargs.get("other") is not None:
            on_device = is_marked(kwargs["other"])
        if kwargs.get("device") is not None:
            on_device = torch.device(kwargs.pop("device")).type == DEVICE.type
        moved = on_device != is_marked(args[0])
        result = Tensor.to(args[0], *rest, **kwargs) if rest or kwargs else args[0]
        if moved:
            result = mark(result.clone() if result is args[0] else result, on_device)
        return result if result is args[0] else mark(result, on_device)

    def _refuse_mixed(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        if name in _INDEXING and is_marked(args[0]):
            tensors = [args[0], *(each for each in args[2:] if isinstance(each, Tensor))]
        places = {is_marked(each) for each in tensors if each.ndim > 0}
        marked_without_axes = any(is_marked(each) for each in tensors if each.ndim == 0)
        if len(places) == 2 or (
            places == {False} and marked_without_axes and name != "__setitem__"
        ):
            shapes = [(tuple(each.shape), is_marked(each)) for each in tensors]
            raise RuntimeError(f"fake device: {name} of tensors in two places: {shapes}")
