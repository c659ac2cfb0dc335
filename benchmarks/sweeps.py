"""Time a sweep of edits with one worker and with several.

    python benchmarks/sweeps.py [--model smollm2-135m] [--facts 16] [--workers 2]

Each run makes the same edits, fact by fact and layer by layer, into a directory of its own. Times
are wall times of the whole call, with the loading of the model in every worker. The workers share
out torch's threads, so one worker is timed with one thread and with as many as the workers have
together.

Peak GB is of all processes together, weights included. Pages that processes share count once
(Linux' ``Pss``).
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Row, parser, publish, table, timed

import rome_lens as rl


def processes(pid: str = "self") -> Iterator[Path]:
    """A process and all its descendants."""
    place = Path("/proc", pid)
    yield place
    for children in place.glob("task/*/children"):
        for child in children.read_text().split():
            yield from processes(child)


def proportional_memory() -> float:
    """Gigabytes of this process and its descendants."""
    total = 0
    for place in processes():
        try:
            lines = (place / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e6


def with_peak(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall seconds of a call, and the highest memory of all processes in it."""
    done, samples = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.5):
            samples.append(proportional_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _, seconds = timed(work)
    finally:
        done.set()
        watcher.join()
    return seconds, max(samples)


def measured(
    model: str, records: list[Any], settings: dict[str, Any], workers: int, threads: int
) -> Row:
    """One sweep, in a new directory."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as directory:
        wall, peak = with_peak(
            lambda: rl.sweep(model, records, directory=directory, workers=workers, **settings)
        )
    edits = len(records) * len(settings["layers"])
    return Row(
        case=f"{model}, {edits} edits: {workers} worker(s), {threads} thread(s) in all",
        wall=wall,
        peak=peak,
        notes=f"{edits / wall:.2f} edits/s",
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--facts", type=int, default=16)
    options.add_argument("--layers", type=int, nargs="*", default=[5, 10])
    options.add_argument("--workers", type=int, default=2)
    args = options.parse_args()
    model = rl.load_model(args.model)
    settings: dict[str, Any] = {
        "layers": args.layers,
        "stages": ["edit"],
        "statistics": {i: rl.KeyStatistics.identity(model, layer=i) for i in args.layers},
        "contexts": rl.random_contexts(model, prefixes=6),
        "config": rl.RomeConfig(steps=8),
    }
    del model
    records = rl.data.records(known_by=args.model)[: args.facts]
    cases = ((1, 1), (1, args.workers), (args.workers, args.workers))
    rows = [measured(args.model, records, settings, *case) for case in cases]
    for row in rows:
        row.ratio = rows[0].wall / row.wall
    publish("sweeps", table(rows), args.write)


if __name__ == "__main__":
    main()
