"""Whatever is given, a public function returns a result or raises one of the package's errors.

In both cases the model, its tokenizer and the random state are as before, and the laws of
DESIGN hold for the result. Run ``pytest tests/properties --hypothesis-profile=long`` for ten
thousand cases.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import strategies
import torch
from fixtures_for_tests import assert_same, snapshot
from hypothesis import event, given, settings
from hypothesis import strategies as st
from models_for_tests import CLASSES

import rome_lens as rl
from rome_lens.data.facts import SLOT
from rome_lens.data.joining import joined
from rome_lens.errors import RomeLensError
from rome_lens.forward.tokens import continuation, encode, token_ids
from rome_lens.models.lens import raw_output

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
RECORDS = rl.data.records(known_by="toy")[:6]
LONGEST = 0.3  # of the cases, the share that a test with a model gets
models = st.sampled_from(list(CLASSES))


@functools.cache
def model_of(name: str) -> Any:
    """The toy model on this class."""
    toy = rl.load_model("toy", model_class=name)
    toy(torch.tensor([[0, 1]]))  # the Bridge puts hooks of its own into its modules then
    return toy


def fewer(share: float) -> Callable[[Any], Any]:
    """A share of the profile's cases, for a test whose cases take long."""
    return settings(max_examples=max(1, int(settings.default.max_examples * share)))


def result_or_error(call: Callable[[], Any]) -> Any:
    """The result, or None after one of the package's errors. Any other error is a failure."""
    try:
        result = call()
    except RomeLensError as error:
        message, kind = str(error), type(error).__name__
    else:
        event("returned")
        return result
    event(f"refused: {kind}")
    assert message.strip(), "the error says nothing"
    return None


