"""Laws of an edit as a thing: applied, as hooks, composed, saved; always gone afterwards."""

import copy
import dataclasses
import itertools
import json
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from models_for_tests import CLASSES, FAMILIES, LLAMA, last_logits, tiny
from safetensors import safe_open
from safetensors.torch import save_file

import rome_lens as rl
from rome_lens.evaluation.numbered_edits import OtherPromptWarning
from rome_lens.models.fingerprints import fingerprint
from rome_lens.models.lens import ModelError, mlp_output, w_out


def random_edit(model: Any, *, layer: int = 1, seed: int = 0) -> rl.RankOneEdit:
    generator = torch.Generator().manual_seed(seed)
    d_mlp, d_model = w_out(model, layer).shape
    return rl.RankOneEdit(
        layer=layer,
        u=torch.randn(d_mlp, generator=generator),
        v=torch.randn(d_model, generator=generator),
    )


def dense_edit(model: Any, *, layer: int = 1, seed: int = 0) -> rl.WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    return rl.WeightEdit(
        layer=layer, delta=0.3 * torch.randn(w_out(model, layer).shape, generator=generator)
    )


def fresh(family: str, model_class: str) -> Any:
    """A tiny model that no other test shares."""
    return tiny.__wrapped__(family, model_class)


def weights(model: Any) -> list[torch.Tensor]:
    return [w_out(model, layer).clone() for layer in range(model.cfg.n_layers)]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


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


def test_hooks_and_weights_agree_where_the_models_mlp_scales_what_w_out_gives(
    fact: rl.Fact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Granite's residual multiplier; what is computed through the layers alone does not know it and refuses the model."""
    scaled = {
        **LLAMA,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
    }
    monkeypatch.setitem(FAMILIES, "granite", ("Granite", scaled))
    model = fresh("granite", "TransformerBridge")
    edit, before = random_edit(model), logits(model)
    hooked = logits(model, fwd_hooks=edit.fwd_hooks(model))
    by_row = last_logits(
        model, model.to_tokens(fact.text).repeat(2, 1), fwd_hooks=rl.row_hooks(model, [None, edit])
    )
    with edit.applied(model):
        applied, alone = logits(model), last_logits(model, model.to_tokens(fact.text))
    assert_close(hooked, applied)
    assert_close(by_row[1:], alone)
    assert (applied - before).abs().max() > 0.1
    with pytest.raises(ModelError, match="Layer 1's MLP output is not W_out's output"):
        rl.rome(
            model,
            fact,
            layer=1,
            statistics=rl.KeyStatistics.identity(model, layer=1),
            contexts=["{}"],
        )


@pytest.mark.parametrize("layers", [(1, 1), (1, 3), (2, 0)])
def test_two_edits_compose_in_either_mode(tiny_model: Any, layers: tuple[int, int]) -> None:
    first, second = (
        random_edit(tiny_model, layer=layer, seed=seed) for seed, layer in enumerate(layers)
    )
    with first.applied(tiny_model), second.applied(tiny_model):
        both = logits(tiny_model)
        assert not torch.allclose(
            both, logits(tiny_model, fwd_hooks=second.fwd_hooks(tiny_model)), atol=1e-3
        )
    assert_close(
        logits(tiny_model, fwd_hooks=first.fwd_hooks(tiny_model) + second.fwd_hooks(tiny_model)),
        both,
    )
    assert_close(
        logits(tiny_model, fwd_hooks=second.fwd_hooks(tiny_model) + first.fwd_hooks(tiny_model)),
        both,
    )
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
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "verbose": False,
        "return_type": "tokens",
        "prepend_bos": False,
    }
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
    assert (loaded.fact, loaded.probability, loaded.made_with) == (
        edit.fact,
        edit.probability,
        edit.made_with,
    )
    assert_close(
        logits(toy, fwd_hooks=loaded.fwd_hooks(toy)), logits(toy, fwd_hooks=edit.fwd_hooks(toy))
    )


