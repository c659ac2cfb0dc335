"""Laws of MEMIT, EMMET and AlphaEdit."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models_for_tests import CLASSES, tiny, tiny_transformers_model
from test_rome import not_refused

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.editing import mass_facts, mass_values, presets
from rome_lens.editing.mass_states import context_weights
from rome_lens.editing.mass_update import adjusted_keys
from rome_lens.editing.optimiser import OptimisationError
from rome_lens.editing.through_the_norm import closest_unit, raw_change
from rome_lens.errors import ArgumentError
from rome_lens.forward.additions import mlp_contribution
from rome_lens.forward.tokens import encode
from rome_lens.keys.statistics import StatisticsError
from rome_lens.models.lens import ModelError, w_out

LAYERS = (1, 2)
VALUE = rl.RomeConfig(steps=3)
CONFIGS: dict[str, Any] = {
    "memit": rl.MemitConfig(value=VALUE, statistics_weight=50.0),
    "emmet": rl.EmmetConfig(value=VALUE, statistics_weight=50.0),
    "alphaedit": rl.AlphaEditConfig(value=VALUE, threshold=1e-2, l2=0.1),
}
NAMES = ("Wanda Brandt", "Hugo Kessler", "Alda Hartog", "Olga Ulbrich")


def facts(count: int = 3) -> list[rl.Fact]:
    return [
        rl.Fact("Then {} lives in the city of", subject=name, target="Pralec", new_target=new)
        for name, new in zip(
            NAMES[:count], ("Ondavel", "Marden", "Ondavel", "Halvik"), strict=False
        )
    ]


@functools.cache
def random_statistics(d_mlp: int, layer: int) -> rl.KeyStatistics:
    """Statistics of keys that use half of the directions much and the others little."""
    generator = torch.Generator().manual_seed(layer)
    keys = torch.randn(4 * d_mlp, d_mlp, generator=generator, dtype=torch.float64)
    keys[:, d_mlp // 2 :] *= 0.03
    moment = keys.T @ keys / len(keys)
    return rl.KeyStatistics(layer=layer, moment=(moment + moment.T) / 2, count=len(keys))


def edited(name: str, model: Any, given: Any = None, **options: Any) -> rl.MassEdit:
    layers = options.get("layers", LAYERS)
    by_layer = {each: random_statistics(w_out(model, each).shape[0], each) for each in layers}
    options = {
        "layers": layers,
        "statistics": by_layer,
        "contexts": ["{}", "It rained. {}"],
        "config": CONFIGS[name],
        **options,
    }
    return getattr(rl, name)(model, facts() if given is None else given, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_update_solves_the_equation_that_its_method_states(name: str) -> None:
    """Written out with matrices of ``d_mlp`` rows, and solved by another road."""
    model = tiny("gpt2", CLASSES[0])
    edit = edited(name, model)
    config = CONFIGS[name]
    for i, layer in enumerate(LAYERS):
        keys, residuals = edit.keys[i].double(), edit.residuals[i].double()
        moment = random_statistics(keys.shape[1], layer).moment
        eye = torch.eye(keys.shape[1], dtype=torch.float64)
        if name == "memit":
            expected = torch.linalg.inv(50.0 * moment + keys.T @ keys) @ keys.T @ residuals
        elif name == "emmet":
            inverse = torch.linalg.inv(50.0 * moment)
            small = keys @ inverse @ keys.T + 0.1 * torch.eye(len(keys), dtype=torch.float64)
            expected = inverse @ keys.T @ torch.linalg.inv(small) @ residuals
        else:
            values, vectors = torch.linalg.eigh(moment)
            null = vectors[:, values < config.threshold]
            assert edit.ranks[i] == null.shape[1]
            assert 0 < null.shape[1] < len(values)
            project = null @ null.T
            matrix = project @ keys.T @ keys + config.l2 * eye
            expected = torch.linalg.solve(matrix, project @ keys.T @ residuals)
        error = (edit.delta(layer).double() - expected).norm() / expected.norm()
        assert float(error) < 1e-4
        assert float(expected.norm()) > 1e-3


def test_memit_minimises_its_objective() -> None:
    """Least squares with ``sqrt(w)`` times a root of ``C`` as further rows."""
    draw = functools.partial(
        torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    keys, residuals, root, weight = draw(4, 9), draw(4, 5), draw(20, 9), 3.0
    moment = root.T @ root
    solved = adjusted_keys(keys, torch.linalg.solve(moment, keys.T).T, weight, facts=4)
    stacked = torch.cat([keys, weight**0.5 * root])
    expected = torch.linalg.lstsq(stacked, torch.cat([residuals, draw(20, 5) * 0.0])).solution
    torch.testing.assert_close(solved.adjusted.T @ residuals, expected, atol=1e-9, rtol=1e-9)
    gram = keys @ torch.linalg.solve(moment, keys.T) + weight * torch.eye(4, dtype=torch.float64)
    assert solved.condition == pytest.approx(float(torch.linalg.cond(gram)), rel=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_of_facts_changes_nothing(name: str, untouched: Any) -> None:
    model = tiny("gpt2", CLASSES[0])
    untouched(model)
    there, back = edited(name, model), edited(name, model, facts()[::-1])
    for layer in LAYERS:
        torch.testing.assert_close(there.delta(layer), back.delta(layer), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(there.values, back.values.flip(0), atol=1e-4, rtol=1e-4)


def test_emmet_with_one_fact_is_romes_update_and_the_weight_of_c_cancels() -> None:
    model = tiny("gpt2", CLASSES[0])
    options: dict[str, Any] = {"layers": (1,), "given": facts(1)}
    edit = edited("emmet", model, **options)
    heavier = dataclasses.replace(CONFIGS["emmet"], statistics_weight=7.0)
    other = edited("emmet", model, **options, config=heavier)
    torch.testing.assert_close(edit.delta(1), other.delta(1), atol=1e-6, rtol=1e-4)
    key, residual = edit.keys[0, 0], edit.residuals[0, 0]
    torch.testing.assert_close(key @ edit.delta(1), residual, atol=1e-5, rtol=1e-4)
    direction = random_statistics(len(key), 1).solve(key).to(key)
    expected = torch.outer(direction / (direction @ key), residual)
    torch.testing.assert_close(edit.delta(1), expected, atol=1e-5, rtol=1e-4)
    relaxed = dataclasses.replace(CONFIGS["emmet"], relaxed="always", relaxation=1e3)
    short = key @ edited("emmet", model, **options, config=relaxed).delta(1)
    assert float(short @ residual) < 0.99 * float(residual @ residual)


def test_one_fact_at_the_last_layer_gives_the_optimised_prediction() -> None:
    """One layer, the bare context and an exact equality: the edited model does what was promised.

    On Gemma too, where a norm follows ``W_out``, as far as the norm can.
    """
    for family, nearly in (("gpt2", 1e-4), ("gemma3", 1.0)):
        model = tiny(family, CLASSES[0])
        edit = edited("emmet", model, facts(1), layers=(2,), contexts=["{}"])
        assert float(edit.missed) < nearly
        if family == "gpt2":
            asked = [(facts()[0].text, str(facts()[0].new_target))]
            before = rl.answer_log_probs(model, asked)
            after = rl.answer_log_probs(model, asked, fwd_hooks=edit.fwd_hooks(model))
            assert float(after) > float(before)


@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_keys_are_those_of_the_looked_up_token(name: str) -> None:
    model, (fact,) = tiny("gpt2", CLASSES[0]), facts(1)
    config = dataclasses.replace(CONFIGS[name], value=rl.RomeConfig(steps=3, lookup=-2))
    edit = edited(name, model, [fact], config=config, contexts=["{}"], layers=(2,))
    _, cache = model.run_with_cache(fact.text)
    place = encode(model, fact).subject_last - 1
    for found, hook in ((edit.keys[0, 0], "mlp.hook_post"), (edit.starts[0], "hook_resid_post")):
        torch.testing.assert_close(found, cache[f"blocks.2.{hook}"][0, place].detach())


def test_exact_emmet_maps_every_key_to_its_residual_and_missing_equality_is_said() -> None:
    model = tiny("gpt2", CLASSES[0])
    exact = dataclasses.replace(CONFIGS["emmet"], relaxed="never")
    edit = edited("emmet", model, config=exact, layers=(2,))
    torch.testing.assert_close(
        edit.keys[0] @ edit.delta(2), edit.residuals[0], atol=1e-4, rtol=1e-4
    )
    one_subject = [
        rl.Fact("Then {} " + words, subject=NAMES[0], target="Pralec", new_target="Marden")
        for words in ("lives in the city of", "works in")
    ]
    with pytest.raises(OptimisationError, match=r"depend on each other.*condition number"):
        edited("emmet", model, one_subject, config=exact)
    assert edited("emmet", model, one_subject).conditions.isfinite().all()


def test_more_facts_than_an_exact_equality_holds_for_are_refused_before_any_is_optimised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mass_facts, "optimised_targets", lambda *_: pytest.fail("too late"))
    model = tiny("gpt2", CLASSES[0])
    many = [
        rl.Fact("{} lives in the city of", subject=f"Wanda {i}", target="a", new_target="b")
        for i in range(model.cfg.d_mlp + 1)
    ]
    exact = dataclasses.replace(CONFIGS["emmet"], relaxed="never")
    with pytest.raises(OptimisationError, match=r"97 facts, and keys have 96 entries"):
        edited("emmet", model, many, config=exact)


def test_alphaedit_leaves_used_directions_alone_and_memit_does_not() -> None:
    """Keys in the span of the eigenvectors above the threshold keep their outputs."""
    model = tiny("gpt2", CLASSES[0])
    shares = {}
    for name in ("alphaedit", "memit"):
        edit = edited(name, model)
        for layer in LAYERS:
            delta = edit.delta(layer).double()
            used = random_statistics(len(delta), layer).used_directions(1e-2)
            shares[name, layer] = float((used.T @ delta).norm() / delta.norm())
    assert all(shares["alphaedit", layer] < 1e-5 for layer in LAYERS)
    assert all(shares["memit", layer] > 1e-4 for layer in LAYERS)


def test_alphaedit_keeps_the_keys_of_earlier_batches() -> None:
    """Batches in one call equal calls inside each other, and the cache holds earlier keys still."""
    model = tiny("gpt2", CLASSES[0])
    firm = dataclasses.replace(CONFIGS["alphaedit"], l2=1e-4)
    options: dict[str, Any] = {"layers": (1,), "config": firm}
    together = edited("alphaedit", model, facts(4), batch_size=2, **options)
    first = edited("alphaedit", model, facts(4)[:2], **options)
    with first.applied(model):
        second = edited("alphaedit", model, facts(4)[2:], earlier=first, **options)
        forgetful = edited("alphaedit", model, facts(4)[2:], **options)
    assert torch.equal(together.delta(1), first.delta(1) + second.delta(1))
    assert torch.equal(together.kept_keys, second.kept_keys)
    moved = (first.kept_keys[0] @ second.delta(1)).norm()
    assert float(moved) < 0.1 * float((first.kept_keys[0] @ forgetful.delta(1)).norm())
    with pytest.raises(ArgumentError, match="does not carry it"):
        edited("alphaedit", model, facts(4)[2:], earlier=first, **options)
    with first.applied(model), pytest.raises(ArgumentError, match="the same layers only"):
        edited("alphaedit", model, facts(4)[2:], earlier=first, layers=(2,), config=firm)


def test_the_weights_of_all_layers_come_back_bit_for_bit(
    few_tiny_models: Any, untouched: Any, tmp_path: Path
) -> None:
    model = few_tiny_models
    untouched(model)
    before = {layer: w_out(model, layer).clone() for layer in LAYERS}
    edit = edited("alphaedit", model, batch_size=2)
    assert edit.batches == (2, 1)
    tokens = model.to_tokens(facts()[0].text)
    with torch.no_grad():
        hooked = model.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks(model))
        in_row = model.run_with_hooks(
            tokens.repeat(2, 1), fwd_hooks=rl.row_hooks(model, [None, edit])
        )
        plain = model(tokens)
        edit.apply(model)
        applied = model(tokens)
    assert edit.is_applied(model)
    assert all(not torch.equal(w_out(model, layer), before[layer]) for layer in LAYERS)
    loaded = rl.MassEdit.load(edit.save(tmp_path / "edit.safetensors"))
    assert loaded.facts == edit.facts
    loaded.revert(model)
    assert all(torch.equal(w_out(model, layer), before[layer]) for layer in LAYERS)
    torch.testing.assert_close(hooked, applied, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(in_row[1:], applied, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(in_row[:1], plain, atol=1e-4, rtol=1e-4)
    assert float((applied - plain).abs().max()) > 1e-3


def test_an_exported_model_gives_the_edited_logits_and_the_state_dict_holds_all_layers(
    tmp_path: Path,
) -> None:
    model = tiny("gpt2", CLASSES[0])
    edit = edited("memit", model)
    source, out = tiny_transformers_model("gpt2"), tmp_path / "out"
    rl.export_hf(edit, source, out, model=model)
    exported = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokens = model.to_tokens(facts()[0].text)
    with torch.no_grad():
        found = exported(tokens).logits
        expected = model.run_with_hooks(tokens, fwd_hooks=edit.fwd_hooks(model))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    before, after = model.state_dict(), edit.state_dict(model)
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(changed) == len(LAYERS)


def test_layers_share_what_is_missing_and_miss_less_than_nothing_at_all() -> None:
    """Each layer's share is that of ``z - h``; several layers come nearer to ``z`` than none."""
    model = tiny("gpt2", CLASSES[0])
    edit = edited("emmet", model, contexts=["{}"])
    first = (edit.values - edit.starts) / len(LAYERS)
    torch.testing.assert_close(edit.residuals[0], first, atol=1e-5, rtol=1e-4)
    assert (edit.missed < 1.0).all()
    frame = edit.to_frame()
    assert list(frame["missed"]) == edit.missed.tolist()
    assert list(frame["loss"]) == pytest.approx(edit.losses[:, -1].sum(1).tolist())


