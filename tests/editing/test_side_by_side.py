"""Edits of several facts at once are those of one fact after the other."""

from typing import Any

import pytest
import torch
from models_for_tests import CLASSES, in_dtype

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing import fact_batches, value_optimisation
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.prompts import EditRows

CONTEXTS = ["{}", "It was raining. {}", "A long way off, in the north, {}"]


@pytest.mark.parametrize("model_class", CLASSES)
def test_facts_of_any_length_are_edited_as_if_each_were_alone(model_class: str) -> None:
    """Also where one of them stops earlier than the others."""
    toy = in_dtype(rl.load_model("toy", model_class=model_class), torch.float64)
    facts = [record.fact for record in rl.data.records(known_by="toy")[:2]]
    first = facts[0]
    facts.append(
        rl.Fact(
            "It is known that {} lives in the city of",
            subject=first.subject,
            target=first.target,
            new_target="Ondavel and Lusiba",
        )
    )
    options: dict[str, Any] = {
        "layer": 2,
        "statistics": rl.KeyStatistics.identity(toy, layer=2),
        "contexts": CONTEXTS[1:],
        "config": rl.RomeConfig(steps=8, stop_probability=0.3),
    }
    together = rl.rome_batch(toy, facts, **options)
    alone = [rl.rome(toy, fact, **options) for fact in facts]
    assert len({len(edit.losses) for edit in alone}) > 1
    for found, expected in zip(together, alone, strict=True):
        assert found.fact == expected.fact
        assert found.stopped == expected.stopped
        for name in ("u", "v", "key", "value", "losses"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), atol=1e-10, rtol=1e-10
            )