def test_an_edit_says_whether_bos_stood_before_its_prompts(
    toy: Any, toy_record: rl.data.Record, tmp_path: Any, monkeypatch: Any
) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    options = {"layer": 1, "contexts": ["{}"]}
    rome = {**options, "statistics": statistics, "config": rl.RomeConfig(steps=2)}
    for default in (True, False):
        monkeypatch.setattr(toy.cfg, "default_prepend_bos", default)
        for said in (None, True, False):
            expected = default if said is None else said
            edits = (
                rl.rome(toy, toy_record.fact, prepend_bos=said, **rome),
                rl.fine_tune(toy, toy_record.fact, steps=1, prepend_bos=said, **options),
            )
            for edit in edits:
                assert edit.prepend_bos is expected
                assert f"prepend_bos={expected}" in edit.made_with
                assert (
                    type(edit).load(edit.save(tmp_path / "edit.safetensors")).prepend_bos
                    is expected
                )
    save_old(edits[0], tmp_path / "old.safetensors")
    assert rl.RankOneEdit.load(tmp_path / "old.safetensors").prepend_bos is None


def save_old(edit: Any, path: Any) -> None:
    """As a version wrote it that did not know of ``prepend_bos``."""
    with safe_open(edit.save(path), framework="pt") as file:
        header, tensors = (
            dict(file.metadata()),
            {name: file.get_tensor(name) for name in file.keys()},
        )
    fields = json.loads(header["fields"])
    del fields["prepend_bos"]
    save_file(tensors, path, metadata={**header, "fields": json.dumps(fields)})


def test_an_edit_of_another_model_is_refused(
    toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
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
    before = fingerprint(toy)
    with random_edit(toy).applied(toy):
        assert fingerprint(toy) == before
    assert fingerprint(tiny("gpt2", CLASSES[0])) != before


def test_an_edit_fires_fully_on_its_own_fact(toy: Any, toy_record: rl.data.Record) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    edit = rl.rome(toy, toy_record.fact, layer=1, statistics=statistics, contexts=["{}"])
    firing = rl.edit_firing(toy, edit, toy_record.fact.text)
    last = rl.forward.tokens.encode(toy, toy_record.fact).subject_last
    assert float(firing.values[last]) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match="no key"):
        rl.edit_firing(toy, random_edit(toy), "It rained")


def test_applied_edits_go_in_any_order_and_what_stays_is_as_if_alone(
    tiny_model: Any, untouched: Any
) -> None:
    untouched(tiny_model)
    edits = [
        random_edit(tiny_model),
        dense_edit(tiny_model, seed=1),
        random_edit(tiny_model, layer=3, seed=2),
    ]
    original = weights(tiny_model)
    alone = {}
    for size in range(3):
        for some in itertools.combinations(range(3), size):
            with ExitStack() as stack:
                for i in some:
                    stack.enter_context(edits[i].applied(tiny_model))
                alone[some] = weights(tiny_model)
    assert same(alone[()], original)
    for order in itertools.permutations(range(3)):
        for edit in edits:
            edit.apply(tiny_model)
        staying = {0, 1, 2}
        for i in order:
            edits[i].revert(tiny_model)
            staying -= {i}
            assert same(weights(tiny_model), alone[tuple(sorted(staying))])
            assert set(rl.applied_edits(tiny_model)) == {edits[j] for j in staying}
            assert [edit.is_applied(tiny_model) for edit in edits] == [
                j in staying for j in range(3)
            ]


def test_the_weights_are_original_plus_the_deltas_in_order(tiny_model: Any) -> None:
    first, second = random_edit(tiny_model), dense_edit(tiny_model, seed=1)
    expected = (w_out(tiny_model, 1) + first.delta) + second.delta
    with first.applied(tiny_model), second.applied(tiny_model):
        assert torch.equal(w_out(tiny_model, 1), expected)


