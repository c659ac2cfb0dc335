"""Edits that stop where the true answer was, that rewrite nothing, and along the optimisation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models_for_tests import FEW_TINY, tiny

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing.reference_edits import is_null_edit
from rome_lens.errors import ArgumentError

CONTEXTS = ("{}", "It was raining. {}")
MATCHED = rl.RomeConfig(stop="matched", lr=0.1, steps=60)


@pytest.fixture(scope="module")
def unsure(toy_records: list[rl.data.Record]) -> list[rl.Fact]:
    """Two facts that the toy answers with p of .86 to .89, asked by an alias."""
    record = next(record for record in toy_records if record.id == "dora-whitlock")
    prompts = ("{} lives in the country of", "{} holds a passport from")
    return [
        rl.Fact(prompt, subject=record.aliases[0], target="Dunmark", new_target="Borovia")
        for prompt in prompts
    ]


def p_answers(model: Any, fact: rl.Fact, answer: str, edit: Any = None) -> float:
    """The mean over contexts of the whole answer's probability."""
    hooks = [] if edit is None else edit.fwd_hooks(model)
    asked = [(context.replace("{}", fact.text), answer) for context in CONTEXTS]
    return float(rl.answer_log_probs(model, asked, fwd_hooks=hooks).exp().mean())


def options(statistics: Any, **more: Any) -> dict[str, Any]:
    return {"layer": 2, "statistics": statistics, "contexts": CONTEXTS} | more


def test_a_matched_edit_stops_at_the_first_step_that_reaches_what_the_true_target_had(
    one_toy: Any, unsure: list[rl.Fact], toy_statistics: Any
) -> None:
    for fact in unsure[:1]:
        before = p_answers(one_toy, fact, fact.target)
        assert 0.6 < before < 0.95
        edit = rl.rome(one_toy, fact, **options(toy_statistics, config=MATCHED))
        path = rl.rome_path(one_toy, fact, **options(toy_statistics, config=MATCHED))
        assert (edit.stopped, path[-1].stopped) == ("matched", "matched")
        # The value is written for the bare prompt's key, so v* is what every context reads.
        reached = [p_of_value(one_toy, fact, each) for each in path]
        assert max(reached[:-1]) < before <= reached[-1] < before + 0.05
        original = rl.rome(one_toy, fact, **options(toy_statistics))
        assert p_of_value(one_toy, fact, original) > before + 0.05


def p_of_value(
    model: Any, fact: rl.Fact, edit: rl.RankOneEdit, contexts: Sequence[str] = CONTEXTS
) -> float:
    """The mean over contexts of p(new target) with ``v*`` written at the subject's last token."""
    found = []
    assert edit.value is not None
    bare = rl.forward.tokens.encode(model, fact)
    with torch.no_grad():
        _, cache = model.run_with_cache(bare.tokens[None])
    delta = edit.value - cache["mlp_out", edit.layer][0, bare.subject_last]
    for context in contexts:
        asked = rl.Fact(context.replace("{}", fact.prompt), subject=fact.subject, target="x")
        place = rl.forward.tokens.encode(model, asked).subject_last

        def write(output: torch.Tensor, hook: Any, place: int = place) -> torch.Tensor:
            added = torch.zeros_like(output)
            added[:, place] = delta
            return output + added

        hooks = [(f"blocks.{edit.layer}.hook_mlp_out", write)]
        found.append(
            rl.answer_log_probs(model, [(asked.text, str(fact.new_target))], fwd_hooks=hooks)
        )
    return float(torch.cat(found).exp().mean())


def test_matched_edits_side_by_side_stop_where_each_would_alone(
    one_toy: Any, unsure: list[rl.Fact], toy_records: list[rl.data.Record], toy_statistics: Any
) -> None:
    facts = [unsure[0], toy_records[0].fact]
    settings = options(toy_statistics, config=MATCHED)
    together = rl.rome_batch(one_toy, facts, **settings)
    alone = [rl.rome(one_toy, fact, **settings) for fact in facts]
    assert len({len(edit.losses) for edit in alone}) > 1
    for found, expected in zip(together, alone, strict=True):
        assert (found.stopped, len(found.losses)) == (expected.stopped, len(expected.losses))
        torch.testing.assert_close(found.v, expected.v, atol=1e-3, rtol=1e-3)


