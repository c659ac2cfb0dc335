"""Trace, edit and key statistics on a GPU: one table of seconds, ratios, rates and launches.

    python benchmarks/gpu.py                         # under five minutes on one H100 or H200
    python benchmarks/gpu.py --device cpu --small    # the same code on tiny shapes, without a GPU

The models have the shapes of GPT-2 small and GPT-2 XL (float32) and GPT-J (float16), seeded random
weights and the toy model's tokenizer, so nothing is downloaded. Every row compares ``rome_lens``
with a baseline that runs in the same process, on the same weights and the same card:

* trace: the plain loop, one ``run_with_hooks`` of the whole model for each cell on the clean row
  and all noise rows, all positions, all logits. The loop is timed on some cells, which all cost
  the same, and scaled up to the whole grid.
* edit: the plain optimisation in the model's own precision. Every step runs the whole model on all
  rows, all positions and all logits, and lets autograd find what depends on the value.
* many facts: traces of fifty facts in shared passes, against one call of ``causal_trace`` for each;
  and eight edits by ``rome_batch``, against one call of ``rome`` for each. The single calls are
  timed on some of the facts and scaled up.
* key statistics: the plain sum. Every batch runs the whole model and adds ``K^T K`` in float64 with
  one matrix product.
* toy: the same call on the CPU. Here the largest difference between the two is what counts.

Multiply-adds of traces and edits are counted by torch (matrix products only). One multiply-add is
two operations. Statistics count ``d_mlp^2`` float64 operations a key, which is one half of the
symmetric product.

With ``--profiles`` the kernels by time and the host's functions by time are written as well.
"""

import argparse
import contextlib
import cProfile
import dataclasses
import io
import json
import pstats
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens import HookedTransformer, HookedTransformerConfig

import rome_lens as rl
from rome_lens.forward.tokens import encode
from rome_lens.tracing.causal import trace_together
from rome_lens.tracing.cells import grid
from rome_lens.tracing.passes import pass_size

SAMPLES, SEED, ROUNDS, STEPS = 10, 0, 3, 20
KINDS = {"resid": ("resid", 1), "MLP window 10": ("mlp", 10)}
FACT = rl.Fact(
    "{} lives in the city of the", subject="Wanda Brandt", target="Pralec", new_target="Ondavel"
)
TRACED, EDITED, ALONE = 50, 8, 5  # facts side by side, and single calls that are timed
BEFORE = ("", "Yes, ", "It is well known that ", "As far as I know, ", "In those days, ")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
VIEWS = ("view", "reshape", "as_strided", "expand", "transpose", "permute", "slice", "select", "t")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's sizes, the layer that is edited, and the sequences of its key statistics."""

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    d_vocab: int
    n_ctx: int
    layer: int
    dtype: torch.dtype = torch.float32
    like_gpt_j: bool = False
    sequences: tuple[int, int] = (64, 1024)

    @property
    def small(self) -> "Shape":
        """The same architecture, small enough for a CPU."""
        sizes = {"n_layers": 6, "d_model": 64, "n_heads": 4, "d_vocab": 1000, "layer": 2}
        return dataclasses.replace(self, **sizes, sequences=(32, 64))


SHAPES = [
    Shape(
        name="GPT-2 small", n_layers=12, d_model=768, n_heads=12, d_vocab=50257, n_ctx=1024, layer=4
    ),
    Shape(
        name="GPT-2 XL", n_layers=48, d_model=1600, n_heads=25, d_vocab=50257, n_ctx=1024, layer=17
    ),
    Shape(
        name="GPT-J",
        n_layers=28,
        d_model=4096,
        n_heads=16,
        d_vocab=50400,
        n_ctx=2048,
        layer=5,
        dtype=torch.float16,
        like_gpt_j=True,
    ),
]


@dataclasses.dataclass(kw_only=True)
class Row:
    """One row of the table; what was not measured stays empty."""

    model: str
    work: str
    seconds: float | None = None
    baseline: float | None = None
    tflops: float | None = None
    memory: float | None = None
    difference: float | None = None
    launches: str = ""
    waits: str = ""
    busy: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """The row as text."""
        seconds, baseline = self.seconds, self.baseline
        ratio = None if not seconds or baseline is None else baseline / seconds
        formats = ((seconds, ".3g"), (baseline, ".3g"), (ratio, ".2g"), (self.tflops, ".3g"))
        formats += ((self.memory, ".1f"), (self.difference, ".0e"))
        numbers = ["" if value is None else format(value, how) for value, how in formats]
        busy = "" if self.busy is None else f"{self.busy:.0%}"
        return [self.model, self.work, *numbers, self.launches, self.waits, busy, self.note]


