"""The door to what differs between TransformerLens' two model classes in a forward pass.

``backend_of(model)`` returns a ``HookedBackend`` or a ``BridgeBackend``. Both have the same
attributes, each documented in ``hooked.py`` and in ``bridge.py``. The rest of the package calls
them and never asks for the class of a model.
"""

from typing import TypeAlias

from rome_lens.forward.bridge import BridgeBackend
from rome_lens.forward.hooked import HookedBackend
from rome_lens.models.lens import LensModel

Backend: TypeAlias = HookedBackend | BridgeBackend


def backend_of(model: LensModel) -> Backend:
    """The backend of the model's class.

    A model that is not a ``TransformerBridge`` is taken for a ``HookedTransformer``.
    TransformerLens 4 has no such class that one could ask for.
    """
    return BridgeBackend(model) if BridgeBackend.fits(model) else HookedBackend(model)
