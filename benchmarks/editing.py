"""Time an edit against the same optimisation over all layers, positions and logits.

    python benchmarks/editing.py [--model gpt2-shape|gemma-3-270m] [--class HookedTransformer]
        [--steps 5] [--rounds 3]

Both take the same steps from the same 21 contexts, in the same process. Key statistics are not part
of the time. The plain loop leaves it to autograd to find what depends on the value.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from plain_value import plain_value
from tracing import gpt2_shape

import rome_lens as rl
from rome_lens.forward.runs import differentiating


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2-shape")
    parser.add_argument("--class", dest="model_class", default="HookedTransformer")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.model == "gpt2-shape":
        model = gpt2_shape(args.model_class)
        fact = rl.data.record("wanda-brandt").fact
        # A model with random weights writes no usable text, so the toy model writes the contexts.
        contexts = rl.random_contexts(rl.load_model("toy"))
    else:
        model = rl.load_model(args.model, model_class=args.model_class)
        fact = rl.data.record("eiffel-tower").fact
        contexts = rl.random_contexts(model)
    key_statistics = rl.KeyStatistics.identity(model, layer=args.layer)
    config = rl.RomeConfig(steps=args.steps, stop_loss=0.0)

    def plain() -> torch.Tensor:
        with differentiating(model):
            return plain_value(
                model, fact, layer=args.layer, contexts=list(contexts), config=config
            )[1]

    def edit() -> torch.Tensor:
        made = rl.rome(
            model,
            fact,
            layer=args.layer,
            statistics=key_statistics,
            contexts=contexts,
            config=config,
        )
        assert made.losses is not None
        return made.losses

    edit()
    seconds = [(timed(plain), timed(edit)) for _ in range(args.rounds)]
    slow, fast = (statistics.median(pair[i][0] for pair in seconds) for i in (0, 1))
    difference = float((seconds[0][0][1] - seconds[0][1][1]).abs().max())
    print(
        f"{args.model}, {type(model).__name__}, layer {args.layer}, {args.steps} steps, "
        f"{len(contexts)} contexts, {args.threads} threads: "
        f"plain loop {slow:.2f} s, rome {fast:.2f} s, ratio {slow / fast:.1f} "
        f"(rounds: {', '.join(f'{p[0] / e[0]:.1f}' for p, e in seconds)}); "
        f"largest difference of a loss {difference:.1e}"
    )


if __name__ == "__main__":
    main()
