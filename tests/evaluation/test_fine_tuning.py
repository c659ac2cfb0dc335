"""Constrained fine-tuning: its losses are the edited model's, it stays within its bound, it
stops."""

from typing import Any

import pytest
import torch
from evaluation_for_tests import plain

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.forward.partial import PartialForward
from rome_lens.models.lens import ModelError, w_out

CONTEXTS = ("{}", "It was raining. {}")


def plain_loss(
    model: Any, fact: rl.Fact, edit: rl.WeightEdit | None, contexts: Any = ("{}",)
) -> float:
    """The mean negative log probability of the new target's tokens, from runs of the whole
    model."""
    hooks = [] if edit is None else edit.fwd_hooks(model)
    probabilities = [
        plain(model, context.replace("{}", fact.text), str(fact.new_target), hooks)
        for context in contexts
    ]
    return float(-torch.tensor(probabilities, dtype=torch.float64).log().mean())


def assert_losses_of_the_edited_model(model: Any, fact: rl.Fact, contexts: Any) -> None:
    """The first loss is the unedited model's; the others are those of the model with the delta."""
    options = {"layer": 1, "contexts": contexts, "lr": 0.01, "norm_constraint": 0.015}
    longer, shorter = (rl.fine_tune(model, fact, steps=steps, **options) for steps in (4, 3))
    assert torch.equal(longer.losses[:4], shorter.losses)
    expected = [plain_loss(model, fact, edit, contexts) for edit in (None, shorter, longer)]
    assert longer.losses[[0, 3, -1]].tolist() == pytest.approx(expected, rel=1e-4)
    assert float(longer.losses[-1]) < float(longer.losses[0])


def test_the_losses_are_those_of_the_edited_model(
    few_tiny_models: Any, fact: rl.Fact, untouched: Any
) -> None:
    untouched(few_tiny_models)
    several_tokens = rl.Fact(fact.prompt, subject=fact.subject, target="Pralec", new_target="Rome")
    assert_losses_of_the_edited_model(few_tiny_models, several_tokens, CONTEXTS)
    assert_losses_of_the_edited_model(few_tiny_models, fact, ("{}",))


def test_the_bound_holds_and_binds(few_tiny_models: Any, fact: rl.Fact) -> None:
    for bound in (1e-3, 1e-2):
        edit = rl.fine_tune(few_tiny_models, fact, layer=1, norm_constraint=bound, lr=5e-3, steps=6)
        assert float(edit.delta.abs().max()) == pytest.approx(bound, rel=1e-6)
        assert float(edit.delta.abs().max()) <= torch.tensor(bound)
        assert edit.delta.shape == w_out(few_tiny_models, 1).shape


def test_one_adam_step_moves_each_entry_by_the_rate_against_the_gradient(
    few_tiny_models: Any, fact: rl.Fact
) -> None:
    """Adam's first step is ``-lr sign(gradient)``, so the loss falls along it and along parts of
    it."""
    step = rl.fine_tune(few_tiny_models, fact, layer=2, lr=1e-4, norm_constraint=1.0, steps=1).delta
    direction = torch.randn(step.shape, generator=torch.Generator().manual_seed(0))
    before = plain_loss(few_tiny_models, fact, None)
    for sign in (step.sign(), direction * (direction.sign() == step.sign())):
        moved = rl.WeightEdit(layer=2, delta=1e-3 * sign)
        assert plain_loss(few_tiny_models, fact, moved) < before
    assert float(step.abs().max()) == pytest.approx(1e-4, rel=1e-3)


def test_fine_tuning_writes_the_fact_and_stops(
    one_toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(one_toy)
    edit = rl.fine_tune(one_toy, toy_record, layer=1, norm_constraint=0.05, lr=0.02)
    assert edit.stopped == "loss"
    assert float(edit.losses[-1]) < 0.01 <= float(edit.losses[-2])
    found = rl.evaluate(one_toy, edit, toy_record)
    assert found.ES == 1.0
    assert found.rows[0].new_after == pytest.approx(float((-edit.losses[-1]).exp()), rel=1e-4)
    tight = rl.fine_tune(one_toy, toy_record, layer=1, norm_constraint=1e-5)
    assert (tight.stopped, len(tight.losses)) == ("steps", 26)
    assert rl.evaluate(one_toy, tight, toy_record).ES == 0.0


def test_fine_tuning_is_the_same_under_inference_mode_and_twice(
    toy: Any, toy_record: rl.data.Record
) -> None:
    expected = rl.fine_tune(toy, toy_record, layer=1, steps=3)
    with torch.inference_mode():
        found = rl.fine_tune(toy, toy_record, layer=1, steps=3)
    assert torch.equal(found.delta, expected.delta)


def test_wrong_settings_are_refused_and_leave_nothing(
    one_toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(one_toy)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"layer": 99}, ModelError, "layers 0 to"),
        ({"steps": 0}, ValueError, "got steps=0, "),
        ({"lr": 0.0}, ValueError, ", lr=0.0, "),
        ({"norm_constraint": 0.0}, ValueError, ", norm_constraint=0.0, "),
        ({"weight_decay": -1.0}, ValueError, ", weight_decay=-1.0."),
        ({"contexts": []}, FactError, "at least one"),
        ({"contexts": ["no slot"]}, FactError, "no slot"),
        ({"lr": 1e20}, OptimisationError, "at step 1: lower lr"),
        ({"lr": 1e38}, OptimisationError, "at step 1: lower lr"),
    ]
    wrong = []
    for changes, error, words in cases:
        try:
            rl.fine_tune(one_toy, toy_record, **{"layer": 1, **changes})
        except error as raised:
            if words not in str(raised):
                wrong.append((changes, str(raised)))
        else:
            wrong.append((changes, "nothing was raised"))
    assert wrong == []


def test_a_loss_that_is_not_finite_is_refused_by_its_step(
    one_toy: Any, toy_record: rl.data.Record, untouched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched(one_toy)
    logits_at, factors = PartialForward.logits_at, iter([1.0, float("nan")])
    monkeypatch.setattr(
        PartialForward, "logits_at", lambda self, cells: logits_at(self, cells) * next(factors)
    )
    with pytest.raises(OptimisationError, match="loss is nan at step 1"):
        rl.fine_tune(one_toy, toy_record, layer=1)


def test_a_fact_without_a_new_target_is_refused(one_toy: Any) -> None:
    fact = rl.Fact("{} lives in the city of", subject="Wanda Brandt", target="Pralec")
    with pytest.raises(FactError, match="no new target"):
        rl.fine_tune(one_toy, fact, layer=1)
    with pytest.raises(FactError, match="no new target"):
        rl.InContext()(one_toy, fact)
