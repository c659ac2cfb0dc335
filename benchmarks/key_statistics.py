"""Time key statistics against a plain loop of ``run_with_cache``.

    python benchmarks/key_statistics.py [--models toy smollm2-135m] [--keys 16384]

The loop runs the whole model on each batch, keeps one hook point, and adds ``K^T K`` in float64
with one matrix product. Both read the same sequences of 64 tokens, 16 in a batch. "Difference" is
of the moment, relative to its largest entry.

The least work is, with ``B`` weights in a layer, and the edited layer ``e``, for each key
``e B`` plus attention and ``W_in`` of layer ``e``, and half of ``d_mlp^2`` for the sum, because
``K^T K`` is symmetric.
"""

from typing import Any

import timed_models
import torch
from measure import Row, block_weights, compare, difference, parser, publish, table

import rome_lens as rl
from rome_lens.models.hook_names import key_hook

LENGTH, BATCH = 64, 16


def plain_moment(model: Any, layer: int, batches: list[torch.Tensor]) -> torch.Tensor:
    """``C``, from runs of the whole model."""
    total = torch.zeros(model.cfg.d_mlp, model.cfg.d_mlp, dtype=torch.float64)
    name = key_hook(layer)
    with torch.no_grad():
        for tokens in batches:
            _, cache = model.run_with_cache(tokens, names_filter=name)
            keys = cache[name].flatten(0, 1).double()
            total += keys.T @ keys
    return total / sum(tokens.numel() for tokens in batches)


def least_multiply_adds(model: Any, layer: int, keys: int) -> float:
    """The least work of the statistics of one layer."""
    cfg, block = model.cfg, block_weights(model.cfg)
    return keys * ((layer + 1) * block - cfg.d_mlp * cfg.d_model + cfg.d_mlp**2 / 2)


def compared(name: str, model_class: str | None, keys: int, rounds: int) -> list[Row]:
    """The plain loop and ``collect_key_statistics`` on one model."""
    model = timed_models.load(name, model_class)
    return of_model(model, f"{name}, {type(model).__name__}", 2, keys, rounds)


def of_model(model: Any, title: str, layer: int, keys: int, rounds: int) -> list[Row]:
    size = (max(1, keys // (LENGTH * BATCH)), BATCH, LENGTH)
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randint(len(model.tokenizer), size, generator=generator))
    rows = compare(
        {
            "plain loop": lambda: plain_moment(model, layer, batches),
            "collect_key_statistics": lambda: (
                rl.collect_key_statistics(
                    model, layer=layer, tokens=batches, source="random tokens"
                ).moment
            ),
        },
        rounds=rounds,
    )
    plain, ours = rows.values()
    ours.difference = difference(ours.result, plain.result)
    count = sum(tokens.numel() for tokens in batches)
    for row in rows.values():
        row.case = f"{title}, layer {layer}, {count:,} keys: {row.case}"
        row.least = least_multiply_adds(model, layer, count)
        row.notes = f"{count / row.cpu:,.0f} keys/s"
    return [plain, ours]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=["toy", "gpt2-small", "smollm2-135m"])
    options.add_argument("--class", dest="model_class", default=None)
    options.add_argument("--keys", type=int, default=8192)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    rows = [
        row
        for name in args.models
        for row in compared(name, args.model_class, args.keys, args.rounds)
    ]
    publish("key statistics", table(rows), args.write)


if __name__ == "__main__":
    main()
