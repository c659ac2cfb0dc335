"""Does tracing tell where to edit? Edits without an early stop, at every layer and two positions.

    python scripts/where_to_edit.py [--model gemma-3-270m] [--half report] [--layers 0 2 4]
        [--directory runs/where] [--device cpu] [--edit-only] [--out where.parquet]
    python scripts/where_to_edit.py --published docs/results/where-gemma-3-270m.parquet

Each fact is traced (MLP outputs of five layers are restored) and edited at every layer, once at the
subject's last token and once at the subject's token with the largest traced effect. The edits are
the preset's, but run for all steps: an optimisation that stops at a fixed probability reaches it at
nearly every layer, and hides what there is to explain. Besides the scores, the number of steps and
the size of the change at which the new target's probability exceeds one half are outcomes.

Prints how much the layer explains, how much the traced effect adds to it, what other facts' traces
add, how strong an effect would have been found in four of five such samples (power), and the paired
difference between the two positions. Intervals are clustered by relation. Finished layers are kept
in the directory, and `--edit-only` makes them without the tables, so several runs may share the
layers out. `--out` writes one row for each fact, layer and position, and `--published` prints the
tables of such a file.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

import rome_lens as rl
from rome_lens.editing.prompts import EditRows
from rome_lens.evaluation.scores import markdown
from rome_lens.intervals import average
from rome_lens.localisation.variance import VarianceExplained, explain_variance, regression
from rome_lens.models.gguf import cache_root

SUCCESS = ("EM", "PM", "NM", "S")
EFFORT = ("steps", "size")
OUTCOMES = (*SUCCESS, *EFFORT)
PLACES = ("last token", "traced token")
HALF = math.log(2.0)
AT_ONCE = 16
POWER = (0.002, 0.005, 0.01, 0.02, 0.05)
SHUFFLES = 2000
Matrix = Float[np.ndarray, "fact layer"]


def effects(traced: rl.TracedFacts) -> tuple[list[int], dict[str, Matrix]]:
    """The lookup of each fact's traced token, and the traced effects at both positions."""
    lookups, found = [], {place: [] for place in PLACES}
    for trace in traced:
        start, end = trace.subject
        its = trace.indirect_effects[:, start:end]
        best = int(its.amax(0).argmax())
        lookups.append(best - (end - start))
        found["last token"].append(its[:, -1].tolist())
        found["traced token"].append(its[:, best].tolist())
    return lookups, {place: np.array(rows) for place, rows in found.items()}


def effort(edit: rl.RankOneEdit, steps: int) -> tuple[float, float]:
    """The step at which p(new target) exceeds one half, and ``||delta|| / ||v_0||`` at that step.

    Steps count from 1. One more than all, and the size at the end, if it never does.
    """
    assert edit.losses is not None
    assert edit.key is not None
    assert edit.value is not None
    assert edit.config is not None
    before = edit.value.double() - (edit.u @ edit.key).double() * edit.v.double()
    # The weight decay is factor * ||delta|| / ||v_0||^2.
    sizes = edit.losses[:, 2].double() * before.norm() / edit.config["weight_decay"]
    reached = (edit.losses[:, 0] < HALF).nonzero().flatten().tolist()
    step = reached[0] if reached else len(sizes) - 1
    return (step + 1 if reached else steps + 1), float(sizes[step])


def edited(
    model: rl.models.LensModel,
    records: Sequence[rl.data.Record],
    lookups: Sequence[int],
    layer: int,
    preset: rl.Preset,
    statistics: rl.KeyStatistics,
    contexts: Sequence[str],
) -> pd.DataFrame:
    """One row for each fact and position: every outcome of its edit at this layer."""
    config = replace(preset.config, stop_probability=None, stop_loss=0.0)
    rows = []
    for lookup in sorted({-1, *lookups}):
        chosen = [i for i, its in enumerate(lookups) if lookup in (-1, its)]
        edits = [
            edit
            for first in range(0, len(chosen), AT_ONCE)
            for edit in rl.rome_batch(
                model,
                [records[i].fact for i in chosen[first : first + AT_ONCE]],
                layer=layer,
                statistics=statistics,
                contexts=contexts,
                config=replace(config, lookup=lookup),
                variant=preset.variant,
                prepend_bos=preset.prepend_bos,
            )
        ]
        scores = rl.evaluate_all(
            model, edits, [records[i] for i in chosen], prepend_bos=preset.prepend_bos
        )
        for i, edit, score in zip(chosen, edits, scores, strict=True):
            outcome = {name: getattr(score, name) for name in SUCCESS}
            outcome |= dict(zip(EFFORT, effort(edit, config.steps), strict=True))
            places = [lookup == -1, lookup == lookups[i]]
            rows += [
                {"fact": i, "layer": layer, "place": place, **outcome}
                for place, here in zip(PLACES, places, strict=True)
                if here
            ]
    return pd.DataFrame(rows)


