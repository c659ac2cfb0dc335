"""Laws of an edit as an object: applied, as hooks, composed, saved, and always gone afterwards."""

import copy
import dataclasses
import itertools
import json
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from models_for_tests import CLASSES, FAMILIES, LLAMA, in_dtype, last_logits, tiny
from safetensors import safe_open
from safetensors.torch import save_file

import rome_lens as rl
from rome_lens.errors import ArgumentError
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


def test_hooks_and_weights_give_the_same_logits_and_leave_no_trace(
    tiny_model: Any, untouched: Any
) -> None:
    untouched(tiny_model)
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
    """Granite's residual multiplier, on what W_out gives."""
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


@pytest.mark.parametrize("layers", [(1, 1), (1, 3), (2, 0)])
def test_two_edits_compose_in_either_mode(few_tiny_models: Any, layers: tuple[int, int]) -> None:
    model = few_tiny_models
    first, second = (
        random_edit(model, layer=layer, seed=seed) for seed, layer in enumerate(layers)
    )
    hooks = first.fwd_hooks(model), second.fwd_hooks(model)
    with first.applied(model), second.applied(model):
        both = logits(model)
        assert not torch.allclose(both, logits(model, fwd_hooks=hooks[1]), atol=1e-3)
    assert_close(logits(model, fwd_hooks=hooks[0] + hooks[1]), both)
    assert_close(logits(model, fwd_hooks=hooks[1] + hooks[0]), both)
    with first.applied(model):
        assert_close(logits(model, fwd_hooks=hooks[1]), both)


def test_weights_come_back_bit_for_bit_however_the_block_ends(
    tiny_model: Any, untouched: Any
) -> None:
    untouched(tiny_model)
    edit = random_edit(tiny_model)
    before = w_out(tiny_model, 1).clone()
    with edit.applied(tiny_model):
        torch.testing.assert_close(w_out(tiny_model, 1) - before, edit.delta, atol=1e-5, rtol=1e-5)
    with pytest.raises(KeyboardInterrupt), edit.applied(tiny_model), edit.applied(tiny_model):
        raise KeyboardInterrupt
    with pytest.raises(ModelError), edit.applied(tiny_model):
        rl.KeyStatistics.identity(tiny_model, layer=99)


