"""Laws of ROME, and the reference values of the original method."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import CLASSES, REFERENCE, last_logits, tiny

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.forward.tokens import encode
from rome_lens.keys.collecting import StatisticsError
from rome_lens.models.lens import ModelError, b_out, w_out

KNOWN = json.loads((REFERENCE / "reference.json").read_text())["rome"]
ARRAYS = np.load(REFERENCE / "rome.npz")
MOMENTS = np.load(REFERENCE / "mom2.npz")
CONTEXTS = ["{}", "It was raining. {}", "Somebody said that {}"]


def identity_edit(model: Any, fact: rl.Fact, **options: Any) -> rl.RankOneEdit:
    statistics = rl.KeyStatistics.identity(model, layer=1)
    return rl.rome(model, fact, layer=1, statistics=statistics, contexts=CONTEXTS, **options)


def reference_edit(model: Any, case: str) -> rl.RankOneEdit:
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
    return rl.rome(
        model,
        fact,
        layer=2,
        statistics=statistics,
        contexts=KNOWN["context_templates"],
        prepend_bos=False,
    )


@pytest.mark.parametrize("case", KNOWN["cases"])
def test_double_precision_gives_the_original_edit(reference64: Any, case: str) -> None:
    edit = reference_edit(reference64, case)
    for name, found in (
        ("u", edit.u),
        ("right", edit.v),
        ("target", edit.value),
        ("losses", edit.losses),
    ):
        expected = torch.tensor(ARRAYS[f"{case}.{name}.f64"])
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=0.0)
    assert abs(float(edit.delta.norm()) - float(ARRAYS[f"{case}.dW_norm.f64"])) < 1e-8


@pytest.mark.parametrize("case", KNOWN["cases"])
def test_single_precision_gives_the_original_edit(reference32: Any, case: str) -> None:
    edit = reference_edit(reference32, case)
    expected = torch.outer(
        torch.tensor(ARRAYS[f"{case}.u.f32"]), torch.tensor(ARRAYS[f"{case}.right.f32"])
    )
    assert float((edit.delta - expected).norm() / expected.norm()) < 1e-3
    losses = torch.tensor(ARRAYS[f"{case}.losses.f32"]).to(edit.losses)
    torch.testing.assert_close(edit.losses, losses, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("case", KNOWN["cases"])
def test_the_edited_model_gives_the_original_probabilities(reference64: Any, case: str) -> None:
    edit = reference_edit(reference64, case)
    known = KNOWN["cases"][case]
    targets = [known["request"][name]["str"] for name in ("target_new", "target_true")]
    for i, prompt in enumerate(known["eval_prompts"]):
        tokens = reference64.to_tokens(prompt, prepend_bos=False)
        found = last_logits(reference64, tokens, fwd_hooks=edit.fwd_hooks(reference64))[0].softmax(
            -1
        )
        for j, target in enumerate(targets):
            first = rl.forward.tokens.continuation(reference64, prompt, target)[0]
            assert (
                abs(float(found[first]) - float(ARRAYS[f"{case}.post.p_first_token.f64"][i, j]))
                < 1e-9
            )


def test_the_edited_weight_maps_the_key_to_the_value(tiny_model: Any, fact: rl.Fact) -> None:
    """Law 4: ``k* W_out + b_out = v*`` after the edit, by a matrix of rank one."""
    edit = identity_edit(tiny_model, fact)
    bias = b_out(tiny_model, 1)
    with edit.applied(tiny_model):
        mapped = edit.key @ w_out(tiny_model, 1) + (0.0 if bias is None else bias)
    torch.testing.assert_close(mapped, edit.value, atol=1e-4, rtol=1e-4)
    gap = edit.value - (edit.key @ w_out(tiny_model, 1) + (0.0 if bias is None else bias))
    torch.testing.assert_close((edit.key @ edit.u) * edit.v, gap, atol=1e-5, rtol=1e-4)
    singular = torch.linalg.svdvals(edit.delta)
    assert singular[0] > 1e-3
    assert float(singular[1] / singular[0]) < 1e-5


def test_the_value_comes_at_the_raw_output_and_gives_what_the_optimisation_promised(
    tiny_model: Any, fact: rl.Fact
) -> None:
    """With the bare context alone, the edited model's own forward has the last loss's probability."""
    statistics = rl.KeyStatistics.identity(tiny_model, layer=1)
    edit = rl.rome(tiny_model, fact, layer=1, statistics=statistics, contexts=["{}"])
    encoded = encode(tiny_model, fact)
    questions = [(fact.text, str(fact.new_target))]
    before = rl.answer_log_probs(tiny_model, questions).exp().item()
    # (u . k) v is added at every token; the optimisation moves the lookup position alone: compare there.
    only = lookup_only(edit, tiny_model, encoded.subject_last)
    after = rl.answer_log_probs(tiny_model, questions, fwd_hooks=only).item() / len(
        encoded.new_answer
    )
    assert abs(after - float(-edit.losses[-1, 0])) < 1e-4 * max(1.0, abs(after))
    assert edit.probability > before


def lookup_only(edit: rl.RankOneEdit, model: Any, position: int) -> list[Any]:
    """The edit's hooks with its action cut to one position."""

    def addition(keys: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(keys.shape[1]).index_fill(0, torch.tensor([position]), 1.0)
        return mask[None, :, None] * (keys @ edit.u)[..., None] * edit.v

    return rl.forward.additions.raw_output_hooks(model, edit.layer, addition)


def test_a_small_step_lowers_the_loss(tiny_model: Any, fact: rl.Fact) -> None:
    """A gradient that is wrong, or of another quantity, would not."""
    config = rl.RomeConfig(steps=2, lr=1e-3, kl_factor=0.0, weight_decay=0.0)
    edit = identity_edit(tiny_model, fact, config=config)
    assert float(edit.losses[1, 0]) < float(edit.losses[0, 0])


def test_clamp_bounds_the_change_of_the_value(toy: Any, toy_record: rl.data.Record) -> None:
    for clamp in (0.2, 0.5):
        edit = identity_edit(toy, toy_record.fact, config=rl.RomeConfig(clamp=clamp, stop_loss=0.0))
        bias = b_out(toy, 1)
        start = edit.key @ w_out(toy, 1) + (0.0 if bias is None else bias)
        assert float((edit.value - start).norm()) == pytest.approx(
            clamp * float(start.norm()), rel=1e-3
        )
        assert len(edit.losses) == 20


def test_the_optimisation_stops_at_the_stop_loss(toy: Any, toy_record: rl.data.Record) -> None:
    edit = identity_edit(toy, toy_record.fact, config=rl.RomeConfig(stop_loss=2.0))
    assert edit.loss < 2.0
    assert 1 < len(edit.losses) < 20
    assert (edit.losses[:-1].sum(1) >= 2.0).all()


def test_the_optimisation_stops_at_the_stop_probability(
    toy: Any, toy_record: rl.data.Record
) -> None:
    edit = identity_edit(toy, toy_record.fact, config=rl.RomeConfig(stop_probability=0.5))
    before_last = rl.RomeConfig(stop_probability=0.5, steps=len(edit.losses) - 1)
    assert edit.probability > 0.5
    assert identity_edit(toy, toy_record.fact, config=before_last).probability <= 0.5


def test_an_edit_of_the_toy_rewrites_the_fact_and_its_paraphrases_and_spares_neighbours(
    toy: Any,
) -> None:
    statistics = rl.collect_key_statistics(toy, layer=1)
    new, old, spared = [], [], []
    contexts = ["{}", "It was raining. {}", "I met somebody yesterday. {}", "Then. {}"]
    for record in (record for record in rl.data.limits() if "toy" in record.known_by):
        edit = rl.rome(toy, record.fact, layer=1, statistics=statistics, contexts=contexts)
        hooks = edit.fwd_hooks(toy)
        prompts = [record.fact.text, *record.paraphrases]
        new += (
            rl.answer_log_probs(
                toy, [(p, str(record.fact.new_target)) for p in prompts], fwd_hooks=hooks
            ).exp()
            > 0.5
        ).tolist()
        old += (
            rl.answer_log_probs(
                toy, [(p, record.fact.target) for p in prompts], fwd_hooks=hooks
            ).exp()
            < 0.5
        ).tolist()
        neighbours = [(question.prompt, question.target) for question in record.neighborhood]
        spared += (rl.answer_log_probs(toy, neighbours, fwd_hooks=hooks).exp() > 0.5).tolist()
    assert sum(new) >= 0.9 * len(new)
    assert sum(old) >= 0.9 * len(old)
    assert sum(spared) >= 0.8 * len(spared)


@pytest.mark.skipif(len(CLASSES) < 2, reason="this TransformerLens has one model class")
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "neox"])
def test_both_model_classes_make_the_same_edit(family: str, fact: rl.Fact) -> None:
    hooked, bridge = (identity_edit(tiny(family, name), fact) for name in CLASSES)
    torch.testing.assert_close(hooked.u, bridge.u, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hooked.value, bridge.value, atol=1e-3, rtol=1e-3)
    hooked.check(tiny(family, "TransformerBridge"))