def test_the_bare_prompt_weighs_as_much_as_all_others_unless_the_mean_is_plain() -> None:
    contexts = ["{}", "A {}", "B {}", "C {}"]
    assert context_weights(contexts, "grouped").tolist() == pytest.approx([1 / 2, *[1 / 6] * 3])
    assert context_weights(contexts, "plain").tolist() == pytest.approx([1 / 4] * 4)
    assert context_weights(contexts[1:], "grouped").tolist() == pytest.approx([1 / 3] * 3)
    assert context_weights(["{}"], "grouped").tolist() == [1.0]


def test_what_follows_a_norm_is_the_nearest_that_the_norm_can_give() -> None:
    """Against a search over all directions, and what the model's own norm makes of the change."""
    generator = torch.Generator().manual_seed(1)
    gain = torch.tensor([[0.5, 2.0, 1.0]], dtype=torch.float64)
    target = 3.0 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    target = target * (target / gain).square().mean(-1, keepdim=True).rsqrt().clamp(min=1.0)
    unit = closest_unit(gain, target)
    torch.testing.assert_close(unit.square().mean(-1), torch.ones(4, dtype=torch.float64))
    every = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    every = every / every.square().mean(-1, keepdim=True).sqrt()
    best = torch.cdist(target, gain * every).min(1).values
    assert ((gain * unit - target).norm(dim=-1) <= best + 1e-9).all()
    model = tiny("gemma3", CLASSES[0])
    outputs = torch.randn(2, 24, generator=generator)
    aim = torch.randn(2, 24, generator=generator)
    there = mlp_contribution(model, 1, aim)
    here = mlp_contribution(model, 1, outputs)
    changed = outputs + raw_change(model, 1, outputs, there - here)
    torch.testing.assert_close(mlp_contribution(model, 1, changed), there, atol=1e-4, rtol=1e-3)
    plain = tiny("gpt2", CLASSES[0])
    assert torch.equal(raw_change(plain, 1, outputs, aim), aim)


