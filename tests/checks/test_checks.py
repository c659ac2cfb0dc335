"""Checks on the toy model: rows against plain runs, one batch for all, and what is refused."""

import copy
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from fixtures_for_tests import with_few_prompts

import rome_lens as rl
from rome_lens.checks import CheckResult
from rome_lens.checks.answered import Answered
from rome_lens.checks.asking import before_and_after
from rome_lens.checks.claims.essence import random_direction
from rome_lens.checks.claims.overfit_numbers import share_naming
from rome_lens.checks.claims.spill import holds_last_word
from rome_lens.checks.limits import Limits
from rome_lens.checks.writing import Continuations, continuations

TEXTS = ["Simon Calloway lives in the city of Pralec.", "Yusuf Brandt lives in the city of Karsun."]
# Every process that runs one of these tests makes this module's fixtures, which take seconds.
pytestmark = pytest.mark.xdist_group("checks")
QUICK: dict[str, Any] = {"texts": TEXTS, "samples": 0, "new_tokens": 0}


@pytest.fixture(scope="module")
def record(toy_records: list[rl.data.Record]) -> rl.data.Record:
    """A two-way record, whose reverse, alias and description the toy knows, with few prompts."""
    record = next(record for record in toy_records if record.one_way is False)
    return dataclasses.replace(
        record,
        paraphrases=record.paraphrases[:1],
        open_prompts=record.open_prompts[:1],
        exemplars=record.exemplars[:2],
        consequences=record.consequences[:2],
    )


@pytest.fixture(scope="module")
def edit(one_toy: Any, record: rl.data.Record, toy_statistics: Any) -> rl.RankOneEdit:
    return rl.rome(
        one_toy,
        record,
        layer=2,
        statistics=toy_statistics,
        contexts=("{}",),
        config=rl.RomeConfig(steps=8),
    )


@pytest.fixture(scope="module")
def limits(toy: Any, record: rl.data.Record, edit: rl.RankOneEdit, toy_edit: Any) -> Limits:
    """Every check of the two-way record's edit, with another fact's edit to compare with."""
    return rl.check_limits(
        toy, edit, record, others=[toy_edit], texts=TEXTS, samples=1, new_tokens=4
    )


def plain_p(model: Any, prompt: str, answer: str) -> float:
    """Probability of the whole answer, token after token, nothing batched, padded or skipped."""
    tokens = model.to_tokens(prompt)
    log_p = 0.0
    for token in rl.forward.tokens.continuation(model, prompt, answer):
        with torch.no_grad():
            log_p += float(model(tokens)[0, -1].log_softmax(-1)[token])
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return float(torch.tensor(log_p).exp())


def ask_one(model: Any, edit: Any, question: tuple[str, str]) -> Answered:
    (answered,) = before_and_after(model, [(edit, [question])], firing_of=edit)
    return answered[question]


def full_forwards(model: Any, call: Any) -> list[tuple[int, int]]:
    """Rows and positions of every forward pass of a call that reaches the last block."""
    passes: list[tuple[int, int]] = []
    handle = model.blocks[-1].register_forward_pre_hook(
        lambda _module, args: passes.append(tuple(args[0].shape[:2]))
    )
    try:
        call()
    finally:
        handle.remove()
    return passes


def test_rows_are_the_plain_probabilities(
    toy: Any, record: rl.data.Record, edit: rl.RankOneEdit, limits: Limits
) -> None:
    """The first row of each kind against plain runs; after the edit, on edited weights."""
    target, new = record.fact.target, record.fact.new_target
    unasked = ("essence", "text", "generation", "sentence", "greedy", "sampled")
    rows = [
        (row, math.log if "nats" in result.measured else float)
        for result in limits.results
        for row in {row.kind: row for row in reversed(result.rows)}.values()
        if not row.kind.startswith(unasked)
    ]
    for row, value in rows:
        assert (row.rank_after is None) is (row.answer.startswith("("))
        answer = target if row.kind in ("asked", "loud") else row.answer
        assert row.before == pytest.approx(
            value(plain_p(toy, row.prompt, answer)), rel=1e-3, abs=1e-7
        )
    with edit.applied(toy):
        for row, value in rows:
            answer = new if row.kind in ("asked", "loud") else row.answer
            assert row.after == pytest.approx(
                value(plain_p(toy, row.prompt, answer)), rel=1e-3, abs=1e-7
            )
    assert len({row.kind for row, _ in rows}) == 19


