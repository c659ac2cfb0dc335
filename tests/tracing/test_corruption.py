"""Laws of every kind of corruption, and the reference values of the original method."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import CLASSES, REFERENCE, last_logits, reference_model, tiny
from scipy import stats
from test_causal import not_refused

import rome_lens as rl
from rome_lens.forward.runs import embed
from rome_lens.forward.tokens import encode, token_ids
from rome_lens.models.hook_names import EMBED
from rome_lens.tracing import corruption, embedding_statistics
from rome_lens.tracing.corruption import Counterfactual, Replacement, noise_for
from rome_lens.tracing.embedding_statistics import EmbeddingLaw, embedding_std
from rome_lens.tracing.noise import CorruptedPrompt, NoiseError

FACTS = json.loads((REFERENCE / "reference.json").read_text())["traces"]
ARRAYS = np.load(REFERENCE / "traces.npz")
SUBJECTS = ("Wanda Brandt", "Hugo Kessler", "Greta Thorne")
SCALED = [rl.GaussianNoise, rl.UniformNoise, rl.StudentTNoise]
RANDOM = [
    *(kind(seed=3) for kind in SCALED),
    *(kind(seed=3, subjects=SUBJECTS) for kind in SCALED),
    *(kind(seed=3, level=0.5) for kind in SCALED),
    rl.MultivariateGaussianNoise(seed=3),
    rl.MultivariateGaussianNoise(seed=3, subjects=SUBJECTS),
    Replacement(rl.UniformNoise(seed=3)),
]


def prompt_of(model: Any, fact: rl.Fact, *, prepend_bos: bool | None = None) -> CorruptedPrompt:
    encoded = encode(model, fact, prepend_bos=prepend_bos)
    embeddings = embed(model, encoded.tokens)[slice(*encoded.subject)]
    return CorruptedPrompt(
        fact=fact, encoded=encoded, embeddings=embeddings, prepend_bos=prepend_bos
    )


def long_prompt(model: Any, fact: rl.Fact, rows: int = 200) -> CorruptedPrompt:
    """A prompt whose subject has many tokens, so a draw of noise is a large sample."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn((rows, model.cfg.d_model), generator=generator)
    return dataclasses.replace(prompt_of(model, fact), embeddings=embeddings)


def reseeded(noise: Any, seed: int) -> Any:
    if isinstance(noise, Replacement):
        return Replacement(reseeded(noise.noise, seed))
    return dataclasses.replace(noise, seed=seed)


def hook_embed_of(model: Any, ids: list[int]) -> torch.Tensor:
    """Embeddings read from a whole run with one token in each row."""
    kept = []
    model_input = torch.tensor(ids)[:, None]
    with torch.no_grad():
        model.run_with_hooks(
            model_input, fwd_hooks=[(EMBED, lambda value, hook: kept.append(value.clone()))]
        )
    return kept[0][:, 0]


def kurtosis(values: torch.Tensor) -> float:
    return float(stats.kurtosis(values.double().flatten().numpy(), fisher=False))


# The level.


def test_the_noise_level_is_the_original_one() -> None:
    subjects = FACTS["subjects_for_std"]
    for model_class in CLASSES:
        single, double = (
            embedding_std(reference_model(model_class, dtype), subjects)
            for dtype in (torch.float32, torch.float64)
        )
        assert abs(single - FACTS["embedding_std_f32"]) < 1e-7
        assert abs(double - FACTS["embedding_std_f64"]) < 1e-12


def test_sigma_is_taken_where_corruption_enters(tiny_model: Any) -> None:
    """On Gemma that is after the scaling, on GPT-2 before positions."""
    ids = [i for subject in SUBJECTS for i in token_ids(tiny_model, subject, prepend_bos=False)]
    assert embedding_std(tiny_model, SUBJECTS) == pytest.approx(
        float(hook_embed_of(tiny_model, ids).std()), rel=1e-6
    )


