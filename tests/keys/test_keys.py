"""The second moment of keys: what it averages, when it can be solved, what it refuses."""

import copy
import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import CLASSES, REFERENCE, in_dtype, reference_model

import rome_lens as rl
from rome_lens.editing.contexts import random_contexts
from rome_lens.forward.sampling import sample_continuations, sample_tokens
from rome_lens.keys import sources, sums
from rome_lens.keys.collecting import EditedModelWarning, StatisticsError
from rome_lens.models.hook_names import key_hook
from rome_lens.models.lens import ModelError
from rome_lens.models.loading import from_directory
from rome_lens.storage import StorageError

TEXTS = [
    "Wanda Brandt lives in the city of Pralec.",
    "It was raining",
    "A",
    "Every day somebody works as a baker. Then",
]


@pytest.fixture(scope="session")
def one_reference64() -> Any:
    """The reference model in double precision on one class."""
    return reference_model(CLASSES[0], torch.float64)


def plain_moment(model: Any, texts: list[str], layer: int) -> tuple[torch.Tensor, int]:
    """One text at a time."""
    rows, name = [], key_hook(layer)
    for text in texts:
        with torch.no_grad():
            _, cache = model.run_with_cache(model.to_tokens(text), names_filter=name)
        rows.append(cache[name][0].double())
    keys = torch.cat(rows)
    return sum(torch.outer(key, key) for key in keys) / len(keys), len(keys)


def test_the_moment_is_the_mean_of_outer_products(tiny_model: Any) -> None:
    """Over every real token and none of the padding, at several layers and at the last one."""
    together = rl.collect_key_statistics(tiny_model, layer=(3, 0, 2), texts=TEXTS, batch_size=3)
    assert list(together) == [3, 0, 2]
    for layer, found in together.items():
        expected, count = plain_moment(tiny_model, TEXTS, layer)
        assert (found.layer, found.count) == (layer, count)
        torch.testing.assert_close(
            found.moment, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-4
        )


def test_several_layers_in_one_pass_are_each_alone_and_leave_the_model(
    few_tiny_models: Any, untouched: Any
) -> None:
    untouched(few_tiny_models)
    together = collect(few_tiny_models, layer=(3, 0, 2), texts=TEXTS)
    for layer, found in together.items():
        alone = collect(few_tiny_models, layer=layer, texts=TEXTS)
        assert_equal(found, alone, tolerance=1e-12)


def test_the_moment_of_the_reference_corpus_is_the_original_one(one_reference64: Any) -> None:
    arrays = np.load(REFERENCE / "mom2.npz")
    tokens = torch.tensor(arrays["tokens"].astype(np.int64))
    found = rl.collect_key_statistics(one_reference64, layer=2, tokens=tokens, batch_size=100)
    assert found.count == int(arrays["count"])
    torch.testing.assert_close(found.moment, torch.tensor(arrays["C.f64"]), atol=1e-10, rtol=1e-10)
    assert torch.equal(found.moment, found.moment.T)


