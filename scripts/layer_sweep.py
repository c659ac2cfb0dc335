"""Does tracing tell where to edit? Trace and edit the same facts at every layer, and see what explains the edits' success.

    python scripts/layer_sweep.py [records.json] [--model gemma-3-270m] [--every 8] [--layers 0 2 4 6] [--directory runs/layers]
        [--out docs/layer-sweep-gemma-3-270m.png]

`records.json` holds records of CounterFact's shape; without it the project's own are taken that the model knows. The edits
are those of the model's preset, at every layer in place of its own. A run broken off goes on where it was.
"""

import argparse
from pathlib import Path

import torch

import rome_lens as rl
from rome_lens.evaluation.scores import markdown
from rome_lens.localisation.variance import variance_table
from rome_lens.models.gguf import cache_root

MEASURES = ("EM", "PM", "NM", "S")


def read_records(path: Path | None, model: str) -> list[rl.CounterFactRecord]:
    """The file's records, or those of the project that the model knows."""
    if path is not None:
        return rl.read_counterfact(path)
    return [
        rl.CounterFactRecord.of(record) for record in rl.data.limits() if model in record.known_by
    ]


def main() -> None:
    """Sweep, print the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--layers", type=int, nargs="+", help="all, where none is named")
    parser.add_argument("--every", type=int, default=1, help="take every n-th record")
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--directory", type=Path, default=Path("runs/layers"))
    parser.add_argument("--out", type=Path, help="the picture")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, preset = rl.load_model(args.model), rl.preset(args.model)
    records = read_records(args.records, args.model)
    subjects = tuple(
        record.fact.subject for record in records
    )  # all, so that the noise is that of every share of them
    layers = args.layers or list(range(model.cfg.n_layers))
    sweep = rl.layer_sweep(
        model,
        records[args.offset :: args.every],
        layers=layers,
        statistics=rl.collect_key_statistics(
            model,
            layer=layers,
            texts=preset.texts,
            max_length=1024,
            cache=cache_root() / "keys",
            progress=True,
        ),
        config=preset.config,
        variant=preset.variant,
        contexts=preset.contexts(model),
        window=args.window,
        noise=rl.GaussianNoise(subjects=subjects).fitted(model),
        samples=args.samples,
        directory=args.directory,
        progress=True,
    )
    found = [sweep.variance_explained(measure) for measure in MEASURES]
    print(
        f"\n{args.model}, {sweep}\n{sweep.edits}\n{sweep.noise}\nnot known: {', '.join(sweep.unknown) or 'none'}\n"
    )
    print(markdown(sweep.table()))
    print(f"\n{markdown(variance_table(found))}\n")
    print("\n".join(each.reading for each in found))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        rl.viz.layer_sweep(sweep).savefig(args.out, dpi=110)
        print(args.out)


if __name__ == "__main__":
    main()
