"""Average a model's causal traces over a file of facts: residual stream, MLPs and attention.

    python scripts/average_facts.py facts.json [--model gemma-3-270m] [--samples 10] [--directory
        runs] [--out docs]

Reads the forms of known_1000, CounterFact and this project (`rome_lens.read_facts`). Each trace is
written to `--directory`, and an interrupted run resumes from there. Writes a figure and prints the
numbers that a text about it needs.
"""

import argparse
import math
from pathlib import Path

import torch

import rome_lens as rl
from rome_lens.intervals import average
from rome_lens.tracing.averages import ROLES, roles_of

KINDS = {"resid": 1, "mlp": 10, "attn": 10}


def correlations(
    model: rl.models.LensModel, traced: rl.TracedFacts, noise: rl.GaussianNoise, samples: int
) -> list[float]:
    """Rank correlation of the attribution trace with the exact trace, fact by fact."""
    values = []
    for trace in traced.traces:
        options = {
            "component": trace.component,
            "window": trace.window,
            "noise": noise,
            "samples": samples,
        }
        values.append(rl.attribution_trace(model, trace.fact, **options).rank_correlation(trace))
    return [value for value in values if not math.isnan(value)]


def table(result: rl.TraceAverage) -> str:
    """A Markdown row for each role: its strongest layer and the effect there."""
    lines = []
    for column, role in enumerate(result.roles):
        i = int(result.indirect_effects[:, column].nan_to_num(-1.0).argmax())
        effect, half = (
            float(result.indirect_effects[i, column]),
            float(result.half_widths[i, column]),
        )
        lines.append(
            f"| {role} | {result.counts[column]} | {result.layers[i]} | {effect:.3f} ± {half:.3f} |"
        )
    return "\n".join(lines)


def strongest_roles(traced: rl.TracedFacts) -> dict[str, int]:
    """For how many facts each role has the largest effect in the first half of the layers."""
    counts = dict.fromkeys(ROLES, 0)
    for trace in traced:
        early = trace.indirect_effects[: len(trace.layers) // 2].amax(0)
        best = trace.positions[int(early.argmax())]
        for role, positions in roles_of(trace.subject, len(trace.labels)).items():
            counts[role] += best in positions
    return counts


def main() -> None:
    """Trace the facts, average the traces and draw the averages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("facts", type=Path)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--directory", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument(
        "--previews", type=int, default=0, help="compare attribution patching on this many facts"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = rl.read_facts(args.facts)
    model = rl.load_model(args.model)
    noise = rl.GaussianNoise(subjects=tuple(fact.subject for fact in facts)).fitted(model)
    print(f"{len(facts)} facts, {noise}")
    results = []
    for component, window in KINDS.items():
        traced = rl.trace_facts(
            model,
            facts,
            component=component,
            window=window,
            noise=noise,
            samples=args.samples,
            directory=args.directory / component,
            progress=True,
        )
        results.append(rl.average_traces(traced))
        print(
            f"\n{results[-1]}\nclean {results[-1].clean}, corrupted {results[-1].corrupted}\n"
            f"{table(results[-1])}"
        )
        if args.previews:
            some = rl.TracedFacts(traces=traced.traces[: args.previews], unknown=())
            print(
                "rank correlation of attribution patching:",
                average(
                    correlations(model, some, noise, args.samples),
                    [trace.fact.prompt for trace in some],
                ),
            )
        print("strongest role in the first half of the layers, facts:", strongest_roles(traced))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"average-traces-{args.model}.png"
    rl.viz.averages(results).savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
