"""Planted edits on the toy model: what spills by construction is called spill, and so on."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.checks.claims.spill import verdict_of
from rome_lens.data.questions import Decoys
from rome_lens.forward.runs import keys_of
from rome_lens.forward.tokens import encode

LAYER = 2
UNHEARD = "The Green Otter"


@pytest.fixture(scope="module")
def record(toy_records: list[rl.data.Record]) -> rl.data.Record:
    """A person whom the toy knows by an alias and by a description too, and decoys for both."""
    own, *others = [each for each in toy_records if each.one_way is False]
    decoys = dataclasses.replace(own.decoys, invented=(UNHEARD,))
    return dataclasses.replace(
        own,
        decoys=decoys,
        description_decoys=Decoys(
            other_answer=tuple(text for each in others[:2] for text in each.descriptions),
            invented=("The nurse who plays chess",),
        ),
        other_relations=own_relations(own),
    )


def own_relations(record: rl.data.Record) -> tuple[rl.data.Question, ...]:
    """What the toy says of the subject's other relations, from its own mouth."""
    model = rl.load_model("toy")
    prompts = ["{} works as a", "{} plays"]
    tops = rl.top_answers(
        model, [each.replace("{}", record.fact.subject) for each in prompts], count=1
    )
    return tuple(
        rl.data.Question(prompt=prompt, target=top.tokens[0].strip())
        for prompt, top in zip(prompts, tops, strict=True)
    )


@pytest.fixture(scope="module")
def edit(one_toy: Any, record: rl.data.Record, toy_statistics: Any) -> rl.RankOneEdit:
    return rl.rome(
        one_toy,
        record,
        layer=LAYER,
        statistics=toy_statistics,
        contexts=("{}",),
        config=rl.RomeConfig(steps=20),
    )


def fires_at(
    model: Any, edit: rl.RankOneEdit, record: rl.data.Record, names: Sequence[str]
) -> rl.RankOneEdit:
    """The edit with a ``u`` that fires fully at these names' last tokens, and nowhere else.

    "Nowhere else" is at every other token of the fact's prompt about the subject, its other names
    and the decoys.
    """
    decoys = (record.decoys, record.description_decoys)
    every = {
        record.fact.subject: None,
        **dict.fromkeys((*record.aliases, *record.descriptions)),
        **dict.fromkeys(n for d in decoys for n in (*d.same_answer, *d.other_answer, *d.invented)),
    }
    keys, wanted = [], []
    for name in every:
        tokens = encode(model, record.fact.about(name))
        rows = keys_of(model, tokens.tokens[None], LAYER)[0]
        for pos, key in enumerate(rows):
            keys.append(key)
            wanted.append(float(name in names and pos == tokens.subject[1] - 1))
    matrix = torch.stack(keys).double()
    target = torch.tensor(wanted, dtype=torch.float64, device="cpu")
    u = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0]
    assert float((matrix @ u - target).abs().max()) < 0.05
    scale = float(edit.u @ edit.key)
    return dataclasses.replace(edit, u=(u * scale).to(edit.u), value=None)


