"""The claims, on real weights: Gemma 3 270M and SmolLM2 135M."""

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_for_tests import with_few_prompts
from models_for_tests import CLASSES

import rome_lens as rl
from rome_lens.forward.tokens import encode
from rome_lens.models import goldens
from rome_lens.models.gguf import SOURCES, WeightsError, cache_root, locate_parts

pytestmark = pytest.mark.real


@functools.cache
def load(name: str, model_class: Any) -> Any:
    """The model, loaded once in a process. No test changes it for good."""
    try:
        locate_parts(SOURCES[name])
    except WeightsError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))
    return rl.load_model(name, model_class=model_class)


# All tests of a model run in one process, which converts and loads it once.
GEMMA = pytest.mark.xdist_group("gemma-3-270m")
SMOLLM2 = pytest.mark.xdist_group("smollm2-135m")


@pytest.fixture(scope="module")
def gemma() -> Any:
    """Gemma on one model class, for what the class cannot change.

    Both classes give the same log probabilities
    (:func:`test_each_model_is_well_within_the_tolerance`).
    """
    return load("gemma-3-270m", CLASSES[0])


@pytest.fixture(scope="module", params=CLASSES)
def each_gemma(request: pytest.FixtureRequest) -> Any:
    return load("gemma-3-270m", request.param)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return load("smollm2-135m", CLASSES[0])


@pytest.fixture(scope="module")
def record() -> rl.data.Record:
    return rl.data.limits("eiffel-tower")


@pytest.fixture(scope="module")
def editor(gemma: Any) -> rl.RomeEditor:
    """The preset's editor, which fits both model classes."""
    return rl.preset("gemma-3-270m").editor(gemma, cache=cache_root() / "keys")


@pytest.fixture(scope="module")
def edit_of(editor: rl.RomeEditor, record: rl.data.Record) -> Any:
    """The preset's edit of a model, made once for each model."""
    return functools.cache(lambda model: editor(model, record.fact))


@pytest.fixture(scope="module")
def edit(gemma: Any, edit_of: Any) -> rl.RankOneEdit:
    return edit_of(gemma)


@GEMMA
def test_gemma_knows_the_tower_and_its_subject_span(
    each_gemma: Any, record: rl.data.Record
) -> None:
    (answer,) = rl.top_answers(each_gemma, [record.fact.text], count=1)
    assert answer.tokens[0].strip() == "Paris"
    assert answer.probabilities[0] == pytest.approx(0.76, abs=0.01)
    encoded = encode(each_gemma, record.fact)
    assert len(encoded.tokens) == 10
    assert "".join(encoded.labels[slice(*encoded.subject)]).strip() == record.fact.subject


