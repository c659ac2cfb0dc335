"""Find the presets of MEMIT, EMMET and AlphaEdit on the development half of the records.

    python scripts/sweep_mass_presets.py --model gemma-3-270m --out gemma.csv [--every 3]
        [--windows 2 3 1-3] [--clamps 0.75] [--stops 0.5] [--weights 100 1000] [--exact]
        [--shares 0.5 0.8] [--l2 0.1 1 10]

Each setting edits every fact alone, and the same facts in batches of ten. The table shows S of
both, in the order of their sum. docs/editing.md says how the presets follow from it. Targets are
found once for each last layer, clamp and stop. With the same arguments, an interrupted run resumes.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import product
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.editing.mass_config import MassConfig, Method
from rome_lens.editing.mass_editing import Plan, mass_edit, write_batch
from rome_lens.editing.mass_facts import plan_of
from rome_lens.editing.mass_values import Target, TargetSettings, optimised_targets
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.evaluation.evaluating import evaluate_all
from rome_lens.evaluation.results import Evaluation
from rome_lens.evaluation.scores import Scores, markdown
from rome_lens.keys.statistics import KeyStatistics
from rome_lens.models.gguf import cache_root
from rome_lens.models.lens import LensModel, starts_with_bos
from rome_lens.storage import whole_or_nothing

BATCH = 10


def configs(
    args: argparse.Namespace, value: rl.RomeConfig, statistics: Mapping[int, KeyStatistics]
) -> Iterator[tuple[Method, str, MassConfig]]:
    """The settings of each method, with a name.

    EMMET's relaxed form is not among them: for several facts it is MEMIT with the weight ``w mu``.
    AlphaEdit's threshold is given by the share of directions that count as the null space.
    """
    for weight in args.weights:
        config = rl.MemitConfig(value=value, statistics_weight=weight)
        yield "MEMIT", f"w = {weight:g}", config
    if args.exact:
        yield "EMMET", "exact", rl.EmmetConfig(value=value, relaxed="never")
    moment = statistics[max(statistics)].moment.double()
    eigenvalues = torch.linalg.eigvalsh(moment)
    for share in args.shares:
        threshold = float(f"{float(eigenvalues[int(share * (len(eigenvalues) - 1))]):.1e}")
        for l2 in args.l2:
            config = rl.AlphaEditConfig(value=value, threshold=threshold, l2=l2)
            yield "AlphaEdit", f"threshold {threshold:g} ({share:.0%}), l2 = {l2:g}", config


def score(
    model: LensModel,
    plan: Plan,
    batches: Sequence[Sequence[Target]],
    records: Mapping[str, rl.data.Record],
) -> list[tuple[Evaluation | None, float]]:
    """For each fact of each batch, its scores and how far its target is missed, if it is edited."""
    nothing = {
        layer: torch.zeros(0, model.cfg.d_mlp or 0, dtype=torch.float32, device="cpu")
        for layer in plan.layers
    }
    edits, edited, missed = [], [], []
    for batch in batches:
        try:
            edit = mass_edit(model, plan, [write_batch(model, batch, plan, nothing)], nothing)
        except OptimisationError:
            missed += [math.nan for _ in batch]
            continue
        missed += edit.missed.tolist()
        edits += [edit for _ in batch]
        edited += [records[target.fact.text] for target in batch]
    found = iter(evaluate_all(model, edits, edited, prepend_bos=plan.prepend_bos) if edits else [])
    return [(None if math.isnan(each) else next(found), each) for each in missed]


def layers_of(window: str) -> list[int]:
    """The layers from ``"2"`` or ``"1-3"``."""
    first, _, last = window.partition("-")
    return list(range(int(first), int(last or first) + 1))


def row_of(
    model: LensModel,
    plan: Plan,
    targets: Sequence[Target],
    records: Mapping[str, rl.data.Record],
) -> dict[str, float]:
    """Scores of edits of each fact alone and of batches of ten, in one run of the prompts."""
    mixed = [targets[i :: -(-len(targets) // BATCH)] for i in range(-(-len(targets) // BATCH))]
    scored = score(model, plan, [*([each] for each in targets), *mixed], records)
    row: dict[str, float] = {"facts": len(targets)}
    for kind, some in (("alone", scored[: len(targets)]), ("ten", scored[len(targets) :])):
        edited = [(scores, missed) for scores, missed in some if scores is not None]
        row[f"failed, {kind}"] = len(some) - len(edited)
        if edited:
            row[f"missed, {kind}"] = median(missed for _, missed in edited)
            means = Scores.of([scores for scores, _ in edited])
            for name in ("S", "ES", "PS", "NS"):
                row[f"{name}, {kind}"] = getattr(means, name).mean
    return row


def swept(
    model: LensModel, args: argparse.Namespace, done: Set[tuple[str, float, float, str]]
) -> Iterator[dict[str, object]]:
    """A row for each setting that is not done."""
    preset = rl.preset(args.model)
    listed = rl.data.records(known_by=args.model, half="development")
    records = {each.fact.text: each for each in listed[:: args.every]}
    contexts = preset.contexts(model)
    for window, clamp, stop in product(args.windows, args.clamps, args.stops):
        statistics = rl.collect_key_statistics(
            model,
            layer=layers_of(window),
            texts=preset.texts,
            max_length=1024,
            prepend_bos=preset.prepend_bos,
            cache=cache_root() / "keys",
        )
        value = rl.RomeConfig(clamp=clamp, stop_probability=None if stop == 1 else stop)
        settings = TargetSettings(
            layer=layers_of(window)[-1],
            contexts=contexts,
            config=value,
            prepend_bos=starts_with_bos(model, preset.prepend_bos),
        )
        found = optimised_targets(model, [each.fact for each in records.values()], settings)
        targets = [each for each in found if isinstance(each, Target)]
        for method, name, config in configs(args, value, statistics):
            if (window, clamp, stop, name) in done:
                continue
            plan = plan_of(
                model,
                method=method,
                layers=layers_of(window),
                statistics=statistics,
                contexts=contexts,
                config=config,
                prepend_bos=preset.prepend_bos,
            )
            setting = {"layers": window, "clamp": clamp, "stop": stop}
            scores = row_of(model, plan, targets, records)
            yield {**setting, "method": method, "setting": name, **scores}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--windows", nargs="+", default=["2", "1-3"], help="such as 2 or 1-3")
    parser.add_argument("--clamps", type=float, nargs="+", default=[0.75])
    parser.add_argument("--stops", type=float, nargs="+", default=[0.5], help="1 never stops")
    parser.add_argument("--weights", type=float, nargs="*", default=[100, 1000], help="MEMIT's")
    parser.add_argument("--exact", action="store_true", help="EMMET with an exact equality")
    parser.add_argument("--shares", type=float, nargs="*", default=[], help="AlphaEdit's threshold")
    parser.add_argument("--l2", type=float, nargs="*", default=[0.1, 1.0, 10.0], help="AlphaEdit's")
    parser.add_argument("--every", type=int, default=1, help="take every N-th record")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="a .csv, to which rows are added")
    args = parser.parse_args()
    model = rl.load_model(args.model, device=args.device)
    rows = pd.read_csv(args.out).to_dict("records") if args.out.exists() else []
    done = {(str(row["layers"]), row["clamp"], row["stop"], row["setting"]) for row in rows}
    for row in tqdm(swept(model, args, done), desc="settings"):
        rows.append(row)
        with whole_or_nothing(args.out) as unfinished:
            pd.DataFrame(rows).to_csv(unfinished, index=False)
    frame = pd.DataFrame(rows)
    frame["sum"] = frame["S, alone"] + frame["S, ten"]
    print(markdown(frame.sort_values(["method", "sum"], ascending=[True, False]).round(3)))


if __name__ == "__main__":
    main()