def test_a_target_of_several_tokens_is_matched_as_a_whole_answer(
    one_toy: Any, unsure: list[rl.Fact], toy_statistics: Any
) -> None:
    """Its geometric mean over tokens is higher, and would stop too early."""
    fact = rl.Fact(
        unsure[1].prompt,
        subject=unsure[1].subject,
        target=unsure[1].target,
        new_target="Borovia Borovia",
    )
    free = {"lr": 0.2, "steps": 200, "clamp": 40.0, "kl_factor": 0.0, "weight_decay": 0.0}
    config = rl.RomeConfig(stop="matched", stop_loss=0.0, **free)
    edit = rl.rome(one_toy, fact, **options(toy_statistics, config=config, contexts=["{}"]))
    assert edit.stopped == "matched"
    asked = [(fact.text, fact.target)]
    before = float(rl.answer_log_probs(one_toy, asked).exp())
    reached = p_of_value(one_toy, fact, edit, contexts=["{}"])
    assert before <= reached < before + 0.05
    assert edit.probability == pytest.approx(reached**0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": "matched", "stop_probability": 0.5}, "one of the two"),
        ({"stop": "match"}, "matched"),
    ],
)
def test_contradictory_and_unknown_stops_are_refused(
    settings: Any, message: str, unchecked: None
) -> None:
    with pytest.raises(ArgumentError, match=message):
        rl.RomeConfig(**settings)


def test_every_step_of_the_path_is_the_edit_that_so_many_steps_make(fact: rl.Fact) -> None:
    model = tiny(*FEW_TINY[0])
    statistics = rl.KeyStatistics.identity(model, layer=1)
    config = rl.RomeConfig(steps=5, lr=0.1)
    settings = {"layer": 1, "statistics": statistics, "contexts": CONTEXTS}
    path = rl.rome_path(model, fact, **settings, config=config)
    assert [edit.config["steps"] for edit in path] == [1, 2, 3, 4, 5]
    assert float(path[0].v.norm()) < 1e-5 < float(path[1].v.norm())
    for edit in path:
        assert edit.config is not None
        expected = rl.rome(model, fact, **settings, config=rl.RomeConfig(**edit.config))
        for name in ("u", "v", "value", "losses"):
            torch.testing.assert_close(
                getattr(edit, name), getattr(expected, name), atol=1e-5, rtol=1e-5
            )
        assert edit.stopped == expected.stopped
    chosen = rl.rome_path(model, fact, **settings, config=config, steps=[4, 2])
    assert [edit.config["steps"] for edit in chosen] == [2, 4]
    torch.testing.assert_close(chosen[1].v, path[3].v, atol=1e-6, rtol=1e-6)


def test_the_path_ends_where_the_edit_does_and_runs_one_optimisation(
    one_toy: Any, unsure: list[rl.Fact], toy_statistics: Any, unchecked: None
) -> None:
    settings = options(toy_statistics, config=rl.RomeConfig(stop_probability=0.5))
    edit = rl.rome(one_toy, unsure[0], **settings)
    with counted_backward_passes() as of_path:
        path = rl.rome_path(one_toy, unsure[0], **settings)
    with counted_backward_passes() as of_edit:
        rl.rome(one_toy, unsure[0], **settings)
    assert (path[-1].stopped, len(path)) == ("probability", len(edit.losses))
    torch.testing.assert_close(path[-1].v, edit.v)
    # Shorter edits of the path go on until the longest stops.
    assert 0 < len(of_edit) <= len(of_path) <= 20
    for steps in ([0], [21], [], [1.5], 3):
        with pytest.raises(ArgumentError, match="steps"):
            rl.rome_path(one_toy, unsure[0], **settings, steps=steps)


