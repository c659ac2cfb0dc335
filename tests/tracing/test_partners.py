"""Counterfactuals for many facts."""

from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.forward.tokens import encode
from rome_lens.tracing.noise import NoiseError


def test_partners_fit_and_a_trace_with_them_is_that_of_the_single_counterfactual(
    one_toy: Any, toy_records: list[rl.data.Record]
) -> None:
    swapped = rl.Counterfactuals.among(one_toy, toy_records)
    facts = {record.fact for record in toy_records}
    assert facts == {fact for fact, _ in swapped.partners} | set(swapped.alone)
    assert len(swapped.partners) == 9
    for fact, partner in swapped.partners:
        own, other = encode(one_toy, fact), encode(one_toy, partner)
        assert (fact.prompt, own.subject) == (partner.prompt, other.subject)
        assert fact.target != partner.target
        start, end = own.subject
        differing = (own.tokens != other.tokens).nonzero().flatten().tolist()
        assert differing
        assert set(differing) <= set(range(start, end))
    fact, partner = swapped.partners[0]
    found = rl.causal_trace(one_toy, fact, noise=swapped)
    single = rl.causal_trace(one_toy, fact, noise=rl.Counterfactual(subject=partner.subject))
    assert torch.equal(found.sample_scores, single.sample_scores)


def test_the_corrupted_run_gives_the_partner_s_answer(
    one_toy: Any, toy_records: list[rl.data.Record]
) -> None:
    swapped = rl.Counterfactuals.among(one_toy, toy_records)
    facts = swapped.contrasted(toy_records)
    assert [fact.new_target for fact in facts] == [
        partner.target for _, partner in swapped.partners
    ]
    traced = rl.trace_facts(one_toy, facts, noise=swapped, metric="logit_difference", layers=[0])
    for trace in traced:
        assert trace.clean > 2.0
        assert trace.corrupted < -2.0


def test_a_fact_without_a_partner_is_named(one_toy: Any, toy_records: list[rl.data.Record]) -> None:
    one = toy_records[0].fact
    twin = rl.Fact(one.prompt, subject=toy_records[1].fact.subject, target=one.target)
    swapped = rl.Counterfactuals.among(one_toy, [one, twin])
    assert (swapped.partners, swapped.alone) == ((), (one, twin))  # the same target
    other = rl.Fact(one.prompt, subject=one.subject, target=toy_records[1].fact.target)
    assert rl.Counterfactuals.among(one_toy, [one, other]).partners == ()  # the same subject
    assert swapped.contrasted([one]) == []
    with pytest.raises(NoiseError, match="has no partner among these facts"):
        rl.causal_trace(one_toy, one, noise=swapped)


def test_a_store_tells_other_partners_from_these(
    one_toy: Any, toy_records: list[rl.data.Record], tmp_path: Any
) -> None:
    some = rl.Counterfactuals.among(one_toy, toy_records)
    others = rl.Counterfactuals.among(one_toy, toy_records[::-1])
    assert len(repr(some)) < 80
    assert repr(some) != repr(others)
    assert repr(some) == repr(rl.Counterfactuals.among(one_toy, toy_records))
    facts = some.contrasted(toy_records)[:1]
    rl.trace_facts(one_toy, facts, noise=some, directory=tmp_path, layers=[1])
    with pytest.raises(ValueError, match="noise"):
        rl.trace_facts(one_toy, facts, noise=others, directory=tmp_path, layers=[1])
