"""Many facts: interrupted, resumed, refused."""

import json
from typing import Any

import pytest
import torch

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.storage import StorageError
from rome_lens.stores import StoreError
from rome_lens.tracing import many_facts as sweeps


@pytest.fixture(scope="module")
def facts() -> list[rl.Fact]:
    known = [record.fact for record in rl.data.limits() if "toy" in record.known_by][:4]
    return [
        *known,
        rl.Fact(known[0].prompt, subject=known[0].subject, target=str(known[0].new_target)),
    ]


def test_unknown_facts_are_left_out_and_named(toy: Any, facts: list[rl.Fact]) -> None:
    traced = rl.trace_facts(toy, facts, samples=2)
    assert [trace.fact for trace in traced] == facts[:4]
    ((fact, message),) = traced.unknown
    assert fact == facts[4]
    assert facts[0].target in message
    alone = rl.causal_trace(toy, facts[2], samples=2)
    assert torch.equal(traced.traces[2].sample_scores, alone.sample_scores)


def test_some_layers_at_one_position_are_those_cells_of_the_whole_trace(
    toy: Any, facts: list[rl.Fact]
) -> None:
    whole = rl.trace_facts(toy, facts[:2], samples=2)
    for at in ("subject_last", -2):
        some = rl.trace_facts(toy, facts[:2], samples=2, layers=[3, 1], at=at)
        for ours, theirs in zip(some, whole, strict=True):
            pos = theirs.subject[1] - 1 if at == "subject_last" else len(theirs.labels) - 2
            assert (ours.layers, ours.positions) == ((3, 1), (pos,))
            torch.testing.assert_close(
                ours.scores[:, 0], theirs.scores[[3, 1], pos], rtol=0.0, atol=1e-5
            )


@pytest.mark.parametrize(
    ("at", "message"), [("middle", "at is 'middle'"), (99, "outside"), (-99, "outside")]
)
def test_no_position_of_a_fact_is_refused_before_any_is_traced(
    toy: Any, facts: list[rl.Fact], monkeypatch: Any, at: Any, message: str
) -> None:
    monkeypatch.setattr(sweeps, "causal_trace", None)
    with pytest.raises(ValueError, match=message):
        rl.trace_facts(toy, facts[:2], at=at)


def test_an_interrupted_run_loses_no_finished_fact(
    toy: Any, facts: list[rl.Fact], tmp_path: Any, monkeypatch: Any
) -> None:
    directory = tmp_path / "run"
    plain, done = sweeps.causal_trace, []

    def interrupted(model: Any, fact: rl.Fact, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(fact)
        return plain(model, fact, **options)

    monkeypatch.setattr(sweeps, "causal_trace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rl.trace_facts(toy, facts, samples=2, directory=directory)
    assert len(list(directory.glob("*.safetensors"))) == 2
    assert not list(directory.glob("*.part"))
    done.clear()
    monkeypatch.setattr(
        sweeps,
        "causal_trace",
        lambda model, fact, **o: done.append(fact) or plain(model, fact, **o),
    )
    resumed = rl.trace_facts(toy, facts, samples=2, directory=directory)
    assert done == facts[2:]
    whole = rl.trace_facts(toy, facts, samples=2)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert torch.equal(ours.sample_scores, theirs.sample_scores)
    done.clear()
    again = rl.trace_facts(toy, facts, samples=2, directory=directory)
    assert not done
    assert (len(again), again.unknown) == (4, resumed.unknown)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"samples": 3}, "samples was 2 and is 3"),
        ({"samples": 2, "window": 2}, "window was 1 and is 2"),
        ({"samples": 2, "component": "mlp"}, "component was 'resid' and is 'mlp'"),
        ({"samples": 2, "noise": rl.GaussianNoise(seed=1)}, "noise was .*seed=0.* and is .*seed=1"),
        ({"samples": 2, "prepend_bos": False}, "prepend_bos was True and is False"),
        ({"samples": 2, "layers": [3, 1]}, r"layers was None and is \[3, 1\]"),
        ({"samples": 2, "at": "last"}, "at was None and is 'last'"),
        ({"samples": 2, "answer": "whole"}, "answer was 'first_token' and is 'whole'"),
    ],
)
def test_a_run_with_other_settings_is_refused(
    toy: Any, facts: list[rl.Fact], tmp_path: Any, options: dict[str, Any], difference: str
) -> None:
    rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path)
    with pytest.raises(StoreError, match=difference):
        rl.trace_facts(toy, facts[:1], directory=tmp_path, **options)
    assert len(rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path, batch_size=3)) == 1


