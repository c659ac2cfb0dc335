"""Analyses without and with an edit give what TransformerLens' own give in the same two runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.errors import ArgumentError
from rome_lens.models.lens import ModelError


def two_runs(model: Any, edit: Any, text: str) -> list[tuple[Any, Any]]:
    """Logits and cache of TransformerLens' own runs, with the edit off and in the weights."""
    tokens = model.to_tokens(text)
    runs = []
    with torch.no_grad():
        runs.append(model.run_with_cache(tokens))
        with edit.applied(model):
            runs.append(model.run_with_cache(tokens))
    return runs


def answer_ids(model: Any, fact: rl.Fact) -> list[int]:
    return [model.to_single_token(f" {answer}") for answer in (fact.target, fact.new_target)]


def test_the_logit_lens_is_that_of_transformer_lens(toy: Any, toy_edit: Any) -> None:
    fact = toy_edit.fact
    found = rl.logit_lens(toy, toy_edit)
    assert found.states == ("embed", *map(str, range(toy.cfg.n_layers)))
    ids = answer_ids(toy, fact)
    for (logits, cache), own in zip(
        two_runs(toy, toy_edit, fact.text), (found.before, found.after), strict=True
    ):
        stack = [cache["blocks.0.hook_resid_pre"]]
        stack += [cache[f"blocks.{i}.hook_resid_post"] for i in range(toy.cfg.n_layers)]
        with torch.no_grad():
            expected = toy.unembed(toy.ln_final(torch.cat(stack)))[:, -1].softmax(-1)[:, ids]
        assert torch.allclose(own, expected, atol=1e-5)
        assert torch.allclose(own[-1], logits[0, -1].softmax(-1)[ids], atol=1e-5)


def test_where_the_new_answer_takes_over_is_the_first_state_from_which_it_stays_ahead() -> None:
    from house.results_for_tests import EXAMPLES

    lens: Any = EXAMPLES["LogitLens"]
    for new, expected in (
        ([0.1, 0.9, 0.9], "0"),
        ([0.9, 0.1, 0.9], "1"),
        ([0.9, 0.9, 0.9], "embed"),
        ([0.9, 0.9, 0.1], None),
    ):
        after = torch.tensor([[0.5, each] for each in new])
        assert replace(lens, after=after).takes_over == expected


def test_the_parts_of_a_logit_difference_are_linear_in_the_components_and_add_up(
    toy: Any, toy_edit: Any
) -> None:
    found = rl.direct_logit_attribution(toy, toy_edit)
    true, new = answer_ids(toy, toy_edit.fact)
    direction = (toy.unembed.W_U[:, new] - toy.unembed.W_U[:, true]).detach()
    norm = toy.ln_final.state_dict()
    weight = next((value for name, value in norm.items() if name.endswith("w")), None)
    weight = toy.ln_final.weight.detach() if weight is None else weight
    for (logits, cache), own, total in (
        (*zip_two, found_part, found_total)
        for *zip_two, found_part, found_total in (
            (run, found.before, found.total_before)
            if i == 0
            else (run, found.after, found.total_after)
            for i, run in enumerate(two_runs(toy, toy_edit, toy_edit.fact.text))
        )
    ):
        scale = cache["ln_final.hook_scale"][0, -1]
        names = ["blocks.0.hook_resid_pre"]
        for i in range(toy.cfg.n_layers):
            names += [f"blocks.{i}.hook_attn_out", f"blocks.{i}.hook_mlp_out"]
        parts = torch.stack([cache[name][0, -1] for name in names])
        expected = ((parts - parts.mean(-1, keepdim=True)) / scale * weight) @ direction
        assert torch.allclose(own, expected, atol=2e-4)
        assert total == pytest.approx(float(logits[0, -1, new] - logits[0, -1, true]), abs=2e-4)


def test_parts_and_biases_add_up_to_the_logits_of_every_family(
    tiny_model: Any, fact: rl.Fact
) -> None:
    found = rl.direct_logit_attribution(tiny_model, None, fact)
    true, new = answer_ids(tiny_model, fact)
    with torch.no_grad():
        logits = tiny_model(tiny_model.to_tokens(fact.text))[0, -1].double()
        nothing = tiny_model.ln_final(torch.zeros(1, 1, tiny_model.cfg.d_model))[0, 0]
        biases = nothing @ (tiny_model.unembed.W_U[:, new] - tiny_model.unembed.W_U[:, true])
    bias = getattr(tiny_model.unembed, "b_U", None)
    offset = float(biases)
    if bias is not None:
        offset += float((bias[new] - bias[true]).detach())
    cap = tiny_model.cfg.output_logits_soft_cap
    if cap and cap > 0.0:
        logits = cap * torch.atanh(logits / cap)
    expected = float(logits[new] - logits[true])
    assert abs(expected) > 1e-2
    assert found.total_before == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert float(found.before.sum()) + offset == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert torch.equal(found.before, found.after)


