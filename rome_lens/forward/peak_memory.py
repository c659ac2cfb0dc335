"""How much memory a step needs at most."""

import math
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The peak memory of the steps after this object was made, in bytes.

    On a GPU it is what torch has allocated there. On a CPU it is the memory of the whole process,
    which includes the model. Only Linux tells it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _RESET.write_text("5", encoding="utf-8")  # the peak of the process becomes its present
        except OSError:
            self._known = False

    def bytes(self) -> float:
        """The peak until now; NaN where the system does not tell."""
        if not self._known:
            return math.nan
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return 1024.0 * float(peaks[0]) if peaks else math.nan