def test_an_edit_made_leaves_the_model_as_it_was(
    tiny_model: Any, fact: rl.Fact, untouched: Any
) -> None:
    untouched(tiny_model)
    identity_edit(tiny_model, fact)


def test_an_edit_is_made_under_no_grad_and_inference_mode_alike(
    toy: Any, toy_record: rl.data.Record
) -> None:
    expected = identity_edit(toy, toy_record.fact)
    with torch.no_grad():
        found = identity_edit(toy, toy_record.fact)
    assert torch.equal(found.v, expected.v)
    with torch.inference_mode():
        found = identity_edit(toy, toy_record.fact)
    assert torch.equal(found.v, expected.v)


def test_the_same_edit_twice_is_the_same_bit_for_bit(toy: Any, toy_record: rl.data.Record) -> None:
    assert torch.equal(
        identity_edit(toy, toy_record.fact).delta, identity_edit(toy, toy_record.fact).delta
    )


def wrong(**changes: Any) -> Any:
    return changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (wrong(layer=99), ModelError, "layers 0 to"),
        (wrong(statistics=None), StatisticsError, "KeyStatistics.identity"),
        (wrong(layer=2), StatisticsError, "of layer 1, the edit is at layer 2"),
        (wrong(contexts=["no slot"]), FactError, "0 slots"),
        (wrong(contexts=[]), FactError, "empty"),
        (wrong(variant="best"), ValueError, "'rome'"),
        (wrong(config=rl.RomeConfig(lr=1e20, clamp=float("inf"))), OptimisationError, "at step 1"),
        (wrong(config=rl.RomeConfig(lr=1e20)), OptimisationError, "delta.* at step 1: lower lr"),
        (
            wrong(config=rl.RomeConfig(lr=1e20, norms="centred")),
            OptimisationError,
            "delta.* at step 1: lower lr",
        ),
        (wrong(config=rl.RomeConfig(lr=1e38)), OptimisationError, "delta.* at step 1: lower lr"),
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing(
    toy: Any,
    toy_record: rl.data.Record,
    untouched: Any,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    untouched(toy)
    options = {
        "layer": 1,
        "statistics": rl.KeyStatistics.identity(toy, layer=1),
        "contexts": ["{}"],
        **changes,
    }
    with pytest.raises(error, match=message):
        rl.rome(toy, toy_record.fact, **options)


def test_a_fact_without_a_new_target_is_refused(toy: Any, toy_record: rl.data.Record) -> None:
    known = toy_record.fact
    fact = rl.Fact(known.prompt, subject=known.subject, target=known.target)
    with pytest.raises(FactError, match="no new target"):
        identity_edit(toy, fact)


def test_statistics_of_another_model_are_refused(toy: Any, toy_record: rl.data.Record) -> None:
    alien = rl.KeyStatistics(
        layer=1,
        moment=rl.KeyStatistics.identity(toy, layer=1).moment,
        count=10**6,
        model_fingerprint="0" * 16,
    )
    with pytest.raises(StatisticsError, match="collect them on this model"):
        rl.rome(toy, toy_record.fact, layer=1, statistics=alien, contexts=["{}"])


def test_models_without_a_dense_mlp_are_refused(
    toy: Any, toy_record: rl.data.Record, monkeypatch: Any
) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    monkeypatch.setattr(toy.cfg, "num_experts", 8, raising=False)
    with pytest.raises(ModelError, match="mixture of experts"):
        rl.rome(toy, toy_record.fact, layer=1, statistics=statistics, contexts=["{}"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (wrong(layer=True), ModelError, "layer is True"),
        (wrong(layer=1.5), ModelError, "layer is 1.5"),
        (wrong(layer=torch.tensor(1.5)), ModelError, "layer is tensor"),
        (wrong(layer=None), ModelError, "layer is None"),
        (wrong(layer="1"), ModelError, "layer is '1'"),
        (wrong(statistics=[1]), StatisticsError, "a list, expected a KeyStatistics"),
        (wrong(statistics=torch.eye(3)), StatisticsError, "a Tensor, expected a KeyStatistics"),
        (wrong(statistics="C.safetensors"), StatisticsError, "KeyStatistics.load"),
        (wrong(statistics={2: None}), StatisticsError, r"has the layers \[2\]"),
        (wrong(contexts="{}"), ValueError, "contexts is the text"),
        (wrong(contexts=[1]), ValueError, "expected a list of templates"),
        (wrong(contexts=1), ValueError, "expected a list of templates"),
        (wrong(config=None), ValueError, "config is None, expected a RomeConfig"),
        (wrong(config={"lr": 0.1}), ValueError, "expected a RomeConfig"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(
    toy: Any,
    toy_record: rl.data.Record,
    unchecked: None,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    options = {"layer": 1, "statistics": statistics, "contexts": ["{}"], **changes}
    with pytest.raises(error, match=message):
        rl.rome(toy, toy_record.fact, **options)
    if not set(changes) & {"statistics", "config"}:
        with pytest.raises(error, match=message):
            rl.fine_tune(toy, toy_record.fact, **{"layer": 1, **changes})


def test_what_is_no_fact_is_refused_with_what_to_pass(
    toy: Any, toy_record: rl.data.Record, unchecked: None
) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    for method, facts in (
        (rl.rome, toy_record),
        (rl.fine_tune, toy_record),
        (rl.rome_sequence, [toy_record]),
    ):
        options = {"layer": 1} if method is rl.fine_tune else {"layer": 1, "statistics": statistics}
        with pytest.raises(FactError, match="give its fact"):
            method(toy, facts, **options)
    with pytest.raises(FactError, match="a dict, expected a Fact"):
        rl.rome(toy, {"prompt": "{} is in"}, layer=1, statistics=statistics)


def test_numbers_of_numpy_templates_of_a_generator_and_statistics_by_layer_are_taken(
    toy: Any, toy_record: rl.data.Record, unchecked: None, tmp_path: Path
) -> None:
    numbers = {"steps": np.int64(3), "lr": np.float32(0.5), "weight_decay": np.float64(0.5)}
    config, fact = rl.RomeConfig(**numbers), toy_record.fact
    assert config == rl.RomeConfig(steps=3)
    assert {type(value) for value in dataclasses.asdict(config).values()} == {
        int,
        float,
        type(None),
        str,
    }
    by_layer = {layer: rl.KeyStatistics.identity(toy, layer=layer) for layer in (0, 1)}
    options = {"layer": np.int64(1), "contexts": (each for each in CONTEXTS)}
    edit = rl.rome(toy, fact, statistics=by_layer, config=config, **options)
    expected = identity_edit(toy, fact, config=config)
    assert torch.equal(edit.delta, expected.delta)
    assert edit.contexts == tuple(CONTEXTS)
    assert type(edit.layer) is int
    tuned = rl.fine_tune(
        toy, fact, layer=np.int64(1), contexts=(each for each in CONTEXTS), **numbers
    )
    assert torch.equal(
        tuned.delta,
        rl.fine_tune(
            toy, fact, layer=1, steps=3, lr=0.5, weight_decay=0.5, contexts=CONTEXTS
        ).delta,
    )
    for each in (edit, tuned):
        assert type(each).load(each.save(tmp_path / "edit.safetensors")).layer == 1
    made = rl.rome_sequence(
        toy,
        [fact],
        layer=np.int64(1),
        statistics=by_layer,
        contexts=(each for each in CONTEXTS),
        config=config,
    )
    assert torch.equal(made.edits[0].delta, expected.delta)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 2.5}, "steps is 2.5, expected a whole number"),
        ({"steps": True}, "steps is True"),
        ({"lr": "0.5"}, "lr is '0.5', expected a number"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"stop_loss": float("nan")}, "stop_loss is nan"),
        ({"stop_probability": float("nan")}, "stop_probability is nan"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"kl_factor": None}, "kl_factor is None"),
    ],
)
def test_hyperparameters_that_are_no_such_numbers_are_refused(
    unchecked: None, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rl.RomeConfig(**setting)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"lr": 0.0}, {"clamp": -1.0}, {"ridge": -1.0}])
def test_wrong_hyperparameters_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected steps"):
        rl.RomeConfig(**setting)
