"""Laws of ROME, and the reference values of the original method."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import CLASSES, REFERENCE, last_logits, reference_model, tiny

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.rank_one_update import update_vectors
from rome_lens.forward.tokens import encode
from rome_lens.keys.statistics import StatisticsError
from rome_lens.models.lens import ModelError, b_out, w_out

KNOWN = json.loads((REFERENCE / "reference.json").read_text())["rome"]
ARRAYS = np.load(REFERENCE / "rome.npz")
MOMENTS = np.load(REFERENCE / "mom2.npz")
CONTEXTS = ["{}", "It was raining. {}", "Somebody said that {}"]
BARE = {"contexts": ["{}"]}


def identity_edit(model: Any, fact: rl.Fact, **options: Any) -> rl.RankOneEdit:
    statistics = rl.KeyStatistics.identity(model, layer=1)
    options = {"contexts": CONTEXTS, **options}
    return rl.rome(model, fact, layer=1, statistics=statistics, **options)


def mapped(model: Any, key: torch.Tensor) -> torch.Tensor:
    bias = b_out(model, 1)
    return key @ w_out(model, 1) + (0.0 if bias is None else bias)


def not_refused(
    function: Callable[..., Any],
    cases: list[tuple[dict[str, Any], type[Exception], str]],
    **options: Any,
) -> list[str]:
    """The cases that are not refused with their error and message."""
    wrong = []
    for changes, error, message in cases:
        try:
            function(**{**options, **changes})
            wrong.append(f"{changes} is taken")
        except Exception as caught:
            if not isinstance(caught, error) or not re.search(message, str(caught)):
                wrong.append(f"{changes} raises {caught!r}")
    return wrong


def reference_edit(model_class: str, dtype: torch.dtype, case: str) -> rl.RankOneEdit:
    model = reference_model(model_class, dtype)
    request = KNOWN["cases"][case]["request"]
    fact = rl.Fact(
        request["prompt"],
        subject=request["subject"],
        target=request["target_true"]["str"],
        new_target=request["target_new"]["str"],
    )
    moment, count = torch.tensor(MOMENTS["C.f64"]), int(MOMENTS["count"])
    statistics = rl.KeyStatistics(layer=2, moment=moment, count=count)
    if case == "case4":
        statistics = rl.KeyStatistics.identity(model, layer=2)
    contexts = KNOWN["context_templates"]
    options: dict[str, Any] = {"layer": 2, "statistics": statistics, "prepend_bos": False}
    return rl.rome(model, fact, contexts=contexts, **options)


@pytest.mark.parametrize(
    ("case", "model_class"),
    sorted({("case0", "TransformerBridge"), *((case, CLASSES[0]) for case in KNOWN["cases"])}),
)
def test_double_precision_gives_the_original_edit_and_probabilities(
    case: str, model_class: str
) -> None:
    model = reference_model(model_class, torch.float64)
    edit = reference_edit(model_class, torch.float64, case)
    for name, found in (
        ("u", edit.u),
        ("right", edit.v),
        ("target", edit.value),
        ("losses", edit.losses),
    ):
        expected = torch.tensor(ARRAYS[f"{case}.{name}.f64"])
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=0.0)
    assert abs(float(edit.delta.norm()) - float(ARRAYS[f"{case}.dW_norm.f64"])) < 1e-8
    known, hooks, wrong = KNOWN["cases"][case], edit.fwd_hooks(model), []
    targets = [known["request"][name]["str"] for name in ("target_new", "target_true")]
    for i, prompt in enumerate(known["eval_prompts"]):
        tokens = model.to_tokens(prompt, prepend_bos=False)
        probabilities = last_logits(model, tokens, fwd_hooks=hooks)[0].softmax(-1)
        for j, target in enumerate(targets):
            first = rl.forward.tokens.continuation(model, prompt, target)[0]
            p = float(ARRAYS[f"{case}.post.p_first_token.f64"][i, j])
            if abs(float(probabilities[first]) - p) >= 1e-9:
                wrong.append((prompt, target))
    assert wrong == []


@pytest.mark.parametrize("case", KNOWN["cases"])
def test_single_precision_gives_the_original_edit(case: str) -> None:
    edit = reference_edit(CLASSES[0], torch.float32, case)
    expected = torch.outer(
        torch.tensor(ARRAYS[f"{case}.u.f32"]), torch.tensor(ARRAYS[f"{case}.right.f32"])
    )
    assert float((edit.delta - expected).norm() / expected.norm()) < 1e-3
    losses = torch.tensor(ARRAYS[f"{case}.losses.f32"]).to(edit.losses)
    torch.testing.assert_close(edit.losses, losses, atol=1e-4, rtol=0.0)


def test_the_update_closes_the_gap_at_its_key() -> None:
    """The equation on plain tensors: after ``W + u v^T`` the key gives the value, for any ``u``."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    weight, key, value, solved = draw(7, 5), draw(7), draw(5), draw(7)
    u, v = update_vectors(solved, key=key, value=value, output=key @ weight)
    torch.testing.assert_close(key @ (weight + torch.outer(u, v)), value, atol=1e-5, rtol=1e-5)
    assert float(u.norm()) == pytest.approx(1.0)
    torch.testing.assert_close(u, solved / solved.norm())
    with pytest.raises(OptimisationError, match=r"not finite: u \. k\*"):
        update_vectors(solved, key=0 * key, value=value, output=value - 1)


