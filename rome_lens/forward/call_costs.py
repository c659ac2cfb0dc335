"""What the call of a block costs beside the tokens in it."""

from rome_lens.models.lens import LensModel, device

# The call of a block, in multiply-adds that take as long. Measured on a CPU with blocks of 6e4 and
# 7e6 weights. On an H200 the call takes 1 to 2 ms, almost all of it in Python.
_CALL_ON_A_CPU = 12_000_000
_CALL_ON_A_GPU = 30_000_000_000
_CALL_ON_A_GPU_IN_HALF_PRECISION = 300_000_000_000
# Reading a block's weights takes as long as running so many tokens.
_TOKENS_PER_READING = 30


def tokens_per_call(model: LensModel) -> int:
    """The number of tokens that take as long to run as the call of a block itself."""
    weights = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    return _TOKENS_PER_READING + _multiply_adds_per_call(model) // weights


def _multiply_adds_per_call(model: LensModel) -> int:
    """The call of a block, in multiply-adds that take as long on the model's device."""
    if device(model).type == "cpu":
        return _CALL_ON_A_CPU
    in_half = next(model.blocks[0].parameters()).element_size() == 2
    return _CALL_ON_A_GPU_IN_HALF_PRECISION if in_half else _CALL_ON_A_GPU
