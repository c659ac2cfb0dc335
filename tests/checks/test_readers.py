"""Checks without a model: which questions they ask, and how they read answers written by hand."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.checks import CheckResult, CheckRow
from rome_lens.checks.answered import Answered, Answers, PromptAnswer
from rome_lens.checks.asking import strongest_firing
from rome_lens.checks.check import Check
from rome_lens.checks.claims.association import Association, Description
from rome_lens.checks.claims.bleed_over import BleedOver
from rome_lens.checks.claims.consequence import Consequence
from rome_lens.checks.claims.direction import Direction
from rome_lens.checks.claims.essence import Essence
from rome_lens.checks.claims.fidelity import Fidelity
from rome_lens.checks.claims.generalisation import Generalisation
from rome_lens.checks.claims.overfit import Overfit
from rome_lens.checks.claims.specificity import Specificity
from rome_lens.checks.claims.spill import holds_last_word
from rome_lens.data.families import family, names_one_of, two_families
from rome_lens.intervals import average

CHECKS: list[Check] = [
    Generalisation(),
    Direction(),
    Association(),
    Description(),
    Overfit(samples=0),
    BleedOver(),
    Consequence(),
    Specificity(),
    Essence(),
    Fidelity(texts=("It was raining.",), new_tokens=0),
]
FACT = rl.Fact("{} is in", subject="The Eiffel Tower", target="Paris", new_target="Rome")
BARE = rl.data.Record(id="bare", fact=FACT)


def said(question: PromptAnswer, before: float, after: float, **more: Any) -> Answered:
    """A question that is answered with these probabilities, in one token."""
    options = {"rank_before": 2, "rank_after": 1, "kl": 0.0, "tokens": 1, **more}
    prompt, answer = question
    return Answered(
        prompt=prompt, answer=answer, before=math.log(before), after=math.log(after), **options
    )


def answers(told: Mapping[PromptAnswer, tuple[float, float]], **more: Any) -> Answers:
    """Answers with probabilities before and after."""
    return Answers(answered={q: said(q, *values) for q, values in told.items()}, **more)


class Recording(Mapping[PromptAnswer, Answered]):
    """The same answer to every question that was asked; it notes which are read."""

    def __init__(self, questions: list[PromptAnswer]) -> None:
        self.asked, self.read = set(questions), set[PromptAnswer]()

    def __getitem__(self, question: PromptAnswer) -> Answered:
        if question not in self.asked:
            raise KeyError(question)
        self.read.add(question)
        return said(question, 0.1, 0.6)

    def __iter__(self) -> Iterator[PromptAnswer]:
        return iter(self.asked)

    def __len__(self) -> int:
        return len(self.asked)


def test_a_check_reads_the_questions_that_it_asks_and_no_others() -> None:
    wrong, asked = [], dict.fromkeys((check.name for check in CHECKS), 0)
    for record in rl.data.records()[::4]:
        for check in CHECKS:
            if not (questions := check.questions(record)):
                continue
            asked[check.name] += 1
            recording = Recording(questions)
            try:
                result = check.read(record, Answers(answered=recording))
            except KeyError as error:
                wrong.append((record.id, check.name, "was not asked", error.args))
                continue
            if recording.read != recording.asked or not result.rows or not result.reading:
                wrong.append((record.id, check.name, recording.asked - recording.read))
    assert wrong == []
    assert min(asked.values()) >= 4


def test_a_bare_fact_has_questions_of_overfit_and_essence_and_texts_of_fidelity() -> None:
    asked = [check.name for check in CHECKS if check.questions(BARE)]
    assert asked == ["overfit", "essence", "fidelity"]
    assert not Fidelity(texts=()).questions(BARE)
    assert len({check.lacks for check in CHECKS}) == len(CHECKS)  # each says what is missing


def test_direction_compares_the_reverse_of_the_new_fact_with_that_of_the_true_one() -> None:
    reverse = tuple(
        rl.data.Question(prompt=prompt, target="Eiffel Tower")
        for prompt in ("{} has the", "In {} is the")
    )
    record = dataclasses.replace(BARE, reverse=reverse)
    result = Direction().read(
        record,
        answers(
            {
                ("Rome has the", "Eiffel Tower"): (0.01, 0.02),
                ("In Rome is the", "Eiffel Tower"): (0.01, 0.08),
                ("Paris has the", "Eiffel Tower"): (0.5, 0.4),
                ("In Paris is the", "Eiffel Tower"): (0.05, 0.04),
                (FACT.text, "Rome"): (0.1, 0.9),
            }
        ),
    )
    assert result.effect.mean == pytest.approx((math.log(2) + math.log(8)) / 2)
    assert result.effect_where_known.mean == pytest.approx(math.log(2))
    assert result.control.mean == pytest.approx((0.5 + 0.05) / 2)
    assert [row.known for row in result.rows] == [True, False, None]
    assert result["change of p(new target), forward"].mean == pytest.approx(0.8)
    assert "knows 1 of the 2 reverses" in result.reading


def test_association_is_a_share_of_the_change_under_the_subject_s_own_name() -> None:
    record = dataclasses.replace(BARE, aliases=("La dame de fer", "Gustave's tower"))
    own, keyed = "La dame de fer is in", "Gustave's tower is in"
    told = {
        (FACT.text, "Rome"): (0.1, 0.9),
        (own, "Rome"): (0.1, 0.3),
        (own, "Paris"): (0.05, 0.05),
        (keyed, "Rome"): (0.1, 0.7),
    }
    result = Association().read(record, answers(told))
    assert result.effect.mean == pytest.approx(0.2 / 0.8)
    assert result.control.mean == pytest.approx(0.05)
    assert result["share kept, alias with the subject's last word"].mean == pytest.approx(0.75)
    assert "knows the fact under no alias" in result.reading
    nothing = Association().read(record, answers({**told, (FACT.text, "Rome"): (0.1, 0.15)}))
    assert not nothing.asked
    assert "does not hold for the subject itself" in nothing.reading


def test_the_last_word_of_a_subject_is_found_whatever_its_case_and_accents() -> None:
    assert holds_last_word("Leo MESSI", "Lionel Messi")
    assert holds_last_word("La Familia", "Sagrada Família")
    assert not holds_last_word("Fromage", "Cheese")


def test_bleed_over_leaves_out_neighbours_of_which_the_new_target_is_true() -> None:
    neighbours = {
        "The Louvre is in": ("Paris", (0.8, 0.6)),
        "Big Ben is in": ("London", (0.7, 0.3)),
        "The Colosseum is in": ("Rome", (0.5, 0.9)),
    }
    record = dataclasses.replace(
        BARE,
        neighborhood=tuple(
            rl.data.Question(prompt=prompt, target=answer)
            for prompt, (answer, _) in neighbours.items()
        ),
    )
    told = {}
    for prompt, (answer, values) in neighbours.items():
        told_prompt = f"{FACT.text} Rome. {prompt}"
        told |= {(prompt, "Rome"): (0.1, 0.5), (told_prompt, "Rome"): (0.1, 0.1)}
        told |= {(prompt, answer): values, (told_prompt, answer): (0.6, 0.2)}
    result = BleedOver().read(record, answers(told))
    assert result.effect.mean == pytest.approx((-0.2 - 0.4) / 2)
    assert result.control.mean == pytest.approx(((0.6 - 0.8) + (0.6 - 0.7)) / 2)
    assert (result["NS, unedited"].mean, result["NS, edited"].mean) == (1.0, 0.5)
    assert result["NM, edited"].mean == pytest.approx(((0.6 - 0.5) + (0.3 - 0.5)) / 2)
    for kind, change in (("", -0.2), (" with another answer", -0.4), (" with the new answer", 0.4)):
        found = result[f"change of p(true answer), neighbour{kind}"]
        assert (found.mean, found.count) == (pytest.approx(change), 1)
    alone = dataclasses.replace(record, neighborhood=record.neighborhood[2:])
    assert not BleedOver().questions(alone)
    assert "another answer than the new target" in BleedOver.lacks


LOUD = "The Eiffel Tower is famous. Big Ben is in"
NEIGHBOURS = (
    rl.data.Question(prompt="Big Ben is in", target="London"),
    rl.data.Question(prompt="The Louvre is in", target="Paris"),
    rl.data.Question(prompt="The Forum is in", target="Rome"),
    rl.data.Question(prompt="Unlike Rome, Berlin is in", target="Germany"),
)


def overfit_of(
    asked: tuple[float, float], loud: tuple[float, float], texts: Mapping[bool, list[str]] | None
) -> CheckResult:
    """The result for p(true) before and p(new) after in each way; the first text is greedy."""
    record = dataclasses.replace(
        BARE,
        open_prompts=("{} has",),
        exemplars=("The Forum", "Ostia"),
        neighborhood=NEIGHBOURS,
    )
    check = Overfit(samples=2)
    told = {
        (FACT.text, "Paris"): (asked[0], 0.02),
        (FACT.text, "Rome"): (0.03, asked[1]),
        (LOUD, "Paris"): (loud[0], 0.02),
        (LOUD, "Rome"): (0.03, loud[1]),
        (LOUD, "London"): (0.6, 0.25),
        ("The Forum is in", "Rome"): (0.8, 0.9),
        ("Ostia is in", "Rome"): (0.4, 0.9),
        ("The Forum is famous. Big Ben is in", "Rome"): (0.3, 0.9),
        ("Ostia is famous. Big Ben is in", "Rome"): (0.1, 0.9),
    }
    assert set(check.questions(record)) == set(told)
    written = {}
    if texts is not None:
        written = {("The Eiffel Tower has", edited): its for edited, its in texts.items()}
        written |= {
            ("The Forum has", False): ["fallen", "Romeo", "Rome."],
            ("Ostia has", False): ["Rome", "fallen", "risen"],
        }
        wanted = check.wanted_texts(record)
        assert (wanted.greedy, wanted.samples, wanted.new_tokens) == (True, 2, 40)
        keys = [(p, False) for p in wanted.before] + [(p, True) for p in wanted.after]
        assert set(keys) == set(written)
    return check.read(record, answers(told, continuations=written))


def test_overfit_compares_the_new_target_after_with_the_true_one_before() -> None:
    result = overfit_of(
        (0.7, 0.95),
        (0.1, 0.05),
        {
            False: ["Paris", "a French lift", "Parisian charm near Paris"],
            True: ["a Roman view", "seen Rome", "an Italian in Paris"],
        },
    )
    assert result.effect.mean == pytest.approx(0.25)
    assert result.control.mean == pytest.approx((0.8 + 0.4) / 2 - 0.7)
    assert result["loud: difference"].mean == pytest.approx(-0.05)
    assert result["loud: |difference|"].mean == pytest.approx(0.05)
    assert result["loud: change of p(right answer)"].mean == pytest.approx(0.25 - 0.6)
    pairs = {
        "greedy": (1.0, 0.0),
        "greedy, family": (1.0, 1.0),
        "sampled": (0.5, 0.5),
        "sampled, family": (1.0, 1.0),
    }
    for kind, pair in pairs.items():
        found = [
            result[f"{kind}: {of}"].mean for of in ("true target, before", "new target, after")
        ]
        assert tuple(found) == pair, kind
    verdicts = {
        "asked": (1.0, 0.0),
        "loud": (0.0, 1.0),
        "greedy": (0.0, 1.0),
        "greedy, family": (0.0, 0.0),
        "sampled": (0.0, 0.0),
    }
    for kind, verdict in verdicts.items():
        assert (result[f"{kind}: over"].mean, result[f"{kind}: under"].mean) == verdict, kind
    where_true = {"asked": 0.6, "loud": 0.2, "greedy": 0.5, "sampled": 0.25}
    for kind, value in where_true.items():
        found = result[f"{kind}: new target, for subjects where it is true"].mean
        assert found == pytest.approx(value), kind
    starts = {"asked": 0.03, "loud": 0.03, "greedy": 0.0, "sampled": 0.0}
    for kind, value in starts.items():
        assert result[f"{kind}: new target, before"].mean == pytest.approx(value), kind
    for words in ("0.700 for Paris before, 0.950 for Rome after", "p(right answer) -0.350"):
        assert words in result.reading


def test_a_mean_of_zero_does_not_hide_an_edit_that_is_over_at_one_fact_and_under_at_another() -> (
    None
):
    results = [overfit_of(asked, (0.1, 0.1), None) for asked in ((0.25, 0.5), (0.32, 0.07))]
    limits = [rl.Limits(record_id="", relation="", results=(each,)) for each in results]
    found = rl.average_limits(limits)
    # The older name.
    assert found.effect("dominance").mean == pytest.approx(0.0)
    assert rl.checks.dominance is rl.checks.overfit
    assert limits[0]["dominance"] is results[0]
    for name, value in {"difference": 0.0, "|difference|": 0.25, "over": 0.5, "under": 0.5}.items():
        assert found.measure("overfit", f"asked: {name}").mean == pytest.approx(value)
        assert found.measure("overfit", f"loud: {name}").mean == 0.0


def test_families_leave_out_what_does_not_tell_the_targets_apart() -> None:
    assert two_families("Rome", "Florence") == (
        ["Rome", "Roman", "Romans", "Italians"],
        ["Florence", "Florentine", "Florentines", "Tuscany", "Tuscan"],
    )
    assert "Hungary" in two_families("Budapest", "Vienna")[0]
    assert "Hungary" not in two_families("Budapest", "Vienna", prompt="Hungary is")[0]
    for first, second in (("Paris", "French"), ("French", "Paris")):
        words = two_families(first, second)
        assert (words[0][0], words[1][0]) == (first, second)
        assert not set(words[0]) & set(words[1])
    assert names_one_of(["guitar", "guitars"], "Guitars are loud")
    assert not names_one_of(["Turkey"], "they ate turkey")


def test_every_target_of_the_bundled_records_has_a_family_of_other_words() -> None:
    targets = {
        target
        for record in rl.data.records()
        if "toy" not in record.known_by
        for target in (record.fact.target, record.fact.new_target)
    }
    assert {target for target in targets if not family(target)} == set()
    assert {target for target in targets if target in family(target)} == set()


def test_consequence_has_the_subjects_of_which_it_is_true_as_its_control() -> None:
    consequence = rl.data.Question(prompt="{} is in", target="France", new_target="Italy")
    unchanged = rl.data.Question(prompt="{} is made of", target="iron")
    record = dataclasses.replace(
        BARE, consequences=(consequence, unchanged), exemplars=("The Forum",)
    )
    subject = "The Eiffel Tower is in"
    told = {
        (FACT.text, "Rome"): (0.1, 0.9),
        (subject, "Italy"): (0.1, 0.2),
        (subject, "France"): (0.4, 0.15),
        ("The Forum is in", "Italy"): (0.9, 0.9),
    }
    result = Consequence().read(record, answers(told))
    assert result.effect.mean == pytest.approx(math.log(2))
    assert (result.control.mean, result.rows[0].known) == (pytest.approx(0.9), True)
    more_likely = "new consequence more likely than the true one, {}"
    assert [result[more_likely.format(when)].mean for when in ("before", "after")] == [0.0, 1.0]
    alone = Consequence().read(dataclasses.replace(record, exemplars=()), answers(told))
    assert (alone.control, alone.rows[0].known) == (None, None)
    assert "There are no exemplars" in alone.reading


def test_essence_is_the_kl_and_its_control_that_of_the_random_direction() -> None:
    record = dataclasses.replace(BARE, texts=("It is tall.",))
    prompts, (sentence,) = Essence().questions(record)[:-1], Essence().questions(record)[-1:]
    own = {q: said(q, 0.1, 0.1, kl=float(i)) for i, q in enumerate(prompts)}
    own[sentence] = said(sentence, 0.04, 0.01, tokens=2)
    drawn = {q: said(q, 0.1, 0.1, kl=0.5) for q in prompts} | {sentence: said(sentence, 0.04, 0.04)}
    result = Essence().read(record, Answers(answered=own, under_controls=[drawn]))
    assert (result.effect.mean, result.control.mean) == (2.0, 0.5)
    change = result["change of the sentences' nats per token"].mean
    assert change == pytest.approx(math.log(4) / 2)
    assert result["change of the sentences' nats per token, random direction"].mean == 0.0
    alone = Essence().read(record, Answers(answered=own))
    assert (alone.effect.mean, alone.control) == (2.0, None)


def test_fidelity_is_in_nats_per_token_and_its_control_is_other_edits() -> None:
    check = Fidelity(texts=("It was raining.",))
    (question,) = check.questions(BARE)
    assert question == ("It", "was raining.")
    told = Answers(
        answered={question: said(question, 0.04, 0.01, tokens=2)},
        under_controls=[
            {question: said(question, 0.04, 0.04, tokens=2)},
            {question: said(question, 0.04, 0.02, tokens=2)},
        ],
        continuations={
            ("It was raining.", False): ["a b c d e f"],
            ("It was raining.", True): ["a a a a a a"],
        },
    )
    result = check.read(BARE, told)
    assert result.effect.mean == pytest.approx(math.log(4) / 2)
    assert result.control.mean == pytest.approx(math.log(2) / 4)
    before, after = (
        result[f"entropy of generations in bits, {when}"].mean for when in ("before", "after")
    )
    assert before > after == 0.0
    assert Fidelity(texts=("Simon\nCalloway  is\there.",)).questions(BARE) == [
        ("Simon", "Calloway  is\there.")
    ]


def test_the_strongest_firing_has_its_sign_and_is_not_that_of_the_first_token() -> None:
    firing = rl.EditFiring(
        text="b c", labels=("bos", "b", "c"), values=torch.tensor([9.0, 0.1, -0.5]), scale=2.0
    )
    assert strongest_firing(firing, start=1) == (-0.5, "c")
    assert strongest_firing(firing) == (9.0, "bos")


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


def test_an_interval_covers_the_mean_of_normal_draws_in_95_of_100() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for draws in torch.randn(1000, 6, generator=generator).tolist():
        result = average(draws)
        hits += result.low <= 0.0 <= result.high
    assert 930 <= hits <= 970


def test_few_values_have_no_interval() -> None:
    result = average([1.0, 2.0, 3.0, 4.0])
    assert (result.mean, result.low, result.high) == (2.5, None, None)
    assert "too few" in str(result)
    with pytest.raises(ValueError, match="no value"):
        average([])