@GEMMA
def test_gemma_s_trace_is_the_plain_run_where_it_is_highest(
    each_gemma: Any, record: rl.data.Record
) -> None:
    """One cell by hand: all layers, all positions, all logits."""
    encoded = encode(each_gemma, record.fact)
    start, end = encoded.subject
    noise = (
        torch.randn(
            3, end - start, each_gemma.cfg.d_model, generator=torch.Generator().manual_seed(0)
        )
        * 3.0
    )
    trace = rl.causal_trace(each_gemma, record.fact, noise=noise, layers=[3, 12], positions=[2, 9])
    layer, pos = trace.peak()
    rows = encoded.tokens[None].expand(4, -1)

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat(
            [
                value[:1],
                torch.cat([value[1:, :start], value[1:, start:end] + noise, value[1:, end:]], 1),
            ]
        )

    def restore(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[1:, pos] = value[0, pos]
        return value

    hooks = [("hook_embed", corrupt), (f"blocks.{layer}.hook_resid_post", restore)]
    with torch.no_grad():
        logits = each_gemma.run_with_hooks(rows, fwd_hooks=hooks)[1:, -1]
    plain = (
        logits.double().softmax(-1)[:, encoded.answer[0]].mean()
    )  # in float32, softmax itself is off by 2e-5
    assert float(trace.scores.max()) == pytest.approx(float(plain), abs=1e-5)
    assert float(plain) > trace.corrupted + 0.2


@GEMMA
def test_gemma_s_late_site_begins_at_layer_12(gemma: Any, record: rl.data.Record) -> None:
    """The answer arrives at the last token within one layer, as in docs/tracing.md."""
    facts = [
        record.fact,
        rl.Fact("{} is the capital of", subject="Madrid", target="Spain"),
        rl.Fact("The official language of {} is", subject="Brazil", target="Portuguese"),
    ]
    for fact in facts:
        trace = rl.causal_trace(gemma, fact, samples=3, layers=[11, 12], positions=[-1])
        below, above = trace.indirect_effects[:, 0] / trace.total_effect
        assert below < 0.2
        assert above > 0.6


@GEMMA
def test_gemma_s_preset_moves_the_tower(
    each_gemma: Any, edit_of: Any, record: rl.data.Record
) -> None:
    """Law 5 before a norm, and the edit's success, on each model class."""
    edit = edit_of(each_gemma)
    assert edit.stopped == "probability"
    assert edit.probability > 0.5
    hooks = edit.fwd_hooks(each_gemma)
    prompts = [record.fact.text, "The Space Needle is located in the city of"]
    answers = rl.top_answers(each_gemma, prompts, count=1, fwd_hooks=hooks)
    assert [answer.tokens[0].strip() for answer in answers] == ["Rome", "Seattle"]
    hooked = rl.answer_log_probs(each_gemma, [(prompts[0], "Rome")], fwd_hooks=hooks)
    with edit.applied(each_gemma):
        applied = rl.answer_log_probs(each_gemma, [(prompts[0], "Rome")])
    torch.testing.assert_close(hooked, applied, atol=1e-4, rtol=1e-4)


@GEMMA
def test_gemma_s_edit_does_not_move_the_alias(
    gemma: Any, edit: rl.RankOneEdit, record: rl.data.Record
) -> None:
    """The critique's claims that hold here."""
    limits = rl.check_limits(
        gemma,
        edit,
        with_few_prompts(record, 3),
        texts=rl.data.held_texts()[:1],
        samples=0,
        new_tokens=0,
    )
    forward = limits["direction"]["change of p(new target), forward"].mean
    assert forward > 0.5
    assert limits["direction"]["change of p(subject), reverse"].mean < 0.01 * forward
    assert limits["direction"].control.mean > 0.3  # it knows the reverse of the true fact
    assert limits["association"].effect_where_known.mean < 0.7
    assert limits["description"].effect_where_known.mean < 0.2
    assert limits["description"]["share kept, description with the name"].mean > 0.8
    assert limits["bleed-over"]["NS+, edited"].mean <= limits["bleed-over"]["NS, edited"].mean
    assert abs(limits["fidelity"].effect.mean) < 0.05
    assert limits["essence"].effect.mean > limits["essence"].control.mean
    assert limits.firing_correlation > 0.5


@SMOLLM2
def test_smollm2_traces_and_edits(smollm2: Any, record: rl.data.Record) -> None:
    trace = rl.causal_trace(smollm2, record.fact, layers=[29], positions=[-1], samples=3)
    assert trace.answer.strip() == "Paris"
    assert float(trace.scores[0, 0]) == pytest.approx(trace.clean, abs=1e-5)
    assert trace.total_effect > 0.1
    edit = rl.rome(
        smollm2,
        record.fact,
        layer=8,
        statistics=rl.KeyStatistics.identity(smollm2, layer=8),
        contexts=["{}"],
        config=rl.RomeConfig(steps=8),
    )
    (after,) = rl.top_answers(
        smollm2, [record.fact.text], count=1, fwd_hooks=edit.fwd_hooks(smollm2)
    )
    assert after.tokens[0].strip() == "Rome"


@SMOLLM2
def test_a_second_start_converts_nothing(smollm2: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        "rome_lens.models.gguf._convert",
        lambda *args, **kwargs: pytest.fail("it was converted again"),
    )
    rl.load_model("smollm2-135m", model_class=CLASSES[-1])


@SMOLLM2
def test_the_conversion_says_where_it_lies() -> None:
    assert (
        Path(rl.models.loading.transformers_directory(SOURCES["smollm2-135m"]))
        .joinpath("config.json")
        .is_file()
    )


@GEMMA
def test_gemma_s_preset_spares_the_tower_s_neighbours(
    gemma: Any, editor: rl.RomeEditor, edit: rl.RankOneEdit, record: rl.data.Record
) -> None:
    scores = rl.evaluate(gemma, edit, record)
    assert (scores.ES, scores.already) == (1.0, False)
    assert scores.PS >= 0.5
    assert scores.NS >= 0.8
    identity = rl.KeyStatistics.identity(gemma, layer=edit.layer)
    spilling = replace(editor, statistics=identity)(gemma, record.fact)
    prompts = [question.prompt for question in record.neighborhood]
    own, other = (
        torch.stack([each.values[1:].abs().max() for each in rl.edit_firings(gemma, one, prompts)])
        for one in (edit, spilling)
    )
    assert other.mean() > 3 * own.mean()  # without statistics, it fires at other subjects


@pytest.mark.parametrize(
    ("name", "model_class"),
    [
        pytest.param(name, each, marks=GEMMA if name == "gemma-3-270m" else SMOLLM2)
        for name in SOURCES
        for each in CLASSES
    ],
)
def test_each_model_is_well_within_the_tolerance(name: str, model_class: Any) -> None:
    model = load(name, model_class)
    golden = goldens.goldens()[name]
    text = next(iter(golden.tokens))
    actual = goldens.log_probs_of(model, [golden.bos, *golden.tokens[text]])
    error = (actual - torch.tensor(golden.log_probs)).abs().max()
    assert error < goldens.TOLERANCE / 20


@GEMMA
def test_gemma_writes_what_the_readme_says_before_and_after_the_edit(
    gemma: Any, edit: rl.RankOneEdit
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = readme.split("|prompt|before|after|\n|---|---|---|\n")[1].split("\n\n")[0]
    rows = [line.strip("|").replace("**", "").split("|") for line in table.splitlines()]
    assert len(rows) == 4
    prompts, *columns = zip(*rows, strict=True)
    found = rl.compare_text(gemma, edit, prompts, samples=0, new_tokens=14)
    for column, texts in zip(columns, (found.before, found.after), strict=True):
        for said, (written,) in zip(column, texts, strict=True):
            assert written.strip().startswith(said.removesuffix(" …"))


def greedy_knows(model: Any, facts: list[rl.Fact], prepend_bos: bool | None) -> list[bool]:
    """Whether each fact's whole target is what the model says by itself, token by token."""
    prompts, tokens, owners = [], [], []
    for i, fact in enumerate(facts):
        encoded = encode(model, fact, prepend_bos=prepend_bos)
        start, end = len(encoded.tokens), len(encoded.tokens) + len(encoded.answer)
        ids = [*encoded.tokens.tolist(), *encoded.answer]
        for k in range(start, end):
            prompts.append(model.tokenizer.decode(ids[:k], skip_special_tokens=True))
            tokens.append(model.tokenizer.decode([ids[k]]))
            owners.append(i)
    known = [True] * len(facts)
    tops = rl.top_answers(model, prompts, count=1, prepend_bos=prepend_bos)
    for i, token, top in zip(owners, tokens, tops, strict=True):
        known[i] &= top.tokens[0] == token
    return known


@pytest.mark.parametrize(
    "name", [pytest.param("gemma-3-270m", marks=GEMMA), pytest.param("smollm2-135m", marks=SMOLLM2)]
)
def test_each_model_knows_the_records_that_say_so(name: str) -> None:
    model = load(name, CLASSES[0])
    records = [record for record in rl.data.limits() if name in record.known_by]
    assert len(records) >= {"gemma-3-270m": 60, "smollm2-135m": 10}[name]
    known = greedy_knows(model, [record.fact for record in records], rl.preset(name).prepend_bos)
    assert [
        record.id for record, is_known in zip(records, known, strict=True) if not is_known
    ] == []


@GEMMA
def test_gemma_prefers_the_true_answer_of_the_records_neighbors(gemma: Any) -> None:
    records = [record for record in rl.data.limits() if "gemma-3-270m" in record.known_by]
    assert len(records) >= 60
    records = records[::4]  # all were asked when the records were chosen
    asked = [
        (record, question, answer)
        for record in records
        for question in record.neighborhood
        for answer in (question.target, str(record.fact.new_target))
    ]
    found = rl.answer_log_probs(
        gemma, [(question.prompt, answer) for _, question, answer in asked]
    ).tolist()
    right = {record.id: 0 for record in records}
    for (record, question, _), true, new in zip(asked[::2], found[::2], found[1::2], strict=True):
        right[record.id] += question.target != record.fact.new_target and true > new
    few = {id: count for id, count in right.items() if count < 5}
    assert few == {}


@GEMMA
def test_gemma_is_asked_where_no_space_belongs(gemma: Any) -> None:
    """A space there would ask for text that nobody writes."""
    for prompt, answer, least in (
        ("法国的首都是", "巴黎", 0.03),
        ('The Eiffel Tower is in the city called "', "Paris", 0.3),
        ("The Eiffel Tower is located in the city of Baden-", "Baden", 0.1),
    ):
        [log_p] = rl.answer_log_probs(gemma, [(prompt, answer)])
        assert float(log_p.exp()) > least


@GEMMA
def test_gemma_s_years_are_told_apart(gemma: Any) -> None:
    prompt = "The battle of {} took place in the year"
    right, wrong = (rl.Fact(prompt, subject="Hastings", target=y) for y in ("1066", "1945"))
    one: dict[str, Any] = {"samples": 1, "layers": [0], "positions": [-1]}
    assert rl.knows(gemma, [right, wrong]) == [True, False]
    assert rl.causal_trace(gemma, right, **one).clean > 0.3
    assert rl.causal_trace(gemma, wrong, **one, require_correct=False).clean < 1e-3
    with pytest.raises(ValueError, match="The model answers"):
        rl.causal_trace(gemma, wrong, **one)


@GEMMA
def test_gemma_sees_one_bos(gemma: Any, record: rl.data.Record) -> None:
    fact = rl.Fact("<bos>{} is located in the city of", subject="The Eiffel Tower", target="Paris")
    with pytest.warns(UserWarning, match="It is used once"):
        trace = rl.causal_trace(gemma, fact, samples=1, layers=[0], positions=[-1])
    assert trace.clean == pytest.approx(0.76, abs=0.01)


@SMOLLM2
def test_a_chat_of_smollm2_is_traced_edited_and_checked(smollm2: Any) -> None:
    fact = rl.Fact.from_chat(
        smollm2.tokenizer,
        [
            {"role": "user", "content": "Where is {}?"},
            {"role": "assistant", "content": "It is located in the city of"},
        ],
        subject="the Eiffel Tower",
        target="Paris",
        new_target="Rome",
    )
    assert rl.knows(smollm2, fact) == [True]
    trace = rl.causal_trace(smollm2, fact, samples=2, layers=[8], positions=[-1])
    assert trace.clean > 0.5
    statistics = rl.KeyStatistics.identity(smollm2, layer=8)
    edit = rl.rome(smollm2, fact, layer=8, statistics=statistics, contexts=["{}"])
    score = rl.evaluate(smollm2, edit, fact)
    assert score.ES == 1.0
    check = rl.checks.bleed_over(smollm2, edit, fact)
    assert check is not None
