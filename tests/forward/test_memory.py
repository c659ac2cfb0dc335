"""How large one batch may be follows from the device, in bytes."""

from typing import Any

import pytest
import torch

from rome_lens.forward import readout
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


def test_log_probabilities_do_not_depend_on_the_slices_that_they_are_summed_in(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(5, 2, toy.cfg.d_model, generator=generator)
    tokens = torch.randint(0, toy.cfg.d_vocab, (5, 2, 3), generator=generator)

    def log_probs() -> torch.Tensor:
        return readout.log_probs_of_tokens(toy, stream, tokens, length=2).detach()

    at_once = log_probs()
    plain = readout.logits_of_rows(toy, stream.flatten(0, 1)).log_softmax(-1).detach()
    torch.testing.assert_close(
        at_once.flatten(0, 1), plain.gather(-1, tokens.flatten(0, 1)), atol=1e-5, rtol=1e-5
    )
    monkeypatch.setattr(readout, "_LEAST_WORDS", 7)
    monkeypatch.setattr(readout, "_LEAST_ROWS", 3)
    monkeypatch.setattr(readout, "bytes_per_slice", lambda device: 1)
    torch.testing.assert_close(log_probs(), at_once, atol=1e-6, rtol=1e-6)
