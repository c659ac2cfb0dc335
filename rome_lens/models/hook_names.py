"""Names of TransformerLens' hook points, and whose hooks are on a model."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from rome_lens.models.lens import LensModel

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
    """Name of the hook at a layer's output: the stream after it, what its MLP or attention adds, or its heads' ``z``."""
    return f"blocks.{layer}.{_COMPONENT_HOOKS[component]}"


def key_hook(layer: int) -> str:
    """Name of the hook at the input of ``W_out``: the keys ``k``, shape ``[batch, pos, d_mlp]``."""
    return f"blocks.{layer}.mlp.hook_post"


def resid_pre_hook(layer: int) -> str:
    """Name of the hook at the residual stream that enters a layer."""
    return f"blocks.{layer}.hook_resid_pre"


def has_hooks(model: LensModel, *, points: tuple[str, ...] = ("",)) -> bool:
    """Whether the caller has hooks on the model, on points whose names begin as given; the Bridge's own do not count."""
    named = (point for name, point in model.hook_dict.items() if name.startswith(points))
    return any(not is_wiring(handle) for point in named for handle in point.fwd_hooks)


def has_hooks_after_blocks(model: LensModel) -> bool:
    """Whether hooks act on the final norm or on the unembedding, so that these must be called as the model calls them."""
    return has_hooks(model, points=("ln_final", "unembed"))


def mark_as_ours(hook_fn: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The same function, marked so that :func:`is_ours` recognises it wherever it is defined."""
    vars(hook_fn)["rome_lens"] = True
    return hook_fn


def is_ours(handle: Any) -> bool:
    """Whether this package made the hook."""
    return getattr(handle.user_hook, "rome_lens", False)


def is_wiring(handle: Any) -> bool:
    """Whether TransformerLens put the hook in itself."""
    return handle.is_permanent and getattr(handle.user_hook, "__module__", "").startswith(
        "transformer_lens."
    )


def capture_hooks(names: Sequence[str], kept: dict[str, Tensor]) -> list[Hook]:
    """Hooks that store each named activation in ``kept`` under the name asked for, whatever alias the model reports."""

    def keep(name: str) -> Hook:
        def hook_fn(value: Tensor, hook: Any) -> None:
            kept[name] = value.detach()

        return name, mark_as_ours(hook_fn)

    return [keep(name) for name in names]
