"""Baselines: fine-tuning within its bound, statements before prompts, and editors side by side."""

import dataclasses
from typing import Any

import pytest
import torch
from test_evaluation import a_record, plain

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.forward.partial import PartialForward
from rome_lens.keys.collecting import StatisticsError
from rome_lens.models.lens import ModelError, w_out

CONTEXTS = ("{}", "It was raining. {}")


def plain_loss(
    model: Any, fact: rl.Fact, edit: rl.WeightEdit | None, contexts: Any = ("{}",)
) -> float:
    """The mean negative log probability of the new target's tokens: a plain forward for each token."""
    hooks = [] if edit is None else edit.fwd_hooks(model)
    probabilities = [
        plain(model, context.replace("{}", fact.text), str(fact.new_target), hooks)
        for context in contexts
    ]
    return float(-torch.tensor(probabilities, dtype=torch.float64).log().mean())


@pytest.mark.parametrize("new_target", ["Ondavel", "Rome"])
@pytest.mark.parametrize("contexts", [("{}",), CONTEXTS])
def test_the_losses_are_those_of_the_edited_model(
    tiny_model: Any, fact: rl.Fact, untouched: Any, new_target: str, contexts: Any
) -> None:
    """The first is the unedited model's; the one after some steps that of the model with their delta in its weights."""
    untouched(tiny_model)
    fact = rl.Fact(fact.prompt, subject=fact.subject, target=fact.target, new_target=new_target)
    options = {"layer": 1, "contexts": contexts, "lr": 0.01, "norm_constraint": 0.015}
    longer, shorter = (rl.fine_tune(tiny_model, fact, steps=steps, **options) for steps in (4, 3))
    assert float(longer.losses[0]) == pytest.approx(
        plain_loss(tiny_model, fact, None, contexts), rel=1e-4
    )
    assert torch.equal(longer.losses[:4], shorter.losses)
    assert float(longer.losses[3]) == pytest.approx(
        plain_loss(tiny_model, fact, shorter, contexts), rel=1e-4
    )
    assert float(longer.losses[-1]) == pytest.approx(
        plain_loss(tiny_model, fact, longer, contexts), rel=1e-4
    )
    assert float(longer.losses[-1]) < float(longer.losses[0])


def test_the_bound_holds_and_binds(tiny_model: Any, fact: rl.Fact) -> None:
    for bound in (1e-3, 1e-2):
        edit = rl.fine_tune(tiny_model, fact, layer=1, norm_constraint=bound, lr=5e-3, steps=6)
        assert float(edit.delta.abs().max()) == pytest.approx(bound, rel=1e-6)
        assert float(edit.delta.abs().max()) <= torch.tensor(bound)
        assert edit.delta.shape == w_out(tiny_model, 1).shape


def test_one_adam_step_moves_each_entry_by_the_rate_against_the_gradient(
    tiny_model: Any, fact: rl.Fact
) -> None:
    """Adam's first step is ``-lr sign(gradient)``: the gradient is taken by plain differences along some entries."""
    step = rl.fine_tune(tiny_model, fact, layer=2, lr=1e-4, norm_constraint=1.0, steps=1).delta
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(step.shape, generator=generator)
    for sign in (step.sign(), direction * (direction.sign() == step.sign())):
        moved = rl.WeightEdit(layer=2, delta=1e-3 * sign)
        assert plain_loss(tiny_model, fact, moved) < plain_loss(tiny_model, fact, None)
    assert float(step.abs().max()) == pytest.approx(1e-4, rel=1e-3)