def power(effect: Matrix, success: Matrix, added: float) -> float:
    """How often the shuffle test finds an effect that adds this much R^2 to the layer.

    The effect is planted: outcomes are those measured, with the rows given to other facts, plus a
    multiple of the traced effect.
    """
    random = np.random.default_rng(0)
    x = effect - effect.mean(0)
    total = ((success - success.mean()) ** 2).sum()
    slope = math.sqrt(added * total / (x**2).sum())
    found = []
    for _ in range(60):
        planted = success[random.permutation(len(success))] + slope * x
        fit = regression(effect, planted)
        shuffled = [regression(effect[random.permutation(len(effect))], planted) for _ in range(99)]
        assert fit is not None
        at_least = sum(each is not None and each.added >= fit.added for each in shuffled)
        found.append((1 + at_least) / 100 <= 0.05)
    return float(np.mean(found))


def least_found(effect: Matrix, success: Matrix) -> str:
    """The least added R^2 of the list that is found in four of five samples."""
    found = [each for each in POWER if power(effect, success, each) >= 0.8]
    return f"{found[0]:g}" if found else f"above {POWER[-1]:g}"


def line(place: str, found: VarianceExplained, least: str) -> dict[str, str]:
    """One row of the table of explained variance."""
    return {
        "edited at": place,
        "outcome": found.measure,
        "R^2 of the layer": str(found.layer),
        "added by the trace": str(found.added),
        "added by other facts' traces": str(found.shuffled),
        "p": f"{found.p_value:.3f}",
        "slope": str(found.slope),
        "found in 4 of 5 from": least,
    }


def matrix(frame: pd.DataFrame, place: str, number: str) -> Matrix:
    """A number by fact and layer."""
    own = frame[frame["place"] == place]
    return own.pivot(index="record", columns="layer", values=number).to_numpy(dtype=np.float64)


def compared(frame: pd.DataFrame, facts: pd.DataFrame) -> list[dict[str, str]]:
    """For the facts traced to another token: its outcomes minus those at the last token."""
    moved = (facts["lookup"] != -1).to_numpy()
    clusters = facts["relation"][moved].tolist()
    lines = []
    for outcome in OUTCOMES:
        traced, last = (matrix(frame, place, outcome)[moved] for place in reversed(PLACES))
        choose: Callable[[Matrix], Matrix] = (
            (lambda m: m.min(1)) if outcome in EFFORT else (lambda m: m.max(1))
        )
        mean = (traced - last).mean(1)
        best = choose(traced) - choose(last)
        lines.append(
            {
                "outcome": outcome,
                "mean over layers": str(average(mean.tolist(), clusters)),
                "at each fact's best layer": str(average(best.tolist(), clusters)),
                "facts": str(int(moved.sum())),
            }
        )
    return lines


def report(frame: pd.DataFrame) -> None:
    """Print the tables of a frame with a row for each fact, layer and position."""
    facts = frame.groupby("record")[["relation", "lookup"]].first()  # in the order of `matrix`
    layers = frame["layer"].nunique()
    print(f"{len(facts)} facts, {layers} layers, edits at {', '.join(PLACES)}\n")
    lines = []
    for place in PLACES:
        for outcome in OUTCOMES:
            success, effect = matrix(frame, place, outcome), matrix(frame, place, "effect")
            found = explain_variance(
                effect,
                success,
                measure=outcome,
                relations=facts["relation"].tolist(),
                shuffles=SHUFFLES,
            )
            asked = ~np.isnan(success).any(1)
            least = least_found(effect[asked], success[asked])
            lines.append(line(place, found, least))
            print(f"{place}, {outcome}: {found.reading}")
    print(f"\n{markdown(pd.DataFrame(lines).set_index('edited at'))}\n")
    counts = facts["lookup"].value_counts().to_dict()
    print(f"Facts by traced token, counted back from the subject's last: {counts}\n")
    if (facts["lookup"] != -1).any():
        print(markdown(pd.DataFrame(compared(frame, facts)).set_index("outcome")))
    means = frame.groupby(["place", "layer"])[list(OUTCOMES)].mean().round(3)
    print(f"\n{markdown(means.reset_index().astype(str).set_index('place'))}")


