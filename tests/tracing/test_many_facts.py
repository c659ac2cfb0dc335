"""Many facts: interrupted, resumed, refused."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from models_for_tests import CLASSES, reference_model
from test_causal import not_refused

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.errors import ArgumentError
from rome_lens.forward.tokens import encode
from rome_lens.models.lens import ModelError
from rome_lens.storage import StorageError
from rome_lens.stores import StoreError
from rome_lens.tracing import cells, many_facts
from rome_lens.tracing.causal import trace_together
from rome_lens.tracing.passes import pass_size


@pytest.fixture(scope="module")
def facts(toy_records: list[rl.data.Record]) -> list[rl.Fact]:
    """Three facts that the toy knows, and one that it does not."""
    known = [record.fact for record in toy_records[:3]]
    first = known[0]
    return [*known, rl.Fact(first.prompt, subject=first.subject, target=str(first.new_target))]


SMALL: dict[str, Any] = {"samples": 2, "layers": [1, 4], "at": "subject_last"}


def test_unknown_facts_are_left_out_and_named(one_toy: Any, facts: list[rl.Fact]) -> None:
    traced = rl.trace_facts(one_toy, facts, **SMALL)
    assert [trace.fact for trace in traced] == facts[:3]
    ((fact, message),) = traced.unknown
    assert fact == facts[3]
    assert facts[0].target in message
    alone = rl.causal_trace(
        one_toy, facts[2], samples=2, layers=[1, 4], positions=traced.traces[2].positions
    )
    torch.testing.assert_close(
        traced.traces[2].sample_scores, alone.sample_scores, rtol=0.0, atol=1e-6
    )


def mixed_facts() -> list[rl.Fact]:
    """Facts of different lengths, with answers of different lengths."""
    return [
        rl.Fact("Then {} lives in the city of", subject="Wanda Brandt", target="Pralec"),
        rl.Fact("{} plays the", subject="Hugo Kessler", target="Ondavel and Pralec"),
        rl.Fact("It was raining. In {} one sees the", subject="Wanda", target="Ondavel"),
        rl.Fact("{} lives in the city of", subject="Wanda Brandt", target="Ondavel"),
    ]


def traced_together(model: Any, facts: list[rl.Fact], **options: Any) -> list[rl.CausalTrace]:
    """Traces of facts that the model need not know, in one batch."""
    grid = {"layers": None, "positions": None, "heads": None, "component": "resid", "window": 1}
    grid |= {"answer": "first_token"}
    chosen = {name: options.pop(name, value) for name, value in grid.items()}
    size = pass_size(model, batch_size=options.pop("batch_size", None))
    grids = [cells.grid(model, encode(model, fact), size=size, **chosen) for fact in facts]
    rest = {"noise": rl.GaussianNoise(), "samples": 3, "prepend_bos": None, **options}
    return trace_together(model, facts, grids, require_correct=False, **rest)


def test_facts_traced_together_equal_each_traced_alone(few_tiny_models: Any) -> None:
    facts = mixed_facts()
    kinds: list[dict[str, Any]] = [
        {"answer": "whole"},
        {"component": "mlp", "window": 3},
        {"component": "attn", "window": 2, "positions": [-1, -3]},
        {"component": "z", "layers": [2, 1], "positions": [-2]},
    ]
    for kind in kinds:
        alone = [
            rl.causal_trace(few_tiny_models, fact, samples=3, require_correct=False, **kind)
            for fact in facts
        ]
        for order in ([0, 1, 2, 3], [3, 2, 0, 1]):
            together = traced_together(few_tiny_models, [facts[i] for i in order], **kind)
            for trace, i in zip(together, order, strict=True):
                what = f"{kind}, {facts[i].text}"
                assert trace.fact == facts[i]
                for name in ("sample_scores", "corrupted_samples"):
                    torch.testing.assert_close(
                        getattr(trace, name),
                        getattr(alone[i], name),
                        rtol=2e-4,
                        atol=1e-6,
                        msg=lambda message, what=what: f"{what}: {message}",
                    )
                assert trace.clean == pytest.approx(alone[i].clean, rel=1e-4)


def test_cells_of_several_facts_run_in_one_pass_and_in_no_more_rows_than_asked(
    one_toy: Any,
) -> None:
    facts, rows = mixed_facts(), []
    expected = [
        rl.causal_trace(one_toy, fact, samples=3, require_correct=False).scores for fact in facts
    ]
    watch = one_toy.blocks[4].register_forward_pre_hook(
        lambda block, args: rows.append(len(args[0]))
    )
    try:
        for most in (2, 7, 40):
            rows.clear()
            traces = traced_together(one_toy, facts, batch_size=most)
            assert max(rows) <= most
            for trace, scores in zip(traces, expected, strict=True):
                torch.testing.assert_close(trace.scores, scores, rtol=0.0, atol=1e-6)
        rows.clear()
        traced_together(one_toy, facts)
        together = len(rows)
        rows.clear()
        for fact in facts:
            rl.causal_trace(one_toy, fact, samples=3, require_correct=False)
        assert together < len(rows) / 2
    finally:
        watch.remove()


def test_facts_under_the_callers_hooks_are_traced_one_by_one(one_toy: Any) -> None:
    def at_position_3(value: torch.Tensor, hook: Any) -> torch.Tensor:
        assert value.shape[1] > 3, "a part of the positions is run"
        return torch.cat([value[:, :3], 2.0 * value[:, 3:4], value[:, 4:]], 1)

    facts = mixed_facts()
    with one_toy.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", at_position_3)]):
        together = traced_together(one_toy, facts)
        for fact, trace in zip(facts, together, strict=True):
            alone = rl.causal_trace(one_toy, fact, samples=3, require_correct=False)
            torch.testing.assert_close(trace.scores, alone.scores, rtol=0.0, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_an_error_in_one_fact_comes_after_the_others_are_finished(
    one_toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    @dataclass(frozen=True)
    class Picky:
        refused: str

        def sample(self, model: Any, prompt: Any, *, samples: int) -> torch.Tensor:
            if prompt.fact.subject == self.refused:
                raise ZeroDivisionError("no noise for this one")
            return rl.GaussianNoise().sample(model, prompt, samples=samples)

    noise = Picky(facts[1].subject)
    with pytest.raises(ZeroDivisionError, match="no noise"):
        rl.trace_facts(one_toy, facts, noise=noise, directory=tmp_path, **SMALL)
    assert len(list(tmp_path.glob("causal*.safetensors"))) == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 3, "two traces, and one that is not known"


@pytest.mark.skipif(
    "HookedTransformer" not in CLASSES, reason="the Bridge's embedding is also its unembedding"
)
def test_a_fact_whose_run_is_not_finite_does_not_stop_the_others(
    toy_records: list[rl.data.Record], facts: list[rl.Fact], tmp_path: Any
) -> None:
    model = rl.load_model("toy", model_class=CLASSES[0])
    rare = rl.Fact("{} Zorn", subject="Hugo", target="Pralec")
    ids = set(encode(model, rare).tokens.tolist())
    for fact in facts:
        ids -= set(encode(model, fact).tokens.tolist())
    model.embed.W_E.data[sorted(ids)[0]] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        rl.trace_facts(model, [rare, *facts], directory=tmp_path, **SMALL)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(facts)


def test_some_layers_at_one_position_are_those_cells_of_the_whole_trace(
    one_toy: Any, facts: list[rl.Fact]
) -> None:
    whole = rl.trace_facts(one_toy, facts[:2], samples=2)
    for at in ("subject_last", -2):
        some = rl.trace_facts(one_toy, facts[:2], samples=2, layers=[3, 1], at=at)
        for part, trace in zip(some, whole, strict=True):
            pos = trace.subject[1] - 1 if at == "subject_last" else len(trace.labels) - 2
            assert (part.layers, part.positions) == ((3, 1), (pos,))
            torch.testing.assert_close(
                part.scores[:, 0], trace.scores[[3, 1], pos], rtol=0.0, atol=1e-5
            )


def test_an_interrupted_run_loses_no_finished_fact(
    one_toy: Any, facts: list[rl.Fact], tmp_path: Any, monkeypatch: Any
) -> None:
    directory = tmp_path / "run"
    plain, done = many_facts.trace_together, []

    def interrupted(model: Any, facts: list[rl.Fact], *args: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.extend(facts)
        return plain(model, facts, *args, **options)

    def counted(model: Any, facts: list[rl.Fact], *args: Any, **options: Any) -> Any:
        done.extend(facts)
        return plain(model, facts, *args, **options)

    monkeypatch.setattr(many_facts, "trace_together", interrupted)
    with pytest.raises(KeyboardInterrupt):  # so few bytes have room for one fact at a time
        rl.trace_facts(one_toy, facts, directory=directory, batch_bytes=1, **SMALL)
    assert len(list(directory.glob("*.safetensors"))) == 2
    assert not list(directory.glob("*.part"))
    first = set(facts) - set(done)
    monkeypatch.setattr(many_facts, "trace_together", counted)
    done.clear()
    resumed = rl.trace_facts(one_toy, facts, directory=directory, **SMALL)
    assert set(done) == first
    whole = rl.trace_facts(one_toy, facts, **SMALL)
    for trace, expected in zip(resumed, whole, strict=True):
        torch.testing.assert_close(trace.sample_scores, expected.sample_scores, rtol=0.0, atol=1e-6)
    done.clear()
    again = rl.trace_facts(one_toy, facts, directory=directory, **SMALL)
    assert not done
    assert (len(again), again.unknown) == (3, resumed.unknown)


def test_a_run_with_other_settings_is_refused(
    one_toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    rl.trace_facts(one_toy, facts[:1], samples=2, directory=tmp_path)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"samples": 3}, StoreError, "samples was 2 and is now 3"),
        ({"window": 2}, StoreError, "window was 1 and is now 2"),
        ({"component": "mlp"}, StoreError, "component was 'resid' and is now 'mlp'"),
        (
            {"noise": rl.GaussianNoise(seed=1)},
            StoreError,
            "and is now 'GaussianNoise(scale=3.0, seed=1",
        ),
        ({"prepend_bos": False}, StoreError, "prepend_bos was True and is now False"),
        ({"layers": [3, 1]}, StoreError, "layers was None and is now [3, 1]"),
        ({"at": "last"}, StoreError, "at was None and is now 'last'"),
        ({"answer": "whole"}, StoreError, "answer was 'first_token' and is now 'whole'"),
    ]

    def trace(**options: Any) -> Any:
        settings = {"samples": 2, "directory": tmp_path, **options}
        return rl.trace_facts(one_toy, facts[:1], **settings)

    assert not not_refused(trace, cases)
    assert len(trace(batch_size=3)) == 1


def test_a_run_of_another_or_an_edited_model_is_refused(
    toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path)
    with pytest.raises(StoreError, match="model was "):
        rl.trace_facts(
            reference_model(CLASSES[0], torch.float32),
            [rl.Fact("{} is a", subject="Hugo", target="man")],
            samples=2,
            directory=tmp_path,
        )
    weights = dict(toy.named_parameters())
    for name in [name for name in weights if "3" in name or "embed" in name]:
        saved = weights[name].detach().clone()
        try:
            weights[name].data.mul_(1.01).add_(0.01)
            with pytest.raises(StoreError, match="model was "):
                rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path)
        finally:
            weights[name].data.copy_(saved)
    assert len(rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path)) == 1


@pytest.mark.usefixtures("unchecked")
def test_noise_that_cannot_be_compared_later_is_refused(
    one_toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    class Silence:
        def sample(self, model: Any, prompt: Any, *, samples: int) -> torch.Tensor:
            return torch.zeros(samples, *prompt.embeddings.shape)

    with pytest.raises(ValueError, match="__repr__"):
        rl.trace_facts(one_toy, facts[:1], noise=Silence(), directory=tmp_path)
    assert len(rl.trace_facts(one_toy, facts[:1], noise=Silence(), samples=1)) == 1
    with pytest.raises(ValueError, match="fits one subject"):
        rl.trace_facts(
            one_toy,
            facts[:1],
            noise=rl.Replacement(torch.zeros(1, 3, one_toy.cfg.d_model)),
            directory=tmp_path,
        )


def test_another_new_target_is_the_same_fact_and_comes_back_as_asked(
    one_toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    fact = facts[0]
    other = rl.Fact(fact.prompt, subject=fact.subject, target=fact.target, new_target="Elsewhere")
    assert len(rl.trace_facts(one_toy, [fact, other], samples=1)) == 1
    rl.trace_facts(one_toy, [fact], samples=1, directory=tmp_path)
    assert rl.trace_facts(one_toy, [other], samples=1, directory=tmp_path).traces[0].fact == other


def test_what_a_killed_run_left_behind_does_not_matter(
    one_toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    (tmp_path / "store.json.0123.part").write_text("{")
    assert len(rl.trace_facts(one_toy, facts[:1], samples=1, directory=tmp_path)) == 1


def test_a_directory_of_other_things_is_refused(
    one_toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds 'thesis"):
        rl.trace_facts(one_toy, facts[:1], directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_file_is_named(one_toy: Any, facts: list[rl.Fact], tmp_path: Any) -> None:
    rl.trace_facts(one_toy, facts[:1], samples=2, directory=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError, match=path.name):
        rl.trace_facts(one_toy, facts[:1], samples=2, directory=tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        rl.trace_facts(one_toy, facts[:1], samples=2, directory=tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_what_is_wrong_is_said_before_the_first_trace(
    one_toy: Any, facts: list[rl.Fact], tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        many_facts, "trace_together", lambda *args, **options: pytest.fail("a fact was traced")
    )
    directory = tmp_path / "run"
    long = rl.Fact("{} " + "and so on " * 50 + "lives in", subject="Wanda", target="Pralec")
    tensor = torch.zeros(2, 3, one_toy.cfg.d_model)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"facts": [facts[0], long]}, FactError, "context only"),
        ({"facts": []}, FactError, "list of facts is empty"),
        ({"noise": tensor}, ArgumentError, "which fits one subject"),
        ({"batch_bytes": 0}, ArgumentError, "batch_bytes is 0, expected a whole number of at"),
        ({"window": 99, "component": "mlp"}, ArgumentError, "is the whole model of"),
        ({"at": "middle"}, ArgumentError, "at is 'middle', expected one of 'subject_first'"),
        ({"at": 99}, ArgumentError, "Position 99 is outside the prompt"),
        ({"at": -99}, ArgumentError, "Position -99 is outside the prompt"),
    ]

    def trace(**options: Any) -> None:
        rl.trace_facts(one_toy, **{"facts": facts, "directory": directory, **options})

    assert not not_refused(trace, cases)
    assert not directory.exists()


def test_a_fact_given_twice_is_traced_once(one_toy: Any, facts: list[rl.Fact]) -> None:
    assert len(rl.trace_facts(one_toy, [facts[0], facts[0]], samples=1)) == 1


def test_progress_is_shown_when_asked(one_toy: Any, facts: list[rl.Fact], capfd: Any) -> None:
    rl.trace_facts(one_toy, facts[:2], samples=1)
    assert "trace resid" not in capfd.readouterr().err
    rl.trace_facts(one_toy, facts[:2], samples=1, progress=True)
    assert "2/2" in capfd.readouterr().err


def test_any_batch_size_of_64_bits_is_taken(one_toy: Any, toy_record: rl.data.Record) -> None:
    one: dict[str, Any] = {"samples": 1, "layers": [1], "batch_size": 2**63 - 1}
    expected = rl.causal_trace(one_toy, toy_record, **{**one, "batch_size": None}).scores
    assert torch.equal(rl.causal_trace(one_toy, toy_record, **one).scores, expected)
    rl.attribution_trace(one_toy, toy_record, **one)
    rl.severed_trace(one_toy, toy_record, severed="mlp", **one)
