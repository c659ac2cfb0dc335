"""Time causal tracing against the plain loop, and count its work against the least possible.

    python benchmarks/tracing.py [--model gpt2-shape|gemma-3-270m|toy|...] [--class
        HookedTransformer|TransformerBridge] [--rounds 3] [--cells 0] [--device cpu]

The plain loop is what the original study and TransformerLens' own patching run: for each cell one
`run_with_hooks` of the whole model on the clean row and all noise rows, with all positions and
logits. Both run in turn in this process, with the same weights, noise and threads, and medians are
compared. `--cells N` times the loop on N cells spread over the grid and scales up, because every
cell of the loop costs the same. `gpt2-shape` is GPT-2 small with random weights: 12 layers, width
768, 50 257 logits.

Torch counts the multiply-adds, in matrix products only. The least possible work is, for each cell
and sample, the layers after the first restored one, on the positions from the restored one on, and
one position unembedded.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens.model_bridge import TransformerBridge

import rome_lens as rl
from rome_lens.forward.tokens import FactTokens, encode
from rome_lens.models.convert import hooked_transformer, hooked_transformer_class
from rome_lens.models.hook_names import EMBED, component_hook
from rome_lens.models.loading import TOY
from rome_lens.tracing.cells import restored_layers

SAMPLES = 10
KINDS = {"resid": ("resid", 1), "mlp, window 10": ("mlp", 10), "attn, window 10": ("attn", 10)}


def gpt2_shape(model_class: str) -> Any:
    """GPT-2 small with random weights and the toy model's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOY)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    hf_model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**ids)).eval()
    hf_model.config.architectures = ["GPT2LMHeadModel"]
    if model_class == "HookedTransformer":
        return hooked_transformer(hf_model, tokenizer)
    return TransformerBridge.boot_transformers(
        "gpt2-shape", hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )


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
    rows = encoded.tokens[None].expand(len(noise) + 1, -1).to(noise.device)

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
    # In float32, softmax over a vocabulary of 262 144 alone is off by 2e-5 of each probability.
    return float(logits[1:, -1].double().softmax(-1)[:, encoded.answer[0]].mean())


def least_multiply_adds(model: Any, encoded: FactTokens, component: str, window: int) -> int:
    """Multiply-adds with weights. The products within attention come on top and are small."""
    cfg, length = model.cfg, len(encoded.tokens)
    kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    block = 2 * cfg.d_model * cfg.d_head * (cfg.n_heads + kv_heads)
    block += (3 if getattr(cfg, "gated_mlp", False) else 2) * cfg.d_model * cfg.d_mlp
    total = 0
    for layer in range(cfg.n_layers):
        first = restored_layers(layer, window, cfg.n_layers)[0]
        layers = cfg.n_layers - 1 - first + (component != "resid")
        for pos in range(encoded.subject[0], length):
            total += layers * (length - pos) * block + cfg.d_model * cfg.d_vocab
    return SAMPLES * total


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def compare(model: Any, fact: rl.Fact, kind: str, rounds: int, cells: int, device: str) -> None:
    component, window = KINDS[kind]
    encoded = encode(model, fact)
    size = (SAMPLES, encoded.subject[1] - encoded.subject[0], model.cfg.d_model)
    std = float(rl.forward.embed(model, encoded.tokens)[slice(*encoded.subject)].std())
    noise = (3 * std * torch.randn(size, generator=torch.Generator().manual_seed(0))).to(device)
    grid = [
        (layer, pos) for layer in range(model.cfg.n_layers) for pos in range(len(encoded.tokens))
    ]
    chosen = grid if not cells else grid[:: max(1, len(grid) // cells)]

    def trace() -> rl.CausalTrace:
        return rl.causal_trace(
            model, fact, component=component, window=window, noise=noise, require_correct=False
        )

    def loop() -> list[float]:
        return [plain_cell(model, encoded, component, window, noise, *cell) for cell in chosen]

    trace()
    loop_seconds, trace_seconds = [], []
    for _ in range(rounds):
        seconds, plain = timed(loop, device)
        loop_seconds.append(seconds * len(grid) / len(chosen))
        seconds, found = timed(trace, device)
        trace_seconds.append(seconds)
    slow, fast = statistics.median(loop_seconds), statistics.median(trace_seconds)
    scores = torch.tensor([float(found.scores[cell]) for cell in chosen])
    error = float((scores - torch.tensor(plain)).abs().max())
    with FlopCounterMode(display=False) as counter:
        trace()
    done, least = (
        counter.get_total_flops() / 2,
        least_multiply_adds(model, encoded, component, window),
    )
    print(
        f"{kind:16s} loop {slow:8.2f} s, trace {fast:7.2f} s, ratio {slow / fast:6.1f}, "
        f"largest difference {error:.1e}; {done / 1e9:.0f} G multiply-adds, "
        f"{done / least:.2f} times the least possible"
        + (
            f" (loop timed on {len(chosen)} of {len(grid)} cells)"
            if len(chosen) < len(grid)
            else ""
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2-shape")
    parser.add_argument("--class", dest="model_class", default=None)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--as-loaded",
        action="store_true",
        help="weights in TransformerLens' own layout, without load_model's faster one",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model_class = args.model_class or (
        "HookedTransformer" if hooked_transformer_class() else "TransformerBridge"
    )
    if args.model == "gpt2-shape":
        model, fact = (
            gpt2_shape(model_class),
            rl.Fact("{} lives in the city of the", subject="Wanda Brandt", target="Pralec"),
        )
    else:
        model = rl.load_model(args.model, model_class=model_class)
        fact = rl.data.record("wanda-brandt" if args.model == "toy" else "eiffel-tower").fact
    if args.as_loaded:
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
    if args.device != "cpu":
        model.to(args.device)
    layout = "weights as loaded, " if args.as_loaded else ""
    print(
        f"{args.model}, {type(model).__name__}, {model.cfg.n_layers} layers, "
        f"{len(encode(model, fact).tokens)} tokens, {SAMPLES} samples, "
        f"{layout}{args.threads} thread(s), {args.device}, medians of {args.rounds}"
    )
    for kind in args.kinds:
        compare(model, fact, kind, args.rounds, args.cells, args.device)


if __name__ == "__main__":
    main()