@pytest.mark.parametrize("kind", SCALED)
def test_a_level_stands_for_scale_times_sigma(one_toy: Any, fact: rl.Fact, kind: Any) -> None:
    prompt = prompt_of(one_toy, fact)
    own = float(prompt.embeddings.std())
    listed = embedding_std(one_toy, SUBJECTS)
    assert own != listed
    for noise, level in (
        (kind(), 3.0 * own),
        (kind(scale=2.0), 2.0 * own),
        (kind(scale=2.0, subjects=SUBJECTS), 2.0 * listed),
    ):
        expected = kind(level=level).sample(one_toy, prompt, samples=2)
        torch.testing.assert_close(
            noise.sample(one_toy, prompt, samples=2), expected, atol=0.0, rtol=1e-6
        )
    assert not kind(scale=0.0).sample(one_toy, prompt, samples=2).any()
    assert not kind(level=0.0).sample(one_toy, prompt, samples=2).any()


def test_three_sigma_is_what_is_meant_without_a_scale() -> None:
    assert rl.GaussianNoise() == rl.GaussianNoise(scale=3.0, seed=0)
    assert repr(rl.GaussianNoise()) == "GaussianNoise(scale=3.0, seed=0, subjects=None, level=None)"
    assert (
        repr(rl.UniformNoise(level=1.0))
        == "UniformNoise(scale=None, seed=0, subjects=None, level=1.0)"
    )


@pytest.mark.parametrize("kind", SCALED)
def test_fitted_noise_is_the_same_noise(one_toy: Any, fact: rl.Fact, kind: Any) -> None:
    prompt = prompt_of(one_toy, fact)
    noise = kind(scale=2.0, seed=5, subjects=SUBJECTS)
    fitted = noise.fitted(one_toy)
    assert (fitted.level, fitted.subjects) == (2.0 * embedding_std(one_toy, SUBJECTS), None)
    assert torch.equal(
        fitted.sample(one_toy, prompt, samples=3), noise.sample(one_toy, prompt, samples=3)
    )
    assert fitted.fitted(one_toy) is fitted
    with pytest.raises(NoiseError, match="Give the subjects"):
        kind().fitted(one_toy)


# The laws.


def test_gaussian_noise_is_normal(one_toy: Any, fact: rl.Fact) -> None:
    noise = rl.GaussianNoise(level=0.4, seed=3).sample(
        one_toy, long_prompt(one_toy, fact), samples=20
    )
    assert abs(float(noise.mean())) < 0.003
    assert float(noise.std()) == pytest.approx(0.4, rel=0.005)
    assert kurtosis(noise) == pytest.approx(3.0, abs=0.05)
    assert stats.kstest(noise[:2].flatten().numpy() / 0.4, "norm").pvalue > 0.01


def test_uniform_noise_fills_its_range(one_toy: Any, fact: rl.Fact) -> None:
    noise = rl.UniformNoise(level=0.4, seed=3).sample(
        one_toy, long_prompt(one_toy, fact), samples=20
    )
    assert 0.3999 < float(noise.max()) <= 0.4
    assert -0.4 <= float(noise.min()) < -0.3999
    assert float(noise.std()) == pytest.approx(0.4 / math.sqrt(3.0), rel=0.005)
    assert kurtosis(noise) == pytest.approx(1.8, abs=0.02)
    assert stats.kstest(noise[:2].flatten().numpy(), "uniform", args=(-0.4, 0.8)).pvalue > 0.01


def test_student_t_noise_is_t_in_each_entry_and_one_length_for_each_token(
    one_toy: Any, fact: rl.Fact
) -> None:
    """``|e|^2 / d`` of a vector follows F(d, degrees).

    It would not with a chi-square for every entry.
    """
    prompt = long_prompt(one_toy, fact)
    for degrees in (2.5, 3.0, 12.0):
        noise = rl.StudentTNoise(level=0.4, degrees=degrees).sample(one_toy, prompt, samples=20)
        vectors = noise.double().flatten(0, 1) / (0.4 * math.sqrt((degrees - 2.0) / degrees))
        d_model = vectors.shape[1]
        lengths = vectors.pow(2).mean(1).numpy()
        assert stats.kstest(vectors[:, 0].numpy(), "t", args=(degrees,)).pvalue > 0.01
        assert stats.kstest(lengths, "f", args=(d_model, degrees)).pvalue > 0.01
        directions = vectors / vectors.norm(dim=1, keepdim=True)
        round_kurtosis = 3.0 * d_model / (d_model + 2.0)
        assert kurtosis(directions) == pytest.approx(round_kurtosis, abs=0.05), "not round"


