"""Key statistics that pages, notebooks and examples collect alike, once in a process."""

from collections.abc import Callable
from typing import Any

import rome_lens as rl
from rome_lens.editing import presets
from rome_lens.forward.identity import model_identity
from rome_lens.forward.sampling import sample_tokens
from rome_lens.keys import sources
from rome_lens.keys.collecting import collect_key_statistics
from rome_lens.localisation import sweep_over_layers

_known: dict[str, Any] = {}


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a model, whose result for the same arguments is remembered."""

    def call(model: Any, *arguments: Any, **options: Any) -> Any:
        options = {k: v for k, v in options.items() if k not in ("cache", "progress")}
        name = f"{function} {model_identity(model)} {arguments!r} {sorted(options.items())!r}"
        if name not in _known:
            _known[name] = function(model, *arguments, **options)
        return _known[name]

    return call


_collect = once(collect_key_statistics)
_sample = once(sample_tokens)


def share(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let everything that collects key statistics of the same model share them."""
    for place in (rl, presets, sweep_over_layers):
        patch(place, "collect_key_statistics", _collect)
    # Statistics of other layers are of the same samples, which take longest.
    patch(sources, "sample_tokens", _sample)