class Unchanged:
    """Inside, a model must be left as it was."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.before = snapshot(self.model)

    def __exit__(self, *error: object) -> None:
        if error == (None, None, None):
            assert_same(self.before, snapshot(self.model))


@given(prompt=strategies.text, subject=strategies.text, target=strategies.text, joiner=st.none())
def test_facts_hold_their_subject_or_are_refused(
    prompt: str, subject: str, target: str, joiner: None
) -> None:
    fact = result_or_error(lambda: rl.Fact(prompt, subject=subject, target=target, joiner=joiner))
    if fact is None:
        return
    assert fact.text[fact.subject_start :].startswith(fact.subject)
    assert fact.about(fact.subject) == fact
    assert fact.text == fact.prompt.replace(SLOT, fact.subject)
    assert joined(fact.text, fact.target).startswith(fact.text)


@given(prompt=strategies.text, subject=strategies.text, target=strategies.text)
def test_from_text_gives_the_text_back_or_refuses(prompt: str, subject: str, target: str) -> None:
    fact = result_or_error(lambda: rl.Fact.from_text(prompt, subject=subject, target=target))
    assert fact is None or fact.text == prompt


@given(
    values=st.lists(strategies.anything, min_size=4, max_size=4),
    joiner=strategies.anything,
)
def test_facts_of_anything_are_refused_by_name(values: list[Any], joiner: Any) -> None:
    prompt, subject, target, new_target = values
    options = {"subject": subject, "target": target, "new_target": new_target, "joiner": joiner}
    result_or_error(lambda: rl.Fact(prompt, **options))
    result_or_error(lambda: rl.data.Question(prompt=prompt, target=target))
    result_or_error(lambda: rl.data.Record(id=prompt, fact=subject, paraphrases=target))


@fewer(LONGEST)
@given(model=models, prompt=strategies.text, subject=strategies.text, bos=st.booleans())
def test_tokens_hold_the_subject_and_the_answer(
    model: str, prompt: str, subject: str, bos: bool
) -> None:
    fact = result_or_error(lambda: rl.Fact(f"{{}} {prompt}", subject=subject, target="Pralec"))
    toy = model_of(model)
    encoded = None
    if fact is not None:
        encoded = result_or_error(lambda: encode(toy, fact, prepend_bos=bos))
    if encoded is None:
        return
    start, end = encoded.subject
    assert 0 <= start < end <= len(encoded.tokens) == len(encoded.labels)
    plain = token_ids(toy, fact.text, prepend_bos=False)
    whole = token_ids(toy, joined(fact.text, "Pralec"), prepend_bos=False)
    assert [*plain, *continuation(toy, fact.text, "Pralec")] == whole


@fewer(LONGEST)
@given(
    model=models,
    questions=st.lists(st.tuples(strategies.text, strategies.text), max_size=3)
    | strategies.anything,
    prompts=st.lists(strategies.text, max_size=3) | strategies.anything,
    count=strategies.mostly(st.integers(1, 5), strategies.odd_number),
)
def test_answers_are_probabilities_or_refused(
    model: str, questions: Any, prompts: Any, count: Any
) -> None:
    toy = model_of(model)
    with Unchanged(toy):
        log_p = result_or_error(lambda: rl.answer_log_probs(toy, questions))
        best = result_or_error(lambda: rl.top_answers(toy, prompts, count=count))
    assert log_p is None or bool((log_p <= 1e-6).all())
    for each in best or ():
        assert list(each.probabilities) == sorted(each.probabilities, reverse=True)
        assert 0.0 <= sum(each.probabilities) <= 1.0 + 1e-5


@fewer(LONGEST)
@given(
    model=models,
    fact=strategies.facts_of(RECORDS),
    noise=st.data(),
    options=strategies.trace_options(6, 14, 4),
)
def test_traces_keep_their_laws(model: str, fact: rl.Fact, noise: Any, options: Any) -> None:
    toy = model_of(model)
    drawn = result_or_error(lambda: noise.draw(strategies.noises()))
    options = {"require_correct": False, **options}
    with Unchanged(toy):
        trace = result_or_error(
            lambda: rl.causal_trace(toy, fact, noise=drawn or rl.GaussianNoise(), **options)
        )
    if trace is None:
        return
    assert bool(((trace.sample_scores >= 0) & (trace.sample_scores <= 1 + 1e-5)).all())
    assert trace.scores.shape[:2] == (len(options["layers"]), len(options["positions"]))
    before = [i for i, pos in enumerate(trace.positions) if pos < trace.subject[0]]
    corrupted = trace.corrupted_samples.view(-1, *(1 for _ in trace.sample_scores.shape[1:]))
    assert bool((trace.sample_scores[:, :, before] == corrupted).all())
    if getattr(drawn, "scale", None) == 0 and not isinstance(drawn, rl.MultivariateGaussianNoise):
        torch.testing.assert_close(
            trace.sample_scores.double(),
            torch.full_like(trace.sample_scores, trace.clean).double(),
            atol=1e-5,
            rtol=1e-4,
        )


@fewer(LONGEST)
@given(
    model=models,
    fact=strategies.facts_of(RECORDS),
    options=strategies.trace_options(6, 14, 4),
    severed=strategies.mostly(st.sampled_from(["mlp", "attn", "both"]), strategies.text),
)
def test_the_other_traces_return_or_refuse(
    model: str, fact: rl.Fact, options: dict[str, Any], severed: str
) -> None:
    toy = model_of(model)
    options = {"require_correct": False, **options}
    some = {k: v for k, v in options.items() if k not in ("component", "window", "heads")}
    with Unchanged(toy):
        estimate = result_or_error(lambda: rl.attribution_trace(toy, fact, **options))
        cut = result_or_error(lambda: rl.severed_trace(toy, fact, severed=severed, **some))
    assert estimate is None or bool(estimate.scores.isfinite().all())
    assert cut is None or bool(((cut.scores >= 0) & (cut.scores <= 1 + 1e-5)).all())


@fewer(LONGEST)
@given(
    model=models,
    fact=strategies.facts_of(RECORDS),
    config=strategies.configs,
    layer=strategies.mostly(st.integers(0, 5), st.integers(-9, 9)),
    contexts=strategies.contexts,
    variant=strategies.mostly(st.sampled_from(["rome", "r-rome"]), strategies.text),
)
def test_edits_keep_their_laws(
    model: str, fact: rl.Fact, config: Any, layer: int, contexts: Any, variant: str
) -> None:
    toy = model_of(model)

    def edited() -> rl.RankOneEdit:
        return rl.rome(
            toy,
            fact,
            layer=layer,
            statistics=rl.KeyStatistics.identity(toy, layer=layer),
            config=rl.RomeConfig(**config),
            contexts=contexts,
            variant=variant,
        )

    with Unchanged(toy):
        edit = result_or_error(edited)
        if edit is None:
            return
        tokens = toy.to_tokens(fact.text)
        with torch.no_grad():
            hooked = toy.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks(toy))
            with edit.applied(toy):
                applied = toy(tokens)
                value = raw_output(toy, layer, edit.key, toy.blocks[layer].mlp.W_out.detach())
        torch.testing.assert_close(hooked, applied, atol=1e-4, rtol=1e-3)
        scale = 1.0 + float(edit.value.abs().max())
        torch.testing.assert_close(value, edit.value, atol=1e-4 * scale, rtol=1e-3)


@given(content=strategies.json_value, entries=st.lists(strategies.json_value, max_size=3))
def test_files_of_any_json_are_read_or_refused_by_name(content: Any, entries: Any) -> None:
    read_or_named(json.dumps(content).encode())
    read_or_named("\n".join(map(json.dumps, entries)).encode())


@given(content=st.binary(max_size=60))
def test_files_of_any_bytes_are_read_or_refused_by_name(content: bytes) -> None:
    read_or_named(content)


FIELDS = {
    "prompt": strategies.text,
    "subject": strategies.text,
    "attribute": strategies.text,
    "target": strategies.json_value,
    "target_new": strategies.json_value,
    "ground_truth": strategies.json_value,
    "requested_rewrite": strategies.json_value,
    "src": strategies.text,
    "answers": strategies.json_value,
    "alt": strategies.text,
    "template": strategies.text,
    "id": strategies.anything,
    "fact": strategies.json_value,
    "paraphrases": strategies.json_value,
    "neighborhood": strategies.json_value,
}


@given(record=st.fixed_dictionaries({}, optional=FIELDS))
def test_records_of_any_fields_are_read_or_refused_by_name(record: dict[str, Any]) -> None:
    read_or_named(json.dumps([record]).encode())


def read_or_named(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "facts.json"
        path.write_bytes(content)
        for read in (rl.read_facts, rl.read_counterfact, rl.data.read_records):
            try:
                entries = read(path)
            except RomeLensError as error:
                message = str(error)
            else:
                assert entries
                continue
            assert str(path) in message


@fewer(LONGEST)
@given(
    which=st.sampled_from(["trace", "edit"]),
    place=st.floats(0, 1),
    change=st.integers(1, 255),
    cut=st.booleans(),
)
def test_a_changed_file_is_refused_by_name(
    which: str, place: float, change: int, cut: bool
) -> None:
    stored = stored_results()[which]
    with tempfile.TemporaryDirectory() as directory:
        path = stored.save(Path(directory) / "result.safetensors")
        content = bytearray(path.read_bytes())
        at = min(len(content) - 1, int(place * len(content)))
        if cut:
            del content[at:]
        else:
            content[at] ^= change
        path.write_bytes(bytes(content))
        try:
            loaded = type(stored).load(path)
        except RomeLensError as error:
            message = str(error)
        else:
            assert repr(loaded) == repr(stored)
            return
        assert str(path) in message


@functools.cache
def stored_results() -> dict[str, Any]:
    toy, fact = model_of(CLASSES[0]), RECORDS[0].fact
    statistics = rl.KeyStatistics.identity(toy, layer=1)
    config = rl.RomeConfig(steps=1)
    return {
        "trace": rl.causal_trace(toy, fact, samples=1, layers=[1], positions=[2]),
        "edit": rl.rome(toy, fact, layer=1, statistics=statistics, contexts=["{}"], config=config),
    }
