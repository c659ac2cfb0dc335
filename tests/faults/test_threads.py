"""Two threads on one model give what one thread gives: the second waits."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from models_for_tests import TransformerBridge, tiny_transformers_model, tokenizer

import rome_lens as rl
from rome_lens.models import visits

pytestmark = pytest.mark.proof

ROUNDS = 4
SECONDS = 60


def run_together(*works: Callable[[], Any]) -> list[list[Any]]:
    """The results of several functions, each called several times in a thread of its own."""
    results: list[list[Any]] = [[] for _ in works]
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any], into: list[Any]) -> None:
        try:
            start.wait()
            for _ in range(ROUNDS):
                into.append(work())
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=pair, daemon=True)
        for pair in zip(works, results, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    assert errors == []
    return results


@pytest.fixture
def works(toy: Any, toy_records: list[rl.data.Record], toy_edits: Sequence[rl.RankOneEdit]) -> Any:
    """Functions of a model, each of which gives tensors."""
    record, edit = toy_records[0], toy_edits[0]
    identity = rl.KeyStatistics.identity(toy, layer=2)

    def make(which: int) -> torch.Tensor:
        return rl.rome(
            toy,
            toy_records[which],
            layer=2,
            statistics=identity,
            contexts=("{}",),
            config=rl.RomeConfig(steps=2),
        ).v

    def inside(which: int) -> torch.Tensor:
        with toy_edits[which].applied(toy), torch.no_grad():
            return toy(toy.to_tokens(record.fact.text))[0, -1].clone()

    return {
        "trace": lambda: rl.causal_trace(toy, record, layers=[1, 2], samples=2).scores,
        "rome": lambda: make(0),
        "another rome": lambda: make(1),
        "applied": lambda: inside(0),
        "another applied": lambda: inside(1),
        "a third applied": lambda: inside(2),
        "firing": lambda: rl.edit_firing(toy, edit, record.fact.text).values,
        "answers": lambda: rl.answer_log_probs(toy, [(record.fact.text, record.fact.target)]),
        "sampling": lambda: torch.tensor(
            rl.forward.token_ids(
                toy, "".join(rl.random_contexts(toy, prefixes=2)).replace("{}", "")
            )
        ),
    }


@pytest.mark.parametrize(
    "names",
    [
        ("trace", "applied"),
        ("rome", "another rome"),
        ("applied", "another applied", "a third applied"),
        ("firing", "sampling", "answers"),
        ("trace", "rome", "applied"),
    ],
    ids=" beside ".join,
)
def test_threads_give_what_one_thread_gives(
    toy: Any, works: dict[str, Callable[[], Any]], names: tuple[str, ...]
) -> None:
    expected = [works[name]() for name in names]
    weights = {name: value.clone() for name, value in toy.state_dict().items()}
    for alone, together in zip(expected, run_together(*(works[n] for n in names)), strict=True):
        for result in together:
            same = (
                torch.equal(result, alone) if isinstance(alone, torch.Tensor) else result == alone
            )
            assert same
    assert all(torch.equal(value, weights[name]) for name, value in toy.state_dict().items())


def test_a_thread_waits_until_an_applied_block_ends(
    one_toy: Any, toy_edit: rl.RankOneEdit, toy_record: rl.data.Record
) -> None:
    done = threading.Event()
    known: list[bool] = []

    def ask() -> None:
        known.extend(rl.knows(one_toy, toy_record))
        done.set()

    with toy_edit.applied(one_toy):
        assert rl.knows(one_toy, toy_record) == [False]  # the same thread may
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(SECONDS)
    assert known == [True]


def test_another_model_does_not_wait(one_toy: Any, toy_edit: rl.RankOneEdit) -> None:
    other = rl.load_model("toy")
    done = threading.Event()

    def visit() -> None:
        rl.models.fingerprint(other)
        done.set()

    with toy_edit.applied(one_toy):
        threading.Thread(target=visit, daemon=True).start()
        assert done.wait(SECONDS)


def test_a_thread_that_waits_for_an_open_block_warns(
    one_toy: Any, toy_edit: rl.RankOneEdit, monkeypatch: Any
) -> None:
    """A pool inside the block would otherwise wait for ever without a word."""
    monkeypatch.setattr(visits, "_SECONDS_BEFORE_A_WARNING", 0.05)
    done = threading.Event()

    def visit() -> None:
        rl.models.device(one_toy)
        done.set()

    def wait_in_block() -> None:
        with toy_edit.applied(one_toy):
            threading.Thread(target=visit, daemon=True).start()
            assert not done.wait(0.3)
        assert done.wait(SECONDS)

    with pytest.warns(UserWarning, match="neither will go on") as warned:
        wait_in_block()
    assert len(warned) == 1


def test_two_bridges_around_one_model_know_each_others_edits() -> None:
    wrapped = tiny_transformers_model("gpt2")
    one, two = (
        TransformerBridge.boot_transformers(
            "tiny", hf_model=wrapped, tokenizer=tokenizer(), device="cpu"
        )
        for _ in range(2)
    )
    before = one.blocks[2].mlp.W_out.detach().clone()
    u, v = torch.arange(96.0), torch.arange(24.0)
    first, second = rl.RankOneEdit(layer=2, u=u, v=v), rl.RankOneEdit(layer=2, u=u.flip(0), v=v)
    first.apply(one)
    second.apply(two)
    assert rl.applied_edits(one) == rl.applied_edits(two) == (first, second)
    first.revert(two)
    second.revert(one)
    for each in (one, two):
        assert torch.equal(each.blocks[2].mlp.W_out, before)