HEADER = ["model", "work", "seconds", "baseline", "ratio", "TFLOP/s", "GB", "difference"]
HEADER += ["launches", "waits / copies", "busy", "notes"]

Work = tuple[str, Callable[[], Row]]  # a row's name, and what measures it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What the profiler counted in one call.

    On a GPU, launches are kernels, waits are synchronisations of the host with it, copies are
    transfers to the host, and busy is the kernels' time in seconds. On a CPU, launches are
    operators that call no other operator and are not views.
    """

    launches: int
    waits: int = 0
    copies: int = 0
    busy: float = 0.0


class Bench:
    """The device, and how work is timed, counted and profiled on it.

    ``memory`` is the most that was allocated on the GPU during the last timed work, in GB.
    """

    def __init__(self, device: str, profiles: Path | None) -> None:
        self.device, self.profiles = device, profiles
        self.on_gpu = device != "cpu"
        self.memory: float | None = None

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds, and the result."""
        self.synchronise()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = work()
        self.synchronise()
        seconds = time.perf_counter() - start
        self.memory = torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else None
        return seconds, result

    def synchronise(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def profile(self, work: Callable[[], Any], name: str) -> Profile:
        """Count launches and waits of the work; with ``--profiles`` write the kernels as well."""
        activity = torch.profiler.ProfilerActivity
        activities = [activity.CUDA if self.on_gpu else activity.CPU]
        with torch.profiler.profile(activities=activities) as profiler:
            work()
            self.synchronise()
        if not self.on_gpu:
            return Profile(launches=_operators(profiler.events()))
        with tempfile.TemporaryDirectory() as directory:  # much faster than key_averages
            path = Path(directory) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        if self.profiles is not None:
            (self.profiles / f"{name}.kernels.txt".replace(" ", "-")).write_text(_kernels(events))
        return _counted(events)

    def python_profile(self, work: Callable[[], Any], name: str) -> None:
        """With ``--profiles``, write where the host spends its time."""
        if self.profiles is None:
            return
        profiler = cProfile.Profile()
        profiler.runcall(lambda: self.timed(work))
        out = io.StringIO()
        for order in ("cumulative", "tottime"):
            pstats.Stats(profiler, stream=out).sort_stats(order).print_stats(40)
        (self.profiles / f"{name}.python.txt".replace(" ", "-")).write_text(out.getvalue())


def _operations(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _counted(events: Sequence[dict[str, Any]]) -> Profile:
    """The counts of a trace in Chrome's format."""
    kernels = [each["dur"] for each in events if each.get("cat") == "kernel"]
    copies = [each["name"] for each in events if each.get("cat") == "gpu_memcpy"]
    return Profile(
        launches=len(kernels),
        waits=sum(each.get("cat") == "cuda_runtime" and each["name"] in WAITS for each in events),
        copies=sum("DtoH" in name for name in copies),
        busy=sum(kernels) / 1e6,
    )


def _kernels(events: Sequence[dict[str, Any]]) -> str:
    """Milliseconds and calls of each kernel and each kind of copy, by time."""
    times: dict[str, list[float]] = {}
    for each in events:
        if each.get("cat") in ("kernel", "gpu_memcpy"):
            times.setdefault(each["name"], []).append(each["dur"] / 1e3)
    order = sorted(times.items(), key=lambda item: -sum(item[1]))
    return "".join(f"{sum(each):10.3f} {len(each):7d}  {name}\n" for name, each in order)


def _operators(events: Sequence[Any]) -> int:
    names = [each.name for each in events if not each.cpu_children]
    parts = [name.removeprefix("aten::") for name in names if name.startswith("aten::")]
    return sum(part not in VIEWS for part in parts)


def random_model(shape: Shape, tokenizer: Any, device: str) -> HookedTransformer:
    """A HookedTransformer of the shape with seeded random weights, made on the device itself."""
    own = {"positional_embedding_type": "rotary", "rotary_dim": shape.d_model // shape.n_heads // 4}
    own |= {"rotary_adjacent_pairs": True, "parallel_attn_mlp": True}
    cfg = HookedTransformerConfig(
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        d_head=shape.d_model // shape.n_heads,
        n_heads=shape.n_heads,
        d_mlp=4 * shape.d_model,
        d_vocab=shape.d_vocab,
        n_ctx=shape.n_ctx,
        act_fn="gelu_new",
        normalization_type="LN",
        dtype=shape.dtype,
        device=device,
        init_weights=False,
        **(own if shape.like_gpt_j else {}),
    )
    with torch.device(device):
        model = HookedTransformer(cfg, tokenizer)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=generator)
    return model.eval()


def plain_cell(
    model: HookedTransformer, trace: rl.CausalTrace, noise: torch.Tensor, cell: tuple[int, int]
) -> float:
    """One cell of the plain loop: a run of everything, on the clean row and all noise rows."""
    (layer, pos), (start, end), n_layers = cell, trace.subject, model.cfg.n_layers
    rows = model.to_tokens(FACT.text).expand(len(noise) + 1, -1)
    answer = model.to_tokens(f" {FACT.target}", prepend_bos=False)[0, 0]

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, start:end] += noise
        return value

    def restore(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, pos] = value[0, pos]
        return value

    half = trace.window // 2
    restored = range(max(0, layer - half), min(n_layers, layer - (-trace.window // 2)))
    point = {"resid": "hook_resid_post", "mlp": "hook_mlp_out"}[trace.component]
    hooks = [("hook_embed", corrupt), *((f"blocks.{i}.{point}", restore) for i in restored)]
    with torch.no_grad():
        logits = model.run_with_hooks(rows, fwd_hooks=hooks)
    return float(logits[1:, -1].double().softmax(-1)[:, answer].mean())


def trace_row(bench: Bench, model: HookedTransformer, name: str, kind: str, cells: int) -> Row:
    """A causal trace of one fact against the plain loop."""
    component, window = KINDS[kind]
    options = {"component": component, "window": window, "require_correct": False}
    first = rl.causal_trace(model, FACT, **options)  # the warm-up, which also finds the subject
    start, end = first.subject
    std = float(model.W_E[model.to_tokens(FACT.text)[0, start:end]].detach().float().std())
    drawn = torch.randn(
        (SAMPLES, end - start, model.cfg.d_model), generator=torch.Generator().manual_seed(SEED)
    )
    noise = (3 * std * drawn).to(model.W_E)

    def trace() -> rl.CausalTrace:
        return rl.causal_trace(model, FACT, noise=noise, **options)

    grid = [(layer, pos) for layer in first.layers for pos in first.positions]
    chosen = grid[:: max(1, len(grid) // cells)]
    operations = _operations(trace)
    plain_cell(model, first, noise, chosen[0])
    slow, fast = [], []
    for _ in range(ROUNDS):
        seconds, plain = bench.timed(lambda: [plain_cell(model, first, noise, c) for c in chosen])
        slow.append(seconds * len(grid) / len(chosen))
        seconds, found = bench.timed(trace)
        fast.append(seconds)
    scores = torch.tensor([float(found.scores[cell]) for cell in chosen])
    apart = float((scores - torch.tensor(plain)).abs().max()) / max(plain)
    seconds, memory = statistics.median(fast), bench.memory
    profile = bench.profile(trace, f"{name} trace {kind}")
    bench.python_profile(trace, f"{name} trace {kind}")
    return Row(
        model=name,
        work=f"trace, {kind}",
        seconds=seconds,
        baseline=statistics.median(slow),
        tflops=operations / seconds / 1e12,
        memory=memory,
        difference=apart,
        launches=f"{profile.launches:,}",
        waits=f"{profile.waits:,} / {profile.copies:,}" if bench.on_gpu else "",
        busy=profile.busy / seconds if bench.on_gpu else None,
        note=f"{len(grid)} cells, {len(first.positions)} tokens; loop timed on {len(chosen)}",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainRows:
    """The rows of an edit: each context with the new target behind it, then the KL prompt."""

    tokens: torch.Tensor
    lookups: torch.Tensor
    target: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, model: HookedTransformer, contexts: Sequence[str]) -> "PlainRows":
        """Rows padded on the right, where a causal model reads nothing of the padding."""
        target = model.to_tokens(f" {FACT.new_target}", prepend_bos=False)[0].tolist()
        before = FACT.prompt.split("{}")[0] + FACT.subject
        texts = [context.replace("{}", FACT.text) for context in contexts]
        starts = [context.split("{}")[0] + before for context in contexts]
        rows = [model.to_tokens(text)[0].tolist() + target[:-1] for text in texts]
        ends = [len(row) - len(target) for row in rows]
        rows.append(model.to_tokens(f"{FACT.subject} is a")[0].tolist())
        lookups = [model.to_tokens(text).shape[1] - 1 for text in (*starts, FACT.subject)]
        width = max(map(len, rows))
        device = model.W_E.device
        return cls(
            tokens=torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device),
            lookups=torch.tensor(lookups, device=device),
            target=torch.tensor(target, device=device),
            ends=torch.tensor(ends, device=device),
        )


def plain_edit(
    model: HookedTransformer, layer: int, contexts: Sequence[str], config: rl.RomeConfig
) -> torch.Tensor:
    """The losses ``[step, 3]`` of the plain optimisation; its contexts must begin with ``"{}"``."""
    rows, point = PlainRows.of(model, contexts), f"blocks.{layer}.hook_mlp_out"
    number = torch.arange(len(rows.tokens), device=rows.tokens.device)
    outputs: list[torch.Tensor] = []

    def run(hook: Callable[..., Any]) -> torch.Tensor:
        return model.run_with_hooks(rows.tokens, fwd_hooks=[(point, hook)])

    with torch.no_grad():
        run(lambda value, hook: outputs.append(value[number, rows.lookups].float()))
    start = outputs[0][0]
    delta = torch.zeros_like(start, requires_grad=True)

    def add(value: torch.Tensor, hook: Any) -> torch.Tensor:
        change = delta.to(value).expand(len(number), -1)
        return value.index_put((number, rows.lookups), change, accumulate=True)

    optimiser = torch.optim.Adam([delta], lr=config.lr)
    read = rows.ends[:, None] + torch.arange(len(rows.target), device=number.device)
    losses, initial = [], None
    for step in range(config.steps):
        log_p = run(add).float().log_softmax(-1)
        nll = -log_p[number[:-1, None], read, rows.target].mean()
        essence = log_p[-1, rows.lookups[-1]]
        initial = essence.detach() if initial is None else initial
        kl = config.kl_factor * (essence.exp() * (essence - initial)).sum()
        decay = config.weight_decay * delta.norm() / start.norm() ** 2
        losses.append([nll.item(), kl.item(), decay.item()])
        if step < config.steps - 1:
            (delta.grad,) = torch.autograd.grad(nll + kl + decay, [delta])
            optimiser.step()
            with torch.no_grad():
                delta.mul_((config.clamp * start.norm() / delta.norm()).clamp(max=1.0))
    return torch.tensor(losses, dtype=torch.float64)


def edit_row(bench: Bench, model: HookedTransformer, shape: Shape, contexts: Sequence[str]) -> Row:
    """An edit with its statistics at hand against the plain optimisation."""
    key_statistics = rl.KeyStatistics.identity(model, layer=shape.layer)

    def edit(steps: int = STEPS) -> rl.RankOneEdit:
        return rl.rome(
            model,
            FACT,
            layer=shape.layer,
            statistics=key_statistics,
            contexts=contexts,
            config=rl.RomeConfig(steps=steps, stop_loss=0.0),
        )

    def plain(steps: int = STEPS) -> torch.Tensor:
        config = rl.RomeConfig(steps=steps, stop_loss=0.0)
        return plain_edit(model, shape.layer, contexts, config)

    first, _ = bench.timed(lambda: edit(1))
    plain(2)
    edit(2)
    counted = [_operations(lambda s=s: edit(s)) for s in (1, 2)]
    slow, losses = bench.timed(plain)
    seconds, found = bench.timed(edit)
    memory = bench.memory
    once, _ = bench.timed(lambda: edit(1))
    # The last step has no backward pass, so two steps are one whole step more than one.
    one, two = (bench.profile(lambda s=s: edit(s), f"{shape.name} edit {s}") for s in (1, 2))
    bench.python_profile(lambda: edit(5), f"{shape.name} edit")
    launches, waits, copies, busy = (
        getattr(two, field.name) - getattr(one, field.name) for field in dataclasses.fields(Profile)
    )
    step = (seconds - once) / (STEPS - 1)
    return Row(
        model=shape.name,
        work=f"edit, {STEPS} steps, {len(contexts)} contexts",
        seconds=seconds,
        baseline=slow,
        tflops=(counted[0] + (STEPS - 1) * (counted[1] - counted[0])) / seconds / 1e12,
        memory=memory,
        difference=float((losses - found.losses).abs().max()),
        launches=f"{launches:,}/step",
        waits=f"{waits:,} / {copies:,}/step" if bench.on_gpu else "",
        busy=busy / step if bench.on_gpu else None,
        note=f"{once - step:.2f} s + {1e3 * step:.0f} ms/step; "
        f"first call {first - once:.2f} s more",
    )


def facts(count: int) -> list[rl.Fact]:
    """Facts of several lengths, without asking whether a model knows them."""
    known = [record.fact for record in rl.data.records(known_by="toy")]
    return [
        dataclasses.replace(fact, prompt=before + fact.prompt)
        for before in BEFORE
        for fact in known
    ][:count]


def many_traces_row(bench: Bench, model: HookedTransformer, name: str) -> Row:
    """Traces of many facts in shared passes against one call for each."""
    given, size = facts(TRACED), pass_size(model, batch_size=None)
    options = {"component": "resid", "window": 1}
    grids = [
        grid(
            model,
            encode(model, fact),
            **options,
            layers=None,
            positions=None,
            heads=None,
            answer="first_token",
            size=size,
        )
        for fact in given
    ]

    def together() -> list[Any]:
        return trace_together(
            model,
            given,
            grids,
            noise=rl.GaussianNoise(seed=SEED),
            samples=SAMPLES,
            prepend_bos=None,
            require_correct=False,
        )

    def alone() -> list[rl.CausalTrace]:
        chosen = given[:: len(given) // ALONE][:ALONE]
        noise = rl.GaussianNoise(seed=SEED)
        return [rl.causal_trace(model, f, noise=noise, require_correct=False) for f in chosen]

    together(), alone()
    operations = _operations(together)
    slow, singles = bench.timed(alone)
    seconds, found = min((bench.timed(together) for _ in range(2)), key=lambda each: each[0])
    memory, chosen = bench.memory, found[:: len(given) // ALONE][:ALONE]
    apart = max(
        float((one.scores - other.scores).abs().max() / other.scores.abs().max())
        for one, other in zip(chosen, singles, strict=True)
    )
    profile = bench.profile(together, f"{name} many traces")
    bench.python_profile(together, f"{name} many traces")
    return Row(
        model=name,
        work=f"trace of {len(given)} facts, resid",
        seconds=seconds,
        baseline=slow * len(given) / ALONE,
        tflops=operations / seconds / 1e12,
        memory=memory,
        difference=apart,
        launches=f"{profile.launches:,}",
        waits=f"{profile.waits:,} / {profile.copies:,}" if bench.on_gpu else "",
        busy=profile.busy / seconds if bench.on_gpu else None,
        note=f"{1e3 * seconds / len(given):.0f} ms a fact; baseline: one call for each",
    )


def many_edits_row(
    bench: Bench, model: HookedTransformer, shape: Shape, contexts: Sequence[str]
) -> Row:
    """Edits of several facts side by side against one call for each."""
    options = {
        "layer": shape.layer,
        "statistics": rl.KeyStatistics.identity(model, layer=shape.layer),
        "contexts": contexts,
        "config": rl.RomeConfig(steps=STEPS, stop_loss=0.0),
    }
    given = facts(EDITED)
    rl.rome_batch(model, given, **options)
    seconds, found = bench.timed(lambda: rl.rome_batch(model, given, **options))
    memory = bench.memory
    slow, singles = bench.timed(lambda: [rl.rome(model, fact, **options) for fact in given[:2]])
    apart = max(
        float((one.delta - other.delta).abs().max() / other.delta.abs().max())
        for one, other in zip(found, singles, strict=False)
    )
    bench.python_profile(lambda: rl.rome_batch(model, given, **options), f"{shape.name} many edits")
    return Row(
        model=shape.name,
        work=f"{len(given)} edits, {STEPS} steps, {len(contexts)} contexts",
        seconds=seconds,
        baseline=slow * len(given) / 2,
        memory=memory,
        difference=apart,
        note="baseline: one call for each",
    )


def token_batches(shape: Shape, sequences: int) -> list[torch.Tensor]:
    """Random ids ``[16, 128]``, none of them special."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(10, shape.d_vocab, (sequences, 128), generator=generator)
    return list(ids.split(16))


def plain_statistics(model: HookedTransformer, layer: int, batches: list[torch.Tensor]) -> Any:
    """``C = E[k kT]`` from runs of the whole model and one float64 product a batch."""
    d_mlp = model.cfg.d_mlp
    moment = torch.zeros(d_mlp, d_mlp, dtype=torch.float64, device=model.W_E.device)

    def add(value: torch.Tensor, hook: Any) -> None:
        keys = value.flatten(0, 1).double()
        moment.addmm_(keys.T, keys)

    with torch.no_grad():
        for tokens in batches:
            model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", add)])
    return (moment / sum(tokens.numel() for tokens in batches)).cpu()


def statistics_row(bench: Bench, model: HookedTransformer, shape: Shape) -> Row:
    """Key statistics against the plain sum, and the rate without what every call costs once."""

    def collect(sequences: int) -> rl.KeyStatistics:
        batches = token_batches(shape, sequences)
        return rl.collect_key_statistics(model, layer=shape.layer, tokens=batches)

    few, many = shape.sequences
    collect(16)
    short, _ = bench.timed(lambda: collect(few))
    seconds, found = bench.timed(lambda: collect(many))
    memory, batches = bench.memory, token_batches(shape, many)
    plain_statistics(model, shape.layer, batches[:1])
    slow, plain = bench.timed(lambda: plain_statistics(model, shape.layer, batches))
    apart = float((found.moment - plain).abs().max() / plain.abs().max())
    profile = bench.profile(lambda: collect(few), f"{shape.name} statistics")
    bench.python_profile(lambda: collect(few), f"{shape.name} statistics")
    rate = 128 * (many - few) / (seconds - short)
    once = short - 128 * few / rate
    return Row(
        model=shape.name,
        work=f"key statistics, {128 * many:,} keys of {model.cfg.d_mlp:,}",
        seconds=seconds,
        baseline=slow,
        tflops=model.cfg.d_mlp**2 * 128 * many / seconds / 1e12,
        memory=memory,
        difference=apart,
        launches=f"{profile.launches / (128 * few):.2f}/key",
        waits=f"{profile.waits:,} / {profile.copies:,}" if bench.on_gpu else "",
        busy=profile.busy / short if bench.on_gpu else None,
        note=f"{once:.2f} s once + {rate:,.0f} keys/s; "
        f"{128 * many / seconds:,.0f} keys/s over the whole call",
    )


def toy_works(bench: Bench) -> Iterator[Work]:
    """The toy model's traces, edit and statistics: the device against the CPU."""
    here, there = rl.load_model("toy"), rl.load_model("toy", device=bench.device)
    fact, texts = rl.data.limits("wanda-brandt").fact, rl.data.name_texts()[:400]
    contexts = rl.random_contexts(here, prefixes=10, seed=SEED)
    known = rl.collect_key_statistics(here, layer=1, texts=texts)

    def traced(component: str, window: int) -> Callable[[Any], torch.Tensor]:
        return lambda model: rl.causal_trace(model, fact, component=component, window=window).scores

    def edited(model: Any) -> torch.Tensor:
        return rl.rome(model, fact, layer=1, statistics=known, contexts=contexts).delta

    def collected(model: Any) -> torch.Tensor:
        return rl.collect_key_statistics(model, layer=1, texts=texts).moment

    def row(name: str, work: Callable[[Any], torch.Tensor]) -> Row:
        work(there)
        (slow, expected), (fast, found) = (bench.timed(lambda m=m: work(m)) for m in (here, there))
        apart = float((found - expected).abs().max() / expected.abs().max())
        numbers = {"seconds": fast, "baseline": slow, "difference": apart}
        return Row(model="toy", work=name, **numbers, note="against the CPU")

    works = {"trace, resid": traced("resid", 1), "trace, MLP window 5": traced("mlp", 5)}
    works |= {"edit, delta of W_out": edited, "key statistics": collected}
    for name, work in works.items():
        yield name, lambda name=name, work=work: row(name, work)


def shape_works(bench: Bench, shape: Shape, cells: int) -> Iterator[Work]:
    """The rows of one shape."""
    toy = rl.load_model("toy")
    contexts = rl.random_contexts(toy, prefixes=10, seed=SEED)
    model = random_model(shape, toy.tokenizer, bench.device)
    for kind in KINDS:
        yield f"trace, {kind}", lambda kind=kind: trace_row(bench, model, shape.name, kind, cells)
    yield "edit", lambda: edit_row(bench, model, shape, contexts)
    yield "many edits", lambda: many_edits_row(bench, model, shape, contexts)
    if shape.n_layers < 20:
        yield "many traces", lambda: many_traces_row(bench, model, shape.name)
    if shape.like_gpt_j:
        yield "key statistics", lambda: statistics_row(bench, model, shape)


def measured(model: str, works: Iterator[Work], ends: float) -> Iterator[Row]:
    """The rows, each with its error in the place of its numbers where it raised one."""
    name = "the model"
    try:
        for name, work in works:
            if time.monotonic() > ends:
                yield Row(model=model, work=name, note="not run: the time is over")
                continue
            start = time.monotonic()
            with contextlib.redirect_stdout(sys.stderr):
                row = _or_error(model, name, work)
            seconds = time.monotonic() - start
            print(f"[{seconds:.0f} s]", " | ".join(row.cells()), file=sys.stderr, flush=True)
            yield row
    except Exception as error:
        yield _failed(model, name, error)


def _or_error(model: str, name: str, work: Callable[[], Row]) -> Row:
    try:
        return work()
    except Exception as error:  # becomes a row of the table, so that one run says the most
        return _failed(model, name, error)


def _failed(model: str, name: str, error: Exception) -> Row:
    traceback.print_exception(error)
    text = " ".join(str(error).replace("|", "/").split())[:300]
    return Row(model=model, work=name, note=f"failed: {type(error).__name__}: {text}")


def ceilings(bench: Bench) -> str:
    """What one large matrix product reaches in each precision, in TFLOP/s."""
    size, found = (8192 if bench.on_gpu else 512), []
    for dtype in (torch.float16, torch.float32, torch.float64):
        matrix = torch.randn(size, size, device=bench.device).to(dtype)
        seconds = min(bench.timed(lambda m=matrix: m @ m)[0] for _ in range(5))
        found.append(f"{str(dtype).removeprefix('torch.')} {2e-12 * size**3 / seconds:.3g}")
    return ", ".join(found)


def print_table(rows: Sequence[Row], bench: Bench, args: argparse.Namespace) -> None:
    """The one table, in Markdown, under a line that says where and with what it was made."""
    card = "CPU" if args.device == "cpu" else torch.cuda.get_device_name()
    packages = ("torch", "transformer-lens", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(
        f"{card}, {time.strftime('%Y-%m-%d')}, {versions}; seed {SEED}, {SAMPLES} samples, medians "
        f"of {ROUNDS} for traces{', small shapes' if args.small else ''}; one large matrix product "
        f"reaches (TFLOP/s): {ceilings(bench)}\n"
    )
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        print("| " + " | ".join(map(str.ljust, line, widths)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a CPU")
    parser.add_argument("--models", nargs="*", help="only these, such as toy or 'GPT-2 XL'")
    parser.add_argument("--cells", type=int, default=16, help="cells on which the loop is timed")
    parser.add_argument("--seconds", type=float, default=280, help="start no row after these")
    parser.add_argument("--profiles", type=Path, help="a directory for the profiles' tables")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=r"HookedTransformer(\.from_pretrained)? is deprecat")
    if args.profiles is not None:
        args.profiles.mkdir(parents=True, exist_ok=True)
    bench, ends = Bench(args.device, args.profiles), time.monotonic() + args.seconds
    sources: dict[str, Iterator[Work]] = {"toy": toy_works(bench)}
    for shape in SHAPES:
        used = shape.small if args.small else shape
        sources[shape.name] = shape_works(bench, used, args.cells)
    rows: list[Row] = []
    for name in list(sources):
        works = sources.pop(name)  # the only reference, which holds the model
        if not args.models or name in args.models:
            rows += measured(name, works, ends)
            del works
            if bench.on_gpu:
                torch.cuda.empty_cache()
    print_table(rows, bench, args)


if __name__ == "__main__":
    main()