def test_student_t_noise_has_the_level_as_deviation_and_heavy_tails(
    one_toy: Any, fact: rl.Fact
) -> None:
    prompt = long_prompt(one_toy, fact)
    noise = rl.StudentTNoise(level=0.4, degrees=12.0, seed=3).sample(one_toy, prompt, samples=40)
    assert float(noise.std()) == pytest.approx(0.4, rel=0.01)
    assert kurtosis(noise) == pytest.approx(3.0 * 10.0 / 8.0, abs=0.15)
    wild = rl.StudentTNoise(level=0.4, seed=3).sample(one_toy, prompt, samples=40)
    assert kurtosis(wild) > 6.0
    assert float((wild.abs() > 5 * 0.4).float().mean()) > 1000 * 2 * stats.norm.sf(5.0)


def test_student_t_noise_of_many_degrees_is_gaussian_noise(one_toy: Any, fact: rl.Fact) -> None:
    prompt = prompt_of(one_toy, fact)
    normal = rl.GaussianNoise(level=0.4, seed=3).sample(one_toy, prompt, samples=5)
    found = rl.StudentTNoise(level=0.4, degrees=1e8, seed=3).sample(one_toy, prompt, samples=5)
    torch.testing.assert_close(found, normal, atol=0.0, rtol=1e-3)


def test_the_embeddings_law_is_their_mean_and_covariance(few_tiny_models: Any) -> None:
    """With fewer tokens than ``d_model``, and with more than the context holds."""
    model = few_tiny_models
    for subjects in (None, SUBJECTS):
        listed = () if subjects is None else subjects
        ids = [i for subject in listed for i in token_ids(model, subject, prepend_bos=False)]
        rows = hook_embed_of(model, ids or list(range(model.cfg.d_vocab))).double()
        law = EmbeddingLaw.of(model, subjects)
        assert law.tokens == len(rows)
        covariance = torch.cov(rows.T)
        size = float(covariance.diagonal().max())
        torch.testing.assert_close(law.mean, rows.mean(0), atol=1e-6 * math.sqrt(size), rtol=0.0)
        torch.testing.assert_close(law.root @ law.root, covariance, atol=1e-6 * size, rtol=0.0)


