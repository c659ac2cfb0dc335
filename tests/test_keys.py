"""The second moment of keys: what it averages, when it can be solved, what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import REFERENCE

import rome_lens as rl
from rome_lens.keys import StatisticsError
from rome_lens.models import ModelError, key_hook
from rome_lens.sampling import random_contexts, sample_tokens

TEXTS = [
    "Wanda Brandt lives in the city of Pralec.",
    "It was raining",
    "A",
    "Every day somebody works as a baker. Then",
]


def plain_moment(model: Any, texts: list[str], layer: int) -> tuple[torch.Tensor, int]:
    rows = []
    for text in texts:
        with torch.no_grad():
            _, cache = model.run_with_cache(model.to_tokens(text), names_filter=lambda name: name == key_hook(layer))
        rows.append(cache[key_hook(layer)][0].double())
    keys = torch.cat(rows)
    return sum(torch.outer(key, key) for key in keys) / len(keys), len(keys)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_the_moment_is_the_mean_of_outer_products(tiny_model: Any, layer: int) -> None:
    """Over every real token, one text at a time, none of the padding; the last layer too."""
    expected, count = plain_moment(tiny_model, TEXTS, layer)
    found = rl.collect_key_statistics(tiny_model, layer=layer, texts=TEXTS, batch_size=3)
    assert found.count == count
    torch.testing.assert_close(found.moment, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-4)


def test_the_moment_of_the_reference_corpus_is_the_original_one(reference64: Any) -> None:
    arrays = np.load(REFERENCE / "mom2.npz")
    tokens = torch.tensor(arrays["tokens"].astype(np.int64))
    total = torch.zeros(384, 384, dtype=torch.float64)
    for batch in tokens.split(100):
        keys = rl.forward.keys_of(reference64, batch.clamp(min=0), 2)[batch >= 0]
        total += keys.T @ keys
    torch.testing.assert_close(total / int(arrays["count"]), torch.tensor(arrays["C.f64"]), atol=1e-10, rtol=1e-10)


def test_solving_inverts_the_moment(toy: Any) -> None:
    statistics = rl.collect_key_statistics(toy, layer=1, sample_count=64, sample_length=48)
    assert statistics.count == 64 * 48
    key = torch.randn(statistics.moment.shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(statistics.moment @ statistics.solve(key), key, atol=1e-6, rtol=1e-6)
    ridge = 0.1
    scaled = statistics.moment + ridge * statistics.moment.diagonal().mean() * torch.eye(len(key), dtype=torch.float64)
    torch.testing.assert_close(scaled @ statistics.solve(key, ridge=ridge), key, atol=1e-8, rtol=1e-8)


def test_too_few_keys_are_refused_without_a_ridge(toy: Any) -> None:
    statistics = rl.collect_key_statistics(toy, layer=1, texts=TEXTS)
    key = torch.ones(statistics.moment.shape[0])
    with pytest.raises(StatisticsError, match=rf"{statistics.count} keys, fewer than its width .*ridge"):
        statistics.solve(key)
    assert torch.isfinite(statistics.solve(key, ridge=1e-3)).all()


def test_the_identity_solves_to_the_key_itself(toy: Any) -> None:
    key = torch.arange(rl.models.w_out(toy, 2).shape[0], dtype=torch.float64)
    assert torch.equal(rl.KeyStatistics.identity(toy, layer=2).solve(key), key)


def test_samples_are_the_same_for_the_same_seed_and_leave_the_random_state(toy: Any, untouched: Any) -> None:
    untouched(toy)
    first, again, other = (
        rl.collect_key_statistics(toy, layer=1, sample_count=8, sample_length=20, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.moment, again.moment)
    assert not torch.equal(first.moment, other.moment)


def test_samples_continue_their_openings(toy: Any) -> None:
    bos = toy.tokenizer.bos_token_id
    start = [[bos, 5, 6], [bos, 7, 8]]
    tokens = sample_tokens(toy, start, new_tokens=4, seed=0)
    assert tokens.shape == (2, 7)
    assert tokens[:, :3].tolist() == start


def test_statistics_are_cached_by_model_layer_and_source(toy: Any, tmp_path: Any, monkeypatch: Any) -> None:
    first = rl.collect_key_statistics(toy, layer=1, texts=TEXTS, cache=tmp_path)
    other_layer = rl.collect_key_statistics(toy, layer=2, texts=TEXTS, cache=tmp_path)
    other_texts = rl.collect_key_statistics(toy, layer=1, texts=TEXTS[:2], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr("rome_lens.key_sums.run_through", lambda *args: pytest.fail("it was collected again"))
    again = rl.collect_key_statistics(toy, layer=1, texts=TEXTS, cache=tmp_path)
    assert torch.equal(again.moment, first.moment)
    assert (again.count, again.source) == (first.count, first.source)
    assert not torch.equal(other_layer.moment, first.moment)
    assert other_texts.count < first.count


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": 99}, ModelError, "layers 0 to"),
        ({"layer": 1, "texts": []}, StatisticsError, "no token"),
        ({"layer": 1, "sample_length": 1}, StatisticsError, "sample_length"),
        ({"layer": 1, "sample_count": 0}, StatisticsError, "sample_count"),
    ],
)
def test_wrong_input_is_refused(
    toy: Any, untouched: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    untouched(toy)
    with pytest.raises(error, match=message):
        rl.collect_key_statistics(toy, **options)


def test_random_contexts_are_the_bare_one_and_twenty_more(toy: Any, untouched: Any) -> None:
    untouched(toy)
    contexts = random_contexts(toy)
    assert contexts[0] == "{}"
    assert len(contexts) == 21
    assert all(context.startswith("The") and context.endswith(". {}") for context in contexts[1:])
    assert contexts == random_contexts(toy)
