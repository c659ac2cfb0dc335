"""Time a trace against the plain loop: one run of the whole model for each cell.

    python benchmarks/tracing.py [--models toy gpt2-small gemma-3-270m] [--class TransformerBridge]
        [--cells 24] [--facts 50]

The loop runs the clean row and all noise rows with ``run_with_hooks``, all positions and all
logits, on the same weights and in the same process. It is timed on ``--cells`` cells spread over
the grid and scaled up, because every cell of the loop costs the same. "Difference" is of the scores
of these cells.

A HookedTransformer is timed with its weights in two layouts. "As loaded" is TransformerLens' own.
"load_model" is the one that ``rl.load_model`` chooses, which speeds up the loop as well.

The least work is, for each cell and sample, the layers after the first restored one, on the
positions from the restored one on, and one position unembedded. A trace can do less than that:
windows that begin together share their first layers, and cells that cannot change the answer (the
last layer's states before the last position) are not run.

``--facts`` compares ``rl.trace_facts`` over facts of different lengths with one call of
``rl.causal_trace`` for each.
"""

import dataclasses
from typing import Any

import timed_models
import torch
from measure import Row, block_weights, compare, parser, publish, table

import rome_lens as rl
from rome_lens.forward.tokens import FactTokens, encode
from rome_lens.models.hook_names import EMBED, component_hook
from rome_lens.tracing.cells import restored_layers

SAMPLES = 10
KINDS = {"resid": ("resid", 1), "MLP, window 10": ("mlp", 10), "attention, window 10": ("attn", 10)}
MANY = ("toy", "smollm2-135m")  # random weights know no facts
BEFORE = ("", "Yes, ", "It is a well-known fact that ", "As far as I know, ", "In those days, ")


def plain_cell(
    model: Any,
    encoded: FactTokens,
    component: str,
    window: int,
    noise: torch.Tensor,
    layer: int,
    pos: int,
) -> float:
    """The score of one cell, from a run of the whole model."""
    start, end = encoded.subject
    rows = encoded.tokens[None].expand(len(noise) + 1, -1)

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, start:end] += noise
        return value

    def restore(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, pos] = value[0, pos]
        return value

    restored = restored_layers(layer, window, model.cfg.n_layers)
    hooks = [(EMBED, corrupt), *((component_hook(component, i), restore) for i in restored)]
    with torch.no_grad():
        logits = model.run_with_hooks(rows, fwd_hooks=hooks)
    # In float32, softmax over a vocabulary of 262,144 alone is off by 2e-5 of each probability.
    return float(logits[1:, -1].double().softmax(-1)[:, encoded.answer[0]].mean())


def least_multiply_adds(
    model: Any, encoded: FactTokens, component: str, window: int, samples: int = SAMPLES
) -> int:
    """The least work of a trace of all cells. Positions before the subject cost nothing."""
    cfg, length, block = model.cfg, len(encoded.tokens), block_weights(model.cfg)
    total = 0
    for layer in range(cfg.n_layers):
        first = restored_layers(layer, window, cfg.n_layers)[0]
        layers = cfg.n_layers - 1 - first + (component != "resid")
        for pos in range(encoded.subject[0], length):
            total += layers * (length - pos) * block + cfg.d_model * cfg.d_vocab
    return samples * total


def compared(model: Any, fact: rl.Fact, name: str, kind: str, rounds: int, cells: int) -> list[Row]:
    """The plain loop and the trace of one kind of state."""
    component, window = KINDS[kind]
    encoded = encode(model, fact)
    std = float(rl.forward.embed(model, encoded.tokens)[slice(*encoded.subject)].std())
    size = (SAMPLES, encoded.subject[1] - encoded.subject[0], model.cfg.d_model)
    noise = 3 * std * torch.randn(size, generator=torch.Generator().manual_seed(0))
    grid = [(i, pos) for i in range(model.cfg.n_layers) for pos in range(len(encoded.tokens))]
    chosen = grid[:: max(1, len(grid) // cells)] if cells else grid

    def trace() -> rl.CausalTrace:
        return rl.causal_trace(
            model, fact, component=component, window=window, noise=noise, require_correct=False
        )

    def loop() -> list[float]:
        return [plain_cell(model, encoded, component, window, noise, *cell) for cell in chosen]

    rows = compare(
        {"plain loop": loop, "causal_trace": trace},
        rounds=rounds,
        scale={"plain loop": len(grid) / len(chosen)},
    )
    plain, traced = rows.values()
    scores = torch.tensor([float(traced.result.scores[cell]) for cell in chosen])
    traced.difference = float((scores - torch.tensor(plain.result)).abs().max())
    plain.notes = f"timed on {len(chosen)} of {len(grid)} cells" if cells else ""
    for row in rows.values():
        row.case = f"{name}, {kind}: {row.case}"
        row.least = least_multiply_adds(model, encoded, component, window)
    return [plain, traced]


def one_model(name: str, model_class: str | None, rounds: int, cells: int) -> list[Row]:
    """Every kind of state, and the residual stream once more in TransformerLens' own layout."""
    model, fact = timed_models.load(name, model_class), timed_models.fact(name)
    title = f"{name}, {type(model).__name__}"
    rows = [row for kind in KINDS for row in compared(model, fact, title, kind, rounds, cells)]
    resid = rows[1]
    for row in rows[3::2]:
        row.notes = f"{row.cpu / resid.cpu:.2f} times resid"
    if type(model).__name__ == "HookedTransformer":
        timed_models.in_library_layout(model)
        rows += compared(model, fact, f"{title} as loaded", "resid", rounds, cells)
    return rows


def known_facts(name: str, model: Any, count: int) -> list[rl.Fact]:
    """Facts of different lengths that the model knows: records, after words of other texts."""
    facts = [
        dataclasses.replace(fact, prompt=before + fact.prompt)
        for before in BEFORE
        for fact in timed_models.facts(name, count)
    ]
    traced = rl.trace_facts(model, facts, samples=1, layers=[0], at="last")
    return [trace.fact for trace in traced][:count]


def many(name: str, count: int, model_class: str | None, rounds: int) -> list[Row]:
    """Several facts one at a time, and in one call."""
    model = timed_models.load(name, model_class)
    facts = known_facts(name, model, count)
    rows = compare(
        {
            "causal_trace, one at a time": lambda: [rl.causal_trace(model, fact) for fact in facts],
            "trace_facts": lambda: rl.trace_facts(model, facts).traces,
        },
        rounds=rounds,
    )
    one, batch = rows.values()
    batch.difference = max(
        float((a.scores - b.scores).abs().max())
        for a, b in zip(batch.result, one.result, strict=True)
    )
    encoded = [encode(model, fact) for fact in facts]
    lengths = sorted({len(each.tokens) for each in encoded})
    for row in rows.values():
        row.case = f"{name}, {len(facts)} facts of {lengths[0]} to {lengths[-1]} tokens: {row.case}"
        row.least = sum(least_multiply_adds(model, each, "resid", 1) for each in encoded)
    return [one, batch]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=["toy", "gpt2-small", "gemma-3-270m"])
    options.add_argument("--class", dest="model_class", default=None)
    options.add_argument("--cells", type=int, default=24, help="cells of the loop, or 0 for all")
    options.add_argument("--facts", type=int, default=50, help="facts in one call, or 0 for none")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.models:
        rows += one_model(name, args.model_class, args.rounds, args.cells)
        if args.facts and name in MANY:
            rows += many(name, args.facts, args.model_class, args.rounds)
    publish("tracing", table(rows), args.write)


if __name__ == "__main__":
    main()