def test_wrong_input_is_refused_and_leaves_nothing(untouched: Any, unchecked: None) -> None:
    model = tiny("gpt2", CLASSES[0])
    untouched(model)
    one, two, *_ = facts()
    contradiction = dataclasses.replace(one, new_target="Halvik")
    without = dataclasses.replace(two, new_target=None)
    one_layer = {1: random_statistics(96, 1)}
    swapped = {1: random_statistics(96, 2), 2: random_statistics(96, 1)}
    many = [dataclasses.replace(two, subject=f"A {i}") for i in range(97)]
    exact = rl.EmmetConfig(value=rl.RomeConfig(steps=1), relaxed="never")
    of_all: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"given": []}, FactError, "facts is empty|no fact|expected at least"),
        ({"given": [one, contradiction]}, FactError, "Facts 0 and 1 contradict each other"),
        ({"given": [one, two, one]}, FactError, "Facts 0 and 2 are the same"),
        ({"given": [without]}, FactError, "no new target"),
        (
            {"layers": (2, 1)},
            ArgumentError,
            r"layers is \[2, 1\], expected different layers in asc",
        ),
        ({"layers": (1, 1), "statistics": one_layer}, ArgumentError, "ascending order"),
        ({"layers": (), "statistics": one_layer}, ArgumentError, "ascending order"),
        ({"layers": (1, 9), "statistics": one_layer}, ModelError, "layers 0 to"),
        ({"statistics": one_layer}, StatisticsError, r"has the layers \[1\]"),
        ({"statistics": swapped}, StatisticsError, "of layer 2, the edit is at layer 1"),
        ({"statistics": None}, StatisticsError, "on the unedited model"),
        ({"config": rl.RomeConfig()}, ArgumentError, "expected a config of"),
        ({"batch_size": 0}, ArgumentError, "batch_size is 0"),
        ({"contexts": ["no slot"]}, FactError, "0 slots"),
    ]
    for name in CONFIGS:
        assert not_refused(functools.partial(edited, name, model), of_all) == []
    overflow = rl.MemitConfig(value=rl.RomeConfig(lr=1e20))
    low = rl.AlphaEditConfig(value=VALUE, threshold=1e-9)
    by_method: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        (
            "emmet",
            {"given": many, "config": exact},
            OptimisationError,
            "97 facts, and keys have 96",
        ),
        ("alphaedit", {"config": low}, StatisticsError, "null space of C has rank 0"),
        ("memit", {"config": overflow}, OptimisationError, "lives in the city of.*lower lr"),
    ]
    for name, *case in by_method:
        assert not_refused(functools.partial(edited, name, model), [tuple(case)]) == []