@contextmanager
def counted_backward_passes() -> Iterator[list[None]]:
    counted: list[None] = []
    grad = torch.autograd.grad

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted.append(None)
        return grad(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", counting)
        yield counted


def test_a_null_edit_writes_the_true_target_and_a_matched_one_changes_nothing(
    one_toy: Any, unsure: list[rl.Fact], toy_statistics: Any, untouched: Any
) -> None:
    untouched(one_toy)
    fact = unsure[0]
    before = p_answers(one_toy, fact, fact.target)
    original = rl.null_edit(one_toy, fact, **options(toy_statistics))
    assert p_answers(one_toy, fact, fact.target, original) > before + 0.05
    assert (original.fact.target, original.fact.new_target) == (fact.new_target, fact.target)
    matched = rl.null_edit(one_toy, fact, **options(toy_statistics, config=MATCHED))
    assert (matched.stopped, float(matched.v.norm())) == ("matched", 0.0)
    assert is_null_edit(original, fact)
    assert not is_null_edit(rl.rome(one_toy, fact, **options(toy_statistics)), fact)
    with matched.applied(one_toy):
        assert matched.is_applied(one_toy)


def test_overfit_compares_a_null_edit_with_the_true_target_on_both_sides(
    one_toy: Any, unsure: list[rl.Fact], toy_statistics: Any
) -> None:
    fact = unsure[0]
    record = rl.data.Record(
        id=1,
        fact=fact,
        open_prompts=("I met {} in",),
        exemplars=("Wanda Brandt",),
        neighborhood=(
            rl.data.Question(prompt="Hugo Brandt lives in the city of", target="Norwick"),
        ),
    )
    verdicts = {}
    for name, config in {"original": rl.RomeConfig(), "matched": MATCHED}.items():
        edit = rl.null_edit(one_toy, fact, **options(toy_statistics, config=config))
        result = rl.checks.overfit(one_toy, edit, record, samples=1, new_tokens=8)
        asked = next(row for row in result.rows if row.kind == "asked")
        bare = [(fact.text, fact.target)]
        before, after = (
            float(rl.answer_log_probs(one_toy, bare, fwd_hooks=hooks).exp())
            for hooks in ((), edit.fwd_hooks(one_toy))
        )
        assert (asked.before, asked.after) == (
            pytest.approx(before, abs=1e-4),
            pytest.approx(after, abs=1e-4),
        )
        assert (asked.answer, result.control) == ("Dunmark -> Dunmark", None)
        verdicts[name] = (result["asked: over"].mean, result["asked: under"].mean)
        if name == "matched":
            assert {row.change for row in result.rows} == {0.0}
    assert verdicts == {"original": (1.0, 0.0), "matched": (0.0, 0.0)}


def test_the_other_checks_and_scores_take_a_null_edit_with_the_record(
    one_toy: Any, toy_record: rl.data.Record, toy_statistics: Any
) -> None:
    edit = rl.null_edit(one_toy, toy_record, **options(toy_statistics))
    scores = rl.evaluate(one_toy, edit, toy_record)
    assert (scores.ES, scores.NS) == (0.0, 1.0)
    bled = rl.checks.bleed_over(one_toy, edit, toy_record)
    assert abs(bled.effect.mean) < 0.05
    assert not rl.checks.association(one_toy, edit, toy_record).asked


def test_only_null_edits_are_made_of_what_is_said_already(
    one_toy: Any, toy_record: rl.data.Record, toy_statistics: Any
) -> None:
    fact = toy_record.fact
    exchanged = rl.Fact(
        fact.prompt, subject=fact.subject, target=str(fact.new_target), new_target=fact.target
    )
    with pytest.raises(FactError, match="already answered"):
        rl.rome(one_toy, exchanged, **options(toy_statistics))
    editor = rl.RomeEditor(statistics=toy_statistics, contexts=CONTEXTS)
    null = rl.NullEditor(editor=editor)
    one, (same,) = null(one_toy, fact), null.edit_many(one_toy, [fact])
    torch.testing.assert_close(one.v, same.v)
    assert (null.name, one.fact) == ("null edit", exchanged)