def test_solving_inverts_the_moment(toy_statistics: rl.KeyStatistics) -> None:
    assert toy_statistics.count == 64 * 32
    moment = toy_statistics.moment
    key = torch.randn(len(moment), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(moment @ toy_statistics.solve(key), key, atol=1e-6, rtol=1e-6)
    ridge = 0.1
    identity = torch.eye(len(key), dtype=torch.float64)
    scaled = moment + ridge * moment.diagonal().mean() * identity
    solved = toy_statistics.solve(key, ridge=ridge)
    torch.testing.assert_close(scaled @ solved, key, atol=1e-8, rtol=1e-8)


def test_too_few_keys_are_refused_without_a_ridge(one_toy: Any) -> None:
    statistics = rl.collect_key_statistics(one_toy, layer=1, texts=TEXTS)
    key = torch.ones(statistics.moment.shape[0])
    with pytest.raises(
        StatisticsError, match=rf"{statistics.count} keys, fewer than its width .*ridge"
    ):
        statistics.solve(key)
    assert torch.isfinite(statistics.solve(key, ridge=1e-3)).all()


def test_the_identity_solves_to_the_key_itself(one_toy: Any) -> None:
    key = torch.arange(rl.models.w_out(one_toy, 2).shape[0], dtype=torch.float64)
    assert torch.equal(rl.KeyStatistics.identity(one_toy, layer=2).solve(key), key)


def test_samples_are_the_same_for_the_same_seed_and_leave_the_random_state(
    toy: Any, untouched: Any
) -> None:
    untouched(toy)
    first, again, other = (
        rl.collect_key_statistics(toy, layer=1, sample_count=8, sample_length=20, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.moment, again.moment)
    assert not torch.equal(first.moment, other.moment)


def test_samples_continue_their_openings(toy: Any) -> None:
    bos = toy.tokenizer.bos_token_id
    start = [[bos, 5, 6], [bos, 7, 8]]
    tokens = sample_tokens(toy, start, new_tokens=4, seed=0)
    assert tokens.shape == (2, 7)
    assert tokens[:, :3].tolist() == start


def test_statistics_are_cached_by_model_layer_and_source(
    one_toy: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    first = rl.collect_key_statistics(one_toy, layer=1, texts=TEXTS, cache=tmp_path)
    other_layer = rl.collect_key_statistics(one_toy, layer=2, texts=TEXTS, cache=tmp_path)
    other_texts = rl.collect_key_statistics(one_toy, layer=1, texts=TEXTS[:2], cache=tmp_path)
    assert len(kept(tmp_path)) == 3
    monkeypatch.setattr(sums, "run_through", lambda *args: pytest.fail("it was collected again"))
    again = rl.collect_key_statistics(one_toy, layer=1, texts=TEXTS, cache=tmp_path)
    assert torch.equal(again.moment, first.moment)
    assert (again.count, again.source) == (first.count, first.source)
    assert not torch.equal(other_layer.moment, first.moment)
    assert other_texts.count < first.count


def kept(directory: Any) -> list[str]:
    """The results in a cache."""
    return sorted(path.name for path in directory.glob("*.safetensors"))


def collect(model: Any, **options: Any) -> Any:
    return rl.collect_key_statistics(model, **{"layer": 1, **options})


def assert_equal(
    found: rl.KeyStatistics, expected: rl.KeyStatistics, *, tolerance: float = 0.0
) -> None:
    assert (found.layer, found.count) == (expected.layer, expected.count)
    torch.testing.assert_close(found.moment, expected.moment, atol=tolerance, rtol=tolerance)


MANY = [f"{TEXTS[i % 4]} {TEXTS[i * 7 % 3]}"[: 5 + i * 13 % 60] for i in range(300)]


def test_layers_may_come_in_any_iterable_and_from_numpy_or_torch(
    one_toy: Any, tmp_path: Any
) -> None:
    for layers in (
        np.array([2, 0]),
        list(np.array([2, 0])),
        torch.tensor([2, 0]),
        range(2, -1, -2),
        {2: "", 0: ""}.keys(),
        (layer for layer in (2, 0, 2)),
    ):
        found = collect(one_toy, layer=layers, texts=TEXTS, cache=tmp_path)
        assert list(found) == [2, 0], layers
        assert all(type(layer) is type(one.layer) is int for layer, one in found.items())
    assert len(kept(tmp_path)) == 2


def test_a_layer_number_from_numpy_or_torch_is_an_int(
    one_toy: Any, tmp_path: Any, unchecked: None
) -> None:
    for layer in (np.int64(1), np.array(1), torch.tensor(1)):
        collected = collect(one_toy, layer=layer, texts=TEXTS, cache=tmp_path)
        assert type(collected.layer) is int
        identity = rl.KeyStatistics.identity(one_toy, layer=layer)
        assert rl.KeyStatistics.load(identity.save(tmp_path / "identity")).layer == 1
        counted = dataclasses.replace(identity, layer=layer, count=layer)
        assert (type(counted.layer), type(counted.count)) == (int, int)


def test_what_is_not_a_whole_number_is_refused_by_name(one_toy: Any, unchecked: None) -> None:
    def expect(name: str, wrong: Any) -> Any:
        message = re.escape(f"{name} is {wrong!r}, expected a whole number")
        return pytest.raises(StatisticsError, match=message)

    for wrong in (1.5, True, "1"):
        for name in ("layer", "max_tokens", "batch_size", "sample_length"):
            with expect(name, wrong):
                collect(one_toy, **{name: wrong})
    for wrong in (1.5, True, "1", None):
        with expect("layer", wrong):
            rl.KeyStatistics.identity(one_toy, layer=wrong)


def test_the_forward_runs_once_and_stops_at_the_last_layer(toy: Any) -> None:
    ran: list[str] = []
    watch = [
        (key_hook(layer), lambda _value, hook: ran.append(hook.name))
        for layer in range(toy.cfg.n_layers)
    ]
    with toy.hooks(fwd_hooks=watch):
        collect(toy, layer=(0, 1), texts=TEXTS)
    assert len(ran) == len(set(ran)) == 2


def test_the_batch_size_changes_nothing_but_rounding(one_reference64: Any) -> None:
    expected = collect(one_reference64, texts=MANY[:60], batch_size=1)
    for size in (7, 500):
        found = collect(one_reference64, texts=MANY[:60], batch_size=size)
        assert_equal(found, expected, tolerance=1e-12)
    limited = [
        collect(one_reference64, texts=MANY[:60], max_tokens=101, batch_size=size)
        for size in (1, 16)
    ]
    assert_equal(limited[1], limited[0], tolerance=1e-12)


def test_a_stream_of_texts_or_of_rows_gives_what_the_list_gives(one_toy: Any) -> None:
    texts = MANY[:135]  # more than one chunk
    expected = collect(one_toy, texts=texts)
    assert_equal(collect(one_toy, texts=iter(texts), source="mine"), expected)
    rows = ({"id": 3, "words": text} for text in texts)
    assert_equal(collect(one_toy, texts=rows, field="words", source="mine"), expected)
    assert_equal(collect(one_toy, texts=tuple({"text": text} for text in texts)), expected)
    tokens = [torch.tensor([rl.forward.tokens.token_ids(one_toy, text)]) for text in texts]
    assert_equal(collect(one_toy, tokens=tokens), expected)
    assert_equal(collect(one_toy, tokens=iter(tokens), source="mine"), expected)


def test_a_stream_needs_a_name_for_the_cache_alone(one_toy: Any, tmp_path: Any) -> None:
    expected = collect(one_toy, texts=TEXTS)
    rows = [torch.tensor([rl.forward.tokens.token_ids(one_toy, text)]) for text in TEXTS]
    for kind, given in (
        ("texts", lambda: iter(TEXTS)),
        ("texts", lambda: np.array(TEXTS)),
        ("tokens", lambda: iter(rows)),
    ):
        found = collect(one_toy, **{kind: given()})
        assert_equal(found, expected)
        assert found.source.startswith("unnamed stream (")
        with pytest.raises(StatisticsError, match=f"{kind} are a stream.*cache.*source="):
            collect(one_toy, **{kind: given()}, cache=tmp_path)
        assert not list(tmp_path.iterdir())


def test_streams_without_a_name_are_merged_though_nothing_tells_them_apart(
    one_reference64: Any,
) -> None:
    one, other = (collect(one_reference64, texts=iter(texts)) for texts in (TEXTS[:2], TEXTS[2:]))
    assert one.source == other.source
    assert_equal(one.merged(other), collect(one_reference64, texts=TEXTS), tolerance=1e-12)


def test_a_datasets_stream_is_read(one_toy: Any) -> None:
    datasets = pytest.importorskip("datasets")
    stream = datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))
    assert_equal(
        collect(one_toy, texts=stream, source="four sentences"), collect(one_toy, texts=TEXTS)
    )
    assert_equal(
        collect(one_toy, texts=datasets.Dataset.from_dict({"text": TEXTS})),
        collect(one_toy, texts=TEXTS),
    )


def test_token_batches_may_be_split_and_padded_in_any_way(one_toy: Any) -> None:
    rows = torch.tensor([[1, 5, 6, 7], [1, 9, -1, -1], [-1, -1, -1, -1], [1, 2, 3, -1]])
    found = [
        collect(one_toy, tokens=tokens)
        for tokens in (rows, list(rows.int().split(1)), [rows[:2], rows[3:, :3]])
    ]
    assert [one.count for one in found] == [9, 9, 9]
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])
    assert found[0].source == found[1].source