def test_wrong_hyperparameters_are_refused(unchecked: None) -> None:
    for kind, cases in (
        (rl.MemitConfig, [({"statistics_weight": 0.0}, ArgumentError, "above 0")]),
        (rl.MemitConfig, [({"value": None}, ArgumentError, "expected a RomeConfig")]),
        (rl.MemitConfig, [({"key_mean": "mean"}, ArgumentError, "'grouped', 'plain'")]),
        (rl.EmmetConfig, [({"relaxation": -1.0}, ArgumentError, "relaxation is -1.0")]),
        (rl.EmmetConfig, [({"relaxed": "no"}, ArgumentError, "'several', 'always', 'never'")]),
        (rl.AlphaEditConfig, [({"threshold": 0.0}, ArgumentError, "above 0")]),
        (rl.AlphaEditConfig, [({"l2": float("nan")}, ArgumentError, "l2 is nan")]),
    ):
        assert not_refused(kind, cases) == []


def test_an_editor_makes_the_edits_of_its_method_alone_side_by_side_and_together() -> None:
    model = tiny("gpt2", CLASSES[0])
    by_layer = {layer: random_statistics(96, layer) for layer in LAYERS}
    contexts = ["{}", "It rained. {}"]
    editors = {
        name: rl.MassEditor(config=config, statistics=by_layer, contexts=contexts)
        for name, config in CONFIGS.items()
    }
    assert [each.name for each in editors.values()] == ["MEMIT", "EMMET", "AlphaEdit"]
    assert {each.layers for each in editors.values()} == {LAYERS}
    unfit = dataclasses.replace(facts(1)[0], new_target=None)
    first, error, second = editors["alphaedit"].edit_many(model, [facts(2)[0], unfit, facts(2)[1]])
    assert isinstance(error, FactError)
    for fact, edit in zip(facts(2), (first, second), strict=True):
        alone = edited("alphaedit", model, [fact])
        assert edit.fact == fact
        torch.testing.assert_close(edit.delta(2), alone.delta(2), atol=1e-5, rtol=1e-4)
    in_batches = dataclasses.replace(editors["memit"], batch_size=2).edit_together(model, facts())
    assert torch.equal(in_batches.delta(2), edited("memit", model, batch_size=2).delta(2))