def test_attention_is_that_of_the_two_runs_and_each_look_sums_to_one(
    toy: Any, toy_edit: Any
) -> None:
    found = rl.compare_attention(toy, toy_edit, toy_edit.fact.text, layer=4)
    runs = two_runs(toy, toy_edit, toy_edit.fact.text)
    for (_, cache), own in zip(runs, (found.before, found.after), strict=True):
        assert torch.allclose(own, cache["blocks.4.attn.hook_pattern"][0], atol=1e-5)
    assert torch.allclose(found.after.sum(-1), torch.ones(found.after.shape[:2]), atol=1e-5)
    by_hand = (found.after[:, -1] - found.before[:, -1]).clamp(min=0.0).sum(-1)
    assert torch.allclose(found.changes, by_hand, atol=1e-5)
    before = rl.compare_attention(toy, toy_edit, toy_edit.fact.text, layer=toy_edit.layer)
    assert float(before.changes.max()) < 1e-5  # heads of the edited layer come before its MLP


def test_log_probs_and_ranks_are_those_of_the_logits(toy: Any, toy_edit: Any) -> None:
    text = toy_edit.fact.stated(toy_edit.fact.new_target)
    found = rl.compare_log_probs(toy, toy_edit, text, count=3)
    tokens = toy.to_tokens(text)[0]
    for (logits, _), own, ranks, top in (
        (run, own, ranks, top)
        for run, own, ranks, top in zip(
            two_runs(toy, toy_edit, text),
            (found.before, found.after),
            (found.ranks_before, found.ranks_after),
            (found.top_log_probs_before, found.top_log_probs_after),
            strict=True,
        )
    ):
        log_p = logits[0, :-1].log_softmax(-1)
        expected = log_p.gather(-1, tokens[1:, None])[:, 0]
        assert torch.allclose(own, expected, atol=1e-4)
        assert ranks == tuple((log_p > expected[:, None]).sum(-1).tolist())
        assert torch.allclose(top, log_p.topk(3).values, atol=1e-4)
    assert (found.first, found.labels[-1]) == (toy.tokenizer.bos_token, ".")


def test_texts_are_what_the_model_generates_without_and_with_the_edit(
    toy: Any, toy_edit: Any
) -> None:
    prompts = [toy_edit.fact.text, "Oskar Marchetti lives in"]
    found = rl.compare_text(toy, toy_edit, prompts, samples=2, new_tokens=4)
    assert found.draws == ["greedy", "sample 1", "sample 2"]

    def greedy(prompt: str) -> str:
        tokens = toy.generate(
            toy.to_tokens(prompt),
            max_new_tokens=4,
            do_sample=False,
            verbose=False,
            stop_at_eos=False,
            return_type="tokens",
        )
        written = tokens[0, len(toy.to_tokens(prompt)[0]) :]
        return toy.tokenizer.decode(written, skip_special_tokens=True)

    assert [own[0] for own in found.before] == [greedy(prompt) for prompt in prompts]
    with toy_edit.applied(toy):
        assert [own[0] for own in found.after] == [greedy(prompt) for prompt in prompts]
    assert found.before[0][0] != found.after[0][0]
    assert (found.target, found.new_target) == (toy_edit.fact.target, toy_edit.fact.new_target)
    alone = rl.compare_text(toy, toy_edit, prompts[1:], samples=2, new_tokens=4)
    assert alone.before[0] == found.before[1]
    unedited = rl.compare_text(toy, rl.Unedited()(toy, toy_edit.fact), prompts, new_tokens=4)
    assert unedited.before == unedited.after


def test_what_cannot_be_compared_is_refused(one_toy: Any, toy_edit: Any) -> None:
    nameless = rl.RankOneEdit(layer=toy_edit.layer, u=toy_edit.u, v=toy_edit.v)
    one_sided = rl.Fact("{} lives in", subject="Hugo Kessler", target="Pralec")
    twins = rl.Fact("{} is in", subject="Hugo Kessler", target="Pralec", new_target="Pralec town")
    for ask in (rl.logit_lens, rl.direct_logit_attribution):
        with pytest.raises(ArgumentError, match="does not name one"):
            ask(one_toy, nameless)
        with pytest.raises(ArgumentError, match="has no new target"):
            ask(one_toy, toy_edit, one_sided)
        with pytest.raises(ArgumentError, match="do not part"):
            ask(one_toy, toy_edit, twins)
        with toy_edit.applied(one_toy), pytest.raises(ModelError, match="carry the edit already"):
            ask(one_toy, toy_edit)
    with pytest.raises(FactError, match="at least two tokens"):
        rl.compare_log_probs(one_toy, None, "", count=1)
    with pytest.raises(FactError, match="The text is empty"):
        rl.compare_attention(one_toy, None, "", layer=0)
    with pytest.raises(FactError, match="prompts is empty"):
        rl.compare_text(one_toy, toy_edit, [])
    with pytest.raises(ModelError, match="out of range"):
        rl.compare_attention(one_toy, None, "a", layer=99)


def test_results_of_a_model_that_carries_an_edit_say_so(one_toy: Any, toy_edit: Any) -> None:
    assert rl.causal_trace(one_toy, toy_edit.fact, samples=1, layers=[0]).model_name == "toy"
    with toy_edit.applied(one_toy):
        trace = rl.causal_trace(
            one_toy, toy_edit.fact, samples=1, layers=[0], require_correct=False
        )
    assert trace.model_name == "toy with 1 edit in its weights"
