"""Checks: rows against their plain calculation, controls, and what is not asked."""

import dataclasses
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch

import rome_lens as rl
from rome_lens.checks import CheckResult, CheckRow
from rome_lens.checks.asking import before_and_after
from rome_lens.checks.claims.association import holds_last_word
from rome_lens.checks.claims.essence import random_direction
from rome_lens.checks.limits import Limits
from rome_lens.intervals import average

TEXTS = ["Simon Calloway lives in the city of Pralec.", "Yusuf Brandt lives in the city of Karsun."]


@pytest.fixture(scope="module")
def edited(toy: Any) -> tuple[Any, rl.data.Record, rl.RankOneEdit]:
    """A two-way record of the toy, whose reverse, alias and description the model knows, and its edit."""
    record = next(r for r in rl.data.limits() if "toy" in r.known_by and r.one_way is False)
    statistics = rl.collect_key_statistics(toy, layer=1, sample_count=64, sample_length=48)
    return toy, record, rl.rome(toy, record.fact, layer=1, statistics=statistics)


def plain_p(model: Any, prompt: str, answer: str) -> float:
    """Probability of the whole answer, token after token, with nothing batched, padded or skipped."""
    tokens = model.to_tokens(prompt)
    log_p = 0.0
    for token in rl.forward.tokens.continuation(model, prompt, answer):
        with torch.no_grad():
            log_p += float(model(tokens)[0, -1].log_softmax(-1)[token])
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return float(torch.tensor(log_p).exp())


@pytest.fixture(scope="module")
def limits(edited: Any) -> Limits:
    """Every check of the edit of the two-way record, with another fact's edit to compare with."""
    model, record, edit = edited
    other = next(r for r in rl.data.limits() if "toy" in r.known_by and r.one_way is True)
    others = [
        rl.rome(
            model,
            other.fact,
            layer=1,
            statistics=rl.KeyStatistics.identity(model, layer=1),
            contexts=["{}"],
        )
    ]
    return rl.check_limits(model, edit, record, others=others, texts=TEXTS, samples=2, new_tokens=8)


def test_rows_are_the_plain_probabilities(edited: Any, limits: Limits) -> None:
    """The first row of each kind against a run of the whole model, nothing batched; after the edit, of edited weights."""
    model, record, edit = edited
    target, new = record.fact.target, record.fact.new_target
    seen = set()
    for result in limits.results:
        for row in {row.kind: row for row in reversed(result.rows)}.values():
            if row.kind in ("essence", "text", "generation", "sentence"):
                continue
            seen.add(row.kind)
            assert (row.rank_after is None) is (row.answer.startswith("("))
            dominant = row.kind == "open prompt"
            old, now = (target, new) if dominant else (row.answer, row.answer)
            value = math.log if "nats" in result.measured else float
            assert row.before == pytest.approx(
                value(plain_p(model, row.prompt, old)), rel=1e-3, abs=1e-7
            )
            with edit.applied(model):
                assert row.after == pytest.approx(
                    value(plain_p(model, row.prompt, now)), rel=1e-3, abs=1e-7
                )
    assert len(seen) == 12


def test_effects_are_what_the_docstrings_say(edited: Any, limits: Limits) -> None:
    model, record, edit = edited
    new = record.fact.new_target

    def change(prompt: str, answer: str) -> float:
        before = plain_p(model, prompt, answer)
        with edit.applied(model):
            return plain_p(model, prompt, answer) - before

    forward = change(record.fact.text, new)
    for name, names in (("association", record.aliases), ("description", record.descriptions)):
        shares = [change(record.fact.about(each).text, new) / forward for each in names]
        assert limits[name].effect.mean == pytest.approx(
            sum(shares) / len(shares), rel=1e-3, abs=1e-6
        )
    neighbours = [change(q.prompt, q.target) for q in record.neighborhood]
    assert limits["bleed-over"].effect.mean == pytest.approx(
        sum(neighbours) / len(neighbours), rel=1e-3, abs=1e-6
    )
    sentence = f"{record.fact.text} {new}."
    alone = [
        plain_p(model, f"{sentence} {q.prompt}", q.target) - plain_p(model, q.prompt, q.target)
        for q in record.neighborhood
    ]
    assert limits["bleed-over"].control.mean == pytest.approx(
        sum(alone) / len(alone), rel=1e-3, abs=1e-6
    )