def test_fine_tuning_writes_the_fact_and_stops(
    toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(toy)
    edit = rl.fine_tune(toy, toy_record.fact, layer=1, norm_constraint=0.05, lr=0.02)
    assert edit.stopped == "loss"
    assert float(edit.losses[-1]) < 0.01 <= float(edit.losses[-2])
    found = rl.evaluate(toy, edit, toy_record)
    assert found.ES == 1.0
    assert found.rows[0].new_after == pytest.approx(float((-edit.losses[-1]).exp()), rel=1e-4)
    tight = rl.fine_tune(toy, toy_record.fact, layer=1, norm_constraint=1e-5)
    assert (tight.stopped, len(tight.losses)) == ("steps", 26)
    assert rl.evaluate(toy, tight, toy_record).ES == 0.0


def test_fine_tuning_is_the_same_under_inference_mode_and_twice(
    toy: Any, toy_record: rl.data.Record
) -> None:
    expected = rl.fine_tune(toy, toy_record.fact, layer=1, steps=3)
    with torch.inference_mode():
        found = rl.fine_tune(toy, toy_record.fact, layer=1, steps=3)
    assert torch.equal(found.delta, expected.delta)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer": 99}, ModelError, "layers 0 to"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"lr": 0.0}, ValueError, "lr=0.0"),
        ({"norm_constraint": 0.0}, ValueError, "norm_constraint=0.0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay=-1.0"),
        ({"contexts": []}, FactError, "at least one"),
        ({"contexts": ["no slot"]}, FactError, "no slot"),
    ],
)
def test_wrong_settings_are_refused_and_leave_nothing(
    toy: Any,
    toy_record: rl.data.Record,
    untouched: Any,
    changes: Any,
    error: type[Exception],
    message: str,
) -> None:
    untouched(toy)
    with pytest.raises(error, match=message):
        rl.fine_tune(toy, toy_record.fact, **{"layer": 1, **changes})


def test_a_loss_that_is_not_finite_is_refused_by_its_step(
    toy: Any, toy_record: rl.data.Record, untouched: Any, monkeypatch: Any
) -> None:
    untouched(toy)
    logits, steps = PartialForward.logits, iter([1.0, float("nan")])
    monkeypatch.setattr(
        PartialForward, "logits", lambda self, stream: logits(self, stream) * next(steps)
    )
    with pytest.raises(ValueError, match="The loss is nan at step 1"):
        rl.fine_tune(toy, toy_record.fact, layer=1)


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_a_rate_past_the_finite_numbers_is_refused(
    toy: Any, toy_record: rl.data.Record, untouched: Any, lr: float
) -> None:
    untouched(toy)
    with pytest.raises(OptimisationError, match="at step 1: lower lr"):
        rl.fine_tune(toy, toy_record.fact, layer=1, lr=lr)


def test_a_fact_without_a_new_target_is_refused(toy: Any) -> None:
    fact = rl.Fact("{} lives in the city of", subject="Wanda Brandt", target="Pralec")
    with pytest.raises(FactError, match="no new target"):
        rl.fine_tune(toy, fact, layer=1)
    with pytest.raises(FactError, match="no new target"):
        rl.InContext()(toy, fact)


def test_in_context_is_the_prompts_with_the_statement_written_out(tiny_model: Any) -> None:
    record = a_record()
    statement = "Then Wanda Brandt lives in the city of Ondavel."
    found = rl.evaluate(tiny_model, rl.InContext()(tiny_model, record.fact), record)
    for row in found.rows:
        assert row.new_after == pytest.approx(
            plain(tiny_model, f"{statement} {row.prompt}", row.new_target), rel=2e-4
        )
        assert row.target_after == pytest.approx(
            plain(tiny_model, f"{statement} {row.prompt}", row.target), rel=2e-4
        )
        assert row.new_before == pytest.approx(
            plain(tiny_model, row.prompt, row.new_target), rel=2e-4
        )


def some_editors(model: Any) -> list[Any]:
    return [
        rl.Unedited(),
        rl.InContext(),
        rl.FineTuning(layer=1, norm_constraint=0.05, lr=0.02),
        rl.RomeEditor(
            statistics=rl.collect_key_statistics(model, layer=1, sample_count=64), contexts=CONTEXTS
        ),
        rl.RomeEditor(
            statistics=rl.KeyStatistics.identity(model, layer=1), contexts=CONTEXTS, name="C = I"
        ),
    ]