def test_the_edited_weight_maps_the_key_to_the_value(
    few_tiny_models: Any, fact: rl.Fact, untouched: Any
) -> None:
    """Law 4: ``k* W_out + b_out = v*`` after the edit, by a matrix of rank one."""
    model = few_tiny_models
    untouched(model)
    edit = identity_edit(model, fact, config=rl.RomeConfig(steps=4))
    with edit.applied(model):
        after = mapped(model, edit.key)
    torch.testing.assert_close(after, edit.value, atol=1e-4, rtol=1e-4)
    gap = edit.value - mapped(model, edit.key)
    torch.testing.assert_close((edit.key @ edit.u) * edit.v, gap, atol=1e-5, rtol=1e-4)
    singular = torch.linalg.svdvals(edit.delta)
    assert singular[0] > 1e-3
    assert float(singular[1] / singular[0]) < 1e-5


def test_the_value_comes_at_the_raw_output_and_gives_what_the_optimisation_promised(
    tiny_model: Any, fact: rl.Fact
) -> None:
    """With the bare context alone, the edited model's own forward has the last loss's value."""
    edit = identity_edit(tiny_model, fact, config=rl.RomeConfig(steps=3), **BARE)
    encoded = encode(tiny_model, fact)
    questions = [(fact.text, str(fact.new_target))]
    before = rl.answer_log_probs(tiny_model, questions).exp().item()
    # (u . k) v is added at every token, but the optimisation moves the lookup position alone.
    only = lookup_only(edit, tiny_model, encoded.subject_last)
    after = rl.answer_log_probs(tiny_model, questions, fwd_hooks=only).item()
    after /= len(encoded.new_answer)
    assert abs(after - float(-edit.losses[-1, 0])) < 1e-4 * max(1.0, abs(after))
    assert edit.probability > before