def test_the_questions_of_all_checks_are_asked_together(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit, toy_edit: Any
) -> None:
    record = with_few_prompts(record)

    def checked(record: rl.data.Record) -> list[tuple[int, int]]:
        options = {**QUICK, "others": [toy_edit]}
        return full_forwards(one_toy, lambda: rl.check_limits(one_toy, edit, record, **options))

    passes = checked(record)
    assert 2 <= len(passes) <= 4  # without edits and under them, in at most two lengths each
    # The fact's own prompt is a question of several checks. As a paraphrase it is not asked again.
    again = dataclasses.replace(record, paraphrases=(*record.paraphrases, record.fact.text))
    assert checked(again) == passes


def test_a_check_alone_finds_what_it_finds_among_the_others(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit, toy_edit: Any
) -> None:
    record = with_few_prompts(record)
    others = [toy_edit]
    limits = rl.check_limits(one_toy, edit, record, others=others, **QUICK)
    fidelity = {"others": others, "texts": TEXTS, "new_tokens": 0}
    options = {"overfit": {"samples": 0}, "fidelity": fidelity}
    for result in limits.results[:-1]:
        name = result.name.replace("-", "_")
        alone = getattr(rl.checks, name)(one_toy, edit, record, **options.get(name, {}))
        for both in zip(alone.rows, result.rows, strict=True):
            ours, theirs = (dataclasses.asdict(row) for row in both)
            for field, value in ours.items():
                assert theirs[field] == (
                    pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
                ), (name, field)


