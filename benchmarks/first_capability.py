"""Time the main job on one model: loading, traces, key statistics and the edit; print peak memory.

    python benchmarks/first_capability.py [--model gemma-3-270m] [--class HookedTransformer]
        [--threads 2]

`tracing.py` compares traces with the plain loop.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import torch

import rome_lens as rl
from rome_lens.editing.contexts import random_contexts
from rome_lens.forward.tokens import encode
from rome_lens.models.gguf import cache_root

Result = TypeVar("Result")


def timed(name: str, work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    print(f"{name:55s} {seconds:8.2f} s", flush=True)
    return seconds, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--class", dest="model_class", default=None)
    parser.add_argument("--record", default=None)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = rl.data.record(
        args.record or ("wanda-brandt" if args.model == "toy" else "eiffel-tower")
    )
    fact = record.fact
    _, model = timed(
        "load the converted model", lambda: rl.load_model(args.model, model_class=args.model_class)
    )
    print(
        f"{type(model).__name__}, {model.cfg.n_layers} layers, "
        f"{len(encode(model, fact).tokens)} tokens, {args.threads} threads"
    )
    timed("resid trace, 10 samples, all cells", lambda: rl.causal_trace(model, fact))
    timed(
        "mlp trace, windows of 5", lambda: rl.causal_trace(model, fact, component="mlp", window=5)
    )
    timed(
        "attn trace, windows of 5", lambda: rl.causal_trace(model, fact, component="attn", window=5)
    )
    texts = None if args.model == "toy" else rl.data.texts()
    timed(
        "key statistics, collected",
        lambda: rl.collect_key_statistics(model, layer=args.layer, texts=texts),
    )
    cache = cache_root() / "keys"
    rl.collect_key_statistics(model, layer=args.layer, texts=texts, cache=cache)
    _, statistics = timed(
        "key statistics, cached",
        lambda: rl.collect_key_statistics(model, layer=args.layer, texts=texts, cache=cache),
    )
    contexts_s, contexts = timed(
        "the edit: sample 20 random contexts", lambda: random_contexts(model)
    )
    edit_s, edit = timed(
        "the edit: v* to p > 0.9, as the demo does",
        lambda: rl.rome(
            model,
            fact,
            layer=args.layer,
            statistics=statistics,
            contexts=contexts,
            config=rl.RomeConfig(stop_probability=0.9),
        ),
    )
    print(
        f"the demo's edit: {contexts_s + edit_s:.1f} s, {len(edit.losses)} steps, "
        f"p = {edit.probability:.3f}"
    )
    timed(
        "the edit: v* with the original's 20 steps",
        lambda: rl.rome(model, fact, layer=args.layer, statistics=statistics, contexts=contexts),
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