def test_a_large_mean_costs_the_covariance_no_digits(
    one_toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(
        (one_toy.cfg.d_vocab, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    monkeypatch.setattr(embedding_statistics, "embed", lambda model, ids: 1e6 + rows[ids])
    root = EmbeddingLaw.of(one_toy).root
    torch.testing.assert_close(root @ root, torch.cov(rows.T), atol=1e-8, rtol=0.0)


def test_multivariate_noise_has_the_embeddings_mean_and_covariance(fact: rl.Fact) -> None:
    model = tiny("gemma3", CLASSES[0])
    rows = hook_embed_of(model, list(range(model.cfg.d_vocab)))
    noise = rl.MultivariateGaussianNoise(scale=2.0, seed=3).sample(
        model, long_prompt(model, fact), samples=500
    )
    draws = noise.flatten(0, 1)
    covariance = 4.0 * torch.cov(rows.T)
    size = float(covariance.diagonal().max())
    assert float(rows.mean(0).abs().max()) > 0.01 * math.sqrt(size)
    torch.testing.assert_close(draws.mean(0), rows.mean(0), atol=0.02 * math.sqrt(size), rtol=0.0)
    torch.testing.assert_close(torch.cov(draws.T), covariance, atol=0.02 * size, rtol=0.0)
    assert kurtosis(draws[:, 0]) == pytest.approx(3.0, abs=0.1)


def test_noise_of_few_subjects_stays_in_the_plane_of_their_tokens(
    one_toy: Any, fact: rl.Fact
) -> None:
    ids = token_ids(one_toy, SUBJECTS[0], prepend_bos=False)
    rows = hook_embed_of(one_toy, ids).double()
    assert len(ids) < one_toy.cfg.d_model
    noise = rl.MultivariateGaussianNoise(subjects=SUBJECTS[:1]).sample(
        one_toy, long_prompt(one_toy, fact), samples=2
    )
    deviations = noise.double().flatten(0, 1) - rows.mean(0)
    plane = torch.linalg.qr((rows - rows.mean(0))[1:].T).Q
    assert float(deviations.std()) > 0.1 * float(rows.std())
    torch.testing.assert_close(deviations @ plane @ plane.T, deviations, atol=1e-5, rtol=0.0)


def test_a_fitted_law_gives_the_same_noise_and_fits_no_other_model(
    one_toy: Any, fact: rl.Fact
) -> None:
    prompt = prompt_of(one_toy, fact)
    noise = rl.MultivariateGaussianNoise(seed=5, subjects=SUBJECTS)
    fitted = noise.fitted(one_toy)
    assert torch.equal(
        fitted.sample(one_toy, prompt, samples=3), noise.sample(one_toy, prompt, samples=3)
    )
    assert fitted.fitted(one_toy) is fitted
    assert len(repr(fitted)) < 250
    assert SUBJECTS[0] in repr(fitted)
    other = tiny("gpt2", "TransformerBridge")
    with pytest.raises(NoiseError, match="fitted to another model"):
        fitted.sample(other, prompt_of(other, fact), samples=3)


# Chance.


def test_the_seed_alone_decides_the_draws(one_toy: Any, fact: rl.Fact, untouched: Any) -> None:
    untouched(one_toy)
    prompt = prompt_of(one_toy, fact)
    for noise in RANDOM:
        first = noise_for(noise, one_toy, prompt, samples=4)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            second = noise_for(noise, one_toy, prompt, samples=4)
        other = noise_for(reseeded(noise, 4), one_toy, prompt, samples=4)
        assert torch.equal(first, second), noise
        assert first.shape == (4, *prompt.embeddings.shape), noise
        assert (first != other).float().mean() > 0.99, noise
        assert len({tuple(row.tolist()) for row in first.flatten(1)}) == 4, f"{noise}: repeats"


@pytest.mark.skipif(len(CLASSES) < 2, reason="this TransformerLens has one model class")
def test_both_model_classes_get_the_same_noise(fact: rl.Fact) -> None:
    for family in ("gpt2", "gemma3"):
        prompts = {name: prompt_of(tiny(family, name), fact) for name in CLASSES}
        for noise in RANDOM:
            hooked, bridge = (
                noise_for(noise, tiny(family, name), prompt, samples=3)
                for name, prompt in prompts.items()
            )
            atol = 1e-5 * float(bridge.abs().max())
            assert torch.allclose(hooked, bridge, atol=atol, rtol=1e-5), (family, noise)


def test_every_precision_gets_the_same_noise(one_toy: Any, fact: rl.Fact) -> None:
    prompt = prompt_of(one_toy, fact)
    for noise in RANDOM:
        single = noise_for(noise, one_toy, prompt, samples=3).double()
        for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 2e-2)):
            cast = dataclasses.replace(prompt, embeddings=prompt.embeddings.to(dtype))
            drawn = noise_for(noise, one_toy, cast, samples=3)
            assert drawn.dtype == dtype, noise
            atol = tolerance * float(single.abs().max())
            assert torch.allclose(drawn.double(), single, atol=atol, rtol=tolerance), noise


# Replacement.


@pytest.mark.parametrize(
    "noise", [rl.GaussianNoise(seed=2), rl.MultivariateGaussianNoise(seed=2)], ids=repr
)
def test_a_replacement_puts_the_draw_in_place_of_the_embeddings(
    one_toy: Any, fact: rl.Fact, noise: Any
) -> None:
    prompt = prompt_of(one_toy, fact)
    draws = noise_for(noise, one_toy, prompt, samples=5)
    found = prompt.embeddings + noise_for(Replacement(noise), one_toy, prompt, samples=5)
    torch.testing.assert_close(found, draws, atol=1e-6, rtol=1e-6)


def test_a_replacement_by_a_tensor_is_that_tensor_in_the_run(
    few_tiny_models: Any, fact: rl.Fact
) -> None:
    model = few_tiny_models
    encoded = encode(model, fact)
    start, end = encoded.subject
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn((3, end - start, model.cfg.d_model), generator=generator)
    prompt = prompt_of(model, fact)
    found = prompt.embeddings + noise_for(Replacement(tensor), model, prompt, samples=10)
    torch.testing.assert_close(
        found, tensor, atol=1e-6 * float(prompt.embeddings.abs().max()), rtol=1e-6
    )

    def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, start:end] = tensor
        return value

    logits = last_logits(model, encoded.tokens[None].expand(3, -1), fwd_hooks=[(EMBED, put)])
    expected = logits.softmax(-1)[:, encoded.answer[0]]
    trace = rl.causal_trace(
        model,
        fact,
        noise=Replacement(tensor),
        require_correct=False,
        layers=[0],
        positions=[0],
    )
    torch.testing.assert_close(trace.corrupted_samples, expected, atol=0.0, rtol=2e-4)
    assert trace.noise == "Replacement(noise=tensor)"


