"""How S depends on the source and the size of the key statistics.

    python benchmarks/statistics_study.py records.json [--model gemma-3-270m] [--every 8]
        [--directory runs/statistics]

`records.json` holds records in CounterFact's form that the model knows. ``v*`` does not depend on
the statistics, so it is optimised once for each record. Only ``u`` differs.
"""

import argparse
from pathlib import Path

import torch

import rome_lens as rl
from rome_lens.evaluation.scores import markdown
from rome_lens.keys.statistics import StatisticsError
from rome_lens.models.gguf import cache_root


def sources(
    model: rl.models.LensModel, layer: int, prepend_bos: bool | None
) -> dict[str, rl.KeyStatistics]:
    """Key statistics by source and number of tokens."""
    texts, names, cache = rl.data.texts(), rl.data.name_texts(), cache_root() / "keys"

    def collect(some: list[str], count: int | None = None) -> rl.KeyStatistics:
        return rl.collect_key_statistics(
            model,
            layer=layer,
            texts=some,
            max_tokens=count,
            max_length=1024,
            prepend_bos=prepend_bos,
            cache=cache,
        )

    found = {"C = I": rl.KeyStatistics.identity(model, layer=layer)}
    for count in (3_000, 6_000, None):
        found[f"text, {count or 'all'} tokens"] = collect(texts, count)
    # Every n-th sentence, because even a small share of them then holds all kinds of names.
    for every in (12, 6, 3, 1):
        found[f"names, 1 in {every}"] = collect(names[::every])
    found["text and names"] = collect([*texts, *names])
    plain = rl.collect_key_statistics(
        model, sample_count=216, sample_length=64, seed=0, layer=layer, cache=cache
    )
    found["the model's own samples from BOS alone"] = plain
    named = {f"{name} ({each.count} keys)": each for name, each in found.items()}
    return {name: each for name, each in named.items() if invertible(name, each)}


def invertible(name: str, statistics: rl.KeyStatistics) -> bool:
    """Whether C can be inverted without a ridge. Prints the reason if it cannot."""
    try:
        statistics.solve(torch.ones(len(statistics.moment), dtype=statistics.moment.dtype))
    except StatisticsError as error:
        print(f"left out: {name}: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--every", type=int, default=8, help="take every n-th record")
    parser.add_argument("--directory", type=Path, default=Path("runs/statistics"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = rl.load_model(args.model)
    preset = rl.preset(args.model)
    sweep = rl.sweep_edits(
        model,
        rl.read_counterfact(args.records)[:: args.every],
        statistics={
            name: {preset.layer: each}
            for name, each in sources(model, preset.layer, preset.prepend_bos).items()
        },
        stop_probabilities=[preset.config.stop_probability],
        variants=[preset.variant],
        config=preset.config,
        contexts=preset.contexts(model),
        prepend_bos=preset.prepend_bos,
        directory=args.directory,
        progress=True,
    )
    print(f"\n{args.model}, layer {preset.layer}, {preset.config}, {preset.variant}\n")
    print(markdown(sweep.table()))


if __name__ == "__main__":
    main()