def test_editors_find_a_fact_s_target_once_and_again_on_another_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("gpt2", CLASSES[0])
    statistics = {each: random_statistics(w_out(model, each).shape[0], each) for each in LAYERS}
    asked: list[int] = []
    optimised = mass_values.optimised_targets

    def counting(model: Any, some: Any, settings: Any) -> Any:
        asked.append(len(some))
        return optimised(model, some, settings)

    monkeypatch.setattr(mass_values, "optimised_targets", counting)
    editors = [
        rl.MassEditor(config=config, statistics=statistics, contexts=["{}"])
        for config in CONFIGS.values()
    ]
    known = mass_values.TargetMemory()
    editors = [dataclasses.replace(editor, known=known) for editor in editors]
    first = editors[0].edit_together(model, facts(2))
    shared = editors[1].edit_together(model, facts(3))
    assert asked == [2, 1]
    torch.testing.assert_close(shared.values[:2], first.values, atol=0.0, rtol=0.0)
    other = dataclasses.replace(editors[0].config, value=rl.RomeConfig(steps=2))
    dataclasses.replace(editors[0], config=other).edit_together(model, facts(1))
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: value * 1.1)]):
        hooked = editors[2].edit_together(model, facts(1))
    assert asked == [2, 1, 1, 1]
    assert not torch.equal(hooked.values[0], first.values[0])
    with first.applied(model):
        editors[2].edit_together(model, facts(1))
    assert asked == [2, 1, 1, 1, 1]