def lookup_only(edit: rl.RankOneEdit, model: Any, position: int) -> list[Any]:
    """The edit's hooks with its action cut to one position."""

    def addition(keys: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(keys.shape[1]).index_fill(0, torch.tensor([position]), 1.0)
        return mask[None, :, None] * (keys @ edit.u)[..., None] * edit.v

    return rl.forward.additions.raw_output_hooks(model, edit.layer, addition)


def test_the_value_can_be_written_at_another_token_of_the_subject(
    few_tiny_models: Any, fact: rl.Fact
) -> None:
    model, config = few_tiny_models, rl.RomeConfig(lookup=-2, steps=3)
    edit = identity_edit(model, fact, config=config, variant="r-rome", **BARE)
    place = encode(model, fact).subject_last - 1
    tokens = model.to_tokens(fact.text)
    _, cache = model.run_with_cache(
        tokens, names_filter=lambda name: name.endswith("mlp.hook_post")
    )
    (key,) = (cache[name][0, place] for name in cache if name.startswith("blocks.1."))
    assert edit.key is not None
    torch.testing.assert_close(edit.key, key.detach(), rtol=1e-5, atol=1e-6)
    at_last = identity_edit(model, fact, config=rl.RomeConfig(steps=3), variant="r-rome", **BARE)
    assert not torch.allclose(at_last.key, edit.key, rtol=1e-2, atol=1e-3)
    with pytest.raises(FactError, match="the subject has"):
        identity_edit(model, fact, config=rl.RomeConfig(lookup=-9), **BARE)


def test_a_small_step_lowers_the_loss(few_tiny_models: Any, fact: rl.Fact) -> None:
    """A gradient that is wrong, or of another quantity, would not."""
    config = rl.RomeConfig(steps=2, lr=1e-3, kl_factor=0.0, weight_decay=0.0)
    edit = identity_edit(few_tiny_models, fact, config=config)
    assert float(edit.losses[1, 0]) < float(edit.losses[0, 0])


def test_clamp_bounds_the_change_of_the_value(one_toy: Any, toy_record: rl.data.Record) -> None:
    for clamp in (0.2, 0.5):
        config = rl.RomeConfig(clamp=clamp, stop_loss=0.0, steps=6)
        edit = identity_edit(one_toy, toy_record.fact, config=config, **BARE)
        start = mapped(one_toy, edit.key)
        bound = clamp * float(start.norm())
        assert float((edit.value - start).norm()) == pytest.approx(bound, rel=1e-3)
        assert len(edit.losses) == 6


def test_the_optimisation_stops_where_its_rule_says_and_tells_why(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    def edit(**settings: Any) -> rl.RankOneEdit:
        config = rl.RomeConfig(**{"stop_loss": 0.0, **settings})
        return identity_edit(one_toy, toy_record.fact, config=config, **BARE)

    by_loss = edit(stop_loss=2.0)
    assert by_loss.stopped == "loss"
    assert by_loss.loss < 2.0
    assert 1 < len(by_loss.losses) < 20
    assert (by_loss.losses[:-1].sum(1) >= 2.0).all()
    by_probability = edit(stop_probability=0.5)
    assert by_probability.stopped == "probability"
    assert by_probability.probability > 0.5
    before_last = edit(stop_probability=0.5, steps=len(by_probability.losses) - 1)
    assert before_last.probability <= 0.5
    assert before_last.stopped == "steps"


def test_an_edit_of_the_toy_rewrites_the_fact_and_its_paraphrases_and_spares_neighbours(
    toy: Any, toy_records: list[rl.data.Record], toy_edits: list[rl.RankOneEdit]
) -> None:
    new, old, spared = [], [], []
    for record, edit in zip(toy_records, toy_edits, strict=False):
        hooks = edit.fwd_hooks(toy)
        prompts = [record.fact.text, *record.paraphrases]
        neighbours = [(question.prompt, question.target) for question in record.neighborhood]
        says_new = [(prompt, str(record.fact.new_target)) for prompt in prompts]
        says_old = [(prompt, record.fact.target) for prompt in prompts]
        new += (rl.answer_log_probs(toy, says_new, fwd_hooks=hooks).exp() > 0.5).tolist()
        old += (rl.answer_log_probs(toy, says_old, fwd_hooks=hooks).exp() < 0.5).tolist()
        spared += (rl.answer_log_probs(toy, neighbours, fwd_hooks=hooks).exp() > 0.5).tolist()
    assert len(new) >= 20
    assert len(spared) >= 30
    assert sum(new) >= 0.9 * len(new)
    assert sum(old) >= 0.9 * len(old)
    assert sum(spared) >= 0.8 * len(spared)


@pytest.mark.skipif(len(CLASSES) < 2, reason="this TransformerLens has one model class")
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "neox"])
def test_both_model_classes_make_the_same_edit(family: str, fact: rl.Fact) -> None:
    config = rl.RomeConfig(steps=8)
    hooked, bridge = (identity_edit(tiny(family, name), fact, config=config) for name in CLASSES)
    torch.testing.assert_close(hooked.u, bridge.u, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hooked.value, bridge.value, atol=1e-3, rtol=1e-3)
    hooked.check(tiny(family, "TransformerBridge"))


