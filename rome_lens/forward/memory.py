"""How much memory one batch may take on a device.

A CPU computes fastest on what fits its caches, and has memory enough for the rest. A GPU computes
fastest on large tensors, and each small one costs a launch. So the bounds here are stated in bytes,
and depend on the device. They decide only how work is cut into pieces.
"""

import torch
from torch import Tensor

# What the second cache of one core holds. With 8 MiB, log probabilities took up to 1.2 times
# as long.
_SLICE_ON_A_CPU = 1 << 19
_BATCH_ON_A_CPU = 1 << 27
# Of a GPU's memory, what one tensor may take. Several of that size exist at once.
_SHARE_OF_ALL = 32
_SHARE_OF_FREE = 8


def bytes_per_batch(device: torch.device) -> int:
    """How many bytes the largest tensor of one forward pass may take, such as its logits.

    On a CPU, that is 128 MiB. On a GPU, it is the largest power of two within a share of its
    memory, and within a share of what is free now. As long as the GPU has room, the number does not
    depend on what else is there, and so the same call gives the same bits again.

    Call it once before a loop, not inside. The bound does not synchronise with the GPU, but asks
    its driver.
    """
    memory = _gpu_memory(device)
    if memory is None:
        return _BATCH_ON_A_CPU
    free, total = memory
    most = max(1, min(total // _SHARE_OF_ALL, free // _SHARE_OF_FREE))
    return 1 << (most.bit_length() - 1)


def bytes_per_slice(device: torch.device) -> int:
    """How many bytes a tensor may take that is made, read once and dropped.

    On a CPU, that is 512 KiB, which caches hold. On a GPU, it is :func:`bytes_per_batch`.
    """
    return _SLICE_ON_A_CPU if _gpu_memory(device) is None else bytes_per_batch(device)


def rows_per_batch(bytes_per_row: int, device: torch.device) -> int:
    """How many rows of a size fit :func:`bytes_per_batch`, at least one."""
    return max(1, bytes_per_batch(device) // max(1, bytes_per_row))


def on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers that were computed on the CPU, such as indices, on the model's device.

    An ordinary copy to a GPU waits until the GPU has done all its work. This one does not.
    """
    on_a_gpu = device.type == "cuda" and torch.cuda.is_available()
    if not on_a_gpu or numbers.device.type != "cpu":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def _gpu_memory(device: torch.device) -> tuple[int, int] | None:
    """Free bytes and all bytes of a CUDA device. None for any other device.

    What torch has reserved and does not use counts as free.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + idle, total
