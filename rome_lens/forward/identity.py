"""What a stored result depends on besides its own settings: weights, tokens, and versions."""

from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import tokenizer_fingerprint
from rome_lens.models.fingerprints import weights_fingerprint
from rome_lens.models.hook_names import has_hooks
from rome_lens.models.lens import LensModel
from rome_lens.storage import installed_versions


def model_identity(model: LensModel) -> str:
    """A text that differs where two models or two installations may give different numbers.

    It covers every weight and its dtype, the tokenizer, whether BOS is prepended by default, and
    the installed versions.

    Raises:
        ArgumentError: the model has hooks. They change results and cannot be put into a text.
    """
    if has_hooks(model):
        raise ArgumentError(
            "The model has hooks. They change results, and a stored result could not say so: "
            "remove them with model.reset_hooks(), or leave out the directory."
        )
    dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
    weights = (weights_fingerprint(model), dtypes)
    tokens = (tokenizer_fingerprint(model), model.cfg.default_prepend_bos)
    return repr((weights, tokens, installed_versions()))