def test_an_edit_is_the_same_bit_for_bit_again_and_under_no_grad_and_inference_mode(
    toy: Any, toy_record: rl.data.Record
) -> None:
    options: Any = {"config": rl.RomeConfig(steps=3), **BARE}
    expected = identity_edit(toy, toy_record.fact, **options).delta
    again = identity_edit(toy, toy_record.fact, **options).delta
    with torch.no_grad():
        without_gradients = identity_edit(toy, toy_record.fact, **options).delta
    with torch.inference_mode():
        in_inference_mode = identity_edit(toy, toy_record.fact, **options).delta
    for found in (again, without_gradients, in_inference_mode):
        assert torch.equal(found, expected)


def test_wrong_input_is_refused_and_leaves_nothing(
    one_toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(one_toy)
    fact, identity = toy_record.fact, rl.KeyStatistics.identity(one_toy, layer=1)
    without = rl.Fact(fact.prompt, subject=fact.subject, target=fact.target)
    alien = dataclasses.replace(identity, count=10**6, model_fingerprint="0" * 16)
    overflow = "delta.* at step 1: lower lr"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"fact": without}, FactError, "no new target"),
        ({"layer": 99}, ModelError, "layers 0 to"),
        ({"statistics": None}, StatisticsError, "KeyStatistics.identity"),
        ({"statistics": alien}, StatisticsError, "collect them on this model"),
        ({"layer": 2}, StatisticsError, "of layer 1, the edit is at layer 2"),
        ({"contexts": ["no slot"]}, FactError, "0 slots"),
        ({"contexts": []}, FactError, "empty"),
        (
            {"config": rl.RomeConfig(lr=1e20, clamp=float("inf"))},
            OptimisationError,
            "at step 1",
        ),
        ({"config": rl.RomeConfig(lr=1e20)}, OptimisationError, overflow),
        ({"config": rl.RomeConfig(lr=1e20, norms="centred")}, OptimisationError, overflow),
        ({"config": rl.RomeConfig(lr=1e38)}, OptimisationError, overflow),
    ]
    options: dict[str, Any] = {"fact": fact, "layer": 1, "statistics": identity, **BARE}
    assert not_refused(functools.partial(rl.rome, one_toy), cases, **options) == []


def test_models_without_a_dense_mlp_are_refused(
    one_toy: Any, toy_record: rl.data.Record, monkeypatch: Any
) -> None:
    statistics = rl.KeyStatistics.identity(one_toy, layer=1)
    monkeypatch.setattr(one_toy.cfg, "num_experts", 8, raising=False)
    with pytest.raises(ModelError, match="mixture of experts"):
        rl.rome(one_toy, toy_record.fact, layer=1, statistics=statistics, **BARE)


def test_arguments_of_another_kind_are_refused_by_name(
    one_toy: Any, toy_record: rl.data.Record, unchecked: None
) -> None:
    of_both: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"fact": {"prompt": "{} is in"}}, FactError, "a dict. Expected a Fact or a Record"),
        ({"layer": True}, ModelError, "layer is True"),
        ({"layer": 1.5}, ModelError, "layer is 1.5"),
        ({"layer": torch.tensor(1.5)}, ModelError, "layer is tensor"),
        ({"layer": None}, ModelError, "layer is None"),
        ({"layer": "1"}, ModelError, "layer is '1'"),
        ({"contexts": "{}"}, ValueError, "contexts is the text"),
        ({"contexts": [1]}, ValueError, "expected a list of templates"),
        ({"contexts": 1}, ValueError, "expected a list of templates"),
    ]
    of_rome: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"variant": "best"}, ValueError, "variant is 'best', expected one of 'rome', 'r-rome'"),
        ({"statistics": [1]}, StatisticsError, "a list, expected a KeyStatistics"),
        ({"statistics": torch.eye(3)}, StatisticsError, "a Tensor, expected a KeyStatistics"),
        ({"statistics": "C.safetensors"}, StatisticsError, "KeyStatistics.load"),
        ({"statistics": {2: None}}, StatisticsError, r"has the layers \[2\]"),
        ({"config": None}, ValueError, "config is None, expected a RomeConfig"),
        ({"config": {"lr": 0.1}}, ValueError, "expected a RomeConfig"),
    ]
    options: dict[str, Any] = {"fact": toy_record.fact, "layer": 1, **BARE}
    assert not_refused(functools.partial(rl.fine_tune, one_toy), of_both, **options) == []
    options["statistics"] = rl.KeyStatistics.identity(one_toy, layer=1)
    assert not_refused(functools.partial(rl.rome, one_toy), of_both + of_rome, **options) == []