# The reference values.


UNIFORM = torch.tensor(ARRAYS["fact0.noise_uniform"])
REPLACING = Replacement(torch.tensor(ARRAYS["fact0.noise"]))
KINDS = [("resid_uniform", UNIFORM), ("resid_replace", REPLACING)]


def test_double_precision_gives_the_original_values(reference64: Any) -> None:
    for kind, noise in KINDS:
        check_reference(reference64, kind, noise, "f64", 1e-10)


def test_single_precision_gives_the_original_values(reference32: Any) -> None:
    check_reference(reference32, "resid_replace", REPLACING, "f32", 5e-6)


def check_reference(model: Any, kind: str, noise: Any, precision: str, tolerance: float) -> None:
    """The original's own low score of a replacement adds the noise, so it is not compared."""
    known = FACTS["facts"]["fact0"]
    fact = rl.Fact.from_text(known["prompt"], subject=known["subject"], target=known["attribute"])
    trace = rl.causal_trace(model, fact, noise=noise, prepend_bos=False)
    expected = torch.tensor(ARRAYS[f"fact0.{kind}.scores.{precision}"]).T
    torch.testing.assert_close(trace.scores.to(expected), expected, atol=tolerance, rtol=0.0)
    if kind == "resid_uniform":
        assert (
            abs(trace.corrupted - float(ARRAYS[f"fact0.{kind}.low_score.{precision}"])) < tolerance
        )


# Counterfactual.


def swapped_subject(model: Any, fact: rl.Fact) -> str:
    """Another subject with as many tokens in this fact's prompt."""

    def length(subject: str) -> int:
        start, end = encode(model, fact.about(subject)).subject
        return end - start

    known = [record.fact.subject for record in rl.data.records(known_by="toy")]
    others = [name for name in (*known, *SUBJECTS) if name != fact.subject]
    return next(name for name in others if length(name) == length(fact.subject))


def check_counterfactual(model: Any, fact: rl.Fact, **options: Any) -> rl.CausalTrace:
    other = swapped_subject(model, fact)
    swapped = encode(model, fact.about(other), **options)
    expected = last_logits(model, swapped.tokens[None])[0].softmax(-1)[swapped.answer[0]]
    trace = rl.causal_trace(
        model,
        fact,
        noise=Counterfactual(subject=other),
        require_correct=False,
        layers=[0, model.cfg.n_layers - 1],
        positions=[2, -1],
        **options,
    )
    assert trace.corrupted_samples.shape == (1,)
    assert trace.corrupted == pytest.approx(float(expected), rel=2e-4, abs=1e-7)
    assert trace.noise == f"Counterfactual(subject={other!r})"
    assert abs(float(trace.scores[-1, -1]) - trace.clean) < 1e-5
    return trace


def test_a_counterfactual_is_the_swapped_prompt(toy: Any, toy_record: rl.data.Record) -> None:
    assert check_counterfactual(toy, toy_record.fact).total_effect > 0.3


def test_a_counterfactual_is_the_swapped_prompt_on_every_kind_of_model(
    few_tiny_models: Any, fact: rl.Fact
) -> None:
    for prepend_bos in (True, False):
        trace = check_counterfactual(few_tiny_models, fact, prepend_bos=prepend_bos)
        assert abs(trace.total_effect) > 1e-3 * trace.clean


