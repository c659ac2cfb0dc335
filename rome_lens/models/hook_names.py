"""Names of TransformerLens' hook points, and whose hooks are on a model."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel, ModelError
from rome_lens.models.visits import hook_points

Component = Literal["resid", "mlp", "attn", "z"]
COMPONENTS: tuple[Component, ...] = ("resid", "mlp", "attn", "z")
Hook = tuple[str, Callable[..., Tensor | None]]

EMBED = "hook_embed"
_COMPONENT_HOOKS = {
    "resid": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "z": "attn.hook_z",
}


def component_hook(component: str, layer: int) -> str:
    """Name of the hook point at a component's output.

    Args:
        component: ``"resid"`` for the stream after the layer, ``"mlp"`` or ``"attn"`` for what that
            part adds to the stream, ``"z"`` for the outputs of the attention heads before ``W_O``.
    """
    return f"blocks.{layer}.{_COMPONENT_HOOKS[component]}"


def key_hook(layer: int) -> str:
    """Name of the hook point at the keys ``k``, the input of ``W_out``: ``[batch, pos, d_mlp]``."""
    return f"blocks.{layer}.mlp.hook_post"


def resid_pre_hook(layer: int) -> str:
    """Name of the hook point at the residual stream that enters a layer."""
    return f"blocks.{layer}.hook_resid_pre"


def check_has_points(model: LensModel, names: Sequence[str]) -> None:
    """Check that the model has these hook points.

    Raises:
        ModelError: it lacks one, such as a state space model those of attention and of an MLP.
    """
    points = hook_points(model)
    missing = [name for name in names if name not in points]
    if missing:
        raise ModelError(
            f"This model has no hook point {missing[0]!r}, where TransformerLens shows that part "
            f"of a layer; its layers are of the kind {type(model.blocks[0]).__name__}. Trace "
            "another component, such as 'resid', or use a model with attention and an MLP in each "
            "layer."
        )


@visits_model
def has_hooks(model: LensModel, *, points: tuple[str, ...] = ("",)) -> bool:
    """Whether the caller has hooks on the model. TransformerLens' own hooks do not count.

    Args:
        points: only hook points whose names begin with one of these are considered.
    """
    named = (point for name, point in hook_points(model).items() if name.startswith(points))
    return any(not is_wiring(handle) for point in named for handle in point.fwd_hooks)


@visits_model
def has_hooks_of_others(model: LensModel) -> bool:
    """Whether the model has hooks that neither TransformerLens nor this package has put on.

    The hooks of edits are this package's. They act on each position by what is there.
    """
    handles = (handle for point in hook_points(model).values() for handle in point.fwd_hooks)
    return any(not is_wiring(handle) and not is_ours(handle) for handle in handles)


@visits_model
def has_hooks_after_blocks(model: LensModel) -> bool:
    """Whether the caller has hooks on the final norm or on the unembedding.

    These two must then be called on whole sequences, as the model calls them.
    """
    return has_hooks(model, points=("ln_final", "unembed"))


def mark_as_ours(hook_fn: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The same function, marked as made by this package; :func:`is_ours` recognises the mark."""
    vars(hook_fn)["rome_lens"] = True
    return hook_fn


def is_ours(handle: Any) -> bool:
    """Whether this package made the hook."""
    return getattr(handle.user_hook, "rome_lens", False)


def is_wiring(handle: Any) -> bool:
    """Whether TransformerLens itself added the hook."""
    return handle.is_permanent and getattr(handle.user_hook, "__module__", "").startswith(
        "transformer_lens."
    )


def capture_hooks(names: Sequence[str], kept: dict[str, Tensor]) -> list[Hook]:
    """Hooks that store each named activation, detached, in ``kept``.

    The keys of ``kept`` are the given names, even where the model reports an alias.
    """

    def keep(name: str) -> Hook:
        def hook_fn(value: Tensor, hook: Any) -> None:
            kept[name] = value.detach()

        return name, mark_as_ours(hook_fn)

    return [keep(name) for name in names]
