"""How much memory a step needs at most."""

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
        self._on_gpu = device.type == "cuda" and torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _RESET.write_text("5", encoding="utf-8")  # the peak of the process becomes its present
        except OSError:
            self._known = False

    def bytes(self) -> float | None:
        """The peak until now; None where the system does not tell."""
        if not self._known:
            return None
        if self._on_gpu:
            return float(torch.cuda.max_memory_allocated(self._device))
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return 1024.0 * float(peaks[0]) if peaks else None