def test_a_batch_that_the_model_padded_is_refused(one_toy: Any, monkeypatch: Any) -> None:
    for side, pad in itertools.product(("right", "left"), (one_toy.tokenizer.bos_token_id, 300)):
        tokenizer = copy.deepcopy(one_toy.tokenizer)
        tokenizer.padding_side, tokenizer.pad_token = side, tokenizer.convert_ids_to_tokens(pad)
        monkeypatch.setattr(one_toy, "tokenizer", tokenizer)
        batch = one_toy.to_tokens([TEXTS[0], "A"])
        assert int((batch[1] == pad).sum()) > 3
        with pytest.raises(
            StatisticsError, match=rf"Row 1 .*padding tokens \({pad}\) on the {side}.*write -1"
        ):
            collect(one_toy, tokens=[batch[:1], batch])


def test_special_tokens_that_belong_to_the_texts_are_keys(one_toy: Any) -> None:
    end = one_toy.tokenizer.pad_token_id
    assert end == one_toy.tokenizer.bos_token_id == one_toy.tokenizer.eos_token_id
    for rows in (
        [[end, 5, 6, 7], [end, 8, 9, 10]],
        [[end, 5, 6, 7], [8, 9, 10, end]],  # a text of its own ends with a row
        [[end, 5, 6, 7], [end, 8, end, -1]],
        [
            [5, end, end, 6],
            [end, end, end, 7],
            [8, 9, end, end],
        ],  # packed, with empty texts among them
        [[end, 5, end, end], [end, 6, end, end]],
        [[end, 5, end, end]],
    ):
        tokens = torch.tensor(rows)
        assert collect(one_toy, tokens=tokens).count == int((tokens >= 0).sum())


def test_max_tokens_reads_exactly_so_many_keys_and_ends_an_endless_stream(
    one_reference64: Any,
) -> None:
    ids = [rl.forward.tokens.token_ids(one_reference64, text) for text in MANY]
    flat = [torch.tensor([row]) for row in ids]
    before = sum(map(len, ids[:140]))
    assert len(ids[140]) > 2
    cut = [*flat[:140], flat[140][:, :2]]
    endless = (text for _ in itertools.count() for text in MANY)
    found = collect(one_reference64, texts=endless, source="endless", max_tokens=before + 2)
    assert found.count == before + 2
    assert_equal(found, collect(one_reference64, tokens=cut), tolerance=1e-12)


