"""The value's optimisation against a plain loop over the model, and what must not change it."""

import copy
import dataclasses
import inspect
from typing import Any

import pytest
import torch
from models_for_tests import CLASSES, in_dtype, last_logits, reference_model, tiny
from plain_value import plain_value

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing.edited_layer import EditedLayer
from rome_lens.editing.new_target import LikelyTargetWarning
from rome_lens.editing.prompts import EditRows
from rome_lens.editing.side_by_side import FirstTokenWarning, ProcessedModelWarning
from rome_lens.editing.value_optimisation import descent
from rome_lens.forward.runs import evaluating, in_float32
from rome_lens.forward.tokens import encode
from rome_lens.models.lens import ModelError, w_out

# Lookup positions near each other and far from each other.
CONTEXTS = [
    "{}",
    "It was raining. {}",
    "It rained. {}",
    "Somebody said that {}",
    "A long way off, in the north, {}",
]
CONFIG = rl.RomeConfig(steps=4, lr=0.05, stop_loss=0.0)


def value(
    model: Any, fact: rl.Fact, *, layer: int = 1, config: rl.RomeConfig = CONFIG, **options: Any
) -> Any:
    statistics = rl.KeyStatistics.identity(model, layer=layer)
    options = {"contexts": CONTEXTS, **options}
    return rl.rome(model, fact, layer=layer, statistics=statistics, config=config, **options)


def test_the_later_layers_alone_give_what_the_whole_model_gives(
    tiny_model: Any, fact: rl.Fact
) -> None:
    assert_equals_the_plain_loop(tiny_model, fact, layer=1)


def test_the_first_and_the_next_to_last_layer_are_optimised_as_any_other(
    few_tiny_models: Any, fact: rl.Fact
) -> None:
    # In the last layer, what is written at the subject reaches no prediction of the target.
    for layer in (0, few_tiny_models.cfg.n_layers - 2):
        assert_equals_the_plain_loop(few_tiny_models, fact, layer=layer)


