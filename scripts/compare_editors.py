"""Compare editors on a model's records: the preset, its variants, the original, and baselines.

    python scripts/compare_editors.py [records.json] [--model gemma-3-270m] [--generate 100]
        [--directory runs/compare]
    python scripts/compare_editors.py [records.json] --bounds 1e-4 5e-4 2e-3  # fine-tuning alone

`records.json` holds records in CounterFact's form that the model knows. Without it the bundled
records are taken. Prints the table as Markdown and says where the preset fails. An interrupted run
resumes.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sweep_presets import read_records

import rome_lens as rl
from rome_lens.evaluation.scores import markdown
from rome_lens.models.gguf import cache_root

EDITORS = ("unedited", "preset", "original", "r-rome", "identity", "fine-tuning", "in-context")


def editors(model: Any, preset: rl.Preset, names: list[str]) -> list[Any]:
    """The editors with these names, all at the preset's layer."""
    rome = replace(
        preset.editor(model, cache=cache_root() / "keys", progress=True), name="ROME, preset"
    )
    found = {
        "unedited": rl.Unedited(),
        "preset": rome,
        "original": replace(
            rome,
            config=rl.RomeConfig(),
            variant="rome",
            contexts=rl.random_contexts(model, prepend_bos=preset.prepend_bos),
            name="ROME, original's hyperparameters",
        ),
        "r-rome": replace(rome, variant="r-rome", name="r-ROME, otherwise the preset"),
        "identity": replace(
            rome,
            statistics=rl.KeyStatistics.identity(model, layer=preset.layer),
            name="C = I, otherwise the preset",
        ),
        "fine-tuning": preset.fine_tuning,
        "in-context": rl.InContext(),
    }
    return [found[name] for name in names]


def fine_tunings(preset: rl.Preset, bounds: list[float]) -> list[rl.FineTuning]:
    """FT+L at the preset's layer within each bound, with a rate that reaches it in one step."""
    return [
        replace(preset.fine_tuning, norm_constraint=b, lr=b, name=f"FT+L, bound {b:g}")
        for b in bounds
    ]


def failures(comparison: rl.Comparison, records: list[Any]) -> str:
    """The preset's scores by relation, and the records with a score of 0.5 or less."""
    (name,) = (name for name in comparison.evaluations if name == "ROME, preset")
    found = list(zip(records, comparison.evaluations[name], strict=True))
    lines = ["| relation | records | ES | PS | NS |", "|---|---|---|---|---|"]
    for relation in sorted({record.relation_id or "" for record, _ in found}):
        scores = rl.Scores.of(
            [each for record, each in found if (record.relation_id or "") == relation]
        )
        cells = (
            "not asked" if value is None else f"{value.mean:.3f}"
            for value in (scores.ES, scores.PS, scores.NS)
        )
        lines.append(f"| {relation} | {scores.records} | {' | '.join(cells)} |")
    lines += ["", "Where it fails:"]
    for record, each in sorted(found, key=lambda pair: pair[1].S if pair[1].S is not None else 1.0):
        if min(value for value in (each.ES, each.PS, each.NS, 1.0) if value is not None) <= 0.5:
            fact = record.fact
            lines.append(
                f"- {fact.text!r}: {fact.target} -> {fact.new_target}: ES {each.ES}, PS {each.PS}, "
                f"NS {'not asked' if each.NS is None else round(each.NS, 2)}"
            )
    return "\n".join(lines)


def main() -> None:
    """Edit and evaluate, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=list(EDITORS))
    parser.add_argument(
        "--bounds", type=float, nargs="+", default=[], help="bounds of fine-tuning to choose among"
    )
    parser.add_argument("--every", type=int, default=1, help="take every N-th record")
    parser.add_argument(
        "--limit", type=int, default=None, help="take at most the first N of these records"
    )
    parser.add_argument("--generate", type=int, default=0, help="tokens to sample for GE")
    parser.add_argument("--directory", type=Path, default=Path("runs/compare"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = rl.load_model(args.model)
    records = read_records(args.records, args.model)[:: args.every][: args.limit]
    preset = rl.preset(args.model)
    comparison = rl.compare_editors(
        model,
        records,
        fine_tunings(preset, args.bounds) or editors(model, preset, args.editors),
        generate=args.generate,
        prepend_bos=preset.prepend_bos,
        directory=args.directory,
        progress=True,
    )
    print(
        f"\n{args.model}, {len(records)} records, layer {preset.layer}, {preset.config}, "
        f"{preset.variant}\n"
    )
    print(markdown(comparison.table()))
    if "preset" in args.editors and not args.bounds:
        print(f"\n{failures(comparison, records)}")


if __name__ == "__main__":
    main()