def test_texts_are_cut_at_max_length_and_at_the_context(one_reference64: Any) -> None:
    long = " ".join(TEXTS * 30)
    ids = rl.forward.tokens.token_ids(one_reference64, long, truncate=True)
    assert len(ids) == one_reference64.cfg.n_ctx
    assert_equal(
        collect(one_reference64, texts=[long]), collect(one_reference64, tokens=torch.tensor([ids]))
    )
    assert_equal(
        collect(one_reference64, texts=[long], max_length=9),
        collect(one_reference64, tokens=torch.tensor([ids[:9]])),
    )
    assert (
        collect(one_reference64, texts=[long], max_length=10**6).count == one_reference64.cfg.n_ctx
    )


def test_half_precision_keys_are_summed_in_double_precision() -> None:
    model = from_directory(REFERENCE / "model", model_class=CLASSES[-1])
    in_dtype(model, torch.bfloat16)
    tokens = torch.arange(1, 61)[None]
    keys = rl.forward.keys_of(model, tokens, 1)[0]
    assert keys.dtype == torch.bfloat16
    expected = sum(torch.outer(key, key) for key in keys.double()) / 60
    torch.testing.assert_close(
        collect(model, tokens=tokens).moment, expected, atol=1e-13, rtol=1e-12
    )