def assert_equals_the_plain_loop(model: Any, fact: rl.Fact, layer: int) -> None:
    model = in_dtype(copied(model), torch.float64)
    config = dataclasses.replace(CONFIG, steps=2)
    with evaluating(model):
        delta, losses = plain_value(model, fact, layer=layer, contexts=CONTEXTS, config=config)
        rows = EditRows.of(model, fact, CONTEXTS, None)
        state = EditedLayer.of(model, [rows], layer)
        steps = [step for outcomes in descent(state, [rows], config) for step in outcomes.values()]
    found = torch.tensor([(step.nll, step.kl, step.decay) for step in steps], dtype=torch.float64)
    assert (losses[-1] > 0).all()  # every term of the loss counts
    torch.testing.assert_close(found, losses, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(steps[-1].delta, delta, atol=1e-6, rtol=1e-6)


def copied(model: Any) -> Any:
    # A run with gradients leaves a graph in the Bridge's attention, which cannot be copied.
    with torch.no_grad():
        model(torch.tensor([[0, 1]]))
    return copy.deepcopy(model)


def test_rows_run_from_their_lookup_positions_on(toy: Any, toy_record: rl.data.Record) -> None:
    rows = EditRows.of(toy, toy_record.fact, CONTEXTS, None)
    state = EditedLayer.of(toy, [rows], 1)
    # The KL prompt begins as the bare prompt does, and needs no row of its own.
    assert state.rows.stream.shape[:2] == (len(CONTEXTS), rows.later_positions)
    assert state.rows.stream[..., 0].numel() < rows.tokens.numel() / 2


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_hook_at_one_position_of_the_final_norm_means_what_it_means_in_a_whole_run(
    model_class: str, fact: rl.Fact
) -> None:
    model = tiny("llama", model_class)

    def shift(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        # Only the longest row is read at the last position.
        value[:, -1] += torch.linspace(-1.0, 1.0, value.shape[-1])
        return value

    is_bridge = model_class == "TransformerBridge"
    name = "unembed.hook_in" if is_bridge else "ln_final.hook_normalized"
    with model.hooks(fwd_hooks=[(name, shift)]):
        with evaluating(model):
            _, losses = plain_value(model, fact, layer=1, contexts=CONTEXTS, config=CONFIG)
        hooked = value(model, fact)
    torch.testing.assert_close(hooked.losses, losses, atol=2e-4, rtol=1e-4)
    assert (hooked.losses - value(model, fact).losses).abs().max() > 1e-3


def mean_key(model: Any, fact: rl.Fact, layer: int) -> torch.Tensor:
    keys = []
    for context in CONTEXTS:
        asked = rl.Fact(
            context.replace("{}", fact.prompt), subject=fact.subject, target=fact.target
        )
        encoded = encode(model, asked)
        _, cache = model.run_with_cache(encoded.tokens[None])
        keys.append(cache[f"blocks.{layer}.mlp.hook_post"][0, encoded.subject_last])
    return torch.stack(keys).mean(0).detach()


def test_r_rome_maps_the_mean_key_to_the_value(few_tiny_models: Any, fact: rl.Fact) -> None:
    """And the original does not, but maps the bare prompt's."""
    edits = {
        variant: value(few_tiny_models, fact, variant=variant) for variant in ("rome", "r-rome")
    }
    key = mean_key(few_tiny_models, fact, 1)
    torch.testing.assert_close(edits["r-rome"].key, key, atol=1e-4, rtol=1e-4)
    assert torch.equal(edits["rome"].u, edits["r-rome"].u)
    assert torch.equal(edits["rome"].value, edits["r-rome"].value)
    torch.testing.assert_close(edits["rome"].u, key / key.norm(), atol=1e-4, rtol=1e-4)
    missed = {}
    for variant, edit in edits.items():
        bias = getattr(few_tiny_models.blocks[1].mlp, "b_out", None)
        with edit.applied(few_tiny_models):
            mapped = (key @ w_out(few_tiny_models, 1) + (0.0 if bias is None else bias)).detach()
        missed[variant] = float((mapped - edit.value).norm() / edit.value.norm())
    assert missed["r-rome"] < 1e-4 < 1e-2 < missed["rome"]
    assert edits["r-rome"].variant == "r-rome"


def processed_pair(model_class: str) -> tuple[Any, Any]:
    """The reference model as it came, and with its norms folded and its writing weights centred."""
    plain = reference_model(model_class, torch.float32)
    processed = copied(plain)
    if model_class == "HookedTransformer":
        processed.load_and_process_state_dict(processed.state_dict())
    else:
        processed.enable_compatibility_mode(disable_warnings=True)
    return plain, processed


@pytest.mark.parametrize("model_class", CLASSES)
def test_centred_norms_give_the_same_value_on_a_processed_model_and_plain_ones_warn(
    model_class: str, fact: rl.Fact
) -> None:
    plain, processed = processed_pair(model_class)
    tokens = torch.arange(1, 12)[None]
    expected = last_logits(plain, tokens).log_softmax(-1)
    torch.testing.assert_close(
        last_logits(processed, tokens).log_softmax(-1), expected, atol=1e-4, rtol=1e-4
    )
    plainly = rl.RomeConfig(steps=3, lr=0.05, stop_loss=0.0, weight_decay=5.0, clamp=0.3)
    config = dataclasses.replace(plainly, norms="centred")
    before, after = (
        value(model, fact, config=config, prepend_bos=False) for model in (plain, processed)
    )
    torch.testing.assert_close(after.losses, before.losses, atol=1e-4, rtol=1e-3)
    change = [(edit.key @ edit.u) * edit.v for edit in (before, after)]
    assert float((change[0] - change[1]).norm()) < 1e-2 * float(change[0].norm())
    with pytest.warns(ProcessedModelWarning, match="centred"):
        other = value(processed, fact, config=plainly, prepend_bos=False)
    expected = value(plain, fact, config=plainly, prepend_bos=False)
    assert float((other.losses - expected.losses).abs().max()) > 10 * float(
        (after.losses - before.losses).abs().max()
    )


@pytest.mark.parametrize(
    ("model_class", "dtype"),
    [(CLASSES[0], torch.float16), *((each, torch.bfloat16) for each in CLASSES)],
)
def test_half_precision_is_edited_almost_as_in_float64(
    model_class: str, dtype: torch.dtype, fact: rl.Fact, untouched: Any
) -> None:
    """The layers run in half precision. The edited layer, the value and the loss do not."""
    half = in_dtype(copied(tiny("gpt2", model_class)), dtype)
    half(torch.tensor([[0, 1]]))
    untouched(half)
    precise = in_dtype(copied(half), torch.float64)
    config = dataclasses.replace(CONFIG, steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(half), "__deepcopy__", None, raising=False)  # no copy of the model
        found = value(half, fact, config=config)
    expected = value(precise, fact, config=config)
    assert found.u.dtype == found.v.dtype == torch.float32
    error = (found.delta - expected.delta).norm() / expected.delta.norm()
    assert error < 16 * torch.finfo(dtype).eps
    precise, config = in_float32(half), dataclasses.replace(CONFIG, steps=2)
    options: Any = {"layer": 1, "steps": 2, "lr": 0.01, "norm_constraint": 0.02}
    tuned, expected = (rl.fine_tune(model, fact, **options) for model in (half, precise))
    assert tuned.delta.dtype == torch.float32
    torch.testing.assert_close(tuned.losses, expected.losses, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(tuned.delta, expected.delta, atol=1e-6, rtol=1e-4)
    assert w_out(half, 1).dtype == dtype


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_made_in_inference_mode_is_edited_as_any_other(
    model_class: str, toy_record: rl.data.Record, untouched: Any
) -> None:
    expected = rl.load_model("toy", model_class=model_class)
    with torch.inference_mode():
        made = rl.load_model("toy", model_class=model_class)
    untouched(made)
    quick = rl.RomeConfig(steps=2)
    for each in (
        lambda model: value(model, toy_record.fact, config=quick, contexts=["{}"]),
        lambda model: rl.fine_tune(model, toy_record.fact, layer=1, steps=1),
    ):
        assert torch.equal(each(made).delta, each(expected).delta)


@pytest.mark.skipif("HookedTransformer" not in CLASSES, reason="HookedTransformer's own flag")
def test_keys_repeated_for_each_query_head_change_nothing(fact: rl.Fact) -> None:
    def results(model: Any) -> list[torch.Tensor]:
        tuned = rl.fine_tune(model, fact, layer=1, steps=2)
        trace = rl.causal_trace(model, fact, require_correct=False)
        written = rl.forward.answers.answer_log_probs(model, [(fact.text, fact.target)])
        return [value(model, fact).v, tuned.delta, trace.scores, written]

    model = copied(tiny("llama", "HookedTransformer"))
    expected, contexts = results(model), rl.random_contexts(model, prefixes=2)
    model.set_ungroup_grouped_query_attention(True)
    for found, each in zip(results(model), expected, strict=True):
        torch.testing.assert_close(found, each, atol=1e-4, rtol=1e-4)
    assert rl.random_contexts(model, prefixes=2) == contexts
    tokens = rl.forward.sampling.sample_continuations(
        model, ["It was", "Then it was"], new_tokens=3, seeds=[0, 1]
    )
    model.set_ungroup_grouped_query_attention(False)
    assert (
        rl.forward.sampling.sample_continuations(
            model, ["It was", "Then it was"], new_tokens=3, seeds=[0, 1]
        )
        == tokens
    )


@pytest.mark.skipif(
    "HookedTransformer" not in CLASSES, reason="the Bridge's generate asks for no mask"
)
def test_a_forward_that_the_caller_put_before_the_models_own_is_called_and_stays() -> None:
    model = copied(tiny("gpt2", "HookedTransformer"))
    expected, calls = rl.random_contexts(model, prefixes=2), []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return type(model).forward(model, *args, **options)

    model.forward = counted
    assert rl.random_contexts(model, prefixes=2) == expected
    assert calls
    assert vars(model)["forward"] is counted
    assert "get_residual" not in vars(model)


@pytest.mark.parametrize("model_class", CLASSES)
def test_weights_that_are_not_finite_are_named(
    model_class: str, toy_record: rl.data.Record
) -> None:
    model = rl.load_model("toy", model_class=model_class)
    w_out(model, 2).fill_(float("nan"))
    for method in (value, lambda model, fact: rl.fine_tune(model, fact, layer=1)):
        with pytest.raises(ModelError, match=r"own logits.*not finite"):
            method(model, toy_record.fact)


@pytest.mark.parametrize("model_class", CLASSES)
def test_autocast_around_an_edit_changes_nothing_of_it(model_class: str, fact: rl.Fact) -> None:
    model = tiny("llama", model_class)
    expected, tuned = value(model, fact), rl.fine_tune(model, fact, layer=1, steps=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, again = value(model, fact), rl.fine_tune(model, fact, layer=1, steps=3)
    for name in ("u", "v", "losses"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(again.delta, tuned.delta)


def test_a_new_target_that_is_already_the_answer_is_refused(
    one_toy: Any, toy_edit: rl.RankOneEdit
) -> None:
    fact = toy_edit.fact
    said = rl.Fact(
        fact.prompt, subject=fact.subject, target=str(fact.new_target), new_target=fact.target
    )
    methods = (value, lambda model, fact: rl.fine_tune(model, fact, layer=1))
    for method in methods:
        with pytest.raises(FactError, match="already answered"):
            method(one_toy, said)
    with toy_edit.applied(one_toy):
        for method in methods:
            with pytest.raises(FactError, match="already answered"):
                method(one_toy, fact)


def test_a_new_target_that_is_likeliest_and_not_sure_is_edited_with_a_warning_at_the_callers_line(
    one_toy: Any,
) -> None:
    leaning = rl.Fact(
        "{} lives in the city of", subject="Nobody", target="Pralec", new_target="Almera"
    )
    (answers,) = rl.top_answers(one_toy, [leaning.text])
    assert answers.tokens[0].strip() == leaning.new_target
    assert answers.probabilities[0] < 0.5
    rome = {
        "statistics": rl.KeyStatistics.identity(one_toy, layer=1),
        "contexts": ["{}"],
        "config": CONFIG,
    }
    for edit, options in ((rl.rome, rome), (rl.fine_tune, {"steps": 1})):
        with pytest.warns(
            LikelyTargetWarning, match="already the model's most likely answer"
        ) as caught:
            # Otherwise the caller is the tests' own check of types.
            inspect.unwrap(edit)(one_toy, leaning, layer=1, **options)
        assert [warning.filename for warning in caught] == [__file__]


def test_targets_that_share_their_first_token_are_told_apart(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    """The whole target is optimised, so its later tokens follow too."""
    fact = toy_record.fact
    new = rl.Fact(
        fact.prompt,
        subject=fact.subject,
        target=fact.target,
        new_target=f"{fact.target} and {fact.new_target}",
    )
    encoded = encode(one_toy, new)
    assert encoded.answer[0] == encoded.new_answer[0]
    assert len(encoded.new_answer) > 2
    edit = value(one_toy, new, config=rl.RomeConfig(steps=10), contexts=["{}"])
    asked = [(new.text, str(new.new_target))]
    before = rl.answer_log_probs(one_toy, asked)
    after = rl.answer_log_probs(one_toy, asked, fwd_hooks=edit.fwd_hooks(one_toy))
    assert float(after) > float(before) + 1.0


def test_a_subject_that_is_the_first_token_of_all_is_warned_about(one_toy: Any) -> None:
    first = rl.Fact("{} lives in the city of", subject="A", target="Pralec", new_target="Ondavel")
    assert encode(one_toy, first, prepend_bos=False).subject_last == 0
    with pytest.warns(FirstTokenWarning, match="prepend_bos=True"):
        value(one_toy, first, prepend_bos=False)
    value(one_toy, first, prepend_bos=True)