def joined(
    parts: Sequence[pd.DataFrame],
    by_place: dict[str, Matrix],
    lookups: Sequence[int],
    records: Sequence[rl.data.Record],
) -> pd.DataFrame:
    """All layers' rows, with each fact's record, relation and lookup, and the traced effect there.

    The effect is that of the position that was edited, also where that could only be the last one.
    """
    frame = pd.concat(parts, ignore_index=True)
    number = frame.pop("fact")
    frame["record"] = [str(records[i].id) for i in number]
    frame["relation"] = [str(records[i].relation) for i in number]
    frame["lookup"] = [lookups[i] for i in number]
    frame["effect"] = [
        by_place[place if lookups[i] != -1 else "last token"][i, layer]
        for i, layer, place in zip(number, frame["layer"], frame["place"], strict=True)
    ]
    return frame


def main() -> None:
    """Trace, edit, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--half", default="report", choices=["report", "development", "all"])
    parser.add_argument("--every", type=int, default=1, help="take every N-th record")
    parser.add_argument("--layers", type=int, nargs="+", help="default: all")
    parser.add_argument("--directory", type=Path, default=Path("runs/where"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument(
        "--noise-level", type=float, help="as in an earlier run that is continued on another device"
    )
    parser.add_argument("--edit-only", action="store_true", help="print no tables")
    parser.add_argument("--out", type=Path, help="the parquet file to write")
    parser.add_argument("--published", type=Path, help="print the tables of a file, and stop")
    args = parser.parse_args()
    if args.published is not None:
        report(pd.read_parquet(args.published))
        return
    model, preset = rl.load_model(args.model, device=args.device), rl.preset(args.model)
    records = rl.data.records(known_by=args.model, half=None if args.half == "all" else args.half)[
        :: args.every
    ]
    layers = args.layers or list(range(model.cfg.n_layers))
    subjects = tuple(record.fact.subject for record in records)
    noise = rl.GaussianNoise(subjects=subjects).fitted(model)
    if args.noise_level is not None:
        noise = rl.GaussianNoise(level=args.noise_level)
    traced = rl.trace_facts(
        model,
        [record.fact for record in records],
        component="mlp",
        window=args.window,
        noise=noise,
        samples=args.samples,
        prepend_bos=preset.prepend_bos,
        directory=args.directory / "traces",
        progress=True,
    )
    known = {trace.fact for trace in traced}
    records = [record for record in records if record.fact in known]
    lookups, by_place = effects(traced)
    files = {layer: args.directory / f"layer-{layer}.parquet" for layer in layers}
    missing = [layer for layer in layers if not files[layer].exists()]
    contexts = preset.contexts(model)
    for i, (record, lookup) in enumerate(zip(records, lookups, strict=True)):
        # In a context, some subjects have fewer tokens than at the beginning of the prompt.
        try:
            EditRows.of(model, record.fact, contexts, preset.prepend_bos, lookup)
        except rl.data.FactError:
            lookups[i] = -1
    if missing:
        statistics = rl.collect_key_statistics(
            model,
            layer=missing,
            texts=preset.texts,
            max_length=1024,
            prepend_bos=preset.prepend_bos,
            cache=cache_root() / "keys",
            progress=True,
        )
    for layer in missing:
        frame = edited(model, records, lookups, layer, preset, statistics[layer], contexts)
        part = files[layer].with_suffix(".part")
        frame.to_parquet(part)
        part.rename(files[layer])
    if args.edit_only:
        return
    frame = joined([pd.read_parquet(files[i]) for i in layers], by_place, lookups, records)
    if args.out is not None:
        frame.to_parquet(args.out, compression="zstd")
    print(f"{args.model}: ", end="")
    report(frame)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