def test_neighbours_that_gain_by_the_edit_do_not_hide_those_that_lose(edited: Any) -> None:
    model, record, edit = edited
    new = rl.data.Question(
        prompt="Oskar Ivanov lives in the city of", target=str(record.fact.new_target)
    )
    plain = rl.checks.bleed_over(model, edit, record)
    found = rl.checks.bleed_over(
        model, edit, dataclasses.replace(record, neighborhood=(*record.neighborhood, new))
    )
    assert (found.effect, found.control, found["NS, edited"]) == (
        plain.effect,
        plain.control,
        plain["NS, edited"],
    )
    assert found.rows[len(record.neighborhood)].kind == "neighbour with the new answer"
    changes = [row.change for row in plain.rows if row.kind == "neighbour"]
    assert found["change of p(true answer), neighbour"].mean == pytest.approx(
        sum(changes) / len(changes)
    )
    assert 0 < len(changes) < len(record.neighborhood)
    assert found["change of p(true answer), neighbour with the new answer"].count == 1
    alone = rl.checks.bleed_over(model, edit, dataclasses.replace(record, neighborhood=(new,)))
    assert not alone.asked
    assert "of which the new target is not true" in alone.reading


def test_kl_and_ranks_are_those_of_the_whole_distribution(edited: Any) -> None:
    model, record, edit = edited
    (found,) = before_and_after(model, edit, [(record.fact.text, record.fact.new_target)])
    tokens = model.to_tokens(record.fact.text)
    with torch.no_grad():
        before = model(tokens)[0, -1].double().log_softmax(-1)
        with edit.applied(model):
            after = model(tokens)[0, -1].double().log_softmax(-1)
    first = rl.forward.tokens.continuation(model, record.fact.text, record.fact.new_target)[0]
    assert found.kl == pytest.approx(float((before.exp() * (before - after)).sum()), rel=1e-4)
    assert found.rank_before == 1 + int((before > before[first]).sum())
    assert (found.rank_after, found.rank_before > 1) == (1, True)
    firing = rl.edit_firing(model, edit, record.fact.text)
    assert found.firing == pytest.approx(float(firing.values.abs().max()), rel=1e-4)
    assert found.fires_at == firing.labels[int(firing.values.abs().argmax())]


def test_an_edit_that_changes_nothing_has_no_effect(edited: Any) -> None:
    """The law behind every check: with v = 0, before and after are the same numbers, and no share is made of nothing."""
    model, record, edit = edited
    nothing = dataclasses.replace(edit, v=torch.zeros_like(edit.v), value=None)
    limits = rl.check_limits(model, nothing, record, texts=TEXTS, samples=1, new_tokens=4)
    for result in limits.results:
        if result.name == "dominance":
            assert result["change of p(new target)"].mean == 0.0
        elif result.asked:
            assert result.effect.mean == 0.0, result.name
            assert all(row.kl in (0.0, None) for row in result.rows)
    for name in ("association", "description"):
        assert not limits[name].asked
        assert "does not hold for the subject itself" in limits[name].reading


def test_controls_are_high_where_the_toy_was_taught_and_low_where_not(toy: Any) -> None:
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    for one_way in (False, True):
        record = next(r for r in rl.data.limits() if "toy" in r.known_by and r.one_way is one_way)
        edit = rl.rome(toy, record.fact, layer=1, statistics=statistics, contexts=["{}"])
        for name in ("direction", "association", "description"):
            result = getattr(rl.checks, name)(toy, edit, record)
            assert result.control.mean < 0.1 if one_way else result.control.mean > 0.5, (
                name,
                one_way,
            )
            assert (result.effect_where_known is None) is one_way
            assert ("little follows" in result.reading) is one_way


def test_the_reverse_does_not_follow_though_the_toy_knows_reverses(limits: Limits) -> None:
    result = limits["direction"]
    assert result["change of p(subject), reverse"].mean < 0.05 < result.control.mean
    assert result["change of p(new target), forward"].mean > 0.9
    assert "knows 3 of the 3 reverses" in result.reading


def test_what_follows_from_a_fact_follows_where_the_toy_derives_it(limits: Limits) -> None:
    result = limits["consequence"]
    assert result["new consequence likelier than the true one, before"].mean == 0.0
    assert result["new consequence likelier than the true one, after"].mean == 1.0
    assert result.control.mean > 0.9


