"""How the cost of a trace, an edit and key statistics grows with the size of the task.

    python benchmarks/growth.py [--axes tokens layers samples facts vocabulary]

One table for each axis. The model is a small GPT-2 (4 layers, width 64, 10 tokens) with random
weights, and one size at a time changes:

* tokens: words after the subject, or the length of the sequences that key statistics read
* layers: with half of them after the edited one
* samples: noise samples of a trace, or contexts of an edit
* facts: traced by one ``trace_facts``, edited by one ``rome_batch``, with the toy model
* vocabulary

The exponent is the slope of log cost over log size at the three largest sizes: 0 is constant, 1 is
linear, 2 is quadratic. "Least" is that of ``tracing.py``, ``editing.py`` and ``key_statistics.py``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import editing
import key_statistics
import timed_models
import torch
import tracing
from measure import Row, compare, exponent, parser, publish, table

import rome_lens as rl
from rome_lens.editing.prompts import EditRows
from rome_lens.forward.tokens import encode

AXES = {
    "tokens": (10, 25, 50, 100, 200),
    "layers": (2, 4, 8, 16, 32),
    "samples": (2, 5, 10, 20),
    "facts": (1, 2, 4, 8, 16, 32),
    "vocabulary": (1_000, 4_000, 16_000, 64_000, 256_000),
}
STEPS = 5
Task = tuple[Callable[[], Any], float]  # a call, and its least multiply-adds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes of one task."""

    tokens: int = 10
    layers: int = 4
    samples: int = 10
    vocabulary: int = 1_000


def random_model(size: Size) -> Any:
    return timed_models.wrapped(
        *timed_models.random_gpt2(
            n_layer=size.layers,
            n_embd=64,
            n_head=4,
            n_positions=256,
            vocab_size=size.vocabulary,
        )
    )


def tasks(size: Size) -> dict[str, Task]:
    """A trace, an edit and key statistics of one size."""
    model, layer = random_model(size), size.layers // 2 - 1
    fact = timed_models.fact_of_length(model, size.tokens)
    contexts = rl.random_contexts(rl.load_model("toy"), prefixes=size.samples, prepend_bos=False)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(model.tokenizer), (16, size.tokens), generator=generator)
    least_trace = tracing.least_multiply_adds(model, encode(model, fact), "resid", 1, size.samples)
    rows = EditRows.of(model, fact, contexts, False)
    return {
        "trace": (
            lambda: rl.causal_trace(model, fact, samples=size.samples, require_correct=False),
            least_trace,
        ),
        "edit": (
            lambda: edits(model, [fact], layer, contexts),
            editing.least_multiply_adds(model, rows, layer, STEPS),
        ),
        "statistics": (
            lambda: rl.collect_key_statistics(model, layer=layer, tokens=[tokens], source="random"),
            key_statistics.least_multiply_adds(model, layer, tokens.numel()),
        ),
    }


def edits(model: Any, facts: list[rl.Fact], layer: int, contexts: tuple[str, ...]) -> Any:
    """Edits of all facts, side by side."""
    options: dict[str, Any] = {
        "layer": layer,
        "statistics": rl.KeyStatistics.identity(model, layer=layer),
        "contexts": contexts,
        "config": rl.RomeConfig(steps=STEPS, stop_loss=0.0),
        "prepend_bos": False,
    }
    return rl.rome_batch(model, facts, **options)


def tasks_of_facts(count: int) -> dict[str, Task]:
    """Traces and edits of several facts of the toy model."""
    model = rl.load_model("toy", model_class=timed_models.default_class())
    facts = tracing.known_facts("toy", model, count)
    contexts = rl.random_contexts(model, prefixes=6, prepend_bos=False)
    every = [encode(model, fact) for fact in facts]
    rows = [EditRows.of(model, fact, contexts, False) for fact in facts]
    return {
        "trace": (
            lambda: rl.trace_facts(model, facts),
            sum(tracing.least_multiply_adds(model, each, "resid", 1) for each in every),
        ),
        "edit": (
            lambda: edits(model, facts, 2, contexts),
            sum(editing.least_multiply_adds(model, each, 2, STEPS) for each in rows),
        ),
    }


def growth(axis: str, sizes: tuple[int, ...], rounds: int) -> list[Row]:
    """The rows of one axis, sorted by task, with the exponents in each task's last row."""
    found: dict[str, list[Row]] = {}
    for size in sizes:
        made = tasks_of_facts(size) if axis == "facts" else tasks(Size(**{axis: size}))
        if axis == "samples":
            made.pop("statistics")
        rows = compare({name: call for name, (call, _) in made.items()}, rounds=rounds)
        for name, row in rows.items():
            row.case, row.ratio, row.least = f"{name}, {size:,} {axis}", None, made[name][1]
            found.setdefault(name, []).append(row)
    for rows_of_task in found.values():
        rows_of_task[-1].notes = exponents(sizes, rows_of_task)
    return [row for rows_of_task in found.values() for row in rows_of_task]


def exponents(sizes: tuple[int, ...], rows: list[Row]) -> str:
    """Exponents at the largest sizes, of what was measured and is not zero."""
    costs: Mapping[str, list[float | None]] = {
        "CPU s": [row.cpu for row in rows],
        "mult-adds": [row.multiply_adds for row in rows],
        "peak": [row.peak for row in rows],
    }
    return "exponents: " + ", ".join(
        f"{name} {exponent(sizes[-3:], values[-3:]):.2f}"
        for name, values in costs.items()
        if all(values[-3:])
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--axes", nargs="*", default=list(AXES), choices=list(AXES))
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    tables = [table(growth(axis, AXES[axis], args.rounds), axis) for axis in args.axes]
    publish("growth", "\n\n".join(tables), args.write)


if __name__ == "__main__":
    main()