def test_kl_and_ranks_are_those_of_the_whole_distribution(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    found = ask_one(one_toy, edit, (record.fact.text, record.fact.new_target))
    tokens = one_toy.to_tokens(record.fact.text)
    with torch.no_grad():
        before = one_toy(tokens)[0, -1].double().log_softmax(-1)
        with edit.applied(one_toy):
            after = one_toy(tokens)[0, -1].double().log_softmax(-1)
    first = rl.forward.tokens.continuation(one_toy, record.fact.text, record.fact.new_target)[0]
    assert found.kl == pytest.approx(float((before.exp() * (before - after)).sum()), rel=1e-4)
    assert found.rank_before == 1 + int((before > before[first]).sum())
    assert (found.rank_after, found.rank_before > 1) == (1, True)
    values = rl.edit_firing(one_toy, edit, record.fact.text).values
    place = int(values.abs().argmax())
    assert found.firing == pytest.approx(float(values[place]), rel=1e-4)
    assert found.fires_at == one_toy.to_str_tokens(record.fact.text)[place]


def test_a_firing_on_bos_does_not_count(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """An edit that is keyed to BOS, where it fires most strongly by far."""
    tokens = one_toy.to_tokens(record.fact.text)
    with torch.no_grad():
        _, cache = one_toy.run_with_cache(tokens)
    bos_key = cache["post", edit.layer][0, 0]
    keyed = dataclasses.replace(edit, u=bos_key / bos_key.norm(), v=0 * edit.v, value=None)
    values = rl.edit_firing(one_toy, keyed, record.fact.text).values.abs()
    assert int(values.argmax()) == 0
    found = ask_one(one_toy, keyed, (record.fact.text, record.fact.new_target))
    assert abs(found.firing) == pytest.approx(float(values[1:].max()), rel=1e-4)


def test_an_edit_that_changes_nothing_has_no_effect(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """With v = 0, before and after are the same, and there is no effect to keep a share of."""
    record = with_few_prompts(record)
    nothing = dataclasses.replace(edit, v=torch.zeros_like(edit.v), value=None)
    limits = rl.check_limits(one_toy, nothing, record, texts=TEXTS, samples=1, new_tokens=2)
    for result in limits.results:
        if result.name == "overfit":
            # The new target after is what it was before, and not what the true one was.
            assert all(row.kl in (0.0, None) for row in result.rows)
            assert all(row.change == 0.0 for row in result.rows if "right" in row.kind)
            assert (result["asked: over"].mean, result["asked: under"].mean) == (0.0, 1.0)
        elif result.asked:
            assert result.effect.mean == 0.0, result.name
            assert all(row.kl in (0.0, None) for row in result.rows)
    for name in ("association", "description"):
        assert not limits[name].asked
        assert "does not hold for the subject itself" in limits[name].reading


def test_controls_are_high_where_the_toy_was_taught_and_low_where_not(
    one_toy: Any, record: rl.data.Record, edit: Any, toy_record: rl.data.Record, toy_edit: Any
) -> None:
    """And the table says "none known" where it knows none, which is not "not asked"."""
    assert toy_record.one_way is True
    toy_record, record = with_few_prompts(toy_record), with_few_prompts(record)
    for one_way, its_edit, its_record in ((False, edit, record), (True, toy_edit, toy_record)):
        limits = rl.check_limits(one_toy, its_edit, its_record, **QUICK)
        for name in ("direction", "association", "description"):
            result = limits[name]
            assert result.control.mean < 0.1 if one_way else result.control.mean > 0.5, name
            assert (result.effect_where_known is None) is one_way
            assert ("little follows" in result.reading) is one_way
    table = limits.table().set_index("check")
    assert table.loc[["association", "essence"], "where known"].tolist() == ["none known", ""]
    assert table.loc["localisation", "effect"] == "not asked"


def test_the_toy_shows_what_it_was_taught_to_show(limits: Limits) -> None:
    """Reverses do not follow, though the toy knows them; consequences do; KL follows the firing."""
    direction, consequence = limits["direction"], limits["consequence"]
    assert direction["change of p(subject), reverse"].mean < 0.05 < direction.control.mean
    assert direction["change of p(new target), forward"].mean > 0.9
    assert "knows 3 of the 3 reverses" in direction.reading
    more_likely = "new consequence more likely than the true one, {}"
    assert [consequence[more_likely.format(w)].mean for w in ("before", "after")] == [0.0, 1.0]
    assert consequence.control.mean > 0.9
    rows = [row for result in limits.results for row in result.rows if row.firing is not None]
    pairs = {row.prompt: (round(abs(row.firing), 4), round(row.kl, 4)) for row in rows}
    expected = scipy.stats.spearmanr(*zip(*pairs.values(), strict=True)).statistic
    assert limits.firing_correlation == pytest.approx(expected)
    assert expected > 0.3


def test_a_random_direction_is_an_edit_of_equal_norm_at_the_same_place(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    blind = random_direction(edit)
    assert torch.equal(blind.u, edit.u)
    assert float(blind.v.norm()) == pytest.approx(float(edit.v.norm()), rel=1e-5)
    assert abs(float(torch.cosine_similarity(blind.v, edit.v, dim=0))) < 0.5
    assert torch.equal(blind.v, random_direction(edit).v)
    assert not torch.equal(blind.v, random_direction(edit, seed=1).v)
    assert not blind.is_applied(one_toy)
    seeds = [rl.checks.essence(one_toy, edit, record, seed=seed) for seed in (0, 1)]
    assert seeds[0].effect.mean == pytest.approx(seeds[1].effect.mean)
    assert seeds[0].control != seeds[1].control


def test_essence_and_fidelity_read_whole_sentences(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit, toy_edit: Any
) -> None:
    def nats(text: str) -> float:
        first, rest = text.split(" ", 1)
        tokens = len(rl.forward.tokens.continuation(one_toy, first, rest))
        return -math.log(plain_p(one_toy, first, rest)) / tokens

    fidelity = rl.checks.fidelity(
        one_toy, edit, record, others=[toy_edit], texts=TEXTS, new_tokens=0
    )
    rows = [row for row in fidelity.rows if row.kind == "text"]
    assert [row.prompt for row in rows] == TEXTS
    told = dataclasses.replace(record, texts=(TEXTS[0],))
    essence = rl.checks.essence(one_toy, edit, told)
    sentence = next(row for row in essence.rows if row.kind == "sentence")
    before = nats(TEXTS[0])
    assert [rows[0].before, sentence.before] == pytest.approx([before, before], rel=1e-4)
    with edit.applied(one_toy):
        assert [rows[0].after, sentence.after] == pytest.approx([nats(TEXTS[0])] * 2, rel=1e-4)
    with toy_edit.applied(one_toy):
        assert rows[0].control == pytest.approx(nats(TEXTS[0]) - before, rel=1e-3, abs=1e-5)


def test_the_sizes_of_an_edit_are_those_of_its_matrix(
    one_toy: Any, edit: rl.RankOneEdit, limits: Limits
) -> None:
    weight = rl.models.w_out(one_toy, edit.layer)
    fidelity = limits["fidelity"]
    assert fidelity["||delta|| / ||W_out||"].mean == pytest.approx(
        float(edit.delta.norm() / weight.norm()), rel=1e-4
    )
    wrote = rl.models.mlp_output(one_toy, edit.layer, edit.key)
    ratio = float((edit.key @ edit.delta).norm() / wrote.norm())
    assert fidelity["||(u . k*) v|| / ||k* W_out + b_out||"].mean == pytest.approx(ratio, rel=1e-4)
    fired = [rl.edit_firing(one_toy, edit, text).values.abs() for text in TEXTS]
    elsewhere = fidelity["mean |u . k| / (u . k*) over other text"].mean
    assert elsewhere == pytest.approx(float(torch.cat(fired).mean()), rel=1e-4)


def test_what_a_record_lacks_is_not_asked(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """A bare fact has a subject and nothing else; CounterFact's records have neighbours, too."""
    record = with_few_prompts(record)
    fact = record.fact
    counterfact = rl.data.Record(
        id=0,
        fact=fact,
        relation_id="P551",
        paraphrases=record.paraphrases,
        neighborhood=tuple(q for q in record.neighborhood if q.target == fact.target),
        generation_prompts=(f"{fact.subject} is",),
        reference_texts=("It was raining.",),
    )
    quick = {"samples": 1, "new_tokens": 2}
    cases = [
        # The toy's context is too short for the default texts.
        (fact, quick, {"overfit", "essence"}),
        (fact, {**quick, "texts": TEXTS}, {"overfit", "essence", "fidelity"}),
        (counterfact, quick, {"generalisation", "overfit", "bleed-over", "essence", "fidelity"}),
    ]
    for its_record, options, expected in cases:
        limits = rl.check_limits(one_toy, edit, its_record, **options)
        assert {result.name for result in limits.results if result.asked} == expected
        lacking = [result for result in limits.results if result.name not in expected]
        for result in lacking:
            assert (result.effect, result.rows) == (None, ())
            assert result.reading.startswith(
                ("Not asked: the record has no", "Not asked: it takes", "Not asked: there is no")
            )
        effects = limits.table().set_index("check").loc[[r.name for r in lacking], "effect"]
        assert set(effects) == {"not asked"}
        assert len(limits.to_frame()) == sum(len(result.rows) for result in limits.results)
    for name in ("direction", "association", "description", "consequence", "bleed_over"):
        assert not getattr(rl.checks, name)(one_toy, edit, fact).asked


def test_names_with_the_subject_s_last_word_are_left_out_of_the_effect(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    last = record.fact.subject.split()[-1]
    alias, described = f"Old {last}", f"the nurse {record.fact.subject}"
    more = dataclasses.replace(
        record,
        aliases=(*record.aliases, alias),
        descriptions=(described, *record.descriptions),
    )
    for check, kind, its_name in (
        (rl.checks.association, "alias", alias),
        (rl.checks.description, "description", described),
    ):
        plain, found = (check(one_toy, edit, each) for each in (record, more))
        assert found.effect.mean == pytest.approx(plain.effect.mean, abs=1e-6)
        rows = [row.prompt for row in found.rows if "last word" in row.kind]
        assert rows == [record.fact.about(its_name).text]
        assert found[f"share kept, {kind} with the subject's last word"].count == 1
    description = found
    assert description["share kept, description with the subject's last word"].mean > 0.5
    count = description["share kept, description with the name"].count
    assert count == 1 + len(record.descriptions)
    alone = dataclasses.replace(record, aliases=(alias,))
    association = rl.checks.association(one_toy, edit, alone)
    assert not association.asked
    assert association.reading.startswith(
        "Not asked: the record has no alias without the subject's last word"
    )


def test_few_prompts_give_no_interval_and_say_so(limits: Limits) -> None:
    assert limits["association"].effect.low is None
    assert "too few" in str(limits["association"].effect)
    assert limits["bleed-over"].effect.low is not None


def test_the_frame_has_every_row_and_a_wrong_name_is_told(limits: Limits) -> None:
    assert len(limits.to_frame()) == sum(len(result.rows) for result in limits.results)
    with pytest.raises(KeyError, match="direction"):
        limits["nothing"]
    with pytest.raises(KeyError, match="reverse"):
        limits["direction"]["nothing"]


def test_limits_are_saved_and_loaded(limits: Limits, tmp_path: Path) -> None:
    assert Limits.load(limits.save(tmp_path / "limits.safetensors")) == limits


def test_a_repr_fits_on_a_few_lines(limits: Limits) -> None:
    many = rl.average_limits([limits] * 5)
    for result in (limits, *limits.results, many, rl.average_limits(limits)):
        assert len(repr(result)) < 600
        assert type(result).__name__ in repr(result)


def test_any_editor_s_edit_can_be_asked(one_toy: Any, record: rl.data.Record) -> None:
    """Fine-tuning has no key and fires nowhere; a sentence in the context has no weights at all."""
    record = with_few_prompts(record)
    tuned = rl.fine_tune(one_toy, record.fact, layer=1, steps=1, contexts=["{}"])
    said = rl.InContext()(one_toy, record.fact)
    for edit in (tuned, said):
        limits = rl.check_limits(one_toy, edit, record, texts=TEXTS[:1], samples=1, new_tokens=2)
        assert limits.firing_correlation is None
        assert all(row.firing is None for result in limits.results for row in result.rows)
        assert limits["direction"].asked
        assert limits["essence"].control is None
        sizes = [m.name for m in limits["fidelity"].further if "entropy" not in m.name]
        assert sizes == (["||delta|| / ||W_out||"] if edit is tuned else [])
    forward = limits["direction"].rows[-1]
    prompt = f"{said.prefix} {forward.prompt}"
    assert forward.after == pytest.approx(
        math.log(plain_p(one_toy, prompt, forward.answer)), rel=1e-3
    )


def test_a_hook_on_the_edited_output_is_refused_since_it_would_act_too_early(
    toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """It should act on what the edit adds, but would come first. Other edits' hooks only add."""
    name = next(name for name, _ in reversed(edit.fwd_hooks(toy)))
    with (
        toy.hooks(fwd_hooks=[(name, lambda value, hook: 0.0 * value)]),
        pytest.raises(ValueError, match="adds to that output later") as refused,
    ):
        rl.check_limits(toy, edit, record)
    (later,) = re.findall("'(blocks.*?|ln.*?|hook.*?)'", str(refused.value))
    question = (record.fact.text, record.fact.new_target)
    with toy.hooks(fwd_hooks=[(later, lambda value, hook: 0.5 * value)]):
        found = ask_one(toy, edit, question)
        with edit.applied(toy):
            assert found.after == pytest.approx(
                math.log(plain_p(toy, *question)), rel=1e-3, abs=1e-4
            )
    again = dataclasses.replace(edit, v=0.1 * edit.v, value=None)
    with toy.hooks(fwd_hooks=again.fwd_hooks(toy)):
        assert rl.checks.direction(toy, edit, record).asked


def test_what_is_written_with_the_edit_is_what_edited_weights_write(
    toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """With the same draws; another seed gives other draws."""
    prompt = record.fact.text
    wanted = Continuations(before=[prompt], after=[prompt], samples=3, new_tokens=4, seed=0)
    (found,) = continuations(toy, [(edit, wanted)])
    with edit.applied(toy):
        (written,) = continuations(toy, [(None, wanted)])
    assert found[prompt, True] == written[prompt, False]
    assert found[prompt, False] == continuations(toy, [(None, wanted)])[0][prompt, False]
    assert found[prompt, True] != found[prompt, False]
    (again,) = continuations(toy, [(edit, dataclasses.replace(wanted, seed=1))])
    assert again[prompt, False] != found[prompt, False]


def test_hooks_that_the_caller_has_on_are_part_of_before_and_after(
    toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    question = (record.fact.text, record.fact.new_target)
    plain = ask_one(toy, edit, question)

    def half(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return 0.5 * value

    with toy.hooks(fwd_hooks=[("blocks.2.hook_resid_post", half)]):
        found = ask_one(toy, edit, question)
        assert found.before == pytest.approx(math.log(plain_p(toy, *question)), rel=1e-3)
        with edit.applied(toy):
            assert found.after == pytest.approx(
                math.log(plain_p(toy, *question)), rel=1e-3, abs=1e-4
            )
    assert abs(found.before - plain.before) > 1e-3


def test_a_hook_on_a_position_by_its_number_stays_on_while_sampling(
    toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    record = with_few_prompts(record)

    def push(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, 2] *= -3.0
        return value

    before = plain_p(toy, record.fact.text, record.fact.target)
    with toy.hooks(fwd_hooks=[("blocks.1.hook_resid_post", push)]):
        found = rl.check_limits(toy, edit, record, texts=TEXTS[:1], samples=1, new_tokens=2)
        hooked = plain_p(toy, record.fact.text, record.fact.new_target)
        unsaid = plain_p(toy, record.fact.text, record.fact.target)
    forward = next(row for row in found["direction"].rows if row.kind == "forward")
    assert forward.before == pytest.approx(math.log(hooked), rel=1e-3)
    assert abs(unsaid - before) > 0.1
    assert found["overfit"]["sampled: new target, after"].count == 1
    assert sum(row.kind == "generation" for row in found["fidelity"].rows) == 1


def test_wrong_arguments_are_refused_with_what_was_expected(
    one_toy: Any,
    record: rl.data.Record,
    edit: rl.RankOneEdit,
    toy_record: rl.data.Record,
    untouched: Any,
    unchecked: Any,
) -> None:
    """As users run it, without the tests' checks of types, which would come first."""
    untouched(one_toy)
    model, elsewhere = one_toy, dataclasses.replace(edit, model_fingerprint="0" * 16)
    calls = [
        (model, edit, wrong, r'expected a record such as rl\.data\.record\("')
        for wrong in ("eiffel-tower", {"id": "a"}, None, edit)
    ]
    calls += [
        (model, wrong, record, f"The edit is of type {type(wrong).__name__}, expected")
        for wrong in (record, "edit", rl.InContext(), model)
    ]
    calls += [
        (edit, model, record, "in this order"),
        (record, model, edit, "in this order"),
        (model, edit, "eiffel-tower", "The record is the text 'eiffel-tower'"),
        (model, edit, toy_record, "its own record"),
        (model, elsewhere, record, "other weights"),
    ]
    checks = (rl.check_limits, rl.checks.direction, rl.checks.overfit, rl.checks.fidelity)
    cases = [(check, args, {}, message) for check in checks for *args, message in calls]
    ours = (model, edit, record)
    cases += [
        (rl.checks.overfit, ours, {"samples": -1}, "samples is -1"),
        (rl.checks.overfit, ours, {"new_tokens": 0}, "new_tokens is 0"),
        (rl.check_limits, ours, {"samples": 1.5}, "samples is 1.5"),
        (rl.checks.fidelity, ours, {"new_tokens": -1}, "new_tokens is -1"),
        (rl.checks.fidelity, ours, {"texts": ["word"]}, "'word', expected several words"),
        (rl.checks.fidelity, ours, {"others": [edit]}, "holds the edit itself"),
        (rl.check_limits, ours, {"others": [elsewhere]}, "other weights"),
    ]

    def refused() -> list[tuple[str, str, str]]:
        wrong = []
        for check, args, options, message in cases:
            try:
                check(*args, **options)
            except ValueError as error:
                if not re.search(message, str(error)):
                    wrong.append((check.__name__, message, str(error)))
            else:
                wrong.append((check.__name__, message, "not refused"))
        return wrong

    wrong: list[Any] = []
    assert full_forwards(model, lambda: wrong.extend(refused())) == []  # before anything is run
    assert wrong == []
    with edit.applied(model):
        for check in checks:
            with pytest.raises(ValueError, match="carry the edit already"):
                check(model, edit, record)


def test_where_no_default_text_fits_the_context_the_neighbours_are_read(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    found = rl.checks.fidelity(one_toy, edit, record, new_tokens=0)
    expected = [f"{q.prompt} {q.target}." for q in record.neighborhood]
    assert [row.prompt for row in found.rows] == expected
    assert not rl.checks.fidelity(one_toy, edit, record, texts=[]).asked


def test_checks_leave_the_model_as_it_was(
    toy: Any, record: rl.data.Record, edit: rl.RankOneEdit, untouched: Any
) -> None:
    record = with_few_prompts(record)
    untouched(toy)
    limits = rl.check_limits(toy, edit, record, texts=TEXTS[:1], samples=1, new_tokens=2)
    assert all(isinstance(result, CheckResult) for result in limits.results)


def test_questions_without_words_are_refused(one_toy: Any) -> None:
    for question in (("", "Paris"), ("It was ", "Paris"), ("It was", " ")):
        with pytest.raises(ValueError, match=r"Both must contain words|expected several words"):
            rl.answer_log_probs(one_toy, [question, ("It was", "raining")])
    with pytest.raises(ValueError, match="none of them empty"):
        rl.top_answers(one_toy, ["", "It was"])


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


def test_fidelity_leaves_out_and_counts_texts_that_name_the_edited_subject(
    one_toy: Any, brief_records: Any, toy_edits: list[rl.RankOneEdit]
) -> None:
    """Such a text tells that the edit works, not that it harms other text."""
    first, second = brief_records[0], brief_records[1]
    own = [f"{record.fact.text} {record.fact.target}." for record in (first, second)]
    other = f"{brief_records[4].fact.text} {brief_records[4].fact.target}."
    shouted = own[0].upper()
    plain = rl.checks.fidelity(one_toy, toy_edits[0], first, texts=[other], new_tokens=0)
    found = rl.checks.fidelity(
        one_toy, toy_edits[0], first, texts=[own[0], other, shouted], new_tokens=0
    )
    assert [row.prompt for row in found.rows] == [other]
    assert found.effect == plain.effect
    left_out = "texts left out, which name the edited subject"
    assert found[left_out].mean == 2.0
    assert "2 texts that name the subject left out" in found.reading
    assert left_out not in plain.reading
    both = rl.Edits(edits=tuple(toy_edits[:2]))
    joined = rl.checks.fidelity(one_toy, both, first, texts=[*own, other], new_tokens=0)
    assert [row.prompt for row in joined.rows] == [other]
    assert not rl.checks.fidelity(one_toy, toy_edits[0], first, texts=own[:1]).asked
    # The control is another edit, on the texts that do not name its own subject.
    options: Any = {"texts": [own[1], other], "new_tokens": 0}
    controlled = rl.checks.fidelity(one_toy, toy_edits[0], first, others=[toy_edits[1]], **options)
    assert [row.control is None for row in controlled.rows] == [True, False]
    # Over several facts it is the same.
    edits = iter(toy_edits[:2])
    limits = rl.check_records(
        one_toy, [first, second], lambda _model, _fact: next(edits), texts=[*own, other],
        samples=0, new_tokens=0,
    ).limits[0]["fidelity"]  # fmt: skip
    assert [row.control is None for row in limits.rows] == [True, False]


def test_a_model_whose_logits_are_not_finite_is_named_and_not_answered_for(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    model = copy.deepcopy(one_toy)
    model.unembed.b_U.data[3] = float("nan")
    edit = dataclasses.replace(edit, model_fingerprint=None)
    statistics = rl.KeyStatistics.identity(model, layer=2)
    for ask in (
        lambda: rl.knows(model, record),
        lambda: rl.top_answers(model, [record.fact.text]),
        lambda: rl.answer_log_probs(model, [(record.fact.text, record.fact.target)]),
        lambda: rl.check_limits(model, edit, record, samples=0, new_tokens=0),
        lambda: rl.evaluate(model, edit, record),
        lambda: rl.rome(model, record, layer=2, statistics=statistics),
        lambda: rl.random_contexts(model),
        lambda: rl.causal_trace(model, record.fact, samples=2),
    ):
        with pytest.raises(rl.RomeLensError, match=r"not finite|nan"):
            ask()


def test_a_single_text_is_not_read_letter_by_letter(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit, unchecked: Any
) -> None:
    """Nor is any other single thing where several are expected."""
    text, model = record.fact.text, one_toy
    asked: list[Any] = [
        lambda: rl.check_limits(model, edit, record, texts=text),
        lambda: rl.checks.fidelity(model, edit, record, texts=text),
        lambda: rl.check_records(model, [record], lambda *_: edit, texts=text),
        lambda: rl.top_answers(model, text),
        lambda: rl.answer_log_probs(model, (text, "Pralec")),
        lambda: rl.answer_log_probs(model, ["ab"]),
        lambda: rl.answer_log_probs(model, "ab"),
        lambda: rl.edit_firings(model, edit, text),
        lambda: rl.collect_key_statistics(model, layer=2, texts=text),
        lambda: rl.collect_key_statistics(model, layer=2, openings=text),
        lambda: rl.collect_key_statistics(model, layer="12", texts=[text]),
        lambda: rl.collect_key_statistics(model, layer=2, tokens="12"),
        lambda: rl.rome(model, record, layer=2, statistics=None, contexts="{}"),
        lambda: rl.fine_tune(model, record, layer=2, contexts="{}"),
        lambda: rl.rome_sequence(model, "ab", layer=2, statistics=None),
        lambda: rl.GaussianNoise(subjects=text),
        lambda: rl.causal_trace(model, record.fact, layers="12"),
        lambda: rl.causal_trace(model, record.fact, positions="12"),
        lambda: rl.causal_trace(model, record.fact, heads="12"),
        lambda: rl.attribution_trace(model, record.fact, layers="12"),
        lambda: rl.severed_trace(model, record.fact, severed="mlp", layers="12"),
        lambda: rl.trace_facts(model, text),
        lambda: rl.trace_facts(model, [record], layers="12"),
        lambda: rl.knows(model, text),
        lambda: rl.layer_sweep(model, [record.fact], layers="12"),
        lambda: rl.evaluate_all(model, "ab", [record, record]),
        lambda: rl.compare_editors(model, [record], "ab"),
        lambda: rl.row_hooks(model, "ab"),
        lambda: rl.Edits(edits="ab"),
        lambda: rl.forward.sample_continuations(model, "ab", new_tokens=2, seeds=[0, 1]),
    ]
    answered = []
    for i, ask in enumerate(asked):
        try:
            ask()
        except rl.RomeLensError:
            continue
        except Exception as error:
            answered.append((i, repr(error)))
        else:
            answered.append((i, "answered"))
    assert not answered


def test_prompts_that_read_alike_and_join_otherwise_are_two_questions(
    one_toy: Any, record: rl.data.Record, toy_edit: Any
) -> None:
    """The fact joins by nothing, the record's other prompts by a space."""
    base = record.fact
    fact = rl.Fact(
        base.prompt,
        subject=base.subject,
        target=base.target,
        new_target=base.new_target,
        joiner="",
    )
    alike = rl.data.Question(
        prompt=base.prompt, target=base.target, new_target=str(base.new_target)
    )
    own = rl.data.Record(
        id=1, fact=fact, consequences=(alike,), open_prompts=(base.prompt,), reverse=record.reverse
    )
    results = rl.check_limits(one_toy, None, own, **QUICK)
    spaced, bare = (
        float(rl.answer_log_probs(one_toy, [(text, str(base.new_target))])[0])
        for text in (str(base.text), fact.text)
    )
    assert abs(spaced - bare) > 1.0
    consequence = {row.kind: row.before for row in results["consequence"].rows}
    assert consequence["consequence"] == pytest.approx(spaced, abs=1e-3)
    assert consequence["forward"] == pytest.approx(bare, abs=1e-3)
    forward = [row.before for row in results["direction"].rows if row.kind == "forward"]
    assert forward == pytest.approx([bare], abs=1e-3)
    said = results["overfit"]["asked: new target, after"].mean
    assert said == pytest.approx(math.exp(bare), rel=1e-3)


def test_ranks_are_those_of_the_token_that_tells_the_two_answers_apart(
    one_toy: Any, record: rl.data.Record
) -> None:
    fact = rl.Fact(
        record.fact.prompt, subject=record.fact.subject, target="1945", new_target="1066"
    )
    (row,) = rl.checks.overfit(one_toy, None, fact, samples=0).rows
    for answer, given, rank in (("945", " 1", row.rank_before), ("066", " 1", row.rank_after)):
        ids = one_toy.to_tokens(fact.text + given)
        with torch.no_grad():
            logits = one_toy(ids)[0, -1]
        token = one_toy.to_tokens(fact.text + given + answer)[0, ids.shape[1]]
        assert rank == 1 + int((logits > logits[token]).sum())
    assert row.rank_before != row.rank_after


def test_a_bos_token_in_the_prompts_changes_no_check(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    bos = one_toy.tokenizer.bos_token
    neighbour = record.neighborhood[0]
    begun = rl.data.Question(prompt=bos + neighbour.prompt, target=neighbour.target)
    told = rl.InContext()(one_toy, record)

    def numbers(check: Any, its_edit: Any, asked: rl.data.Question) -> Any:
        own = rl.data.Record(id=1, fact=record.fact, neighborhood=(asked,))
        return check(one_toy, its_edit, own).to_frame().select_dtypes("number").to_numpy()

    for check, its_edit in ((rl.checks.bleed_over, edit), (rl.evaluate, told)):
        with pytest.warns(UserWarning, match="It is used once"):
            with_bos = numbers(check, its_edit, begun)
        plain = numbers(check, its_edit, neighbour)
        assert with_bos == pytest.approx(plain, abs=1e-5, nan_ok=True)


def test_continuations_that_name_a_target_are_found_in_scripts_without_spaces() -> None:
    assert share_naming(["罗马"], ["法国的首都是罗马。", "首都罗马很大", "Romania"]) == 2 / 3
    assert share_naming(["Rome"], ["in Rome.", "Romania"]) == 1 / 2


def test_a_name_that_holds_the_subject_is_found_in_scripts_without_spaces() -> None:
    assert holds_last_word("国立北京大学", "北京大学")
    assert holds_last_word("Leo Messi", "Lionel Messi")
    assert not holds_last_word("法兰西", "法国")
    assert not holds_last_word("Arthur", "Art")


def test_a_text_that_names_the_subject_across_a_line_break_is_left_out(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    first, last = record.fact.subject.split()
    texts = [f"There {first}{space}{last} lives." for space in (" ", "\n", "  ", "\u00a0")]
    result = rl.checks.fidelity(one_toy, edit, record, texts=[*texts, TEXTS[1]], new_tokens=0)
    (left_out,) = [each.values for each in result.further if "left out" in each.name]
    assert left_out == (4.0,)


def test_a_single_edit_is_not_a_list_of_others(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit, toy_edit: Any, unchecked: None
) -> None:
    for check in (rl.checks.fidelity, rl.check_limits):
        with pytest.raises(rl.RomeLensError, match=r"others is .* expected a list of edits"):
            check(one_toy, edit, record, others=toy_edit)
