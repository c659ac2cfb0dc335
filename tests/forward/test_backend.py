"""The two model classes share one interface."""

import inspect
from typing import Any

from rome_lens.forward.backend import backend_of
from rome_lens.forward.bridge import BridgeBackend
from rome_lens.forward.hooked import HookedBackend


def test_the_backend_is_that_of_the_models_class(toy: Any) -> None:
    names = {HookedBackend: "HookedTransformer", BridgeBackend: "TransformerBridge"}
    assert names[type(backend_of(toy))] == type(toy).__name__


def test_both_backends_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(backend: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(backend).items()
            if not name.startswith("_")
        }

    bridge = methods(BridgeBackend)
    del bridge["fits"]  # the question that backend_of asks
    assert methods(HookedBackend) == bridge