def test_a_run_of_another_or_an_edited_model_is_refused(
    toy: Any, facts: list[rl.Fact], tmp_path: Any, reference32: Any
) -> None:
    rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path)
    with pytest.raises(StoreError, match="model was "):
        rl.trace_facts(
            reference32,
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


def test_noise_that_cannot_be_compared_later_is_refused(
    toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    class Silence:
        def sample(self, model: Any, prompt: Any, *, samples: int) -> torch.Tensor:
            return torch.zeros(samples, *prompt.embeddings.shape)

    with pytest.raises(ValueError, match="__repr__"):
        rl.trace_facts(toy, facts[:1], noise=Silence(), directory=tmp_path)
    assert len(rl.trace_facts(toy, facts[:1], noise=Silence(), samples=1)) == 1
    with pytest.raises(ValueError, match="fits one subject"):
        rl.trace_facts(
            toy,
            facts[:1],
            noise=rl.Replacement(torch.zeros(1, 3, toy.cfg.d_model)),
            directory=tmp_path,
        )


def test_another_new_target_is_the_same_fact_and_comes_back_as_asked(
    toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    fact = facts[0]
    other = rl.Fact(fact.prompt, subject=fact.subject, target=fact.target, new_target="Elsewhere")
    assert len(rl.trace_facts(toy, [fact, other], samples=1)) == 1
    rl.trace_facts(toy, [fact], samples=1, directory=tmp_path)
    assert rl.trace_facts(toy, [other], samples=1, directory=tmp_path).traces[0].fact == other


def test_what_a_killed_run_left_behind_does_not_matter(
    toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    (tmp_path / "store.json.0123.part").write_text("{")
    assert len(rl.trace_facts(toy, facts[:1], samples=1, directory=tmp_path)) == 1


def test_a_directory_of_other_things_is_refused(
    toy: Any, facts: list[rl.Fact], tmp_path: Any
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds 'thesis"):
        rl.trace_facts(toy, facts[:1], directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_file_is_named(toy: Any, facts: list[rl.Fact], tmp_path: Any) -> None:
    rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError, match=path.name):
        rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(StoreError, match="does not say"):
        rl.trace_facts(toy, facts[:1], samples=2, directory=tmp_path)


def test_what_is_wrong_is_said_before_the_first_trace(
    toy: Any, facts: list[rl.Fact], tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        sweeps, "causal_trace", lambda *args, **options: pytest.fail("a fact was traced")
    )
    directory = tmp_path / "run"
    long = rl.Fact("{} " + "and so on " * 50 + "lives in", subject="Wanda", target="Pralec")
    with pytest.raises(FactError, match="context only"):
        rl.trace_facts(toy, [facts[0], long], directory=directory)
    with pytest.raises(FactError, match="list of facts is empty"):
        rl.trace_facts(toy, [], directory=directory)
    with pytest.raises(ValueError, match="fits one subject"):
        rl.trace_facts(toy, facts, noise=torch.zeros(2, 3, toy.cfg.d_model), directory=directory)
    with pytest.raises(ValueError, match="whole model"):
        rl.trace_facts(toy, facts, window=99, component="mlp", directory=directory)
    assert not directory.exists()


def test_a_fact_given_twice_is_traced_once(toy: Any, facts: list[rl.Fact]) -> None:
    assert len(rl.trace_facts(toy, [facts[0], facts[0]], samples=1)) == 1


def test_progress_is_shown_when_asked(toy: Any, facts: list[rl.Fact], capfd: Any) -> None:
    rl.trace_facts(toy, facts[:2], samples=1)
    assert "trace resid" not in capfd.readouterr().err
    rl.trace_facts(toy, facts[:2], samples=1, progress=True)
    assert "2/2" in capfd.readouterr().err


SHAPES = {
    "ours": {"prompt": "{} is in", "subject": "Paris", "target": "France", "new_target": "Italy"},
    "known_1000": {
        "prompt": "Paris is in",
        "subject": "Paris",
        "attribute": "France",
        "known_id": 3,
    },
    "counterfact": {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "{} is in",
            "subject": "Paris",
            "target_true": {"str": "France"},
            "target_new": {"str": "Italy"},
        },
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_fact_files_are_read(tmp_path: Any, shape: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([SHAPES[shape]]))
    (fact,) = rl.read_facts(path)
    new_target = None if shape == "known_1000" else "Italy"
    assert fact == rl.Fact("{} is in", subject="Paris", target="France", new_target=new_target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("[]", "no facts"),
        ("{}", "no facts"),
        (
            '[{"prompt": "{} is in", "subject": "Paris", "target": "France"}, {"prompt": "{} is"}]',
            "Fact 1 .* lacks",
        ),
        ("[3]", "Fact 0 .* lacks"),
        (
            '[{"prompt": "Rome is in", "subject": "Paris", "attribute": "France"}]',
            "Fact 0 .*'Paris' is not in",
        ),
        ('[{"prompt": "{} is in", "subject": "", "target": "France"}]', "Fact 0 .*is empty"),
    ],
)
def test_a_wrong_fact_file_is_refused(tmp_path: Any, content: str, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(FactError, match=message):
        rl.read_facts(path)