def test_a_record_is_taken_in_place_of_its_fact(one_toy: Any, toy_record: rl.data.Record) -> None:
    options: Any = {"config": rl.RomeConfig(steps=2), **BARE}
    expected = identity_edit(one_toy, toy_record.fact, **options)
    found = identity_edit(one_toy, toy_record, **options)
    assert torch.equal(found.delta, expected.delta)
    assert found.fact == toy_record.fact
    statistics = rl.KeyStatistics.identity(one_toy, layer=1)
    made = rl.rome_sequence(one_toy, [toy_record], layer=1, statistics=statistics, **options)
    assert torch.equal(made.edits[0].delta, expected.delta)
    tuned = [
        rl.fine_tune(one_toy, each, layer=1, steps=1) for each in (toy_record, toy_record.fact)
    ]
    assert torch.equal(tuned[0].delta, tuned[1].delta)


def test_numbers_of_numpy_templates_of_a_generator_and_statistics_by_layer_are_taken(
    one_toy: Any, toy_record: rl.data.Record, unchecked: None, tmp_path: Path
) -> None:
    numbers = {"steps": np.int64(3), "lr": np.float32(0.5), "weight_decay": np.float64(0.5)}
    config, fact = rl.RomeConfig(**numbers), toy_record.fact
    assert config == rl.RomeConfig(steps=3)
    kinds = {type(value) for value in dataclasses.asdict(config).values()}
    assert kinds == {int, float, type(None), str}
    by_layer = {layer: rl.KeyStatistics.identity(one_toy, layer=layer) for layer in (0, 1)}

    def templates() -> Any:
        return (each for each in CONTEXTS)

    options: Any = {"layer": np.int64(1), "statistics": by_layer, "config": config}
    edit = rl.rome(one_toy, fact, contexts=templates(), **options)
    expected = identity_edit(one_toy, fact, config=config)
    assert torch.equal(edit.delta, expected.delta)
    assert edit.contexts == tuple(CONTEXTS)
    assert type(edit.layer) is int
    tuned = rl.fine_tune(one_toy, fact, layer=np.int64(1), contexts=templates(), **numbers)
    plain = {"layer": 1, "steps": 3, "lr": 0.5, "weight_decay": 0.5, "contexts": CONTEXTS}
    assert torch.equal(tuned.delta, rl.fine_tune(one_toy, fact, **plain).delta)
    for each in (edit, tuned):
        assert type(each).load(each.save(tmp_path / "edit.safetensors")).layer == 1
    made = rl.rome_sequence(one_toy, [fact], contexts=templates(), **options)
    assert torch.equal(made.edits[0].delta, expected.delta)


def test_wrong_hyperparameters_are_refused(unchecked: None) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"steps": 2.5}, ValueError, "steps is 2.5, expected a whole number"),
        ({"steps": True}, ValueError, "steps is True"),
        ({"lr": "0.5"}, ValueError, "lr is '0.5', expected a number"),
        ({"lr": float("inf")}, ValueError, "lr is inf, expected a finite number above 0"),
        ({"stop_loss": float("nan")}, ValueError, "stop_loss is nan"),
        ({"stop_probability": float("nan")}, ValueError, "stop_probability is nan"),
        ({"stop_probability": 1.0}, ValueError, "expected a number between 0 and 1, or None"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay is nan"),
        ({"kl_factor": None}, ValueError, "kl_factor is None"),
        ({"norms": "none"}, ValueError, "norms is 'none', expected one of 'plain', 'centred'"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"lr": 0.0}, ValueError, "lr is 0.0"),
        ({"clamp": -1.0}, ValueError, "clamp is -1.0"),
        ({"ridge": -1.0}, ValueError, "ridge is -1.0"),
    ]
    assert not_refused(rl.RomeConfig, cases) == []
