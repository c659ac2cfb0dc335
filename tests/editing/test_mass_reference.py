"""The reference values of the original MEMIT, EMMET and AlphaEdit."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import CLASSES, REFERENCE, reference_model

import rome_lens as rl
from rome_lens.forward.tokens import pad_right

EDITORS = REFERENCE / "editors"
ARRAYS = {name: np.load(EDITORS / f"{name}.npz") for name in ("memit", "emmet", "alphaedit")}
KNOWN = {name: json.loads((EDITORS / f"{name}.json").read_text()) for name in ARRAYS}
MOMENTS = {
    **np.load(EDITORS / "mom2_layers.npz"),
    "C2.f64": np.load(REFERENCE / "mom2.npz")["C.f64"],
}
VALUE = rl.RomeConfig(clamp=1.5)
CONFIGS = {
    "memit": rl.MemitConfig(value=VALUE, statistics_weight=300.0),
    "emmet": rl.EmmetConfig(value=VALUE, statistics_weight=60.0),
    "alphaedit": rl.AlphaEditConfig(value=VALUE, l2=0.1),
}
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}
# Of z, keys and residuals, in float32 compared with the largest entry; losses; the norm of the
# update's error; probabilities.
Tolerances = tuple[float, float, float, float]
EXACT: Tolerances = (1e-9, 1e-9, 1e-9, 1e-9)
FROM_SCRATCH: Tolerances = (1e-3, 3e-3, 3e-3, 3e-3)
SINGLE: Tolerances = (1e-5, 2e-5, 1e-4, 1e-4)


def moment(layer: int, precision: str, editor: str) -> torch.Tensor:
    if f"C{layer}.{precision}" in MOMENTS:
        return torch.tensor(MOMENTS[f"C{layer}.{precision}"])
    upper = MOMENTS[f"C{layer}_upper.{precision}"]
    if editor == "emmet" and precision == "f32":
        ulps = MOMENTS[f"C{layer}_upper_emmet_minus_f32_in_ulps"]
        upper = (upper.view(np.int32) + ulps).view(np.float32)
    full = np.zeros((384, 384), dtype=upper.dtype)
    full[np.triu_indices(384)] = upper
    return torch.tensor(full + np.triu(full, 1).T)


def statistics(precision: str, editor: str, layers: tuple[int, ...]) -> dict[int, rl.KeyStatistics]:
    count = int(MOMENTS["count"])
    return {
        layer: rl.KeyStatistics(layer=layer, moment=moment(layer, precision, editor), count=count)
        for layer in layers
    }


def facts_of(case: dict[str, Any]) -> list[rl.Fact]:
    return [
        rl.Fact(
            each["request"]["prompt"],
            subject=each["request"]["subject"],
            target=each["request"]["target_true"]["str"],
            new_target=each["request"]["target_new"]["str"],
        )
        for each in case["facts"]
    ]


def options_of(editor: str, precision: str, case: dict[str, Any]) -> dict[str, Any]:
    layers = (2,) if editor == "emmet" else (1, 2, 3)
    config = CONFIGS[editor]
    if "clamp_norm_factor" in case["overrides"]:
        value = dataclasses.replace(VALUE, clamp=case["overrides"]["clamp_norm_factor"])
        config = dataclasses.replace(config, value=value)
    return {
        "layers": layers,
        "statistics": statistics(precision, editor, layers),
        "contexts": [each for group in case["context_templates"] for each in group],
        "config": config,
        "prepend_bos": False,
    }


def departures(
    edit: rl.MassEdit, editor: str, prefix: str, precision: str, tolerances: Tolerances
) -> list[str]:
    """What of the edit is farther from the original's numbers than the tolerances."""
    arrays = ARRAYS[editor]

    def known(name: str) -> torch.Tensor:
        return torch.tensor(arrays[f"{prefix}.{name}.{precision}"]).double()

    of_values, of_losses, of_updates, _ = tolerances
    pairs = [("z", edit.values, of_values)]
    if f"{prefix}.target_init.{precision}" in arrays:
        pairs.append(("target_init", edit.starts, of_values))
    for i, layer in enumerate(edit.layers):
        pairs.append((f"L{layer}.K", edit.keys[i], of_values))
        pairs.append((f"L{layer}.R", edit.residuals[i], of_values))
    wrong = []
    for name, found, allowed in pairs:
        scale = 1.0 if precision == "f64" else max(1.0, float(known(name).abs().max()))
        error = float((found.double() - known(name)).abs().max()) / scale
        if not error < allowed:
            wrong.append(f"{name}: {error:.1e}")
    losses = known("losses")[:, : edit.losses.shape[1]]
    error = float((edit.losses - losses).abs().nan_to_num().max())
    if not error < of_losses or not torch.equal(losses.isnan(), edit.losses.isnan()):
        wrong.append(f"losses: {error:.1e}")
    for layer in edit.layers:
        expected = update(arrays, prefix, layer, precision)
        if expected is None:
            norm = float(known(f"L{layer}.dW_norm"))
            error = abs(float(edit.delta(layer).double().norm()) - norm) / norm
        else:
            found = edit.delta(layer).double()
            error = float((found - expected).norm() / expected.norm())
        if not error < of_updates:
            wrong.append(f"L{layer}.dW: {error:.1e}")
    return wrong


