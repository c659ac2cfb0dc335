"""Generated text: it is what a plain sampling loop writes, under each edit, and its scores."""

import dataclasses
from typing import Any

import pytest
import torch
from evaluation_for_tests import dense, rank_one

import rome_lens as rl
from rome_lens.evaluation.fluency import ngram_entropy, tfidf_similarity
from rome_lens.forward.sampling import sample_continuations, sample_tokens


def test_texts_are_those_of_a_plain_sampling_loop(few_tiny_models: Any, untouched: Any) -> None:
    """Prompts of several lengths in a batch, each under its own edit; the loop runs one at a
    time."""
    model = few_tiny_models
    untouched(model)
    prompts = ["Wanda Brandt lives in", "Yesterday Wanda Brandt from the city of Pralec said", "It"]
    edits = [rank_one(model), None, dense(model)]
    found = sample_continuations(
        model,
        prompts,
        new_tokens=4,
        seeds=[1, 2, 3],
        marks=[0, 1, 2],
        hooks_of_rows=lambda marks: rl.row_hooks(model, [edits[mark] for mark in marks]),
    )
    for text, prompt, seed, edit in zip(found, prompts, [1, 2, 3], edits, strict=True):
        ids = model.to_tokens(prompt)[0].tolist()
        start = len(ids)
        drawn = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for u in drawn:
            with torch.no_grad():
                hooks = [] if edit is None else edit.fwd_hooks(model)
                logits = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0, -1]
            best = logits.topk(5)
            below = best.values.double().softmax(-1).cumsum(-1)
            ids.append(int(best.indices[int((below[:-1] <= u).sum())]))
        assert text.strip() == model.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_sampling_takes_the_models_probabilities(toy: Any) -> None:
    """Tokens are drawn as often as their probability among the five most likely ones says."""
    prompt, count = "Yesterday", 512
    ids = toy.to_tokens(prompt)
    with torch.no_grad():
        best = toy(ids)[0, -1].topk(5)
    drawn = sample_continuations(toy, [prompt] * count, new_tokens=1, seeds=range(count))
    shares = [
        sum(text.strip() == toy.tokenizer.decode([i]).strip() for text in drawn) / count
        for i in best.indices.tolist()
    ]
    assert shares == pytest.approx(best.values.softmax(-1).tolist(), abs=0.08)


def test_samples_from_bos_alone_are_the_models_own(toy: Any) -> None:
    """BOS is the padding token here, which HookedTransformer's generate would take for padding."""
    bos = toy.tokenizer.bos_token_id
    assert bos == toy.tokenizer.pad_token_id
    rows = sample_tokens(toy, [[bos]] * 64, new_tokens=6, seed=0, top_k=1)
    assert (rows == rows[0]).all()
    row = [bos]
    with torch.no_grad():
        for _ in range(6):
            row.append(int(toy(torch.tensor([row]))[0, -1].argmax()))
    assert rows[0].tolist() == row


def test_samples_follow_the_models_distribution(toy: Any) -> None:
    bos = toy.tokenizer.bos_token_id
    count = 4000
    drawn = sample_tokens(toy, [[bos]] * count, new_tokens=1, seed=0)[:, 1]
    with torch.no_grad():
        expected = toy(torch.tensor([[bos]]))[0, -1].softmax(-1)
    found = torch.bincount(drawn, minlength=len(expected)) / count
    assert float((found - expected).abs().max()) < 4 * 0.5 / count**0.5


def test_a_user_s_hook_on_a_position_by_its_number_acts_on_it_alone_while_sampling(
    toy: Any,
) -> None:
    start = toy.to_tokens("Wanda Brandt lives in the city of")[0].tolist()

    def push(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, 3] = -3.0 * value[:, 3]
        return value

    point = "blocks.1.hook_resid_post"
    plain = sample_tokens(toy, [start], new_tokens=2, seed=0, top_k=1)[0].tolist()
    expected = list(start)
    with toy.hooks(fwd_hooks=[(point, push)]), torch.no_grad():
        found = sample_tokens(toy, [start], new_tokens=2, seed=0, top_k=1)[0].tolist()
        for _ in range(2):
            expected.append(int(toy(torch.tensor([expected]))[0, -1].argmax()))
        text = sample_continuations(
            toy, ["Wanda Brandt lives in the city of"], new_tokens=2, seeds=[1], top_k=1
        )
    assert found == expected != plain
    assert text == [toy.tokenizer.decode(expected)[len(toy.tokenizer.decode(start)) :]]


def test_generation_is_seeded_and_scored(one_toy: Any, toy_record: rl.data.Record) -> None:
    record = dataclasses.replace(
        toy_record,
        generation_prompts=("Yesterday Wanda Brandt told me a", "Wanda Brandt is"),
        reference_texts=("Ondavel is a city.",),
    )
    first, again = (rl.evaluate(one_toy, None, record, generate=12) for _ in range(2))
    other = rl.evaluate(one_toy, None, record, generate=12, seed=1)
    assert first == again
    assert first.texts != other.texts
    assert (first.continued, len(first.texts)) == (
        "generation prompts",
        len(record.generation_prompts),
    )
    assert all(
        text.startswith(prompt)
        for text, prompt in zip(first.texts, record.generation_prompts, strict=True)
    )
    entropies = [ngram_entropy(text) for text in first.texts]
    assert sum(entropies) / len(entropies) == pytest.approx(first.GE, abs=1e-12)
    assert tfidf_similarity(first.texts, record.reference_texts) == first.RS
    assert toy_record.open_prompts
    opened = rl.evaluate(one_toy, None, toy_record, generate=2)
    assert opened.continued == "generation prompts"
    assert len(opened.texts) == len(toy_record.open_prompts)
    without = dataclasses.replace(record, generation_prompts=(), open_prompts=())
    assert rl.evaluate(one_toy, None, without, generate=2).continued == "paraphrases"