def test_the_firing_explains_which_prompts_move(limits: Limits) -> None:
    rows = [row for result in limits.results for row in result.rows if row.firing is not None]
    pairs = {row.prompt: (round(abs(row.firing), 4), round(row.kl, 4)) for row in rows}
    expected = scipy.stats.spearmanr(*zip(*pairs.values(), strict=True)).statistic
    assert limits.firing_correlation == pytest.approx(expected)
    assert expected > 0.3


def test_what_differs_by_rounding_alone_is_no_rank() -> None:
    """Prompts that all begin with the subject fire alike, up to the last digits."""

    def made(firings: list[float], changes: list[float]) -> CheckResult:
        rows = tuple(
            CheckRow(
                kind="a",
                prompt=str(i),
                answer="",
                before=0.0,
                after=change,
                kl=2.0 * i,
                firing=firing,
            )
            for i, (firing, change) in enumerate(zip(firings, changes, strict=True))
        )
        return CheckResult(name="a", asks="", measured="", effect_is="", control_is="", rows=rows)

    changes = [0.1, -0.2, 0.3, -0.4, -0.5]
    assert made([1.0 - 6e-8, 1.0, 1.0 + 2e-7, 1.0, 1.0], changes).firing_correlation is None
    rising = made([0.1, -0.2, 0.3, 0.4, -0.5], changes)
    assert (rising.firing_correlation, rising.firing_effect_correlation) == pytest.approx(
        (1.0, 1.0)
    )
    falling = made([0.1, -0.2, 0.3, 0.4, -0.5], changes[::-1])
    assert (falling.firing_correlation, falling.firing_effect_correlation) == pytest.approx(
        (1.0, -1.0)
    )


def test_a_random_direction_is_an_edit_of_equal_norm_at_the_same_place(edited: Any) -> None:
    model, _, edit = edited
    blind = random_direction(edit)
    assert torch.equal(blind.u, edit.u)
    assert float(blind.v.norm()) == pytest.approx(float(edit.v.norm()), rel=1e-5)
    assert abs(float(torch.cosine_similarity(blind.v, edit.v, dim=0))) < 0.5
    assert torch.equal(blind.v, random_direction(edit).v)
    assert not torch.equal(blind.v, random_direction(edit, seed=1).v)
    assert not blind.is_applied(model)


def test_essence_and_fidelity_read_whole_sentences(edited: Any, limits: Limits) -> None:
    model, record, edit = edited
    rows = [row for row in limits["fidelity"].rows if row.kind == "text"]
    assert [row.prompt for row in rows] == TEXTS

    def nats(text: str) -> float:
        first, rest = text.split(" ", 1)
        return -math.log(plain_p(model, first, rest)) / len(
            rl.forward.tokens.continuation(model, first, rest)
        )

    assert rows[0].before == pytest.approx(nats(TEXTS[0]), rel=1e-4)
    with edit.applied(model):
        assert rows[0].after == pytest.approx(nats(TEXTS[0]), rel=1e-4)
    told = dataclasses.replace(record, texts=(TEXTS[0],))
    found = rl.checks.essence(model, edit, told)
    sentence = next(row for row in found.rows if row.kind == "sentence")
    assert sentence.before == pytest.approx(nats(TEXTS[0]), rel=1e-4)


def test_the_sizes_of_an_edit_are_those_of_its_matrix(edited: Any, limits: Limits) -> None:
    model, _, edit = edited
    weight = rl.models.w_out(model, edit.layer)
    assert limits["fidelity"]["||delta|| / ||W_out||"].mean == pytest.approx(
        float(edit.delta.norm() / weight.norm()), rel=1e-4
    )
    wrote = rl.models.mlp_output(model, edit.layer, edit.key)
    ratio = float((edit.key @ edit.delta).norm() / wrote.norm())
    assert limits["fidelity"]["||(u . k*) v|| / ||k* W_out + b_out||"].mean == pytest.approx(
        ratio, rel=1e-4
    )


def test_what_a_record_lacks_is_not_asked(edited: Any) -> None:
    model, record, edit = edited
    bare = rl.data.Record(id="bare", fact=record.fact)
    limits = rl.check_limits(model, edit, bare, texts=TEXTS, samples=1, new_tokens=4)
    asked = {result.name for result in limits.results if result.asked}
    assert asked == {"essence", "fidelity"}  # which need nothing but the subject
    for result in limits.results:
        if result.name not in asked:
            assert result.effect is None
            assert result.reading.startswith(
                ("Not asked: the record has no", "Not asked: it takes many facts")
            )
    shown = limits.table().set_index("check")
    assert set(shown.loc[sorted(set(shown.index) - asked), "effect"]) == {"not asked"}