def update(arrays: Any, prefix: str, layer: int, precision: str) -> torch.Tensor | None:
    """The original's matrix, from its factors; None where they were left out for size."""
    for left, right in (("adj_k", "R"), ("dW_left", "dW_right")):
        names = [f"{prefix}.L{layer}.{each}.{precision}" for each in (left, right)]
        if all(name in arrays for name in names):
            a, b = (torch.tensor(arrays[name]).double() for name in names)
            return a.T @ b
    return None


def wrong_probabilities(
    model: Any, case: dict[str, Any], expected: Any, allowed: float, hooks: Any
) -> list[str]:
    """Prompts whose first-token probabilities under the hooks are not the original's."""
    asked = [
        (prompt, [each[name][0] for name in ("target_new_ids", "target_true_ids")])
        for each in case["facts"]
        for prompt in each["eval_prompts"]
    ]
    rows = [model.to_tokens(prompt, prepend_bos=False)[0].tolist() for prompt, _ in asked]
    with torch.no_grad():
        logits = model.run_with_hooks(pad_right(rows), fwd_hooks=hooks)
    wrong = []
    for i, ((prompt, firsts), row) in enumerate(zip(asked, rows, strict=True)):
        p = logits[i, len(row) - 1].softmax(-1)[firsts].double()
        error = float((p - torch.tensor(expected).flatten(0, 1)[i].double()).abs().max())
        if not error < allowed:
            wrong.append(f"{prompt!r}: {error:.1e}")
    return wrong


EVERY = [
    (editor, case["case"], precision, CLASSES[0])
    for editor in ("memit", "emmet")
    for case in KNOWN[editor]["cases"]
    for precision in PRECISIONS
    if (case["case"], precision) != ("twenty_a", "f32")  # more of what five facts show
]
EVERY += [("memit", "one_a", "f64", CLASSES[-1])]
QUICK = [
    ("memit", "one_a", "f64", CLASSES[-1]),
    ("memit", "twotok_a", "f64", CLASSES[0]),
    ("memit", "twotok_a", "f32", CLASSES[0]),
    ("emmet", "one_a", "f64", CLASSES[0]),
    ("emmet", "samesubj", "f64", CLASSES[0]),
    ("emmet", "samesubj", "f32", CLASSES[0]),
]


@pytest.mark.parametrize(
    ("editor", "name", "precision", "model_class"),
    [
        pytest.param(*each, marks=[] if each in QUICK else [pytest.mark.proof])
        for each in dict.fromkeys(EVERY)
    ],
)
def test_memit_and_emmet_give_the_original_values_updates_and_probabilities(
    editor: str, name: str, precision: str, model_class: str
) -> None:
    model = reference_model(model_class, PRECISIONS[precision])
    (case,) = [each for each in KNOWN[editor]["cases"] if each["case"] == name]
    edit = getattr(rl, editor)(model, facts_of(case), **options_of(editor, precision, case))
    tolerances = EXACT if precision == "f64" else SINGLE
    assert departures(edit, editor, name, precision, tolerances) == []
    post = ARRAYS[editor][f"{name}.post.p_first_token.{precision}"]
    hooks = edit.fwd_hooks(model)
    assert wrong_probabilities(model, case, post, tolerances[-1], hooks) == []


@pytest.mark.parametrize("precision", ["f64", pytest.param("f32", marks=pytest.mark.proof)])
def test_alphaedit_gives_the_original_batches_one_after_the_other(precision: str) -> None:
    model = reference_model(CLASSES[0], PRECISIONS[precision])
    (case,) = KNOWN["alphaedit"]["cases"]
    options = options_of("alphaedit", precision, case)
    tolerances = EXACT if precision == "f64" else FROM_SCRATCH
    batches = [facts_of(batch) for batch in case["batches"]]
    first = rl.alphaedit(model, batches[0], **options)
    with first.applied(model):
        second = rl.alphaedit(model, batches[1], earlier=first, **options)
    wrong = []
    for number, edit in enumerate((first, second)):
        prefix = f"seq_a.batch{number}"
        wrong += departures(edit, "alphaedit", prefix, precision, tolerances)
        for i, layer in enumerate(edit.layers):
            after = torch.tensor(ARRAYS["alphaedit"][f"{prefix}.L{layer}.K_after.{precision}"])
            error = float((edit.kept_keys[i, -len(after) :] - after).abs().max())
            if not error < tolerances[0]:
                wrong.append(f"{prefix}.L{layer}.K_after: {error:.1e}")
    assert wrong == []
    assert second.ranks == tuple(384 - len(complement(layer)) for layer in second.layers)
    for name, edits in (
        ("batch0.post", first.parts),
        ("batch1.post", first.parts + second.parts),
        ("batch0_after_batch1.post", first.parts + second.parts),
    ):
        expected = ARRAYS["alphaedit"][f"seq_a.{name}.p_first_token.{precision}"]
        hooks = rl.Edits(edits=edits).fwd_hooks(model)
        facts = case["batches"][int(name[5])]
        assert wrong_probabilities(model, facts, expected, tolerances[-1], hooks) == []


def complement(layer: int) -> torch.Tensor:
    return torch.tensor(ARRAYS["alphaedit"][f"seq_a.L{layer}.P_complement"])


def test_the_null_space_is_the_original_one() -> None:
    for layer, each in statistics("f64", "alphaedit", (1, 2, 3)).items():
        used, other = each.used_directions(2e-2), complement(layer).double()
        error = float((used @ used.T - other.T @ other).abs().max())
        assert error < 3e-5, (layer, error)
