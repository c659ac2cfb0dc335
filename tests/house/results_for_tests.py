"""One small result of every type that can be stored, and ways to rewrite the file of one."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import rome_lens as rl
from rome_lens.checks.mass_curve_result import CurveBatch
from rome_lens.checks.result import CheckRow, Measure
from rome_lens.evaluation.results import PromptScore
from rome_lens.keys.sums import KeySum
from rome_lens.results import Stored
from rome_lens.sweeps.units import Failure
from rome_lens.tracing.many_facts import NotKnown

FACT = rl.Fact("{} “in” Zürich is in", subject="東京 🗼", target='Par"is', new_target="Rome")


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _examples() -> dict[str, Stored]:
    trace: dict[str, Any] = {
        "fact": FACT,
        "layers": (1, 2),
        "positions": (0, 4, 5),
        "labels": ("<s>", " a", "$", "�", "\n", ""),
        "subject": (1, 4),
        "answer": ' Par"',
        "clean": 0.1 + 0.2,
        "corrupted_samples": random(2),
        "sample_scores": random(2, 2, 3),
        "noise": "GaussianNoise(scale=3.0, seed=0, subjects=None)",
        "model_fingerprint": "0123",
    }
    edit = rl.RankOneEdit(
        layer=2,
        u=random(5),
        v=random(3),
        key=random(5),
        value=random(3),
        fact=FACT,
        losses=random(4, 3),
        probability=1 / 3,
        config={"steps": 20, "lengths": (5, 10)},
        stopped="loss",
    )
    dense = rl.WeightEdit(layer=1, delta=random(5, 3), losses=random(2), stopped="steps")
    mass = rl.MassEdit(
        edits=(dense, replace(dense, layer=2)),
        facts=(FACT, FACT),
        layers=(1, 2),
        batches=(2,),
        method="AlphaEdit",
        keys=random(2, 2, 5),
        residuals=random(2, 2, 3),
        starts=random(2, 3),
        values=random(2, 3),
        losses=torch.tensor([[[0.5, 0.25, 0.0], [float("nan")] * 3], [[1.0, 0.0, 0.0]] * 2]),
        probabilities=random(2),
        stopped=("loss", "steps"),
        missed=random(2),
        conditions=random(1, 2),
        ranks=(3, 4),
        threshold=0.02,
        kept_keys=random(2, 4, 5),
        contexts=("{}",),
    )
    row = CheckRow(kind="alias", prompt="a", answer="b", before=-1.5, after=float("-inf"), kl=0.1)
    measure = Measure(name="size", values=(0.5, 0.25), interval=(0.1, 0.9), count=2)
    check = rl.CheckResult(
        name="direction",
        asks="?",
        measured="p",
        effect_is="e",
        control_is="c",
        rows=(row, row),
        further=(measure,),
    )
    limits = rl.Limits(record_id="1", relation="in", results=(check,))
    score = PromptScore(
        kind="rewrite",
        prompt="a",
        target="b",
        new_target="c",
        target_before=0.5,
        new_before=0.25,
        target_after=0.125,
        new_after=0.75,
    )
    evaluation = rl.Evaluation(case_id=3, edited=True, rows=(score,), GE=5.5, texts=("a",))
    of_batch = CurveBatch(
        editor="a",
        count=2,
        repeat=0,
        edited=2,
        evaluations=(evaluation,),
        exact=torch.ones(1),
        paraphrases=torch.tensor([float("nan")]),
        essence=random(1),
        fidelity=random(2),
        seconds=0.5,
        peak_bytes=1e9,
    )
    measures = {name: random(2, 3) for name in ("EM", "PM", "NM", "ES", "PS", "NS", "S")}
    return {
        type(each).__name__: each
        for each in (
            rl.CausalTrace(component="mlp", window=3, **trace),
            rl.AttributionTrace(
                component="z",
                window=1,
                heads=(0, 3),
                **{**trace, "sample_scores": random(2, 2, 3, 2)},
            ),
            rl.SeveredTrace(
                severed="mlp",
                held_layers="later",
                ordinary_sample_scores=random(2, 2, 3),
                held_noise="",
                **trace,
            ),
            rl.EditTrace(
                component="attn", window=1, edited_layers=(1,), firing=(0.0, 1.0), **trace
            ),
            rl.ValueComparison(
                names=("edited", "unedited", "edited, active part", "edited, dormant part", "A"),
                **dict.fromkeys(
                    (
                        "norms",
                        "cosines",
                        "change_cosines",
                        "lens",
                        "new_probabilities",
                        "true_probabilities",
                        "dormant_shares",
                    ),
                    random(5),
                ),
                active=3,
                d_model=8,
                variance=0.99,
                held_dormant=0.01,
                tokens=100,
                layer=1,
                fact=FACT,
                model_fingerprint="",
            ),
            rl.TextComparison(
                prompts=("a {", "b"),
                before=((" Par", "x"), ("", "\n")),
                after=((" Rome", "y"), ("<b>", "")),
                target=None,
                new_target="Rome",
                new_tokens=2,
                seed=0,
                edit="",
            ),
            rl.LogitLens(
                fact=FACT,
                states=("embed", "0", "1"),
                answers=(' Par"', " Rome"),
                before=random(3, 2),
                after=random(3, 2),
                top_before=("a", "b", "$"),
                top_after=("a", "\n", "東"),
                edited_layers=(0,),
            ),
            rl.LogitAttribution(
                fact=FACT,
                components=("embed", "0 attn", "0 mlp"),
                answers=(' Par"', " Rome"),
                before=random(3),
                after=random(3),
                total_before=-1.5,
                total_after=0.25,
                edited_layers=(),
            ),
            rl.AttentionComparison(
                text="a $",
                labels=("a", " $"),
                layer=1,
                before=random(2, 2, 2),
                after=random(2, 2, 2),
            ),
            rl.LogProbComparison(
                text="a b",
                first="a",
                labels=(" b",),
                before=-random(1),
                after=-random(1),
                ranks_before=(0,),
                ranks_after=(3,),
                top_before=((" b", "$"),),
                top_after=((" c", "<"),),
                top_log_probs_before=-random(1, 2),
                top_log_probs_after=-random(1, 2),
            ),
            NotKnown(message="The model says 'London'."),
            Failure(error="FactError: there is nothing to edit", final=True),
            rl.TraceAverage(
                component="resid",
                window=1,
                layers=(0, 1),
                roles=("last subject", "last"),
                fact_effects=torch.tensor([[[0.5, float("nan")], [0.25, 0.0]]]),
                clean_scores=random(1),
                corrupted_scores=random(1),
                subjects=("A",),
                unknown=(),
                samples=2,
                noise="",
                model_fingerprint="",
            ),
            edit,
            dense,
            rl.Edits(edits=(edit, dense)),
            mass,
            rl.EditFiring(text="a b", labels=("a", " b"), values=random(2), scale=0.5),
            rl.KeyStatistics(layer=1, moment=torch.eye(3, dtype=torch.float64), count=7),
            KeySum(layer=1, upper=torch.eye(3, dtype=torch.float64), count=7, chunks=1, digest="0"),
            row,
            measure,
            check,
            limits,
            rl.LimitsAverage(limits=(limits,)),
            rl.LimitsComparison(
                editors=("a", "b"),
                edited=("a",),
                averages=(rl.LimitsAverage(limits=(limits,)),),
                failures=(("b", "1", "no edit"),),
            ),
            score,
            evaluation,
            of_batch,
            rl.MassCurve(editors=("a",), counts=(2,), batches=(of_batch,)),
            rl.LayerSweep(
                names=("1", "2"),
                unknown=(),
                layers=(0, 1, 5),
                effects=random(2, 3),
                total_effects=random(2),
                **measures | {"PS": torch.full((2, 3), float("nan"))},
                component="mlp",
                window=3,
                at=-1,
                samples=10,
                noise="",
                edits="",
                model_fingerprint="",
            ),
        )
    }


EXAMPLES = _examples()


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def as_before(result: Stored, path: Path, **changes: Any) -> Path:
    """A file of the result as version 0.1 wrote it, without a checksum, with some other fields.

    A tensor among the changes takes the place of one in the file. ``...`` removes a field.
    """
    header, tensors = read(result.save(path))
    fields = json.loads(header["fields"])
    for name, value in changes.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is ...:
            fields.pop(name)
        else:
            tensors.pop(name, None)
            fields[name] = value
    header = {"type": header["type"], "fields": json.dumps(fields), "versions": header["versions"]}
    save_file(tensors, path, metadata=header)
    return path


def same(found: Any, expected: Any) -> bool:
    """Whether two fields or results are equal, with tensors equal bit for bit."""
    if isinstance(expected, Tensor):
        return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(
            found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
        )
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if dataclasses.is_dataclass(expected):
        names = [field.name for field in dataclasses.fields(expected)]
        return type(found) is type(expected) and all(
            same(getattr(found, name), getattr(expected, name)) for name in names
        )
    return bool(found == expected) and type(found) is type(expected)
