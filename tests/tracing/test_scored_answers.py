"""What a trace scores: the token that tells the answer apart, or the whole answer."""

from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.forward.tokens import encode
from rome_lens.models.hook_names import EMBED
from rome_lens.tracing.clean_run import FactNotKnownError

FEW: dict[str, Any] = {"samples": 2, "layers": [1, 3]}
NUMBERS = ("1945", "1066")


def asked(record: rl.data.Record, target: str, new_target: str | None = None) -> rl.Fact:
    fact = record.fact
    return rl.Fact(fact.prompt, subject=fact.subject, target=target, new_target=new_target)


def next_token(model: Any, ids: tuple[int, ...] | list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, -1].log_softmax(-1)


def test_numbers_whose_first_token_is_a_space_are_told_apart(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    facts = [asked(toy_record, number) for number in NUMBERS]
    first, second = (encode(one_toy, fact).answer for fact in facts)
    assert first[:2] == second[:2]
    assert one_toy.tokenizer.decode([first[0]]).strip() == ""
    for kind in (rl.causal_trace, rl.attribution_trace):
        years = [kind(one_toy, fact, require_correct=False, **FEW) for fact in facts]
        assert [trace.answer.strip() for trace in years] == list(NUMBERS)
        assert [trace.answer_tokens for trace in years] == [5, 5]
        assert years[0].clean != years[1].clean
        log_probs = rl.answer_log_probs(one_toy, [(fact.text, fact.target) for fact in facts])
        assert [trace.clean for trace in years] == pytest.approx(log_probs.double().exp().tolist())


def test_an_answer_is_scored_where_it_parts_from_the_new_target(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    """The score is that of a plain run of the prompt and of what both answers share."""
    fact = asked(toy_record, *NUMBERS)
    encoded = encode(one_toy, fact)
    given, scored = encoded.answer[:2], encoded.answer[2]
    prompt = (*encoded.tokens.tolist(), *given)
    length = encoded.subject[1] - encoded.subject[0]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, length, one_toy.cfg.d_model, generator=generator)
    trace = rl.causal_trace(
        one_toy, fact, noise=noise, layers=[1], positions=[4], require_correct=False
    )
    assert (trace.given, trace.answer, trace.answer_tokens) == (" 1", "9", 1)
    assert trace.clean == pytest.approx(float(next_token(one_toy, prompt)[scored].exp()), rel=1e-4)

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, slice(*encoded.subject)] += noise
        return value

    def restore(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, 4] = clean[hook.name][:, 4]
        return value

    state = "blocks.1.hook_resid_post"
    tokens = torch.tensor([prompt])
    _, clean = one_toy.run_with_cache(tokens, names_filter=state)
    with torch.no_grad():
        logits = one_toy.run_with_hooks(tokens, fwd_hooks=[(EMBED, corrupt), (state, restore)])
    expected = float(logits[0, -1].log_softmax(-1)[scored].exp())
    assert float(trace.scores) == pytest.approx(expected, rel=1e-4)


def test_without_a_shared_beginning_the_first_token_is_scored(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    alone = rl.causal_trace(one_toy, asked(toy_record, toy_record.fact.target), **FEW)
    against = rl.causal_trace(one_toy, toy_record.fact, **FEW)
    assert (against.given, against.answer_tokens) == ("", 1)
    assert torch.equal(alone.sample_scores, against.sample_scores)


def test_a_new_target_that_continues_the_target_leaves_the_whole_answer(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    target = toy_record.fact.target
    trace = rl.causal_trace(one_toy, asked(toy_record, target, f"{target} {target}"), **FEW)
    assert (trace.given, trace.answer.strip()) == ("", target)


def test_require_correct_means_what_knows_means(one_toy: Any, toy_record: rl.data.Record) -> None:
    target = toy_record.fact.target
    facts = [
        toy_record.fact,
        *(asked(toy_record, words) for words in (target, f"{target} {target}", *NUMBERS)),
        asked(toy_record, target, f"{target} {target}"),
    ]
    traced = []
    for fact in facts:
        try:
            rl.causal_trace(one_toy, fact, samples=1, layers=[0], positions=[0])
            traced.append(True)
        except FactNotKnownError:
            traced.append(False)
    assert traced == rl.knows(one_toy, facts) == [True, True, False, False, False, True]


def test_facts_of_one_run_may_be_scored_by_one_token_or_by_all(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    year = rl.causal_trace(one_toy, asked(toy_record, "1945"), require_correct=False, samples=1)
    name = rl.causal_trace(one_toy, toy_record, samples=1)
    whole = rl.causal_trace(one_toy, toy_record, samples=1, answer="whole")
    assert rl.average_traces([year, name]).fact_effects.shape[0] == 2
    with pytest.raises(ValueError, match="scoring 'whole', but that of"):
        rl.average_traces([year, whole])


def test_a_first_token_that_is_a_part_of_a_number_or_letter_is_not_scored_alone(
    one_toy: Any,
) -> None:
    for prompt, targets in (
        ('{} said: "', ("1945", "1066")),
        ('{} said: "', ("1,000", "1,500")),
        ('{} said: "', ("(a)", "(b)")),
        ("{}位于", ("巴黎", "巴西")),
    ):
        facts = [rl.Fact(prompt, subject="Wanda Brandt", target=target) for target in targets]
        first, second = (encode(one_toy, fact).answer for fact in facts)
        assert first[0] == second[0]
        traces = [rl.causal_trace(one_toy, fact, require_correct=False, **FEW) for fact in facts]
        assert [trace.answer for trace in traces] == list(targets)
        assert traces[0].clean != traces[1].clean


def test_facts_that_are_scored_otherwise_are_traced_each(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    fact = toy_record.fact
    words = {"subject": fact.subject, "target": fact.target}
    facts = [rl.Fact(fact.prompt, joiner=joiner, **words) for joiner in (" ", "", "\n")]
    traced = rl.trace_facts(one_toy, facts, **FEW)
    assert [each.fact for each in traced] == facts[:1]
    assert [each for each, _ in traced.unknown] == facts[1:]
    # Two new targets that part from the target at different tokens are two questions.
    towns = [
        rl.Fact(fact.prompt, subject=fact.subject, target="New York", new_target=new)
        for new in ("New Delhi", "Norwich")
    ]
    answers = [
        rl.causal_trace(one_toy, town, require_correct=False, **FEW).answer for town in towns
    ]
    assert answers[0] != answers[1]
    assert len(rl.trace_facts(one_toy, towns, **FEW).unknown) == 2
    assert len(rl.trace_facts(one_toy, [fact, toy_record, fact], **FEW)) == 1