def test_an_alias_that_holds_the_subject_s_last_word_stands_beside_and_not_in_the_effect(
    edited: Any,
) -> None:
    model, record, edit = edited
    last = record.fact.subject.split()[-1]
    keyed = f"Old {last}"
    found = rl.checks.association(
        model, edit, dataclasses.replace(record, aliases=(*record.aliases, keyed))
    )
    assert found.effect == rl.checks.association(model, edit, record).effect
    assert [row.prompt for row in found.rows if "last word" in row.kind] == [
        record.fact.about(keyed).text
    ]
    alone = rl.checks.association(model, edit, dataclasses.replace(record, aliases=(keyed,)))
    assert not alone.asked
    assert alone.reading.startswith(
        "Not asked: the record has no alias without the subject's last word"
    )
    assert alone["share kept, alias with the subject's last word"].count == 1
    assert holds_last_word("Leo MESSI", "Lionel Messi")
    assert holds_last_word("La Familia", "Sagrada Família")
    assert not holds_last_word("Fromage", "Cheese")


def test_a_description_that_holds_the_subject_s_last_word_stands_beside(edited: Any) -> None:
    model, record, edit = edited
    keyed = f"the nurse {record.fact.subject}"
    plain = rl.checks.description(model, edit, record)
    found = rl.checks.description(
        model, edit, dataclasses.replace(record, descriptions=(keyed, *record.descriptions))
    )
    assert found.effect == plain.effect
    assert found["share kept, description with the subject's last word"].mean > 0.5
    assert found["share kept, description with the name"].count == 1 + len(record.descriptions)


def test_an_edit_away_from_the_new_target_has_nothing_to_share(edited: Any) -> None:
    model, record, edit = edited
    away = dataclasses.replace(
        edit, fact=dataclasses.replace(record.fact), v=-edit.v, value=None
    )  # the true answer was far likelier already, so that p(new) can hardly fall
    assert not rl.checks.association(model, away, record).asked


def test_where_known_says_none_known_and_not_that_it_was_not_asked(toy: Any) -> None:
    record = next(r for r in rl.data.limits() if "toy" in r.known_by and r.one_way is True)
    edit = rl.rome(
        toy,
        record.fact,
        layer=1,
        statistics=rl.KeyStatistics.identity(toy, layer=1),
        contexts=["{}"],
    )
    table = (
        rl.check_limits(toy, edit, record, texts=TEXTS, samples=0, new_tokens=0)
        .table()
        .set_index("check")
    )
    assert (table.loc["association", "where known"], table.loc["essence", "where known"]) == (
        "none known",
        "",
    )
    assert table.loc["localisation", "effect"] == "not asked"


def test_few_prompts_give_no_interval_and_say_so(limits: Limits) -> None:
    assert limits["association"].effect.low is None
    assert "too few" in str(limits["association"].effect)
    assert limits["bleed-over"].effect.low is not None


def test_the_frame_has_every_row(limits: Limits) -> None:
    assert len(limits.to_frame()) == sum(len(result.rows) for result in limits.results)
    with pytest.raises(KeyError, match="direction"):
        limits["nothing"]
    with pytest.raises(KeyError, match="reverse"):
        limits["direction"]["nothing"]


def test_limits_are_saved_and_loaded(limits: Limits, tmp_path: Path) -> None:
    assert Limits.load(limits.save(tmp_path / "limits.safetensors")) == limits


def test_any_editor_s_edit_can_be_asked(edited: Any) -> None:
    """Fine-tuning has no key and fires nowhere; a sentence in the context has no weights at all."""
    model, record, _ = edited
    tuned = rl.fine_tune(model, record.fact, layer=1, steps=2, contexts=["{}"])
    said = rl.InContext()(model, record.fact)
    for edit in (tuned, said):
        limits = rl.check_limits(model, edit, record, texts=TEXTS, samples=1, new_tokens=4)
        assert limits.firing_correlation is None
        assert all(row.firing is None for result in limits.results for row in result.rows)
        assert limits["direction"].asked
        assert limits["essence"].control is None
    names = [
        measure.name
        for measure in rl.checks.fidelity(model, tuned, record, texts=TEXTS, new_tokens=0).further
    ]
    assert names == ["||delta|| / ||W_out||"]
    behind = rl.checks.direction(model, said, record).rows[-1]
    prompt = f"{said.prefix} {behind.prompt}"
    assert behind.after == pytest.approx(math.log(plain_p(model, prompt, behind.answer)), rel=1e-3)