def test_editors_side_by_side_are_each_alone(toy: Any, untouched: Any) -> None:
    untouched(toy)
    records = [record for record in rl.data.limits() if "toy" in record.known_by][:6]
    editors = some_editors(toy)
    found = rl.compare_editors(toy, records, editors)
    assert list(found.evaluations) == ["unedited", "in context", "FT+L", "ROME", "C = I"]
    for editor in editors:
        for evaluation, record in zip(found.evaluations[editor.name], records, strict=True):
            alone = rl.evaluate(toy, editor(toy, record.fact), record)
            assert evaluation.case_id == alone.case_id
            assert [row.new_after for row in evaluation.rows] == pytest.approx(
                [row.new_after for row in alone.rows], rel=1e-4, abs=1e-7
            )
    scores = {each.editor: each for each in found.scores}
    assert scores["unedited"].ES.mean == 0.0
    assert scores["unedited"].NS.mean == 1.0
    assert scores["ROME"].ES.mean == scores["FT+L"].ES.mean == 1.0
    assert scores["ROME"].S.mean > scores["FT+L"].S.mean
    assert scores["ROME"].NS.mean >= scores["C = I"].NS.mean


def test_a_comparison_shows_tables_and_prompts(toy: Any, toy_record: rl.data.Record) -> None:
    found = rl.compare_editors(
        toy, [toy_record], [rl.Unedited(), rl.InContext(name="told")], generate=3
    )
    assert list(found.table().index) == ["unedited", "told"]
    assert found.to_markdown().splitlines()[3].startswith("| told |")
    assert "told" in found._repr_html_()
    assert list(found.to_frame()["editor"].unique()) == ["unedited", "told"]
    prompts = found.prompts()
    assert len(prompts) == 2 * (1 + len(toy_record.paraphrases) + len(toy_record.neighborhood))
    assert list(prompts["editor"].unique()) == ["unedited", "told"]


def turned(record: rl.CounterFactRecord) -> rl.CounterFactRecord:
    """A record that asks for what the model says already."""
    known = record.fact
    fact = rl.Fact(
        known.prompt, subject=known.subject, target=str(known.new_target), new_target=known.target
    )
    return rl.CounterFactRecord(case_id="turned", fact=fact)


def test_a_fact_that_an_editor_refuses_is_no_end_of_the_comparison(
    toy: Any, toy_record: rl.data.Record
) -> None:
    record = rl.CounterFactRecord.of(toy_record)
    rome = rl.RomeEditor(
        statistics=rl.KeyStatistics.identity(toy, layer=1),
        contexts=CONTEXTS,
        config=rl.RomeConfig(steps=2),
    )
    found = rl.compare_editors(
        toy, (each for each in (turned(record), record)), iter([rl.Unedited(), rome])
    )
    ((fact, why),) = found.failures["ROME"]
    assert fact == turned(record).fact
    assert "already" in why
    assert [each.case_id for each in found.evaluations["unedited"]] == ["turned", record.case_id]
    assert [each.case_id for each in found.evaluations["ROME"]] == [record.case_id]


def test_a_record_that_cannot_be_asked_is_refused_before_anything_is_edited(
    toy: Any, toy_record: rl.data.Record
) -> None:
    record = rl.CounterFactRecord.of(toy_record)
    long = dataclasses.replace(record, paraphrases=("It was raining. " * 99 + "Wanda",))

    def editor(model: Any, fact: rl.Fact) -> None:
        raise AssertionError

    editor.name = "never"  # type: ignore[attr-defined]
    with pytest.raises(FactError, match="context"):
        rl.compare_editors(toy, [record, long], [editor])


@pytest.mark.parametrize(
    ("editors", "message"),
    [
        ([], "expected some of both"),
        ([rl.Unedited(), rl.Unedited()], "expected different ones"),
        ([rl.Unedited(name="")], "editors with a name"),
        ([lambda model, fact: None], "editors with a name"),
    ],
)
def test_editors_that_a_table_cannot_tell_apart_are_refused(
    toy: Any, toy_record: rl.data.Record, editors: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rl.compare_editors(toy, [toy_record], editors)


def test_an_editor_refuses_what_its_method_refuses(toy: Any, toy_record: rl.data.Record) -> None:
    editor = rl.RomeEditor(statistics=rl.KeyStatistics.identity(toy, layer=1), layer=2)
    with pytest.raises(StatisticsError, match="of layer 1, the edit is at layer 2"):
        rl.compare_editors(toy, [toy_record], [editor])
