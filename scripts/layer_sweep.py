"""Does tracing tell where to edit? Trace and edit the same facts at every layer.

    python scripts/layer_sweep.py [records.json] [--model gemma-3-270m] [--every 8]
        [--layers 0 2 4 6] [--directory runs/layers] [--out layer-sweep.png]

Prints how much of the edits' success the layer and the traced effect explain. `records.json` holds
records in CounterFact's form. Without it the bundled records that the model knows are taken. The
edits are those of the model's preset, at every layer instead of the preset's own. An interrupted
run resumes.
"""

import argparse
from pathlib import Path

import torch

import rome_lens as rl
from rome_lens.evaluation.scores import markdown
from rome_lens.localisation.variance import variance_table
from rome_lens.models.gguf import cache_root

MEASURES = ("EM", "PM", "NM", "S")


def read_records(path: Path | None, model: str) -> list[rl.data.Record]:
    """The file's records, or the bundled ones that the model knows."""
    return rl.data.records(known_by=model) if path is None else rl.read_counterfact(path)


def main() -> None:
    """Sweep over the layers, print the tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--layers", type=int, nargs="+", help="default: all")
    parser.add_argument("--every", type=int, default=1, help="take every N-th record")
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--directory", type=Path, default=Path("runs/layers"))
    parser.add_argument("--out", type=Path, help="the figure to write")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, preset = rl.load_model(args.model), rl.preset(args.model)
    records = read_records(args.records, args.model)
    # All of them, so that runs over parts of the records use the same noise.
    subjects = tuple(record.fact.subject for record in records)
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
            prepend_bos=preset.prepend_bos,
            cache=cache_root() / "keys",
            progress=True,
        ),
        config=preset.config,
        variant=preset.variant,
        contexts=preset.contexts(model),
        window=args.window,
        noise=rl.GaussianNoise(subjects=subjects).fitted(model),
        samples=args.samples,
        prepend_bos=preset.prepend_bos,
        directory=args.directory,
        progress=True,
    )
    found = [sweep.variance_explained(measure) for measure in MEASURES]
    print(
        f"\n{args.model}, {sweep}\n{sweep.edits}\n{sweep.noise}\n"
        f"not known: {', '.join(sweep.unknown) or 'none'}\n"
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