def test_a_hook_on_the_edited_output_is_refused_since_it_would_act_too_early(edited: Any) -> None:
    """On edited weights it acts on what the edit adds, as hooks it would come before it; other edits' hooks only add."""
    model, record, edit = edited
    name = next(name for name, _ in reversed(edit.fwd_hooks(model)))
    with (
        model.hooks(fwd_hooks=[(name, lambda value, hook: 0.0 * value)]),
        pytest.raises(ValueError, match="comes after") as refused,
    ):
        rl.check_limits(model, edit, record)
    (behind,) = re.findall("Put it on '(.*?)'", str(refused.value))
    question = (record.fact.text, record.fact.new_target)
    with model.hooks(fwd_hooks=[(behind, lambda value, hook: 0.5 * value)]):
        (found,) = before_and_after(model, edit, [question])
        with edit.applied(model):
            assert found.after == pytest.approx(
                math.log(plain_p(model, *question)), rel=1e-3, abs=1e-4
            )
    again = dataclasses.replace(edit, v=0.1 * edit.v, value=None)
    with model.hooks(fwd_hooks=again.fwd_hooks(model)):
        assert rl.checks.direction(model, edit, record).asked


def test_hooks_that_the_caller_has_on_are_part_of_before_and_after(edited: Any) -> None:
    model, record, edit = edited
    question = (record.fact.text, record.fact.new_target)
    (plain,) = before_and_after(model, edit, [question])

    def half(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return 0.5 * value

    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", half)]):
        (found,) = before_and_after(model, edit, [question])
        assert found.before == pytest.approx(math.log(plain_p(model, *question)), rel=1e-3)
        with edit.applied(model):
            assert found.after == pytest.approx(
                math.log(plain_p(model, *question)), rel=1e-3, abs=1e-4
            )
    assert abs(found.before - plain.before) > 1e-3


def test_a_hook_on_a_position_by_its_number_stays_on_while_sampling(edited: Any) -> None:
    model, record, edit = edited

    def push(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, 2] *= -3.0
        return value

    before = plain_p(model, record.fact.text, record.fact.target)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", push)]):
        found = rl.check_limits(model, edit, record, texts=TEXTS, samples=1, new_tokens=2)
        hooked = plain_p(model, record.fact.text, record.fact.new_target)
        unsaid = plain_p(model, record.fact.text, record.fact.target)
    forward = next(row for row in found["direction"].rows if row.kind == "forward")
    assert forward.before == pytest.approx(math.log(hooked), rel=1e-3)
    assert abs(unsaid - before) > 0.1
    assert found["dominance"]["continuations that name the new target, after"].count == len(
        record.open_prompts
    )
    assert sum(row.kind == "generation" for row in found["fidelity"].rows) == len(TEXTS)


def test_an_edit_is_checked_with_its_own_record_and_outside_the_weights(edited: Any) -> None:
    model, record, edit = edited
    other = next(r for r in rl.data.limits() if r.fact.subject != record.fact.subject)
    for check in (rl.check_limits, rl.checks.direction, rl.checks.fidelity):
        with pytest.raises(ValueError, match="its own record"):
            check(model, edit, other)
        with edit.applied(model), pytest.raises(ValueError, match="carry the edit already"):
            check(model, edit, record)


def test_what_is_no_edit_or_no_record_is_refused_with_what_was_expected(edited: Any) -> None:
    """As users run it, without the tests' checks of types, which would come first."""
    model, record, edit = edited
    wrong_records = ("eiffel-tower", {"id": "a"}, record.fact, None, edit)
    calls = [
        (model, edit, wrong, r"expected a record such as rl\.data\.limits\(")
        for wrong in wrong_records
    ]
    edits = (record, "edit", rl.InContext(), model)
    calls += [
        (model, wrong, record, f"The edit is of type {type(wrong).__name__}, expected")
        for wrong in edits
    ]
    calls += [(edit, model, record, "in this order"), (record, model, edit, "in this order")]
    for check in (rl.check_limits, rl.checks.direction, rl.checks.dominance, rl.checks.bleed_over):
        for *arguments, message in calls:
            with pytest.raises(ValueError, match=message):
                inspect.unwrap(check)(*arguments)
    with pytest.raises(ValueError, match="The record is the text 'eiffel-tower'"):
        inspect.unwrap(rl.check_limits)(model, edit, "eiffel-tower")


def test_where_no_default_text_fits_the_context_the_neighbours_are_read(edited: Any) -> None:
    model, record, edit = edited
    found = rl.checks.fidelity(model, edit, record, new_tokens=2)
    assert [row.prompt for row in found.rows if row.kind == "text"] == [
        f"{q.prompt} {q.target}." for q in record.neighborhood
    ]
    assert "||delta|| / ||W_out||" in [measure.name for measure in found.further]


def test_texts_are_split_at_their_first_white_space_of_any_kind(edited: Any) -> None:
    model, record, edit = edited
    text = f"Simon\n{TEXTS[0]}"
    (found,) = rl.checks.fidelity(model, edit, record, texts=[text], new_tokens=0).rows
    count = len(rl.forward.tokens.continuation(model, "Simon", TEXTS[0]))
    assert found.before == pytest.approx(
        -math.log(plain_p(model, "Simon", TEXTS[0])) / count, rel=1e-3
    )


def test_bad_numbers_are_refused_before_anything_is_run(edited: Any) -> None:
    model, record, edit = edited
    with pytest.raises(ValueError, match="samples is -1"):
        rl.checks.dominance(model, edit, record, samples=-1)
    with pytest.raises(ValueError, match="'word', expected several words"):
        rl.checks.fidelity(model, edit, record, texts=["word"])
    with pytest.raises(ValueError, match="holds the edit itself"):
        rl.checks.fidelity(model, edit, record, others=[edit])
    assert not rl.checks.fidelity(model, edit, record, texts=[]).asked


@pytest.mark.parametrize("question", [("", "Paris"), ("It was ", "Paris"), ("It was", " ")])
def test_questions_without_words_are_refused(toy: Any, question: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="expected words"):
        rl.answer_log_probs(toy, [question, ("It was", "raining")])
    with pytest.raises(ValueError, match="none empty"):
        rl.top_answers(toy, ["", "It was"])


def test_checks_leave_the_model_as_it_was(edited: Any, untouched: Any) -> None:
    model, record, edit = edited
    untouched(model)
    rl.check_limits(model, edit, record, texts=TEXTS, samples=1, new_tokens=4)


def test_an_edit_of_another_model_is_refused(edited: Any) -> None:
    model, record, edit = edited
    with pytest.raises(ValueError, match="other weights"):
        rl.check_limits(model, dataclasses.replace(edit, model_fingerprint="0" * 16), record)


def test_answers_of_several_tokens_and_lengths_are_the_plain_ones(
    toy: Any, toy_record: rl.data.Record
) -> None:
    questions = [
        (toy_record.fact.text, toy_record.fact.target),
        ("It was", "raining and Wanda slept"),
        ("A", "b"),
    ]
    expected = [plain_p(toy, *question) for question in questions]
    found = rl.answer_log_probs(toy, questions).exp().tolist()
    assert found == pytest.approx(expected, rel=1e-3)


def test_top_answers_are_the_likeliest(toy: Any, toy_record: rl.data.Record) -> None:
    prompts = [toy_record.fact.text, "It"]
    answers = rl.top_answers(toy, prompts, count=3)
    assert answers[0].tokens[0].strip() == toy_record.fact.target
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            best = toy(toy.to_tokens(prompt))[0, -1].softmax(-1).topk(3)
        assert list(answer.probabilities) == pytest.approx(best.values.tolist(), rel=1e-4)
        assert list(answer.tokens) == [toy.tokenizer.decode([int(i)]) for i in best.indices]


def test_an_interval_covers_the_mean_of_normal_draws_in_95_of_100(monkeypatch: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(1000):
        result = average(torch.randn(6, generator=generator).tolist())
        hits += result.low <= 0.0 <= result.high
    assert 930 <= hits <= 970


def test_few_values_have_no_interval() -> None:
    result = average([1.0, 2.0, 3.0, 4.0])
    assert (result.mean, result.low, result.high) == (2.5, None, None)
    assert "too few" in str(result)
    with pytest.raises(ValueError, match="no value"):
        average([])