def test_a_counterfactual_puts_the_other_subjects_embeddings_in_place(
    tiny_model: Any, fact: rl.Fact
) -> None:
    prompt, other = prompt_of(tiny_model, fact), swapped_subject(tiny_model, fact)
    noise = noise_for(Counterfactual(subject=other), tiny_model, prompt, samples=7)
    expected = prompt_of(tiny_model, fact.about(other)).embeddings
    size = float(prompt.embeddings.abs().max())
    torch.testing.assert_close(prompt.embeddings + noise[0], expected, atol=1e-6 * size, rtol=0.0)


def test_a_counterfactual_that_does_not_fit_is_refused(one_toy: Any, fact: rl.Fact) -> None:
    prompt = prompt_of(one_toy, fact)
    with pytest.raises(
        NoiseError, match=r"'Wanda Brandt' is \[.*Hugo del Lindqvist' is \[.*Choose a subject of"
    ):
        noise_for(Counterfactual(subject="Hugo del Lindqvist"), one_toy, prompt, samples=1)
    with pytest.raises(NoiseError, match="is the fact's own"):
        noise_for(Counterfactual(subject="Wanda Brandt"), one_toy, prompt, samples=1)


def test_a_counterfactual_that_moves_other_tokens_is_refused(
    one_toy: Any, fact: rl.Fact, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, other = prompt_of(one_toy, fact), swapped_subject(one_toy, fact)
    swapped = encode(one_toy, fact.about(other))
    tokens = swapped.tokens.clone()
    tokens[-1] += 1
    other_tokens = dataclasses.replace(swapped, tokens=tokens)
    monkeypatch.setattr(corruption, "encode", lambda *_, **__: other_tokens)
    with pytest.raises(NoiseError, match="has other tokens"):
        noise_for(Counterfactual(subject=other), one_toy, prompt, samples=1)


# Wrong input.


WRONG_SETTINGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"scale": -1.0}, NoiseError, "is -1.0, expected a finite number of at least 0"),
    ({"scale": math.nan}, NoiseError, "is nan, expected a number"),
    ({"scale": math.inf}, NoiseError, "is inf, expected a finite number"),
    ({"scale": "3"}, NoiseError, "is '3', expected a number"),
    ({"scale": True}, NoiseError, "is True, expected a number"),
    ({"seed": 1.5}, NoiseError, "seed is 1.5, expected a whole number"),
    ({"seed": -1}, NoiseError, "seed is -1, expected a whole number"),
    ({"seed": 1 << 70}, NoiseError, f"seed is {1 << 70}, expected a whole number"),
    ({"subjects": "Paris"}, NoiseError, "write ('Paris',)"),
    ({"subjects": ()}, NoiseError, "expected at least one subject"),
    ({"subjects": ("Paris", " ")}, NoiseError, "each a non-empty text"),
    ({"subjects": ("Paris", 3)}, NoiseError, "each a non-empty text"),
]
WRONG_LEVELS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"level": -1.0}, NoiseError, "is -1.0, expected a finite number of at least 0"),
    ({"level": math.inf}, NoiseError, "is inf, expected a finite number"),
    ({"level": 1.0, "scale": 3.0}, NoiseError, "Give one or the other"),
    ({"level": 1.0, "subjects": SUBJECTS}, NoiseError, "Give one or the other"),
]


@pytest.mark.usefixtures("unchecked")
def test_wrong_settings_are_refused_when_made() -> None:
    for kind in (*SCALED, rl.MultivariateGaussianNoise):
        assert not not_refused(kind, WRONG_SETTINGS), kind
    for kind in SCALED:
        assert not not_refused(kind, WRONG_LEVELS), kind


@pytest.mark.usefixtures("unchecked")
def test_other_wrong_kinds_are_refused_when_made() -> None:
    already = "replaces the subject's embeddings already"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"make": lambda: rl.StudentTNoise(degrees=2.0)}, NoiseError, "expected more than 2"),
        ({"make": lambda: rl.StudentTNoise(degrees=math.inf)}, NoiseError, "expected a finite"),
        ({"make": lambda: rl.StudentTNoise(degrees=-3.0)}, NoiseError, "is -3.0, expected a"),
        ({"make": lambda: Replacement("much")}, NoiseError, "expected a kind of noise"),
        ({"make": lambda: Replacement(rl.GaussianNoise)}, NoiseError, "write GaussianNoise("),
        ({"make": lambda: Replacement(Replacement(rl.GaussianNoise()))}, NoiseError, already),
        ({"make": lambda: Replacement(Counterfactual(subject="Paris"))}, NoiseError, already),
        ({"make": lambda: Counterfactual(subject=" ")}, NoiseError, "expected the words of"),
        ({"make": lambda: Counterfactual(subject=None)}, NoiseError, "expected the words of"),
    ]
    assert not not_refused(lambda make: make(), cases)