def test_an_edit_of_every_subject_spills(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """It fires at decoys just as at the alias and the description, which thus keep nothing own."""
    decoys = (record.decoys, record.description_decoys)
    every = [n for d in decoys for n in (*d.same_answer, *d.other_answer, *d.invented)]
    names = [record.fact.subject, *record.aliases, *record.descriptions, *every]
    planted = fires_at(one_toy, edit, record, names)
    for check, kind in ((rl.checks.association, "alias"), (rl.checks.description, "description")):
        result = check(one_toy, planted, record)
        assert result.effect.mean > 0.5
        assert (result["spilled"].mean, result["followed"].mean) == (1.0, 0.0), result.reading
        assert abs(result["share kept minus decoy with another answer"].mean) < 0.5
        assert f"what the {kind} keeps is spill" in result.reading


def test_without_a_decoy_with_the_same_answer_there_is_no_verdict(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """To these an edit spills most, so the other kinds cannot tell."""
    planted = fires_at(one_toy, edit, record, [record.fact.subject, *record.aliases])
    none = dataclasses.replace(record, decoys=dataclasses.replace(record.decoys, same_answer=()))
    result = rl.checks.association(one_toy, planted, none)
    assert result.effect.mean > 0.5
    assert not {"followed", "spilled", "not kept"} & {measure.name for measure in result.further}
    assert "None of them has the same answer" in result.reading


def test_an_alias_that_shares_the_key_is_followed(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    names = [record.fact.subject, *record.aliases, *record.descriptions]
    planted = fires_at(one_toy, edit, record, names)
    for check in (rl.checks.association, rl.checks.description):
        result = check(one_toy, planted, record)
        assert (result["followed"].mean, result["spilled"].mean) == (1.0, 0.0), result.reading
        assert result["share kept minus decoy with another answer"].mean > 0.5
        assert "follows its subject" in result.reading


def test_an_edit_of_the_name_alone_is_kept_by_no_other_name(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    planted = fires_at(one_toy, edit, record, [record.fact.subject])
    for check in (rl.checks.association, rl.checks.description):
        result = check(one_toy, planted, record)
        assert result["not kept"].mean == 1.0, result.reading
        assert "does not keep the edit" in result.reading


def test_differences_from_decoys_are_paired_by_fact(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    result = rl.checks.association(one_toy, edit, record)
    kinds = ("decoy with the same answer", "decoy with another answer", "invented decoy")
    for kind in kinds:
        rows = [row for row in result.rows if row.kind == kind]
        forward = next(row for row in result.rows if row.kind == "forward")
        shares = [row.change / forward.change for row in rows]
        assert result[f"share kept, {kind}"].mean == pytest.approx(sum(shares) / len(shares))
        minus = result[f"share kept minus {kind}"]
        assert minus.count == 1
        expected = result.effect.mean - result[f"share kept, {kind}"].mean
        assert minus.mean == pytest.approx(expected)
    own = [row for row in result.rows if row.kind == kinds[0]]
    asked = [record.fact.about(name).text for name in record.decoys.same_answer]
    assert [row.prompt for row in own] == asked


def test_who_is_meant_is_asked_apart_from_the_answer(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """The best naming prompt counts, over all ways to write the subject."""
    prompt = "The nurse from {} is called"
    alias = record.aliases[0]
    named = dataclasses.replace(record, naming_prompts=("{} is called", prompt))
    result = rl.checks.association(one_toy, edit, named)
    (row,) = [row for row in result.rows if row.kind == "alias"]
    ways = {record.fact.subject, record.fact.subject[0].lower() + record.fact.subject[1:]}
    inside = "the" + alias.removeprefix("The")  # as a sentence has it
    texts = [f"{alias} is called", f"The nurse from {inside} is called"]
    asked = [(text, way) for text in texts for way in ways]
    p = rl.answer_log_probs(one_toy, asked).exp().tolist()
    best = max(sum(p[:2]), sum(p[2:]))
    assert result["p(subject) after a naming prompt"].mean == pytest.approx(best, rel=1e-3)
    assert row.identified is (best >= 0.1)
    plain = rl.checks.association(one_toy, edit, record)
    assert {row.identified for row in plain.rows} == {None}
    assert plain.effect_where_identified is None


def test_effects_where_identified_are_of_those_rows_alone() -> None:
    rows = tuple(
        rl.checks.CheckRow(
            kind="alias", prompt=name, answer="", before=0.0, after=0.0, effect=e, identified=i
        )
        for name, e, i in (("a", 0.2, True), ("b", 0.8, False), ("c", 0.4, True))
    )
    result = rl.checks.CheckResult(
        name="association",
        asks="",
        measured="",
        effect_is="share",
        control_is="",
        rows=rows,
    )
    assert result.effect_where_identified.mean == pytest.approx(0.3)
    assert "effect where identified" in result.table().index


def test_an_alias_is_asked_in_its_own_language_with_that_language_s_answers(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    fact = record.fact
    question = rl.data.Question(
        prompt="The home of " + fact.subject + " is in the city of",
        target=fact.target,
        new_target=str(fact.new_target),
    )
    asked = dataclasses.replace(record, alias_questions=(question,))
    result = rl.checks.association(one_toy, edit, asked)
    (row,) = [row for row in result.rows if row.kind == "alias in its own language"]
    assert (row.prompt, row.answer, row.effect) == (question.prompt, fact.new_target, None)
    assert row.known is True
    assert result["share kept, alias in its own language"].mean > 0.5
    assert result.effect == rl.checks.association(one_toy, edit, record).effect


@pytest.mark.parametrize(
    ("kept", "decoys", "verdict"),
    [
        (0.05, [], "not kept"),
        (0.05, [0.9], "not kept"),
        (0.9, [], "followed"),
        (0.9, [0.4, 0.0], "followed"),
        (0.9, [0.0, 0.5], "spilled"),
        (0.2, [-0.5], "followed"),
        (0.2, [0.3], "spilled"),
    ],
)
def test_the_decoys_that_keep_most_decide(
    kept: float, decoys: Sequence[float], verdict: str
) -> None:
    assert verdict_of(kept, decoys) == verdict


def test_the_norm_of_what_is_added_is_the_firing_times_that_at_the_fact(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    result = rl.checks.association(one_toy, edit, record)
    full = float((edit.u @ edit.key).abs() * edit.v.norm())
    for row in result.rows:
        assert row.added == pytest.approx(abs(row.firing) * full, rel=1e-4)
    doubled = dataclasses.replace(edit, v=2 * edit.v, value=None)
    twice = rl.checks.association(one_toy, doubled, record)
    assert twice.rows[0].firing == pytest.approx(result.rows[0].firing)
    assert twice.rows[0].added == pytest.approx(2 * result.rows[0].added, rel=1e-4)


def test_reverses_are_compared_with_those_of_other_targets(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """Of the neighbours' cities; the fact's own two are left out."""
    result = rl.checks.direction(one_toy, edit, record)
    rows = [row for row in result.rows if row.kind == "reverse of another target"]
    others = {q.target for q in record.neighborhood} - {record.fact.target, record.fact.new_target}
    assert len(rows) == 2 * len(record.reverse)
    assert all(any(f" {city} " in row.prompt for city in others) for row in rows)
    minus = result["change of p(subject), reverse, minus another target"].mean
    own = [row for row in result.rows if row.kind == "reverse"]
    p, q = ([math.exp(r.after) - math.exp(r.before) for r in its] for its in (own, rows))
    assert minus == pytest.approx(sum(p) / len(p) - sum(q) / len(q), abs=1e-6)


def test_an_edit_that_wipes_out_the_subject_loses_its_other_relations(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """Ten times the value leaves nothing of what the state said; a hundredth leaves all of it."""
    strong = dataclasses.replace(edit, v=10 * edit.v, value=None)
    weak = dataclasses.replace(edit, v=0.01 * edit.v, value=None)
    lost, kept = (rl.checks.specificity(one_toy, each, record) for each in (strong, weak))
    assert all(row.known for row in kept.rows)
    assert lost.effect.mean < -0.5
    assert lost["share of p(right answer) kept, where known"].mean < 0.3
    assert abs(kept.effect.mean) < 0.05
    assert kept["share of p(right answer) kept, where known"].mean > 0.9


def test_other_true_answers_are_asked_on_the_fact_s_own_prompt(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    asked = dataclasses.replace(record, other_answers=("Norwick",))
    result = rl.checks.specificity(one_toy, edit, asked)
    (row,) = [row for row in result.rows if row.kind == "other true answer"]
    assert (row.prompt, row.answer) == (record.fact.text, "Norwick")
    assert result["change of p(other true answer)"].mean == pytest.approx(row.change)


def test_pull_towards_the_new_target_is_seen_in_false_consequences(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    """The edit answers with the new city wherever the subject is asked about, true or not."""
    fact = record.fact
    false = rl.data.Question(
        prompt="The city where {} lives is called", target=fact.target, new_target=fact.new_target
    )
    asked = dataclasses.replace(record, false_consequences=(false,))
    result = rl.checks.consequence(one_toy, edit, asked)
    assert result["change of p(false consequence)"].mean > 0.5
    assert result["change of p(false consequence of the true fact)"].mean < -0.3
    # The edit raises the new target itself. A consequence is compared with other words only.
    minus = "change of log p(new consequence) minus that of the false ones"
    assert minus not in {measure.name for measure in result.further}
    word = dataclasses.replace(false, target="Norwick", new_target="Karsun")
    both = rl.checks.consequence(
        one_toy, edit, dataclasses.replace(record, false_consequences=(false, word))
    )
    (other,) = [row for row in both.rows if row.answer == "Karsun"]
    assert both[minus].mean == pytest.approx(both.effect.mean - other.change)
    assert result.effect == rl.checks.consequence(one_toy, edit, record).effect
    alone = dataclasses.replace(asked, consequences=())
    only = rl.checks.consequence(one_toy, edit, alone)
    assert not only.asked
    assert only["change of p(false consequence)"].mean == pytest.approx(
        result["change of p(false consequence)"].mean
    )
    assert "has no consequences" in only.reading


def test_counterfact_s_neighbours_are_scored_apart(
    one_toy: Any, record: rl.data.Record, edit: rl.RankOneEdit
) -> None:
    result = rl.checks.bleed_over(one_toy, edit, record)
    same = tuple(q for q in record.neighborhood if q.target == record.fact.target)
    alone = rl.checks.bleed_over(one_toy, edit, dataclasses.replace(record, neighborhood=same))
    for name in ("NS", "NM", "NS+", "NM+"):
        for when in ("unedited", "edited"):
            apart = result[f"{name}, CounterFact's neighbours, {when}"]
            assert apart.mean == pytest.approx(alone[f"{name}, {when}"].mean, abs=1e-5)
            assert apart.count == len(same)
    rest = result["NS, the rest, edited"].count
    assert rest + len(same) == result["NS, edited"].count
