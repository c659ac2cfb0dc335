"""What the benchmarks share: times, multiply-adds, peak memory, and one table.

* **CPU s** is the process's CPU time in one call, the median over rounds. **s** is wall time.
* **Ratio** is the median over rounds of the baseline's CPU time over the call's. The calls of a
  round follow each other in one process, so other work on the machine slows all of them alike.
* **G mult-adds** are billions of multiply-adds. Torch counts them, in matrix products only.
  **/ least** divides them by the least that the method needs. Each script's docstring has the
  formula. The products inside attention are not part of it, and small.
* **Peak GB** is the highest resident memory during one call, above what was resident before it (the
  weights). Linux counts it (``VmHWM``). Elsewhere the column is empty.
"""

import argparse
import ctypes
import dataclasses
import datetime
import gc
import importlib.metadata
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], Any]
HEADER = ("case", "CPU s", "s", "ratio", "G mult-adds", "/ least", "peak GB", "difference", "notes")


@dataclasses.dataclass(kw_only=True)
class Row:
    """One measured call. What was not measured is None."""

    case: str
    cpu: float | None = None
    wall: float | None = None
    ratio: float | None = None
    multiply_adds: float | None = None
    least: float | None = None
    peak: float | None = None
    difference: float | None = None
    notes: str = ""
    result: Any = dataclasses.field(default=None, repr=False)

    def cells(self) -> list[str]:
        giga = None if self.multiply_adds is None else self.multiply_adds / 1e9
        over = None if giga is None or not self.least else giga * 1e9 / self.least
        shown = [(self.cpu, ".3g"), (self.wall, ".3g"), (self.ratio, ".2f"), (giga, ".3g")]
        shown += [(over, ".2f"), (self.peak, ".3f"), (self.difference, ".0e")]
        numbers = ["" if value is None else format(value, how) for value, how in shown]
        return [self.case, *numbers, self.notes]


def compare(
    works: Mapping[str, Work],
    *,
    baseline: str | None = None,
    rounds: int = 3,
    scale: Mapping[str, float] | None = None,
) -> dict[str, Row]:
    """Measure calls: first one call of each for work and memory, then interleaved rounds for time.

    Args:
        works: the calls by name.
        baseline: the name of the call that the ratios compare with. None compares with the first.
        scale: for a call that does a part of the work, how much larger the whole is.
    """
    factor = dict.fromkeys(works, 1.0) | dict(scale or {})
    rows = {name: _first_call(name, work, factor[name]) for name, work in works.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            cpu, wall = timed(work)
            seconds[name].append((factor[name] * cpu, factor[name] * wall))
    base = seconds[baseline or next(iter(works))]
    for name, row in rows.items():
        row.cpu, row.wall = (statistics.median(pair[i] for pair in seconds[name]) for i in (0, 1))
        pairs = zip(base, seconds[name], strict=True)
        row.ratio = statistics.median(slow / fast for (slow, _), (fast, _) in pairs)
    return rows


def timed(work: Work) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def _first_call(name: str, work: Work, factor: float) -> Row:
    """One call that also warms up what later calls reuse."""
    before = _forget_peak()
    with FlopCounterMode(display=False) as counter:
        result = work()
    peak = None if before is None else (_highest_resident() - before) / 1e6
    done = factor * counter.get_total_flops() / 2
    return Row(case=name, multiply_adds=done, peak=peak, result=result)


def _forget_peak() -> int | None:
    """Start a new peak of resident memory. Returns what is resident now, in kilobytes."""
    if not sys.platform.startswith("linux"):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or else a call would reuse what an earlier one has freed
    Path("/proc/self/clear_refs").write_text("5")
    return _highest_resident()


def _highest_resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def block_weights(cfg: Any) -> int:
    """The weights of one layer, which is the multiply-adds of one token in it."""
    kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    attention = 2 * cfg.d_model * cfg.d_head * (cfg.n_heads + kv_heads)
    return attention + (3 if getattr(cfg, "gated_mlp", False) else 2) * cfg.d_model * cfg.d_mlp


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value over log size, by least squares: 1 is linear, 2 is quadratic."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two tensors, relative to the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max())


def machine() -> str:
    """Date, processor and versions."""
    packages = ("torch", "transformer-lens", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)
        processor = found[1] if found else processor
    return (
        f"{datetime.date.today()}, {processor}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} thread(s), Python {platform.python_version()}, {versions}."
    )


def table(rows: Sequence[Row], first: str = "case") -> str:
    """A markdown table, without the columns that are empty in every row."""
    cells = [[first, *HEADER[1:]], *(row.cells() for row in rows)]
    used = [i for i in range(len(HEADER)) if any(line[i] for line in cells[1:])]
    lines = [[line[i] for i in used] for line in cells]
    lines.insert(1, ["---"] * len(used))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument(
        "--write", type=Path, help="a document whose section of this benchmark is replaced"
    )
    return options


def publish(name: str, text: str, document: Path | None) -> None:
    """Print a benchmark's tables, or put them into its section of a document.

    The section lies between ``<!-- benchmark: name -->`` and ``<!-- end -->``.
    """
    text = f"{machine()}\n\n{text}"
    print(text, flush=True)
    if document is None:
        return
    marks = re.compile(rf"(<!-- benchmark: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    old = document.read_text(encoding="utf-8")
    new, count = marks.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", old)
    if count != 1:
        raise SystemExit(f"{document} has {count} sections <!-- benchmark: {name} -->, not one.")
    document.write_text(new, encoding="utf-8")