def test_an_editor_refuses_what_is_no_config(unchecked: None) -> None:
    with pytest.raises(ArgumentError, match=r"expected one of MemitConfig\(\), EmmetConfig"):
        rl.MassEditor(config=rl.RomeConfig(), statistics={})


def test_rome_in_sequence_leaves_out_what_it_cannot_edit(
    one_toy: Any, toy_records: list[rl.data.Record], toy_statistics: rl.KeyStatistics
) -> None:
    options: dict[str, Any] = {
        "statistics": toy_statistics,
        "contexts": ["{}"],
        "config": rl.RomeConfig(steps=8),
    }
    editor = rl.RomeEditor(**options)
    sequence = rl.rome_sequence(one_toy, toy_records[:3], layer=2, **options)
    again = toy_records[0]  # the edited model says its new target already
    together = editor.edit_together(one_toy, [*toy_records[:3], again])
    assert len(together.edits) == 3
    for found, expected in zip(together.edits, sequence.edits, strict=True):
        torch.testing.assert_close(found.delta, expected.delta, atol=1e-4, rtol=1e-3)


def test_presets_offer_the_three_methods(one_toy: Any, monkeypatch: Any) -> None:
    def identities(model: Any, *, layer: Any, **_: Any) -> dict[int, rl.KeyStatistics]:
        return {each: rl.KeyStatistics.identity(model, layer=each) for each in layer}

    for name in ("toy", "gemma-3-270m", "smollm2-135m"):
        preset = rl.preset(name)
        assert preset.mass_layers == tuple(sorted(set(preset.mass_layers)))
    monkeypatch.setattr(presets, "collect_key_statistics", identities)
    editors = rl.preset("toy").mass_editors(one_toy)
    assert [each.name for each in editors] == ["MEMIT", "EMMET", "AlphaEdit"]
    assert {each.layers for each in editors} == {rl.preset("toy").mass_layers}
    assert [each.batch_size for each in editors] == [None, 100, 100]
    assert editors[0].known is not None
    assert len({id(each.known) for each in editors}) == 1
    assert all(each.config.value.stop_probability for each in editors)
    unstopped = rl.preset("toy").mass_editors(one_toy, stopped=False)
    assert [each.name for each in unstopped] == [f"{each.name} unstopped" for each in editors]
    assert {each.config.value.stop_probability for each in unstopped} == {None}