@pytest.mark.usefixtures("unchecked")
def test_whole_numbers_and_lists_are_taken_as_what_they_mean() -> None:
    assert rl.GaussianNoise(scale=3, subjects=list(SUBJECTS)) == rl.GaussianNoise(subjects=SUBJECTS)


def test_a_law_with_subjects_is_refused(one_toy: Any) -> None:
    law = EmbeddingLaw.of(one_toy, SUBJECTS)
    with pytest.raises(NoiseError, match="Give one of the two"):
        rl.MultivariateGaussianNoise(law=law, subjects=SUBJECTS)


class OneSidedNoise:
    """A caller's own kind that forgets the tensor."""

    def sample(self, model: Any, prompt: CorruptedPrompt, *, samples: int) -> Any:
        return [0.0] * samples


class ConstantNoise:
    """A caller's own kind."""

    def sample(self, model: Any, prompt: CorruptedPrompt, *, samples: int) -> Any:
        return torch.full((samples, *prompt.embeddings.shape), 0.25)


def test_a_callers_own_kind_is_used(one_toy: Any, fact: rl.Fact) -> None:
    noise = noise_for(ConstantNoise(), one_toy, prompt_of(one_toy, fact), samples=2)
    assert (noise == 0.25).all()
    assert len(noise) == 2


@pytest.mark.usefixtures("unchecked")
def test_noise_that_does_not_fit_is_refused(
    one_toy: Any, toy_record: rl.data.Record, untouched: Any
) -> None:
    untouched(one_toy)
    shapes = "expected [samples, "
    wrong: list[tuple[Any, str]] = [
        (torch.zeros(3, 1, 5), "shape [3, 1, 5], expected [samples, "),
        (torch.zeros(3, 1, 5), "one vector for each token of the subject ['"),
        (torch.zeros(3, 5), shapes),
        (torch.zeros(0, 3, 5), shapes),
        (OneSidedNoise(), "returned a list, expected a tensor"),
    ]
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        *(({"noise": noise}, NoiseError, words) for noise, words in wrong),
        *(({"noise": Replacement(noise)}, NoiseError, words) for noise, words in wrong),
        ({"samples": 0}, NoiseError, "samples is 0, expected a whole number from 1 to 1000000"),
        ({"noise": "much"}, NoiseError, "expected a kind of noise"),
        (
            {"noise": rl.GaussianNoise},
            NoiseError,
            "expected an instance of it: write GaussianNoise(",
        ),
    ]
    assert not not_refused(
        lambda **options: rl.causal_trace(one_toy, toy_record.fact, **options), cases
    )


def test_noise_that_is_not_finite_is_refused(one_toy: Any, fact: rl.Fact) -> None:
    prompt = prompt_of(one_toy, fact)
    noise = torch.zeros(2, *prompt.embeddings.shape)
    noise[1, 0, 0] = math.nan
    for each in (noise, Replacement(noise)):
        with pytest.raises(NoiseError, match="NaN"):
            noise_for(each, one_toy, prompt, samples=1)
    half = dataclasses.replace(prompt, embeddings=prompt.embeddings.half())
    with pytest.raises(NoiseError, match=r"infinity as torch\.float16"):
        noise_for(rl.GaussianNoise(level=1e6), one_toy, half, samples=1)


def test_one_token_has_no_covariance(one_toy: Any, fact: rl.Fact) -> None:
    word = one_toy.tokenizer.decode([token_ids(one_toy, "Wanda Brandt", prepend_bos=False)[0]])
    with pytest.raises(NoiseError, match="at least two"):
        noise_for(
            rl.MultivariateGaussianNoise(subjects=(word,)),
            one_toy,
            prompt_of(one_toy, fact),
            samples=1,
        )
    with pytest.raises(ValueError, match="list of subjects is empty"):
        embedding_std(one_toy, ())
