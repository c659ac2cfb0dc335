"""Seconds and ratios of the main job on one model: the trace against the plain loop, the edit, loading, peak memory.

    python benchmarks/first_capability.py [--model gemma-3-270m] [--class HookedTransformer] [--threads 2]

The plain loop is what the original study and TransformerLens' own patching run: for each cell one `run_with_hooks` of
the whole model on the clean row and all noise rows, with all logits. Both run in this process, on the same weights and
the same noise; their scores are compared.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

import rome_lens as rl
from rome_lens.models import EMBED, component_hook
from rome_lens.sampling import random_contexts
from rome_lens.tokens import encode
from rome_lens.weights import cache_root

Result = TypeVar("Result")


def plain_loop(model: Any, fact: rl.Fact, noise: torch.Tensor) -> torch.Tensor:
    encoded = encode(model, fact)
    start, end = encoded.subject
    rows = encoded.tokens[None].expand(len(noise) + 1, -1)
    scores = torch.zeros(model.cfg.n_layers, len(encoded.tokens))

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, start:end] += noise
        return value

    for layer in range(scores.shape[0]):
        for pos in range(scores.shape[1]):

            def restore(value: torch.Tensor, hook: Any, pos: int = pos) -> torch.Tensor:
                value = value.clone()
                value[1:, pos] = value[0, pos]
                return value

            hooks = [(EMBED, corrupt), (component_hook("resid", layer), restore)]
            with torch.no_grad():
                logits = model.run_with_hooks(rows, fwd_hooks=hooks)
            # In float32, softmax over a vocabulary of 262 144 is itself off by 2e-5 of each probability.
            scores[layer, pos] = logits[1:, -1].double().softmax(-1)[:, encoded.answer[0]].mean()
    return scores


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
    parser.add_argument("--no-loop", action="store_true", help="leave the plain loop out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = rl.data.limits(args.record or ("wanda-brandt" if args.model == "toy" else "eiffel-tower"))
    fact = record.fact
    _, model = timed("load the converted model", lambda: rl.load_model(args.model, model_class=args.model_class))
    print(
        f"{type(model).__name__}, {model.cfg.n_layers} layers, {len(encode(model, fact).tokens)} tokens, {args.threads} threads"
    )
    generator = torch.Generator().manual_seed(0)
    encoded = encode(model, fact)
    std = float(rl.forward.embed(model, encoded.tokens)[slice(*encoded.subject)].std())
    size = (10, encoded.subject[1] - encoded.subject[0], model.cfg.d_model)
    noise = 3 * std * torch.randn(size, generator=generator)
    fast, trace = timed("resid trace, 10 samples, all cells", lambda: rl.causal_trace(model, fact, noise=noise))
    if not args.no_loop:
        slow, scores = timed("the same by the plain loop", lambda: plain_loop(model, fact, noise))
        print(f"ratio {slow / fast:.1f}, largest difference {float((scores - trace.scores).abs().max()):.1e}")
    timed("mlp trace, windows of 5", lambda: rl.causal_trace(model, fact, noise=noise, component="mlp", window=5))
    timed("attn trace, windows of 5", lambda: rl.causal_trace(model, fact, noise=noise, component="attn", window=5))
    texts = None if args.model == "toy" else rl.data.texts()
    timed("key statistics, collected", lambda: rl.collect_key_statistics(model, layer=args.layer, texts=texts))
    cache = cache_root() / "keys"
    rl.collect_key_statistics(model, layer=args.layer, texts=texts, cache=cache)
    _, statistics = timed(
        "key statistics, cached", lambda: rl.collect_key_statistics(model, layer=args.layer, texts=texts, cache=cache)
    )
    contexts_s, contexts = timed("the edit: sample 20 random contexts", lambda: random_contexts(model))
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
    print(f"the demo's edit: {contexts_s + edit_s:.1f} s, {len(edit.losses)} steps, p = {edit.probability:.3f}")
    timed(
        "the edit: v* with the original's 20 steps",
        lambda: rl.rome(model, fact, layer=args.layer, statistics=statistics, contexts=contexts),
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
