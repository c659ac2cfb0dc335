"""The path of an edit, against a plain loop over the cells, and in worlds made for it."""

import dataclasses
import html
import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from models_for_tests import FEW_TINY, tiny

import rome_lens as rl
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import encode
from rome_lens.models.hook_names import component_hook, key_hook

LAYER = 1


def edit_of(model: Any, fact: rl.Fact, *, scale: float = 2.0) -> rl.RankOneEdit:
    """A random rank-one edit that fires with 1 on the fact's last subject token."""
    kept: dict[str, torch.Tensor] = {}

    def keep(value: torch.Tensor, hook: Any) -> None:
        kept["key"] = value.detach().clone()

    encoded = encode(model, fact)
    with torch.no_grad():
        model.run_with_hooks(encoded.tokens[None], fwd_hooks=[(key_hook(LAYER), keep)])
    key = kept["key"][0, encoded.subject_last].float()
    generator = torch.Generator().manual_seed(3)
    v = scale * torch.randn(model.cfg.d_model, generator=generator)
    return rl.RankOneEdit(layer=LAYER, u=key / (key @ key), v=v, key=key, value=v, fact=fact)


def plain_loop(
    model: Any, edit: rl.RankOneEdit, fact: rl.Fact, component: str, direction: str
) -> tuple[torch.Tensor, float, float]:
    """Probabilities ``[layer, pos]`` of the new target, and those with and without the edit."""
    encoded = encode(model, fact)
    tokens, answer = encoded.tokens[None], encoded.new_answer[0]
    names = [component_hook(component, layer) for layer in range(model.cfg.n_layers)]

    def keeping(into: dict[str, torch.Tensor]) -> list[Any]:
        def keep(value: torch.Tensor, hook: Any, *, name: str) -> None:
            into[name] = value.detach().clone()

        return [(name, partial(keep, name=name)) for name in names]

    def put(value: torch.Tensor, hook: Any, *, state: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        for pos in range(len(value)):
            value[pos, pos] = state[0, pos]
        return value

    def run(rows: int, hooks: list[Any]) -> torch.Tensor:
        with torch.no_grad():
            logits = model.run_with_hooks(tokens.expand(rows, -1), fwd_hooks=hooks)[:, -1]
        return logits.double().softmax(-1)[:, answer]

    with_edit: dict[str, torch.Tensor] = {}
    without: dict[str, torch.Tensor] = {}
    unedited = float(run(1, keeping(without)))
    with edit.applied(model):
        edited = float(run(1, keeping(with_edit)))
    source = with_edit if direction == "denoising" else without
    with nullcontext() if direction == "denoising" else edit.applied(model):
        # A row per position, of which each layer's run replaces one state.
        scores = [run(tokens.shape[1], [(n, partial(put, state=source[n]))]) for n in names]
    return torch.stack(scores).float(), edited, unedited


@pytest.mark.parametrize("family", FEW_TINY, ids=lambda pair: "-".join(pair))
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_trace_of_an_edit_equals_the_plain_loop(
    direction: Any, family: tuple[str, str], fact: rl.Fact, untouched: Any
) -> None:
    model = tiny(*family)
    untouched(model)
    edit = edit_of(model, fact)
    for component in ("resid", "mlp", "attn"):
        trace = rl.trace_edit(model, edit, component=component, direction=direction)  # type: ignore[arg-type]
        expected, edited, unedited = plain_loop(model, edit, fact, component, direction)
        assert abs(edited / unedited - 1.0) > 0.05
        assert (trace.clean, trace.corrupted) == pytest.approx((edited, unedited), rel=1e-3)
        torch.testing.assert_close(trace.scores, expected, atol=1e-7, rtol=1e-3)
        assert trace.indirect_effects[:LAYER].abs().max() < 1e-6
    last = rl.trace_edit(model, edit, layers=[model.cfg.n_layers - 1], direction=direction)
    replaced = edited if direction == "denoising" else unedited
    assert float(last.scores[0, -1]) == pytest.approx(replaced, rel=1e-3)


def test_heads_add_up_to_no_more_than_attention_carries(one_toy: Any, toy_edit: Any) -> None:
    """In the toy's last layers, attention at the last token fetches what the edit wrote."""
    trace = rl.trace_edit(one_toy, toy_edit)
    start, end = trace.subject
    layer = toy_edit.layer
    assert float(trace.scores[layer, end - 1]) > 0.9 * trace.clean
    assert float(trace.indirect_effects[:layer].abs().max()) < 1e-6
    assert trace.indirect_effects[:, :start].abs().max() < 0.05
    mlp = rl.trace_edit(one_toy, toy_edit, component="mlp")
    assert mlp.peak() == (layer, end - 1)
    assert mlp.scores[layer, end - 1] == pytest.approx(trace.clean, abs=0.05)
    heads = rl.trace_edit(one_toy, toy_edit, component="z", positions=[-1])
    attention = rl.trace_edit(one_toy, toy_edit, component="attn", positions=[-1], window=3)
    assert heads.scores.shape == (one_toy.cfg.n_layers, 1, one_toy.cfg.n_heads)
    assert float(attention.scores.max()) > 0.5 * trace.clean
    assert float(heads.scores.max()) <= float(attention.scores.max()) + 0.05


def test_an_edit_takes_the_path_of_the_true_target(one_toy: Any, toy_edit: Any) -> None:
    natural = rl.causal_trace(one_toy, toy_edit.fact)
    trace = rl.trace_edit(one_toy, toy_edit)
    assert trace.path_correlation(natural) > 0.5
    at_last = rl.causal_trace(one_toy, toy_edit.fact, positions=[-1], layers=[0, 1])
    assert math.isnan(trace.path_correlation(at_last))
    with pytest.raises(ArgumentError, match="The causal trace has component 'mlp'"):
        trace.path_correlation(rl.causal_trace(one_toy, toy_edit.fact, component="mlp"))


def test_an_edit_whose_key_is_absent_and_one_that_is_not_read_out_are_told_apart(
    one_toy: Any, toy_edit: Any, toy_records: list[rl.data.Record]
) -> None:
    other = toy_records[5].fact.subject
    absent = rl.trace_edit(one_toy, toy_edit, toy_edit.fact.about(other))
    assert "The key is absent" in absent.reading
    assert absent.total_effect < 0.3
    own = rl.trace_edit(one_toy, toy_edit)
    assert own.strongest_firing == (own.subject[1] - 1, pytest.approx(1.0, abs=0.05))
    assert "key fires 1.0" in own.reading
    assert "not read out" not in own.reading
    # The same key, and a value that says nothing.
    silent = rl.RankOneEdit(
        layer=toy_edit.layer,
        u=toy_edit.u,
        v=1e-3 * toy_edit.v,
        key=toy_edit.key,
        value=toy_edit.value,
        fact=toy_edit.fact,
    )
    assert "What is written is not read out" in rl.trace_edit(one_toy, silent).reading


def test_an_edit_that_brings_the_new_target_first_is_read_out_however_far_it_is_from_certain(
    one_toy: Any, toy_edit: Any
) -> None:
    """Values scaled so that the new target just overtakes the true one, or just does not."""
    fact, options = toy_edit.fact, {"layers": [toy_edit.layer], "positions": [-1]}
    assert fact.new_target is not None
    both = [(fact.text, fact.new_target), (fact.text, fact.target)]
    low, high = 0.0, 1.0
    for _ in range(8):
        scale = (low + high) / 2
        with dataclasses.replace(toy_edit, v=scale * toy_edit.v).applied(one_toy):
            new, true = rl.answer_log_probs(one_toy, both)
        low, high = (low, scale) if new > true else (scale, high)
    first = dataclasses.replace(toy_edit, v=high * toy_edit.v)
    second = dataclasses.replace(toy_edit, v=low * toy_edit.v)
    with first.applied(one_toy):
        chosen = rl.Fact(fact.prompt, subject=fact.subject, target=fact.new_target)
        assert rl.knows(one_toy, chosen) == [True]
    for metric in ("probability", "log_prob"):
        trace = rl.trace_edit(one_toy, first, metric=metric, **options)
        assert trace.overtakes
        assert "not read out" not in trace.reading
        late = rl.trace_edit(one_toy, second, metric=metric, **options)
        assert late.overtakes is False
        assert "What is written is not read out" in late.reading
    assert math.exp(trace.clean) < 0.5


def test_bos_is_left_out_of_the_strongest_firing(one_toy: Any, toy_edit: Any) -> None:
    """An edit that fires with 5 on BOS, prepended or written out, and with 1 on its own key."""
    bos, fact = one_toy.tokenizer.bos_token, toy_edit.fact
    with torch.no_grad():
        _, cache = one_toy.run_with_cache(bos, prepend_bos=False)
    keys = torch.stack([cache[key_hook(toy_edit.layer)][0, 0].float().cpu(), toy_edit.key.float()])
    u = torch.linalg.pinv(keys) @ torch.tensor([5.0, 1.0])
    planted = dataclasses.replace(toy_edit, u=u)
    written = f"{bos}{fact.text}"
    for prompt, prepend_bos in ((None, True), (written, False)):
        trace = rl.trace_edit(
            one_toy, planted, prompt, prepend_bos=prepend_bos, layers=[2], positions=[-1]
        )
        assert trace.labels[0] == bos
        assert trace.firing[0] == pytest.approx(5.0, abs=1e-3)
        strongest = trace.strongest_firing
        assert strongest is not None
        assert strongest[0] == trace.subject[1] - 1
        assert f"key fires {strongest[1]:.2f}" in trace.reading
    bare = rl.trace_edit(one_toy, planted, prepend_bos=False, layers=[2], positions=[-1])
    assert not bare.begins_with_bos
    assert bare.strongest_firing == max(enumerate(bare.firing), key=lambda each: abs(each[1]))


def test_any_prompt_can_be_asked(one_toy: Any, toy_edit: Any) -> None:
    """One that does not name the subject counts whole as the subject."""
    fact = toy_edit.fact
    as_text = rl.trace_edit(one_toy, toy_edit, fact.text)
    assert torch.equal(as_text.scores, rl.trace_edit(one_toy, toy_edit).scores)
    assert as_text.fact.target == fact.new_target
    reverse = rl.trace_edit(one_toy, toy_edit, f"The city of {fact.new_target} is the home of")
    assert reverse.subject[1] == len(reverse.labels)
    own = rl.answer_log_probs(one_toy, [(reverse.fact.text, str(fact.new_target))]).exp()
    assert reverse.answer_tokens == 1
    assert reverse.corrupted == pytest.approx(float(own), abs=1e-5)


def test_metrics_are_of_the_new_target(one_toy: Any, toy_edit: Any) -> None:
    logits = rl.trace_edit(one_toy, toy_edit, metric="logit_difference")
    assert logits.corrupted < 0.0 < logits.clean
    kl = rl.trace_edit(one_toy, toy_edit, metric="kl")
    assert kl.clean == pytest.approx(0.0, abs=1e-5)
    assert kl.corrupted < -1.0


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_traced_is_refused(one_toy: Any, toy_edit: Any) -> None:
    nameless = rl.RankOneEdit(layer=toy_edit.layer, u=toy_edit.u, v=toy_edit.v)
    with pytest.raises(ArgumentError, match="does not say what it is of"):
        rl.trace_edit(one_toy, nameless)
    found = rl.trace_edit(one_toy, nameless, toy_edit.fact)
    assert (found.firing, found.strongest_firing) == ((), None)
    with pytest.raises(ArgumentError, match="expected an edit of W_out"):
        rl.trace_edit(one_toy, toy_edit.fact)
    with toy_edit.applied(one_toy), pytest.raises(ArgumentError, match="weights already"):
        rl.trace_edit(one_toy, toy_edit)


def test_a_trace_of_an_edit_is_stored_and_shown(one_toy: Any, toy_edit: Any, tmp_path: Any) -> None:
    trace = rl.trace_edit(one_toy, toy_edit, layers=[1, 2], direction="noising")
    again = rl.EditTrace.load(trace.save(tmp_path / "trace.safetensors"))
    assert torch.equal(again.scores, trace.scores)
    for name in ("firing", "edited_layers", "begins_with_bos", "overtakes", "reading"):
        assert getattr(again, name) == getattr(trace, name)
    title = rl.viz.trace(trace).get_suptitle()
    assert "Trace of an edit of layer 2" in title
    assert f"edited {trace.clean:.3f}, unedited {trace.corrupted:.3f}" in title
    assert html.escape(trace.reading) in trace._repr_html_()
