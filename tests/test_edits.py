"""Laws of an edit as a thing: applied, as hooks, composed, saved; always gone afterwards."""

from typing import Any

import pytest
import torch
from models_for_tests import CLASSES, last_logits, tiny

import rome_lens as rl
from rome_lens.models import ModelError, w_out


def random_edit(model: Any, *, layer: int = 1, seed: int = 0) -> rl.RankOneEdit:
    generator = torch.Generator().manual_seed(seed)
    d_mlp, d_model = w_out(model, layer).shape
    return rl.RankOneEdit(
        layer=layer, u=torch.randn(d_mlp, generator=generator), v=torch.randn(d_model, generator=generator)
    )


def logits(model: Any, **options: Any) -> torch.Tensor:
    return last_logits(model, model.to_tokens("Wanda Brandt lives in the city of"), **options)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_hooks_and_weights_give_the_same_logits(tiny_model: Any) -> None:
    edit = random_edit(tiny_model)
    before = logits(tiny_model)
    hooked = logits(tiny_model, fwd_hooks=edit.fwd_hooks(tiny_model))
    with edit.applied(tiny_model):
        applied = logits(tiny_model)
    assert_close(hooked, applied)
    assert (applied - before).abs().max() > 0.1
    assert_close(logits(tiny_model), before)


@pytest.mark.parametrize("layers", [(1, 1), (1, 3), (2, 0)])
def test_two_edits_compose_in_either_mode(tiny_model: Any, layers: tuple[int, int]) -> None:
    first, second = (random_edit(tiny_model, layer=layer, seed=seed) for seed, layer in enumerate(layers))
    with first.applied(tiny_model), second.applied(tiny_model):
        both = logits(tiny_model)
        assert not torch.allclose(both, logits(tiny_model, fwd_hooks=second.fwd_hooks(tiny_model)), atol=1e-3)
    assert_close(logits(tiny_model, fwd_hooks=first.fwd_hooks(tiny_model) + second.fwd_hooks(tiny_model)), both)
    assert_close(logits(tiny_model, fwd_hooks=second.fwd_hooks(tiny_model) + first.fwd_hooks(tiny_model)), both)
    with first.applied(tiny_model):
        assert_close(logits(tiny_model, fwd_hooks=second.fwd_hooks(tiny_model)), both)


def test_weights_come_back_bit_for_bit_by_any_road(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    edit = random_edit(tiny_model)
    before = w_out(tiny_model, 1).clone()
    with edit.applied(tiny_model):
        torch.testing.assert_close(w_out(tiny_model, 1) - before, edit.delta, atol=1e-5, rtol=1e-5)
    with pytest.raises(KeyboardInterrupt), edit.applied(tiny_model), edit.applied(tiny_model):
        raise KeyboardInterrupt
    with pytest.raises(ModelError), edit.applied(tiny_model):
        rl.KeyStatistics.identity(tiny_model, layer=99)


def test_hooks_leave_no_trace(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    logits(tiny_model, fwd_hooks=random_edit(tiny_model).fwd_hooks(tiny_model))


def test_an_interrupted_hooked_run_spoils_no_later_one(tiny_model: Any) -> None:
    edit = random_edit(tiny_model)
    expected = logits(tiny_model, fwd_hooks=edit.fwd_hooks(tiny_model))
    hooks = edit.fwd_hooks(tiny_model)

    def interrupt(value: torch.Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    for i in range(1, len(hooks)):
        with pytest.raises(KeyboardInterrupt):
            logits(tiny_model, fwd_hooks=[*hooks[:i], (hooks[i][0], interrupt), *hooks[i:]])
    assert_close(logits(tiny_model, fwd_hooks=hooks), expected)


def test_an_edit_survives_generation_with_a_cache(toy: Any, toy_record: rl.data.Record) -> None:
    """Later steps of generation see one position at a time; greedy text is the same in either mode."""
    edit = random_edit(toy)
    tokens = toy.to_tokens(toy_record.fact.text)
    options = {"max_new_tokens": 8, "do_sample": False, "verbose": False, "return_type": "tokens", "prepend_bos": False}
    with edit.applied(toy):
        applied = toy.generate(tokens, **options)
    with toy.hooks(fwd_hooks=edit.fwd_hooks(toy)):
        hooked = toy.generate(tokens, **options)
    assert applied.tolist() == hooked.tolist()


def test_an_edit_saved_comes_back(toy: Any, toy_record: rl.data.Record, tmp_path: Any) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    edit = rl.rome(toy, toy_record.fact, layer=1, statistics=statistics, contexts=["{}"])
    loaded = rl.RankOneEdit.load(edit.save(tmp_path / "edit.safetensors"))
    assert torch.equal(loaded.delta, edit.delta)
    assert torch.equal(loaded.losses, edit.losses)
    assert (loaded.fact, loaded.probability, loaded.made_with) == (edit.fact, edit.probability, edit.made_with)
    assert_close(logits(toy, fwd_hooks=loaded.fwd_hooks(toy)), logits(toy, fwd_hooks=edit.fwd_hooks(toy)))


def test_an_edit_of_another_model_is_refused(toy: Any, toy_record: rl.data.Record, untouched: Any) -> None:
    other = tiny("gpt2", CLASSES[0])
    untouched(toy)
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    edit = rl.rome(toy, toy_record.fact, layer=1, statistics=statistics, contexts=["{}"])
    with pytest.raises(ModelError, match="shape"), edit.applied(other):
        pass
    alien = rl.RankOneEdit(layer=1, u=edit.u, v=edit.v, model_fingerprint="0" * 16)
    with pytest.raises(ModelError, match="other weights"):
        alien.fwd_hooks(toy)


def test_the_fingerprint_tells_weights_apart_but_not_edits(toy: Any) -> None:
    before = rl.models.fingerprint(toy)
    with random_edit(toy).applied(toy):
        assert rl.models.fingerprint(toy) == before
    assert rl.models.fingerprint(tiny("gpt2", CLASSES[0])) != before


def test_an_edit_fires_fully_on_its_own_fact(toy: Any, toy_record: rl.data.Record) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    edit = rl.rome(toy, toy_record.fact, layer=1, statistics=statistics, contexts=["{}"])
    firing = rl.edit_firing(toy, edit, toy_record.fact.text)
    last = rl.tokens.encode(toy, toy_record.fact).subject_last
    assert float(firing.values[last]) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match="no key"):
        rl.edit_firing(toy, random_edit(toy), "It rained")
