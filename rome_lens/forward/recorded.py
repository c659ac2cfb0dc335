"""A computation whose GPU kernels are recorded once and then launched together.

Where a step of an optimisation consists of thousands of small kernels, a GPU waits for Python most
of the time. Python runs only while the kernels are recorded (a CUDA graph). Later steps repeat the
same kernels on new numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def can_record(device: torch.device) -> bool:
    """Whether computations on the device can be recorded."""
    return device.type == "cuda" and torch.cuda.is_available()


class Recorded:
    """A function of one tensor that is run once, and repeated without running Python again.

    Neither hooks nor anything else in ``function`` that is not a kernel happens in a repetition. It
    must not read a result on the CPU, nor copy from there. Run it once before, so that what happens
    at a first call does not become a part of the recording.

    Args:
        function: takes a tensor like ``like`` that requires a gradient, and returns tensors.
        like: a tensor of the shape, dtype and device that ``function`` takes.

    Raises:
        RuntimeError: the function cannot be recorded.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]], like: Tensor) -> None:
        self._given = like.detach().clone().requires_grad_()
        self._graph = torch.cuda.CUDAGraph()
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._results = function(self._given)
            finally:
                self._graph.capture_end()
        current.wait_stream(aside)

    @torch.no_grad()
    def __call__(self, given: Tensor) -> tuple[Tensor, ...]:
        """What the function returns for ``given``. The next call overwrites these tensors."""
        self._given.copy_(given)
        self._graph.replay()
        return self._results
