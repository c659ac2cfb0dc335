"""Hooks for the length of a ``with`` block. All hooks of the package are put on a model here."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rome_lens.models.hook_names import Hook
from rome_lens.models.lens import LensModel
from rome_lens.models.model_argument import checked_model
from rome_lens.models.visits import Temporary, hook_points

Value = TypeVar("Value")

# Keys in the context of a hook point that begin so are the package's.
OUR_CONTEXT = "rome_lens"


def hooks_on(model: LensModel, fwd_hooks: Sequence[Hook]) -> Temporary[None]:
    """Inside, the hooks are at their hook points, as in TransformerLens' ``model.hooks``.

    TransformerLens takes its hooks off in a clean-up that an interrupt can end half-way. Here, it
    can be repeated: what was not at a hook point before, and runs one of these functions, is ours.
    """
    given = [hook_fn for _, hook_fn in fwd_hooks]
    # TransformerLens asks for the hook points once per hook.
    context = type(model).hooks(_WithHookPoints(model), fwd_hooks=list(fwd_hooks))
    before: list[_HooksAtPoint] = []

    def put() -> None:
        before.extend(_HooksAtPoint(point) for point in _points(model, fwd_hooks))
        context.__enter__()

    def take() -> None:
        # Not ``__exit__``: a generator that an interrupt has left suspended would otherwise run its
        # clean-up at some later time, when it is collected.
        context.gen.close()
        for point in before:
            point.restore(given)

    return Temporary(model, put=put, take=take)


def _points(model: LensModel, fwd_hooks: Sequence[Hook]) -> list[Any]:
    """The hook points that the hooks may go to, each once."""
    by_name = hook_points(model)
    names = [name for name, _ in fwd_hooks]
    chosen = names if all(isinstance(name, str) for name in names) else list(by_name)
    return list({id(by_name[name]): by_name[name] for name in chosen if name in by_name}.values())


class _WithHookPoints:
    """A model as it is, except that its hook points were looked up already."""

    def __init__(self, model: LensModel) -> None:
        vars(self).update(_model=model, hook_dict=hook_points(model))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)


class _HooksAtPoint:
    """A hook point, and the hooks that it has at this moment."""

    def __init__(self, point: Any) -> None:
        self._point = point
        self._handles = {id(handle) for handle in point.fwd_hooks}
        self._numbers = set(point._forward_hooks)
        self._context = set(point.ctx)

    def restore(self, given: Sequence[Callable[..., Any]]) -> None:
        """Take off what has come since and runs one of the given functions."""
        point = self._point
        point.fwd_hooks = [
            handle
            for handle in point.fwd_hooks
            if id(handle) in self._handles or not _is_among(handle.user_hook, given)
        ]
        for number, hook in list(point._forward_hooks.items()):
            cells = getattr(hook, "__closure__", None) or ()
            ours = any(_is_among(cell.cell_contents, given) for cell in cells)
            if number not in self._numbers and ours:
                _forget(point, number)
        for name in set(point.ctx) - self._context:
            if str(name).startswith(OUR_CONTEXT):
                point.ctx.pop(name, None)


def _is_among(hook_fn: Any, given: Sequence[Callable[..., Any]]) -> bool:
    return any(hook_fn is each for each in given)


def _forget(module: torch.nn.Module, number: int) -> None:
    """Take a hook off a module by the number that torch gave it."""
    for table in (
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
        module._forward_pre_hooks,
        module._forward_pre_hooks_with_kwargs,
    ):
        table.pop(number, None)


def _take_off(modules: Sequence[torch.nn.Module], hook: Callable[..., Any]) -> None:
    """Take a function off the modules, where it is one of their hooks."""
    for module in modules:
        for table in (module._forward_pre_hooks, module._forward_hooks):
            for number, each in list(table.items()):
                if each is hook:
                    _forget(module, number)


def pre_hooks(
    model: LensModel, hook: Callable[..., Any], collected: Value | None = None
) -> Temporary[Value]:
    """Inside, ``hook`` gets each block's arguments before the block, and may replace them.

    The ``with`` block gets ``collected``, for a hook that collects something there.
    """
    blocks = list(model.blocks)

    def put() -> Any:
        for block in blocks:
            block.register_forward_pre_hook(hook, with_kwargs=True)
        return collected

    return Temporary(model, put=put, take=lambda: _take_off(blocks, hook))


def entering_blocks(model: LensModel) -> Temporary[list[Tensor]]:
    """Inside, the list collects the stream that each block is called with.

    It is the stream before any hook of the block acts on it.
    """
    streams: list[Tensor] = []

    def keep(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams.append((args[0] if args else kwargs["hidden_states"]).detach())

    return pre_hooks(model, keep, streams)


def unembedding_only(model: LensModel, pick: Callable[[Tensor], Tensor]) -> Temporary[None]:
    """Inside, the model unembeds only what ``pick`` selects from the last stream.

    The stream has shape ``[batch, pos, d_model]``.
    """
    unembed = checked_model(model).unembed

    def select(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # A strided input would make the product as slow as the full one.
        return (pick(args[0]).contiguous(), *args[1:])

    def put() -> None:
        unembed.register_forward_pre_hook(select)

    return Temporary(model, put=put, take=lambda: _take_off([unembed], select))


def changing_logits(model: LensModel, change: Callable[[Tensor], Tensor]) -> Temporary[None]:
    """Inside, the unembedding returns ``change(logits)``."""
    unembed = model.unembed

    def changed(_module: torch.nn.Module, _args: tuple[Any, ...], logits: Tensor) -> Tensor:
        return change(logits)

    def put() -> None:
        unembed.register_forward_hook(changed)

    return Temporary(model, put=put, take=lambda: _take_off([unembed], changed))