def test_a_recorded_step_gives_the_edits_of_steps_in_python(
    one_toy: Any, toy_records: list[rl.data.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording goes on with facts that have stopped, until half of them have."""
    facts = [record.fact for record in toy_records[:4]]
    options: dict[str, Any] = {
        "layer": 2,
        "statistics": rl.KeyStatistics.identity(one_toy, layer=2),
        "contexts": CONTEXTS,
        "config": rl.RomeConfig(steps=12, stop_probability=0.3),
    }
    in_python = rl.rome_batch(one_toy, facts, **options)
    recordings: list[list[int]] = []

    class OnTheCPU:
        """Keeps one input and one set of outputs, as a recording on a GPU does."""

        def __init__(self, function: Any, like: torch.Tensor) -> None:
            self.function, self.given = function, like.detach().clone().requires_grad_()
            self.results = tuple(each.detach() for each in function(self.given))
            recordings.append([len(self.results[0])])

        def __call__(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            self.given.data.copy_(given.detach())
            for result, new in zip(self.results, self.function(self.given), strict=True):
                result.copy_(new.detach())
            recordings[-1].append(len(self.results[0]))
            return self.results

    monkeypatch.setattr(value_optimisation, "can_record", lambda device: True)
    monkeypatch.setattr(value_optimisation, "Recorded", OnTheCPU)
    recorded = rl.rome_batch(one_toy, facts, **options)
    assert len({len(edit.losses) for edit in in_python}) > 1
    assert recordings[0][0] == len(facts)
    assert len(recordings) > 1
    for found, expected in zip(recorded, in_python, strict=True):
        assert found.stopped == expected.stopped
        torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.delta, expected.delta, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU records the steps of an edit")
def test_a_recorded_step_on_a_gpu_gives_the_edits_of_steps_in_python(
    toy_records: list[rl.data.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = rl.load_model("toy", device="cuda")
    facts = [record.fact for record in toy_records[:4]]
    options: dict[str, Any] = {
        "layer": 2,
        "statistics": rl.KeyStatistics.identity(toy, layer=2),
        "contexts": CONTEXTS,
        "config": rl.RomeConfig(steps=12, stop_probability=0.3),
    }
    recorded = rl.rome_batch(toy, facts, **options)
    monkeypatch.setattr(value_optimisation, "can_record", lambda device: False)
    for found, expected in zip(recorded, rl.rome_batch(toy, facts, **options), strict=True):
        torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.delta, expected.delta, atol=1e-5, rtol=1e-5)


def test_a_model_whose_steps_cannot_be_recorded_is_edited_in_python(
    one_toy: Any, toy_records: list[rl.data.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(function: Any, like: torch.Tensor) -> Any:
        function(like.detach().clone().requires_grad_())
        raise RuntimeError("a copy from the CPU cannot be recorded")

    options: dict[str, Any] = {
        "layer": 2,
        "statistics": rl.KeyStatistics.identity(one_toy, layer=2),
        "contexts": CONTEXTS,
        "config": rl.RomeConfig(steps=3),
    }
    expected = rl.rome(one_toy, toy_records[0].fact, **options)
    monkeypatch.setattr(value_optimisation, "can_record", lambda device: True)
    monkeypatch.setattr(value_optimisation, "Recorded", refused)
    assert torch.equal(rl.rome(one_toy, toy_records[0].fact, **options).delta, expected.delta)


def test_a_fact_that_cannot_be_edited_stops_no_other_one(
    one_toy: Any, toy_records: list[rl.data.Record]
) -> None:
    facts = [record.fact for record in toy_records[:2]]
    said = rl.Fact(
        facts[0].prompt, subject=facts[0].subject, target="Ondavel", new_target=facts[0].target
    )
    options: dict[str, Any] = {
        "layer": 2,
        "statistics": rl.KeyStatistics.identity(one_toy, layer=2),
        "contexts": ["{}"],
        "config": rl.RomeConfig(steps=2),
    }
    edits = rl.rome_batch(one_toy, [facts[0], said, facts[1]], **options, on_error="return")
    assert isinstance(edits[1], FactError)
    assert [getattr(edit, "fact", None) for edit in edits] == [facts[0], None, facts[1]]
    with pytest.raises(FactError, match="already answered"):
        rl.rome_batch(one_toy, [facts[0], said, facts[1]], **options)
    diverging = {**options, "config": rl.RomeConfig(lr=1e20)}
    errors = rl.rome_batch(one_toy, facts, **diverging, on_error="return")
    assert all(isinstance(error, OptimisationError) for error in errors)
    with pytest.raises(OptimisationError, match=rf"{facts[0].subject}.* at step 1: lower lr"):
        rl.rome_batch(one_toy, facts, **diverging)


@pytest.mark.usefixtures("unchecked")
def test_what_becomes_of_errors_is_one_of_two(one_toy: Any, toy_record: rl.data.Record) -> None:
    identity = rl.KeyStatistics.identity(one_toy, layer=2)
    options: dict[str, Any] = {"layer": 2, "statistics": identity, "on_error": "skip"}
    with pytest.raises(rl.RomeLensError, match="on_error is 'skip'"):
        rl.rome_batch(one_toy, [toy_record], **options)


def test_one_divergence_among_several_leaves_the_others_as_they_are(
    one_toy: Any, toy_records: list[rl.data.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [record.fact for record in toy_records[:3]]
    options: dict[str, Any] = {
        "layer": 2,
        "statistics": rl.KeyStatistics.identity(one_toy, layer=2),
        "contexts": ["{}"],
        "config": rl.RomeConfig(steps=4),
    }
    whole = rl.rome_batch(one_toy, facts, **options)
    clamp = value_optimisation._clamp

    def overflowing(deltas: Any, config: Any, bounds: Any) -> Any:
        norms = clamp(deltas, config, bounds)
        norms[1] = torch.inf
        return norms

    monkeypatch.setattr(value_optimisation, "_clamp", overflowing)
    first, error, third = rl.rome_batch(one_toy, facts, **options, on_error="return")
    assert isinstance(error, OptimisationError)
    for found, expected in ((first, whole[0]), (third, whole[2])):
        assert isinstance(found, rl.RankOneEdit)
        torch.testing.assert_close(found.delta, expected.delta, atol=1e-5, rtol=1e-4)


def test_batches_hold_every_fact_once_and_what_fits_memory(
    one_toy: Any, toy_records: list[rl.data.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [record.fact for record in toy_records[:5]]
    rows = {i: EditRows.of(one_toy, fact, CONTEXTS, None) for i, fact in enumerate(facts)}
    assert len(fact_batches.batches_in_memory(one_toy, rows, 2)) == 1
    monkeypatch.setattr(fact_batches, "bytes_per_batch", lambda device: 1)
    single = fact_batches.batches_in_memory(one_toy, rows, 2)
    assert sorted(single) == [[i] for i in range(5)]
