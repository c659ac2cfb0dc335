"""How large one batch may be follows from the device, in bytes."""

import pytest
import torch

from rome_lens.forward.memory import bytes_per_batch, bytes_per_slice, rows_per_batch

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 1 << 30


def with_a_gpu(patch: pytest.MonkeyPatch, *, free: int, total: int, idle: int = 0) -> None:
    """A GPU with some free memory, and more that torch holds but does not use."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    patch.setattr(torch.cuda, "memory_reserved", lambda device: idle + 5)
    patch.setattr(torch.cuda, "memory_allocated", lambda device: 5)


def test_a_slice_on_a_cpu_is_smaller_than_a_batch() -> None:
    assert bytes_per_slice(CPU) < bytes_per_batch(CPU) <= GIB


def test_a_gpu_with_room_gives_one_number_whatever_else_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = set()
    for free in (30, 50, 79):
        with_a_gpu(monkeypatch, free=free * GIB, total=80 * GIB)
        found |= {bytes_per_batch(GPU), bytes_per_slice(GPU)}
    assert found == {2 * GIB}


@pytest.mark.parametrize(("free", "idle"), [(3 * GIB, GIB), (0, 4 * GIB), (0, 0)])
def test_a_batch_fits_what_is_free_on_a_full_gpu(
    free: int, idle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_gpu(monkeypatch, free=free, total=80 * GIB, idle=idle)
    assert bytes_per_batch(GPU) == max(1, (free + idle) // 8)
    assert rows_per_batch(1 << 20, GPU) == max(1, (free + idle) // 8 // (1 << 20))


def test_a_row_larger_than_a_batch_is_a_batch() -> None:
    assert rows_per_batch(bytes_per_batch(CPU) + 1, CPU) == 1
    assert rows_per_batch(bytes_per_batch(CPU) // 3, CPU) == 3