def test_an_interrupted_hooked_run_spoils_no_later_one(few_tiny_models: Any) -> None:
    model = few_tiny_models
    edit = random_edit(model)
    expected = logits(model, fwd_hooks=edit.fwd_hooks(model))
    hooks = edit.fwd_hooks(model)

    def interrupt(value: torch.Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    for i in range(1, len(hooks)):
        with pytest.raises(KeyboardInterrupt):
            logits(model, fwd_hooks=[*hooks[:i], (hooks[i][0], interrupt), *hooks[i:]])
    assert_close(logits(model, fwd_hooks=hooks), expected)


def test_an_edit_survives_generation_with_a_cache(toy: Any, toy_record: rl.data.Record) -> None:
    """Later steps of generation see one position at a time. The text is the same in either mode."""
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


def test_an_edit_saved_comes_back(one_toy: Any, toy_edit: rl.RankOneEdit, tmp_path: Any) -> None:
    loaded = rl.RankOneEdit.load(toy_edit.save(tmp_path / "edit.safetensors"))
    for name in ("u", "v", "key", "value", "losses"):
        assert torch.equal(getattr(loaded, name), getattr(toy_edit, name)), name
    plain = ("fact", "probability", "made_with", "variant", "config", "contexts", "stopped")
    for name in plain:
        assert getattr(loaded, name) == getattr(toy_edit, name), name
    found, expected = (
        logits(one_toy, fwd_hooks=edit.fwd_hooks(one_toy)) for edit in (loaded, toy_edit)
    )
    assert torch.equal(found, expected)


def test_an_edit_says_whether_bos_stood_before_its_prompts(
    one_toy: Any, toy_record: rl.data.Record, tmp_path: Any, monkeypatch: Any
) -> None:
    options: dict[str, Any] = {"layer": 1, "contexts": ["{}"]}
    statistics = rl.KeyStatistics.identity(one_toy, layer=1)
    rome = {**options, "statistics": statistics, "config": rl.RomeConfig(steps=1)}
    for default in (True, False):
        monkeypatch.setattr(one_toy.cfg, "default_prepend_bos", default)
        for said in (None, True, False):
            expected = default if said is None else said
            edits = (
                rl.rome(one_toy, toy_record.fact, prepend_bos=said, **rome),
                rl.fine_tune(one_toy, toy_record.fact, steps=1, prepend_bos=said, **options),
            )
            for edit in edits:
                assert edit.prepend_bos is expected
                assert f"prepend_bos={expected}" in edit.made_with
                loaded = type(edit).load(edit.save(tmp_path / "edit.safetensors"))
                assert loaded.prepend_bos is expected
    save_old(edits[0], tmp_path / "old.safetensors")
    assert rl.RankOneEdit.load(tmp_path / "old.safetensors").prepend_bos is None


def save_old(edit: Any, path: Any) -> None:
    """As a version wrote it that did not know of ``prepend_bos``."""
    with safe_open(edit.save(path), framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fields = json.loads(header["fields"])
    del fields["prepend_bos"]
    header = {name: header[name] for name in ("type", "versions")}  # there was no checksum either
    save_file(tensors, path, metadata={**header, "fields": json.dumps(fields)})


def test_an_edit_of_another_model_is_refused(
    toy: Any, toy_edit: rl.RankOneEdit, untouched: Any
) -> None:
    other = tiny("gpt2", CLASSES[0])
    untouched(toy)
    with pytest.raises(ModelError, match="shape"), toy_edit.applied(other):
        pass
    alien = dataclasses.replace(toy_edit, model_fingerprint="0" * 16)
    with pytest.raises(ModelError, match="other weights"):
        alien.fwd_hooks(toy)


def test_the_fingerprint_tells_weights_apart_but_not_edits(toy: Any) -> None:
    before = fingerprint(toy)
    with random_edit(toy).applied(toy):
        assert fingerprint(toy) == before
    assert fingerprint(tiny("gpt2", CLASSES[0])) != before


def test_an_edit_fires_fully_on_its_own_fact(toy: Any, toy_edit: rl.RankOneEdit) -> None:
    firing = rl.edit_firing(toy, toy_edit, toy_edit.fact.text)
    last = rl.forward.tokens.encode(toy, toy_edit.fact).subject_last
    assert float(firing.values[last]) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match="no key"):
        rl.edit_firing(toy, random_edit(toy), "It rained")


def test_applied_edits_go_in_any_order_and_what_stays_is_as_if_alone(
    few_tiny_models: Any, untouched: Any
) -> None:
    model = few_tiny_models
    untouched(model)
    edits = [
        random_edit(model),
        dense_edit(model, seed=1),
        random_edit(model, layer=3, seed=2),
    ]
    original = weights(model)
    alone = {}
    for size in range(3):
        for some in itertools.combinations(range(3), size):
            with ExitStack() as stack:
                for i in some:
                    stack.enter_context(edits[i].applied(model))
                alone[some] = weights(model)
    assert same(alone[()], original)
    for order in itertools.permutations(range(3)):
        for edit in edits:
            edit.apply(model)
        staying = {0, 1, 2}
        for i in order:
            edits[i].revert(model)
            staying -= {i}
            assert same(weights(model), alone[tuple(sorted(staying))])
            assert set(rl.applied_edits(model)) == {edits[j] for j in staying}
            assert [edit.is_applied(model) for edit in edits] == [j in staying for j in range(3)]


def test_the_weights_are_original_plus_the_deltas_in_order(few_tiny_models: Any) -> None:
    model = few_tiny_models
    first, second = random_edit(model), dense_edit(model, seed=1)
    expected = (w_out(model, 1) + first.delta) + second.delta
    with first.applied(model), second.applied(model):
        assert torch.equal(w_out(model, 1), expected)


def test_blocks_and_apply_mix_and_close_in_any_order(few_tiny_models: Any, untouched: Any) -> None:
    model = few_tiny_models
    untouched(model)
    first, second = random_edit(model), dense_edit(model, seed=1)
    original = weights(model)
    with second.applied(model):
        only_second = weights(model)
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(first.applied(model))
    inner.enter_context(second.applied(model))
    outer.close()
    assert same(weights(model), only_second)
    inner.close()
    assert same(weights(model), original)

    with first.applied(model):
        second.apply(model)
    assert same(weights(model), only_second)
    with first.applied(model), second.applied(model):
        second.revert(model)  # the one that was applied, not the one of the block
    assert same(weights(model), original)
    with (
        pytest.raises(ModelError),
        second.applied(model),
        first.applied(model),
        first.applied(model),
    ):
        random_edit(model, layer=2).revert(model)
    assert same(weights(model), original)


def test_an_edit_applied_twice_is_there_twice(few_tiny_models: Any, untouched: Any) -> None:
    model = few_tiny_models
    untouched(model)
    edit = random_edit(model)
    original = w_out(model, 1).clone()
    edit.apply(model)
    once = w_out(model, 1).clone()
    edit.apply(model)
    assert rl.applied_edits(model) == (edit, edit)
    assert torch.equal(w_out(model, 1), (original + edit.delta) + edit.delta)
    edit.revert(model)
    assert torch.equal(w_out(model, 1), once)
    with edit.applied(model):
        edit.revert(model)
        assert torch.equal(w_out(model, 1), once)
    assert torch.equal(w_out(model, 1), original)


def test_what_is_not_applied_cannot_be_reverted(few_tiny_models: Any, untouched: Any) -> None:
    model = few_tiny_models
    untouched(model)
    edit, other = random_edit(model), random_edit(model, seed=1)
    with pytest.raises(ModelError, match=r"is not applied, .* there are: none"):
        edit.revert(model)
    with (
        other.applied(model),
        pytest.raises(ModelError, match=r"is not applied, .* there are: RankOneEdit"),
    ):
        edit.revert(model)
    both = rl.Edits(edits=(other, edit))
    with other.applied(model):
        before = weights(model)
        with pytest.raises(ModelError, match="is not applied"):
            both.revert(model)
        assert same(weights(model), before)
    assert rl.applied_edits(model) == ()


def test_a_loaded_edit_takes_the_saved_one_back(
    few_tiny_models: Any, untouched: Any, tmp_path: Any
) -> None:
    model = few_tiny_models
    untouched(model)
    for edit in (random_edit(model), dense_edit(model)):
        edit.apply(model)
        loaded = type(edit).load(edit.save(tmp_path / "edit"))
        assert loaded.is_applied(model)
        loaded.revert(model)
        assert not edit.is_applied(model)


def test_other_codes_changes_are_not_lost(few_tiny_models: Any, untouched: Any) -> None:
    model = few_tiny_models
    untouched(model)
    edit, other = random_edit(model), random_edit(model, seed=1)
    original = w_out(model, 1).clone()
    edit.apply(model)
    w_out(model, 1)[0, 0] += 1.0
    changed = w_out(model, 1).clone()
    for call in (edit.revert, other.apply, rl.applied_edits):
        with pytest.raises(
            ModelError, match=r"other code has changed W_out of layer 1 .*keep_edits"
        ):
            call(model)
    with pytest.raises(ModelError, match="other code has changed"), other.applied(model):
        pass
    assert torch.equal(w_out(model, 1), changed)
    assert not edit.is_applied(model)
    assert rl.keep_edits(model) == (edit,)
    assert rl.applied_edits(model) == ()
    with other.applied(model):
        pass
    assert torch.equal(w_out(model, 1), changed)
    w_out(model, 1).copy_(original)


def test_a_block_restores_whatever_was_written_inside(few_tiny_models: Any, untouched: Any) -> None:
    model = few_tiny_models
    untouched(model)
    staying = random_edit(model, seed=1)
    with staying.applied(model):
        before = weights(model)
        with random_edit(model).applied(model):
            w_out(model, 1).fill_(float("nan"))
        assert same(weights(model), before)


def test_an_edit_with_nan_is_not_made() -> None:
    for number in (float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="u contain NaN or infinity"):
            rl.RankOneEdit(layer=1, u=torch.tensor([0.0, number]), v=torch.zeros(3))


def test_an_edit_that_overflows_the_models_type_is_refused(one_toy: Any) -> None:
    model = copy.deepcopy(one_toy).to(torch.float16)
    plain = dataclasses.replace(random_edit(one_toy), model_fingerprint=None)
    u, v = plain.u / plain.u.abs().max(), plain.v / plain.v.abs().max()
    large = dataclasses.replace(plain, u=u, v=7e4 * v)  # above float16's largest number, 65504
    hidden = dataclasses.replace(plain, u=1e-3 * u, v=7e4 * v)  # delta fits, v does not
    half = dataclasses.replace(plain, u=u, v=4e4 * v)  # each fits, both together do not
    before = w_out(model, 1).clone()
    for edit in (large, hidden, rl.Edits(edits=(half, half))):
        for use in (edit.apply, edit.fwd_hooks, in_a_block(edit)):
            with pytest.raises(ModelError, match=r"does not fit into torch\.float16"):
                use(model)
    half.check_addition(model)
    assert torch.equal(w_out(model, 1), before)


def in_a_block(edit: rl.Edit) -> Any:
    def use(model: Any) -> None:
        with edit.applied(model):
            pass

    return use


@pytest.mark.parametrize("way", ["loaded", "kept"])
def test_an_edit_that_is_in_the_weights_already_is_refused(
    toy: Any, toy_records: Any, toy_edits: list[rl.RankOneEdit], way: str
) -> None:
    fact = toy_records[0].fact
    tuned = rl.fine_tune(toy, fact, layer=2, steps=3, lr=1e-2, norm_constraint=0.05)
    bare = dataclasses.replace(toy_edits[0], key=None, value=None)
    both = rl.Edits(edits=(toy_edits[0], toy_edits[1]))
    for edit in (toy_edits[0], tuned, bare, both):
        other = copy.deepcopy(toy)
        if way == "loaded":
            other.load_state_dict(edit.state_dict(toy))
        else:
            edit.apply(other)
            rl.keep_edits(other)
        before = w_out(other, 2).clone()
        assert edit.is_applied(other)
        uses = [edit.apply, edit.fwd_hooks, edit.state_dict, in_a_block(edit)]
        uses += [lambda model, edit=edit: rl.row_hooks(model, [edit])]
        uses += [rl.Edits(edits=(toy_edits[2], *edit.parts)).apply]
        for use in uses:
            with pytest.raises(ModelError, match=r"carry .* already"):
                use(other)
        for check in (rl.check_limits, rl.evaluate):
            with pytest.raises(ModelError, match="already"):
                check(other, edit, toy_records[0])
        assert torch.equal(w_out(other, 2), before)
        toy_edits[3].check_addition(other)  # an edit of another fact is not taken for it


def test_no_edit_is_taken_for_one_that_is_in_the_weights(
    one_toy: Any, toy_records: Any, toy_edit: rl.RankOneEdit, toy_statistics: Any
) -> None:
    """A null edit, an edit made on top of another one, and two edits of one fact."""
    dataclasses.replace(toy_edit, v=0 * toy_edit.v).check_addition(one_toy)
    london = rl.Fact(
        toy_edit.fact.prompt,
        subject=toy_edit.fact.subject,
        target=toy_edit.fact.target,
        new_target=toy_records[1].fact.target,
    )
    made = rl.rome_sequence(
        one_toy,
        [toy_edit.fact, london],
        layer=2,
        statistics=toy_statistics,
        contexts=["{}"],
        config=rl.RomeConfig(steps=8),
    )
    with made.applied(one_toy):
        pass
    for edit in made.edits:
        edit.check_addition(one_toy)
    model = copy.deepcopy(one_toy)
    model.load_state_dict(made.edits[0].state_dict(one_toy))
    made.edits[1].check_addition(model)
    rl.rome(model, london, layer=2, statistics=toy_statistics, contexts=["{}"]).check_addition(
        model
    )


def test_an_edit_applied_twice_on_purpose_is_no_edit_of_the_weights(
    toy: Any, toy_edit: Any
) -> None:
    with toy_edit.applied(toy), toy_edit.applied(toy):
        assert len(rl.applied_edits(toy)) == 2
        assert not toy_edit.is_part_of_weights(toy)


def test_a_copy_of_the_model_has_its_own_edits(few_tiny_models: Any, untouched: Any) -> None:
    model = few_tiny_models
    untouched(model)
    edit = random_edit(model)
    original = w_out(model, 1).clone()
    with edit.applied(model):
        clone = copy.deepcopy(model)
    assert not edit.is_applied(model)
    assert torch.equal(w_out(clone, 1), original + edit.delta)
    assert edit.is_applied(clone)
    edit.revert(clone)
    assert torch.equal(w_out(clone, 1), original)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_half_precision_rounds_once_and_comes_back(
    family: str, model_class: str, untouched: Any
) -> None:
    model = in_dtype(fresh(family, model_class), torch.bfloat16)
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


def test_gradient_flags_and_modes_do_not_matter(few_tiny_models: Any, untouched: Any) -> None:
    model = few_tiny_models
    untouched(model)
    edit = random_edit(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    try:
        for flag in (True, False):
            for parameter in model.parameters():
                parameter.requires_grad_(flag)
            with torch.enable_grad(), edit.applied(model):
                assert all(parameter.requires_grad is flag for parameter in model.parameters())
            with torch.inference_mode():
                edit.apply(model)
            edit.revert(model)
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
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


def test_an_edit_that_came_in_another_way_is_found_by_its_numbers(
    toy: Any, toy_edit: rl.RankOneEdit
) -> None:
    other = rl.load_model("toy", model_class=type(toy).__name__)
    assert not toy_edit.is_applied(other)
    other.load_state_dict(toy_edit.state_dict(toy))
    assert toy_edit.is_applied(other)
    assert rl.applied_edits(other) == ()
    # Another edit that is known to be applied does not hide it.
    random_edit(other).apply(other)
    assert toy_edit.is_applied(other)


def test_another_edit_of_the_fact_is_not_taken_for_the_one_that_is_applied(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    """Both map the same ``k*`` to the same ``v*``, with another ``u``."""
    plain = rl.KeyStatistics.identity(one_toy, layer=1)
    moment = plain.moment * torch.linspace(1, 2, len(plain.moment), dtype=torch.float64)
    options: Any = {"layer": 1, "contexts": ["{}"], "config": rl.RomeConfig(steps=3)}
    one, other = (
        rl.rome(one_toy, toy_record.fact, statistics=each, **options)
        for each in (plain, dataclasses.replace(plain, moment=moment))
    )
    with one.applied(one_toy):
        mapped = mlp_output(one_toy, 1, other.key)
        torch.testing.assert_close(mapped, other.value, atol=1e-3, rtol=1e-3)
        assert one.is_applied(one_toy)
        assert not other.is_applied(one_toy)
        with other.applied(one_toy):
            assert other.is_applied(one_toy)


def test_an_edit_is_not_applied_to_a_model_that_has_no_place_for_it(
    one_toy: Any, toy_record: rl.data.Record, toy_edit: rl.RankOneEdit
) -> None:
    other = tiny("gpt2", "TransformerBridge")
    deeper = dataclasses.replace(toy_edit, layer=99)
    cases = ((other, toy_edit), (one_toy, deeper), (one_toy, rl.Edits(edits=(deeper,))))
    for model, strange in cases:
        assert not strange.is_applied(model)
        with pytest.raises(ModelError, match="is not applied"):
            strange.revert(model)
        with pytest.raises(ModelError, match=r"out of range|shape of W_out"):
            rl.evaluate(model, strange, toy_record)


def test_the_refusal_says_what_differs(one_toy: Any) -> None:
    edit = random_edit(one_toy)
    alien = rl.RankOneEdit(layer=1, u=edit.u[1:], v=edit.v, model_fingerprint="0" * 16)
    with pytest.raises(
        ModelError, match=r"shape of W_out at layer 1.*and the fingerprint.*0000.*other weights"
    ):
        alien.apply(one_toy)
    with pytest.raises(ModelError) as refusal:
        rl.RankOneEdit(layer=1, u=edit.u, v=edit.v, model_fingerprint="0" * 16).check(one_toy)
    assert "shape" not in str(refusal.value)
    with pytest.raises(ModelError, match="Layer 99 is out of range"):
        rl.RankOneEdit(layer=99, u=edit.u, v=edit.v).apply(one_toy)


def test_an_edit_made_with_another_prompt_is_evaluated_with_a_warning(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    fact = toy_record.fact
    elsewhere = rl.Fact(
        "{} was born in", subject=fact.subject, target=fact.target, new_target=fact.new_target
    )
    with pytest.warns(OtherPromptWarning, match="another prompt than the record's"):
        rl.evaluate(one_toy, dataclasses.replace(random_edit(one_toy), fact=elsewhere), toy_record)
    same_text = rl.Fact.from_text(
        fact.text, subject=fact.subject, target=fact.target, new_target=fact.new_target
    )
    rl.evaluate(one_toy, dataclasses.replace(random_edit(one_toy), fact=same_text), toy_record)