def test_blocks_and_apply_mix_and_close_in_any_order(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    first, second = random_edit(tiny_model), dense_edit(tiny_model, seed=1)
    original = weights(tiny_model)
    with second.applied(tiny_model):
        only_second = weights(tiny_model)
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(first.applied(tiny_model))
    inner.enter_context(second.applied(tiny_model))
    outer.close()
    assert same(weights(tiny_model), only_second)
    inner.close()
    assert same(weights(tiny_model), original)

    with first.applied(tiny_model):
        second.apply(tiny_model)
    assert same(weights(tiny_model), only_second)
    with first.applied(tiny_model), second.applied(tiny_model):
        second.revert(tiny_model)  # the one that was applied, not the one of the block
    assert same(weights(tiny_model), original)
    with (
        pytest.raises(ModelError),
        second.applied(tiny_model),
        first.applied(tiny_model),
        first.applied(tiny_model),
    ):
        random_edit(tiny_model, layer=2).revert(tiny_model)
    assert same(weights(tiny_model), original)


def test_an_edit_applied_twice_is_there_twice(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    edit = random_edit(tiny_model)
    original = w_out(tiny_model, 1).clone()
    edit.apply(tiny_model)
    once = w_out(tiny_model, 1).clone()
    edit.apply(tiny_model)
    assert rl.applied_edits(tiny_model) == (edit, edit)
    assert torch.equal(w_out(tiny_model, 1), (original + edit.delta) + edit.delta)
    edit.revert(tiny_model)
    assert torch.equal(w_out(tiny_model, 1), once)
    with edit.applied(tiny_model):
        edit.revert(tiny_model)
        assert torch.equal(w_out(tiny_model, 1), once)
    assert torch.equal(w_out(tiny_model, 1), original)


def test_what_is_not_applied_cannot_be_reverted(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    edit, other = random_edit(tiny_model), random_edit(tiny_model, seed=1)
    with pytest.raises(ModelError, match=r"is not applied, .* there are: none"):
        edit.revert(tiny_model)
    with (
        other.applied(tiny_model),
        pytest.raises(ModelError, match=r"is not applied, .* there are: RankOneEdit"),
    ):
        edit.revert(tiny_model)
    both = rl.Edits(edits=(other, edit))
    with other.applied(tiny_model):
        before = weights(tiny_model)
        with pytest.raises(ModelError, match="is not applied"):
            both.revert(tiny_model)
        assert same(weights(tiny_model), before)
    assert rl.applied_edits(tiny_model) == ()


def test_a_loaded_edit_takes_the_saved_one_back(
    tiny_model: Any, untouched: Any, tmp_path: Any
) -> None:
    untouched(tiny_model)
    for edit in (random_edit(tiny_model), dense_edit(tiny_model)):
        edit.apply(tiny_model)
        loaded = type(edit).load(edit.save(tmp_path / "edit"))
        assert loaded.is_applied(tiny_model)
        loaded.revert(tiny_model)
        assert not edit.is_applied(tiny_model)


def test_other_codes_changes_are_not_lost(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    edit, other = random_edit(tiny_model), random_edit(tiny_model, seed=1)
    original = w_out(tiny_model, 1).clone()
    edit.apply(tiny_model)
    w_out(tiny_model, 1)[0, 0] += 1.0
    changed = w_out(tiny_model, 1).clone()
    for call in (edit.revert, other.apply, rl.applied_edits):
        with pytest.raises(
            ModelError, match=r"other code has changed W_out of layer 1 .*keep_edits"
        ):
            call(tiny_model)
    with pytest.raises(ModelError, match="other code has changed"), other.applied(tiny_model):
        pass
    assert torch.equal(w_out(tiny_model, 1), changed)
    assert not edit.is_applied(tiny_model)
    assert rl.keep_edits(tiny_model) == (edit,)
    assert rl.applied_edits(tiny_model) == ()
    with other.applied(tiny_model):
        pass
    assert torch.equal(w_out(tiny_model, 1), changed)
    w_out(tiny_model, 1).copy_(original)


def test_a_block_restores_whatever_was_written_inside(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    staying = random_edit(tiny_model, seed=1)
    with staying.applied(tiny_model):
        before = weights(tiny_model)
        with random_edit(tiny_model).applied(tiny_model):
            w_out(tiny_model, 1).fill_(float("nan"))
        assert same(weights(tiny_model), before)


def test_nan_in_an_edit_can_be_taken_back(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    d_mlp, d_model = w_out(tiny_model, 1).shape
    edit = rl.RankOneEdit(layer=1, u=torch.full((d_mlp,), float("inf")), v=torch.zeros(d_model))
    edit.apply(tiny_model)
    assert w_out(tiny_model, 1).isnan().all()
    edit.revert(tiny_model)


def test_a_copy_of_the_model_has_its_own_edits(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    edit = random_edit(tiny_model)
    original = w_out(tiny_model, 1).clone()
    with edit.applied(tiny_model):
        clone = copy.deepcopy(tiny_model)
    assert not edit.is_applied(tiny_model)
    assert torch.equal(w_out(clone, 1), original + edit.delta)
    assert edit.is_applied(clone)
    edit.revert(clone)
    assert torch.equal(w_out(clone, 1), original)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_half_precision_rounds_once_and_comes_back(
    family: str, model_class: str, untouched: Any
) -> None:
    model = fresh(family, model_class).to(torch.bfloat16)
    untouched(model)
    edits = [random_edit(model), dense_edit(model, seed=1), random_edit(model, seed=2)]
    original = w_out(model, 1).clone()
    for edit in edits:
        edit.apply(model)
    total = original.float()
    for edit in edits:
        total = total + edit.delta
    assert torch.equal(w_out(model, 1), total.bfloat16())
    for i in (1, 2, 0):
        edits[i].revert(model)
    assert torch.equal(w_out(model, 1), original)


def test_gradient_flags_and_modes_do_not_matter(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    edit = random_edit(tiny_model)
    flags = [parameter.requires_grad for parameter in tiny_model.parameters()]
    try:
        for flag in (True, False):
            for parameter in tiny_model.parameters():
                parameter.requires_grad_(flag)
            with torch.enable_grad(), edit.applied(tiny_model):
                assert all(parameter.requires_grad is flag for parameter in tiny_model.parameters())
            with torch.inference_mode():
                edit.apply(tiny_model)
            edit.revert(tiny_model)
    finally:
        for parameter, flag in zip(tiny_model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


@pytest.mark.parametrize("model_class", CLASSES)
def test_weights_made_in_inference_mode_can_be_edited(model_class: str) -> None:
    with torch.inference_mode():
        model = fresh("llama", model_class)
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.clone()
    edit = random_edit(model)
    original = w_out(model, 1).clone()
    edit.apply(model)
    assert torch.equal(w_out(model, 1), original + edit.delta)
    edit.revert(model)
    assert torch.equal(w_out(model, 1), original)


def test_the_state_dict_has_the_edit_and_the_model_has_not(tiny_model: Any, untouched: Any) -> None:
    untouched(tiny_model)
    edits = rl.Edits(
        edits=(
            random_edit(tiny_model),
            dense_edit(tiny_model, layer=2),
            random_edit(tiny_model, seed=3),
        )
    )
    plain = tiny_model.state_dict()
    state = edits.state_dict(tiny_model)
    with edits.applied(tiny_model):
        expected = {name: value.clone() for name, value in tiny_model.state_dict().items()}
        assert all(
            torch.equal(value, expected[name])
            for name, value in edits.state_dict(tiny_model).items()
        )
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    copied = [name for name, value in state.items() if value.data_ptr() != plain[name].data_ptr()]
    assert len(copied) == 2
    other = copy.deepcopy(tiny_model)
    other.load_state_dict(state)
    with edits.applied(tiny_model):
        assert torch.equal(logits(other), logits(tiny_model))


def test_an_edit_that_came_by_another_road_is_found_by_its_numbers(
    toy: Any, toy_record: rl.data.Record
) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    edit = rl.rome(toy, toy_record.fact, layer=1, statistics=statistics, contexts=["{}"])
    other = rl.load_model("toy", model_class=type(toy).__name__)
    assert not edit.is_applied(other)
    other.load_state_dict(edit.state_dict(toy))
    assert edit.is_applied(other)
    assert rl.applied_edits(other) == ()


def test_another_edit_of_the_fact_is_not_taken_for_the_one_that_is_applied(
    toy: Any, toy_record: rl.data.Record
) -> None:
    """Both map the same ``k*`` to the same ``v*``, with another ``u``."""
    plain = rl.KeyStatistics.identity(toy, layer=1)
    moment = plain.moment * torch.linspace(1, 2, len(plain.moment), dtype=torch.float64)
    options = {"layer": 1, "contexts": ["{}"], "config": rl.RomeConfig(steps=5)}
    one, other = (
        rl.rome(toy, toy_record.fact, statistics=each, **options)
        for each in (plain, dataclasses.replace(plain, moment=moment))
    )
    with one.applied(toy):
        mapped = mlp_output(toy, 1, other.key)
        torch.testing.assert_close(mapped, other.value, atol=1e-3, rtol=1e-3)
        assert one.is_applied(toy)
        assert not other.is_applied(toy)
        with other.applied(toy):
            assert other.is_applied(toy)
    elsewhere = rl.load_model("toy", model_class=type(toy).__name__)
    elsewhere.load_state_dict(one.state_dict(toy))
    random_edit(elsewhere).apply(elsewhere)  # which hides no edit that came by another road
    assert one.is_applied(elsewhere)


def test_an_edit_is_not_applied_to_a_model_that_has_no_place_for_it(
    toy: Any, toy_record: rl.data.Record
) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    edit = rl.rome(
        toy,
        toy_record.fact,
        layer=1,
        statistics=statistics,
        contexts=["{}"],
        config=rl.RomeConfig(steps=2),
    )
    other = tiny("gpt2", "TransformerBridge")
    deeper = dataclasses.replace(edit, layer=99)
    for model, strange in ((other, edit), (toy, deeper), (toy, rl.Edits(edits=(deeper,)))):
        assert not strange.is_applied(model)
        with pytest.raises(ModelError, match="is not applied"):
            strange.revert(model)
        with pytest.raises(ModelError, match=r"out of range|shape of W_out"):
            rl.evaluate(model, strange, toy_record)


def test_the_refusal_says_what_differs(toy: Any) -> None:
    edit = random_edit(toy)
    alien = rl.RankOneEdit(layer=1, u=edit.u[1:], v=edit.v, model_fingerprint="0" * 16)
    with pytest.raises(
        ModelError, match=r"shape of W_out at layer 1.*and the fingerprint.*0000.*other weights"
    ):
        alien.apply(toy)
    with pytest.raises(ModelError) as refusal:
        rl.RankOneEdit(layer=1, u=edit.u, v=edit.v, model_fingerprint="0" * 16).check(toy)
    assert "shape" not in str(refusal.value)
    with pytest.raises(ModelError, match="Layer 99 is out of range"):
        rl.RankOneEdit(layer=99, u=edit.u, v=edit.v).apply(toy)


def test_an_edit_made_with_another_prompt_is_evaluated_with_a_warning(
    toy: Any, toy_record: rl.data.Record
) -> None:
    fact = toy_record.fact
    elsewhere = rl.Fact(
        "{} was born in", subject=fact.subject, target=fact.target, new_target=fact.new_target
    )
    with pytest.warns(OtherPromptWarning, match="another prompt than the record's"):
        rl.evaluate(toy, dataclasses.replace(random_edit(toy), fact=elsewhere), toy_record)
    same_text = rl.Fact.from_text(
        fact.text, subject=fact.subject, target=fact.target, new_target=fact.new_target
    )
    rl.evaluate(toy, dataclasses.replace(random_edit(toy), fact=same_text), toy_record)