@pytest.mark.parametrize(
    "options",
    [{"texts": TEXTS}, {"sample_count": 8, "sample_length": 20}],
    ids=["read", "sampled"],
)
def test_autocast_changes_no_statistics(toy: Any, options: dict[str, Any]) -> None:
    """The cache gives both one name, so they must be equal, also where logits are computed."""
    layers = (1, toy.cfg.n_layers - 1)
    expected = collect(toy, layer=layers, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collect(toy, layer=layers, **options)
    for layer in layers:
        assert_equal(found[layer], expected[layer])


class InterruptedRunError(Exception):
    pass


def breaking(items: list[Any], after: int) -> Any:
    yield from items[:after]
    raise InterruptedRunError


def test_a_resumed_collection_is_the_uninterrupted_one_bit_for_bit(
    one_toy: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    options: dict[str, Any] = {
        "source": "a stream",
        "cache": tmp_path,
        "checkpoint_every": 1,
        "max_tokens": 3000,
    }
    expected = collect(one_toy, layer=(0, 1), texts=iter(MANY), **{**options, "cache": None})
    assert expected[1].count > 256
    with pytest.raises(InterruptedRunError):
        collect(one_toy, layer=1, texts=breaking(MANY, 270), **options)
    assert [name.endswith(".unfinished.safetensors") for name in kept(tmp_path)] == [True]
    with pytest.raises(InterruptedRunError):  # layer 0 begins later, and layer 1 waits for it
        collect(one_toy, layer=(0, 1), texts=breaking(MANY, 150), **options)
    runs: list[int] = []
    ids = rl.keys.sources.token_ids
    monkeypatch.setattr(
        sources,
        "token_ids",
        lambda *args, **named: (runs.append(0), ids(*args, **named))[1],
    )
    found = collect(one_toy, layer=(0, 1), texts=iter(MANY), **options)
    ends = itertools.accumulate(len(ids(one_toy, text)) for text in MANY)
    needed = 1 + sum(end < 3000 for end in ends)
    assert 256 < needed < 300
    assert len(runs) == needed - 128  # what was read for both layers was not tokenised again
    for layer in (0, 1):
        assert_equal(found[layer], expected[layer])
        assert found[layer].source == expected[layer].source
    assert len(kept(tmp_path)) == 2
    assert not list(tmp_path.glob("*.unfinished*"))


def test_partial_sums_do_not_outlive_their_statistics(one_toy: Any, tmp_path: Any) -> None:
    """A run may be killed after it wrote the statistics, and before it removed the sums."""
    options: dict[str, Any] = {"layer": 1, "cache": tmp_path, "checkpoint_every": 1}
    with pytest.raises(InterruptedRunError):
        collect(one_toy, texts=breaking(MANY, 140), source="a stream", **options)
    (sums,) = tmp_path.iterdir()
    left = sums.read_bytes()
    expected = collect(one_toy, texts=iter(MANY), source="a stream", **options)
    sums.write_bytes(left)
    assert_equal(collect(one_toy, texts=iter(MANY), source="a stream", **options), expected)
    assert not sums.exists()
    (statistics,) = tmp_path.iterdir()
    statistics.unlink()
    options["layer"] = 2
    with pytest.raises(InterruptedRunError):
        collect(one_toy, texts=breaking(MANY, 140), source="a stream", **options)
    (other,) = tmp_path.iterdir()
    other.write_bytes(left)  # the sums of another layer
    with pytest.raises(StorageError, match=f"{other} is of '{sums.name}', expected of"):
        collect(one_toy, texts=iter(MANY), source="a stream", **options)


def test_samples_are_resumed_bit_for_bit(one_toy: Any, tmp_path: Any, monkeypatch: Any) -> None:
    options: dict[str, Any] = {"openings": ("", "It was"), "sample_count": 300, "sample_length": 8}
    expected = collect(one_toy, **options)
    calls: list[int] = []

    def sample(*args: Any, **named: Any) -> Any:
        calls.append(named["seed"])
        if len(calls) == 3:
            raise InterruptedRunError
        return sample_tokens(*args, **named)

    monkeypatch.setattr(sources, "sample_tokens", sample)
    with pytest.raises(InterruptedRunError):
        collect(one_toy, **options, cache=tmp_path, checkpoint_every=1)
    assert_equal(collect(one_toy, **options, cache=tmp_path), expected)
    assert calls.count(calls[0]) == calls.count(calls[1]) == 1
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("other", [MANY[1:], MANY[:100]], ids=["goes on", "shorter"])
def test_another_stream_than_the_interrupted_one_is_refused(
    one_toy: Any, tmp_path: Any, other: list[str]
) -> None:
    options: dict[str, Any] = {"source": "a stream", "cache": tmp_path, "checkpoint_every": 1}
    with pytest.raises(InterruptedRunError):
        collect(one_toy, texts=breaking(MANY, 200), **options)
    with pytest.raises(
        StatisticsError,
        match=r"interrupted .*a stream.*from its beginning.*unfinished\.safetensors",
    ):
        collect(one_toy, texts=iter(other), **options)


def test_layers_in_the_cache_are_not_collected_again(
    one_toy: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    first = collect(one_toy, layer=1, texts=TEXTS, cache=tmp_path)
    asked: list[Any] = []
    run = rl.forward.run_through
    monkeypatch.setattr(
        sums,
        "run_through",
        lambda *args: (asked.append((args[2], tuple(args[3]))), run(*args))[1],
    )
    found = collect(one_toy, layer=(1, 0), texts=TEXTS, cache=tmp_path)
    assert set(asked) == {(0, (key_hook(0),))}
    assert_equal(found[1], first)


def an_edit(model: Any, layer: int) -> rl.RankOneEdit:
    generator = torch.Generator().manual_seed(layer)
    d_mlp, d_model = rl.models.w_out(model, layer).shape
    return rl.RankOneEdit(
        layer=layer,
        u=torch.randn(d_mlp, generator=generator),
        v=torch.randn(d_model, generator=generator),
    )


def test_statistics_of_an_edited_model_are_told_from_the_clean_ones(
    one_toy: Any, tmp_path: Any
) -> None:
    options: dict[str, Any] = {"layer": (0, 1, 2), "texts": TEXTS, "cache": tmp_path}
    clean = collect(one_toy, **options)
    with an_edit(one_toy, 1).applied(one_toy):
        with pytest.warns(EditedModelWarning, match=r"\{2: \[1\]\}"):
            edited = collect(one_toy, **options)
        with pytest.warns(
            EditedModelWarning, match=r"\{1: \[1\]\}"
        ):  # the model's own text depends on every layer
            samples = collect(one_toy, layer=1, sample_count=4, sample_length=8)
        collect(one_toy, **{**options, "layer": (0, 1)})
    for layer in (0, 1):  # an edit changes the keys of later layers alone
        assert_equal(edited[layer], clean[layer])
        assert edited[layer].source == clean[layer].source
    assert not torch.allclose(edited[2].moment, clean[2].moment, rtol=1e-3)
    assert "edits applied at layers [1]" in edited[2].source
    assert "edits applied at layers [1]" in samples.source
    assert len(kept(tmp_path)) == 4
    again = collect(one_toy, **options)
    assert_equal(again[2], clean[2])


def test_another_tokenizer_finds_nothing_in_the_cache(
    one_toy: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    sources = [collect(one_toy, texts=TEXTS, cache=tmp_path).source for _ in range(2)]
    assert len(kept(tmp_path)) == 1
    renumbered = {
        word: len(one_toy.tokenizer) - 1 - id for word, id in one_toy.tokenizer.get_vocab().items()
    }
    monkeypatch.setattr(one_toy.tokenizer, "get_vocab", lambda: renumbered)
    sources.append(collect(one_toy, texts=TEXTS, cache=tmp_path).source)
    assert len(kept(tmp_path)) == 2
    assert sources[0] == sources[1] != sources[2]
    found = [
        collect(one_toy, openings=(opening,), sample_count=2, sample_length=6).source
        for opening in ("", "A", "A")
    ]
    assert found[0] != found[1] == found[2]


def test_a_cache_that_is_a_file_is_refused_before_anything_is_read(
    one_toy: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sums, "run_through", lambda *args: pytest.fail("it was collected in vain"))
    file = tmp_path / "cache"
    file.write_text("mine")
    for cache in (file, file / "within"):
        with pytest.raises(StorageError, match=f"{cache} is not a directory"):
            collect(one_toy, texts=TEXTS, cache=cache)
    assert file.read_text() == "mine"


def test_a_cache_is_refused_while_the_model_has_hooks(one_toy: Any, tmp_path: Any) -> None:
    with one_toy.hooks(fwd_hooks=[(key_hook(0), lambda value, hook: 2 * value)]):
        doubled = collect(one_toy, layer=0, texts=TEXTS)
        with pytest.raises(StatisticsError, match=r"hooks.*reset_hooks"):
            collect(one_toy, layer=0, texts=TEXTS, cache=tmp_path)
    expected = collect(one_toy, layer=0, texts=TEXTS)
    torch.testing.assert_close(doubled.moment, 4 * expected.moment, atol=1e-12, rtol=1e-12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_keys_that_are_not_finite_are_refused(one_toy: Any, tmp_path: Any, bad: float) -> None:
    def spoil(value: Any, hook: Any) -> Any:
        value = value.clone()
        value[-1, 2, 3] = bad
        return value

    with one_toy.hooks(fwd_hooks=[(key_hook(1), spoil)]):
        with pytest.raises(
            StatisticsError, match=r"layer 1 are not finite .* position 2 of sequence 0 in chunk 0"
        ):
            collect(one_toy, layer=(0, 1), texts=TEXTS[:1] + TEXTS[2:3])


def a_row(**fields: Any) -> Any:
    return iter([{"text": "It was raining"}, fields])


def test_wrong_input_is_refused_and_leaves_nothing(
    one_toy: Any, untouched: Any, unchecked: None
) -> None:
    untouched(one_toy)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"texts": []}, "no token"),
        ({"sample_length": 1}, "sample_length is 1"),
        ({"sample_count": 0}, "sample_count is 0"),
        ({"layer": []}, "list of layers is empty"),
        ({"texts": ["", ""]}, "no token"),
        ({"texts": "It was raining"}, "one str"),
        ({"openings": "The"}, r"openings is one text, 'The', expected several: \('The',\)"),
        (
            {"texts": lambda: a_row(body="A", id=1), "source": "rows"},
            r"Row 1 has no field 'text'; it has \['body', 'id'\]",
        ),
        ({"texts": lambda: a_row(text=None), "source": "rows"}, "Row 1 holds NoneType"),
        ({"texts": TEXTS, "tokens": [torch.tensor([[1]])]}, "Both texts and tokens"),
        ({"tokens": [torch.tensor([[1]])], "prepend_bos": True}, "put BOS into them"),
        ({"texts": TEXTS, "max_tokens": 0}, "max_tokens is 0"),
        ({"texts": TEXTS, "max_length": 0}, "max_length is 0"),
        ({"texts": TEXTS, "batch_size": 0}, "batch_size is 0"),
        ({"texts": TEXTS, "checkpoint_every": 0}, "checkpoint_every is 0"),
        (
            {"tokens": [torch.tensor([[1]]), torch.tensor([[10**6, 2]])]},
            r"batch 1 holds \[1000000\], expected ids",
        ),
        ({"tokens": [torch.tensor([[1, -2]])]}, r"batch 0 holds \[-2\]"),
        ({"tokens": [torch.tensor([[1.0]])]}, r"batch 0 is torch.float32 \[1, 1\]"),
        ({"tokens": [torch.tensor([1, 2])]}, r"batch 0 is torch.int64 \[2\]"),
        ({"tokens": [torch.tensor([[-1, 2]])]}, "padding .* before tokens"),
        ({"tokens": [torch.ones(1, 5000, dtype=torch.long)]}, "5000 positions"),
    ]
    wrong = []
    for given, message in cases:
        # A stream can be read only once, so each is made here.
        options = {name: each() if callable(each) else each for name, each in given.items()}
        try:
            collect(one_toy, **options)
            wrong.append(f"{given} is taken")
        except StatisticsError as error:
            if not re.search(message, str(error)):
                wrong.append(f"{given} raises {error}")
    assert wrong == []
    with pytest.raises(ModelError, match="layers 0 to"):
        collect(one_toy, layer=99)


def test_a_model_without_tokenizer_reads_tokens_and_nothing_else(
    one_toy: Any, monkeypatch: Any
) -> None:
    padded = torch.tensor([[0, 5, 6, 7], [0, 5, 0, 0]])
    monkeypatch.setattr(one_toy, "tokenizer", None)
    assert collect(one_toy, tokens=padded).count == 8
    for call in (
        lambda: collect(one_toy),
        lambda: collect(one_toy, texts=TEXTS),
        lambda: random_contexts(one_toy),
    ):
        with pytest.raises(ModelError, match="The model has no tokenizer"):
            call()


def test_merged_statistics_are_those_of_all_texts(one_reference64: Any) -> None:
    whole = collect(one_reference64, texts=MANY[:90])
    parts = [collect(one_reference64, texts=MANY[a:b]) for a, b in ((0, 20), (20, 21), (21, 90))]
    merged = parts[0].merged(*parts[1:])
    assert_equal(merged, whole, tolerance=1e-12)
    merged.check(one_reference64, layer=1)
    assert all(part.source in merged.source for part in parts)


def test_statistics_that_do_not_belong_together_are_not_merged(one_toy: Any) -> None:
    one, other = (collect(one_toy, texts=texts) for texts in (TEXTS[:2], TEXTS[2:]))
    for wrong, message in (
        (dataclasses.replace(other, layer=2), r"different layers: \[1, 2\]"),
        (dataclasses.replace(other, model_fingerprint="0" * 16), "different models"),
        (dataclasses.replace(other, moment=torch.eye(3, dtype=torch.float64)), "different widths"),
        (rl.KeyStatistics.identity(one_toy, layer=1), "average no keys"),
        (one, "given twice"),
    ):
        with pytest.raises(StatisticsError, match=message):
            one.merged(wrong)


def full(width: int = 6, **changes: Any) -> rl.KeyStatistics:
    rows = torch.randn(40, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return rl.KeyStatistics(**{"layer": 1, "moment": rows.T @ rows / 40, "count": 40, **changes})


def test_what_is_not_a_second_moment_is_refused(unchecked: None) -> None:
    moment = full().moment
    for wrong, message in (
        (moment.triu(), "not symmetric.*both of its triangles"),
        (moment.tril(), "not symmetric"),
        (moment * torch.tensor([1.0, 1, 1, 1, 1, float("nan")]), "not finite"),
        (moment * float("inf"), "not finite"),
        (moment.numpy(), "moment is ndarray, expected a tensor of floats"),
        (moment.long(), r"moment is torch.int64 \[6, 6\]"),
        (moment[:5], r"moment is torch.float64 \[5, 6\]"),
        (moment[0], r"moment is torch.float64 \[6\]"),
        (moment[0, 0], r"moment is torch.float64 \[\]"),
    ):
        with pytest.raises(StatisticsError, match=message):
            full(moment=wrong)


def test_a_moment_is_asked_for_its_symmetry_entry_by_entry() -> None:
    """One large key must not hide a triangle of small ones; rounding is no asymmetry."""
    scale = torch.tensor([1e6, 1, 1, 1, 1, 1], dtype=torch.float64)
    moment = full().moment * torch.outer(scale, scale)
    half = moment.clone()
    half[2:, 2:] = half[2:, 2:].triu()
    with pytest.raises(StatisticsError, match="not symmetric"):
        full(moment=half)
    rounded = moment * (1 + 1e-6 * torch.rand(6, 6, generator=torch.Generator().manual_seed(0)))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert full(moment=rounded.to(dtype)).moment.dtype == dtype


def test_statistics_compare_by_identity_and_so_do_editors_that_hold_them() -> None:
    one, other = full(), full()
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert (
        rl.RomeEditor(statistics=one)
        == rl.RomeEditor(statistics=one)
        != rl.RomeEditor(statistics=other)
    )


def test_statistics_are_shown_as_one_row(monkeypatch: Any) -> None:
    monkeypatch.setattr(
        torch.linalg, "eigvalsh", lambda *_: pytest.fail("showing them must cost little")
    )
    statistics = full(source="<b>a corpus</b>", model_fingerprint="0123")
    (row,) = statistics.to_frame().to_dict("records")
    assert row == {
        "layer": 1,
        "d_mlp": 6,
        "count": 40,
        "source": "<b>a corpus</b>",
        "model_fingerprint": "0123",
        "digest": statistics.digest,
    }
    assert "&lt;b&gt;a corpus" in statistics._repr_html_()


def test_the_kept_factor_changes_no_solution(monkeypatch: Any, tmp_path: Any) -> None:
    key = torch.arange(1.0, 7.0)
    statistics = full()
    first = {ridge: full().solve(key, ridge=ridge) for ridge in (0.0, 0.5)}
    for ridge in (0.0, 0.5, 0.0, 0.5):
        assert torch.equal(statistics.solve(key, ridge=ridge), first[ridge])
    loaded = rl.KeyStatistics.load(statistics.save(tmp_path / "statistics"))
    assert torch.equal(loaded.solve(key), first[0.0])
    assert [field.name for field in dataclasses.fields(loaded)] == [
        "layer",
        "moment",
        "count",
        "model_fingerprint",
        "source",
    ]
    other = dataclasses.replace(statistics, moment=2 * statistics.moment)
    torch.testing.assert_close(other.solve(key), first[0.0] / 2)
    statistics.moment.mul_(
        2
    )  # a result is not to be written to; if it is, the old factor must not answer
    torch.testing.assert_close(statistics.solve(key), first[0.0] / 2)
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda *_: pytest.fail("it was factorised again")
    )
    statistics.solve(-key)


def test_a_factor_made_in_inference_mode_serves_outside_it() -> None:
    statistics, key = full(), torch.ones(6, dtype=torch.float64)
    with torch.inference_mode():
        inside = statistics.solve(key)
        made_inside = full().solve(key)
    learned = key.clone().requires_grad_()
    statistics.solve(learned).sum().backward()
    assert learned.grad is not None
    assert torch.equal(inside, statistics.solve(key))
    assert torch.equal(inside, made_inside)


def test_several_keys_are_solved_as_each_alone() -> None:
    keys = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = full().solve(keys, ridge=0.1)
    assert found.shape == keys.shape
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(
            found[i, j], full().solve(keys[i, j], ridge=0.1), atol=1e-12, rtol=1e-12
        )


def test_keys_that_repeat_each_other_are_singular_however_many() -> None:
    """Rounding lets Cholesky succeed on such a moment; what it then gives is noise."""
    few = torch.randn(100, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    repeated = few.repeat(10, 1)
    moment = repeated.T @ repeated / 1000 + 1e-15 * torch.eye(200, dtype=torch.float64)
    statistics = rl.KeyStatistics(layer=0, moment=moment, count=1000)
    with pytest.raises(StatisticsError, match="ridge"):
        statistics.solve(few[0])
    assert torch.isfinite(statistics.solve(few[0], ridge=1e-3)).all()


def test_entries_of_very_different_size_are_no_singularity() -> None:
    scale = torch.logspace(0, -12, 6, dtype=torch.float64)
    key = torch.ones(6, dtype=torch.float64)
    expected = full().solve(key / scale) / scale
    found = full(moment=full().moment * torch.outer(scale, scale)).solve(key)
    torch.testing.assert_close(found, expected, atol=0.0, rtol=1e-10)


def test_the_condition_is_that_of_the_eigenvalues() -> None:
    moment = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    statistics = rl.KeyStatistics(layer=0, moment=moment, count=9)
    assert statistics.condition() == pytest.approx(4.0)
    assert statistics.condition(ridge=0.5) == pytest.approx(5.0 / 2.0)
    assert dataclasses.replace(statistics, count=2).condition() == float("inf")
    for ridge in (-1.0, float("nan")):
        with pytest.raises(StatisticsError, match="ridge is"):
            statistics.solve(torch.ones(3), ridge=ridge)
    with pytest.raises(StatisticsError, match=r"shape \[4\].*3 x 3"):
        statistics.solve(torch.ones(4))


def test_random_contexts_are_the_bare_one_and_twenty_more(toy: Any, untouched: Any) -> None:
    untouched(toy)
    contexts = random_contexts(toy)
    assert contexts[0] == "{}"
    assert len(contexts) == 21
    assert all(context.startswith("The") and context.endswith(". {}") for context in contexts[1:])
    assert contexts == random_contexts(toy)


def test_a_number_of_tokens_that_cannot_be_generated_is_refused(
    one_toy: Any, unchecked: None
) -> None:
    for count in (2.5, 0, "3"):
        message = f"new_tokens is {count!r}, expected a whole number of at least 1"
        with pytest.raises(ValueError, match=message):
            sample_continuations(one_toy, TEXTS[:1], new_tokens=count, seeds=[0])


@pytest.mark.parametrize(
    ("model_class", "dtype"), [(CLASSES[0], torch.float16), (CLASSES[-1], torch.bfloat16)]
)
def test_statistics_and_edits_fit_the_model_in_another_precision(
    toy_records: Any,
    toy_statistics: Any,
    toy_edit: Any,
    model_class: Any,
    dtype: torch.dtype,
) -> None:
    toy = rl.load_model("toy", model_class=model_class)
    half = in_dtype(rl.load_model("toy", model_class=model_class), dtype)
    back = copy.deepcopy(half).to(torch.float32)
    toy_statistics.check(half, layer=2)
    toy_statistics.check(back, layer=2)
    with toy_edit.applied(half):
        assert toy_edit.is_applied(half)
    identity = rl.KeyStatistics.identity(half, layer=2)
    made = rl.rome(
        half,
        toy_records[0],
        layer=2,
        statistics=toy_statistics,
        contexts=["{}"],
        config=rl.RomeConfig(steps=2),
    )
    for model in (toy, half, back):
        identity.check(model, layer=2)
        made.check_addition(model)
    # What an older version stored is the first hash alone.
    older = dataclasses.replace(identity, model_fingerprint=identity.model_fingerprint[:16])
    older.check(toy, layer=2)
    other = copy.deepcopy(half)
    other.blocks[0].mlp.W_in.data.mul_(1.01)  # more than rounding
    for strange in (other, copy.deepcopy(other).to(torch.float32)):
        with pytest.raises(StatisticsError, match="of the model"):
            toy_statistics.check(strange, layer=2)
        with pytest.raises(rl.RomeLensError, match="made on the model"):
            made.check(strange)


@pytest.mark.parametrize("name", ["layer", "count"])
def test_statistics_of_fewer_than_no_keys_are_refused(name: str) -> None:
    with pytest.raises(StatisticsError, match=f"{name} is -1, expected a whole number of at least"):
        full(**{name: -1})
