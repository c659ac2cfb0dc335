"""Find a model's preset: the settings with the highest S among those with ES of at least 99 %.

    python scripts/sweep_presets.py [records.json] [--model gemma-3-270m] [--layers 2 3 4]
        [--every 4] [--directory runs/sweep]

The settings are layer, variant, clamp and how far to push the value. `records.json` holds records
in CounterFact's form that the model knows. Without it the bundled records are taken. An interrupted
run resumes.
"""

import argparse
from pathlib import Path

import torch

import rome_lens as rl
from rome_lens.evaluation.scores import markdown
from rome_lens.models.gguf import cache_root


def read_records(path: Path | None, model: str) -> list[rl.data.Record]:
    """The file's records, or the bundled ones of the development half that the model knows."""
    return (
        rl.data.records(known_by=model, half="development")
        if path is None
        else rl.read_counterfact(path)
    )


def main() -> None:
    """Edit every N-th record at every setting, and print the table and the best setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--stops", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--clamps", type=float, nargs="+", default=[4.0])
    parser.add_argument("--variants", nargs="+", default=["rome"])
    parser.add_argument("--every", type=int, default=4, help="take every N-th record")
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument(
        "--prefixes", type=int, default=6, help="how many of the 20 random prefixes to use"
    )
    parser.add_argument("--directory", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = rl.load_model(args.model, device=args.device)
    records = read_records(args.records, args.model)[args.offset :: args.every]
    preset = rl.preset(args.model)
    statistics = rl.collect_key_statistics(
        model,
        layer=args.layers,
        texts=preset.texts,
        max_length=1024,
        prepend_bos=preset.prepend_bos,
        cache=cache_root() / "keys",
        progress=True,
    )
    contexts = rl.random_contexts(model, prefixes=args.prefixes, prepend_bos=preset.prepend_bos)
    for clamp in args.clamps:
        sweep = rl.sweep_edits(
            model,
            records,
            statistics={"texts and names": statistics},
            stop_probabilities=args.stops,
            variants=args.variants,
            config=rl.RomeConfig(clamp=clamp),
            contexts=contexts,
            prepend_bos=preset.prepend_bos,
            directory=args.directory,
            progress=True,
        )
        print(
            f"\n{args.model}, {len(records)} records, {len(contexts)} contexts, clamp {clamp:g}\n"
        )
        print(markdown(sweep.table()))
        try:
            print(f"\nBest: {sweep.best()}")
        except ValueError as error:
            print(f"\n{error}")


if __name__ == "__main__":
    main()
