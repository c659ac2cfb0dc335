"""Every public function that takes a model, with small settings, for laws that all of them obey."""

import dataclasses
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rome_lens as rl

LAYER = 2
FEWER = rl.RomeConfig(steps=2)
CONTEXTS = ("{}", "It rained. {}")


@dataclass(frozen=True)
class Bench:
    """A model, and what the calls need besides."""

    model: Any
    records: list[rl.data.Record]
    statistics: rl.KeyStatistics
    edits: list[rl.RankOneEdit]

    @property
    def record(self) -> rl.data.Record:
        return self.records[0]

    @property
    def fact(self) -> rl.Fact:
        return self.record.fact

    @property
    def edit(self) -> rl.RankOneEdit:
        return self.edits[0]

    @property
    def tokens(self) -> Tensor:
        with torch.device("cpu"):  # TransformerLens' own call
            return self.model.to_tokens(self.fact.text)


Call = Callable[[Bench], Any]


def _trace(noise: Any = rl.GaussianNoise(), **options: Any) -> Call:
    return lambda b: rl.causal_trace(b.model, b.fact, noise=noise, samples=2, **options)


def _rome(**options: Any) -> Call:
    def call(b: Bench) -> Any:
        return rl.rome(
            b.model,
            b.fact,
            layer=LAYER,
            statistics=b.statistics,
            **{"contexts": CONTEXTS, "config": FEWER, **options},
        )

    return call


def _trace_with_partners(b: Bench) -> Any:
    facts = [rl.Fact("{} lives in the city of", subject=name, target=name) for name in ("A", "B")]
    noise = rl.Counterfactuals.among(b.model, facts)
    return rl.causal_trace(b.model, noise.contrasted(facts)[0], noise=noise, require_correct=False)


def _applied(b: Bench) -> Any:
    with b.edit.applied(b.model):
        logits = rl.answer_log_probs(b.model, [(b.fact.text, b.fact.target)])
        return logits, rl.applied_edits(b.model), b.edit.is_applied(b.model)


def _kept(b: Bench) -> Any:
    weight = b.model.blocks[LAYER].mlp.W_out
    before = weight.detach().clone()
    b.edit.apply(b.model)
    kept = rl.keep_edits(b.model)
    after = weight.detach().clone()
    weight.data.copy_(before)
    return kept, after


def _editor(b: Bench) -> rl.RomeEditor:
    return rl.RomeEditor(statistics=b.statistics, config=FEWER, contexts=CONTEXTS)


def _mass_editor(b: Bench) -> rl.MassEditor:
    config = rl.MemitConfig(value=FEWER)
    return rl.MassEditor(config=config, statistics={LAYER: b.statistics}, contexts=CONTEXTS)


def _sweep(b: Bench) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        swept = rl.sweep(
            b.model,
            b.records[:1],
            layers=[LAYER],
            directory=directory,
            stages=["trace", "evaluate"],
            statistics=b.statistics,
            samples=2,
            config=FEWER,
            contexts=CONTEXTS,
        )
    return swept.rows.drop(columns="settings").to_dict("list")


def _mass(method: Any, config: Any, **options: Any) -> Call:
    def call(b: Bench) -> Any:
        return method(
            b.model,
            b.records[:2],
            layers=[LAYER],
            statistics={LAYER: b.statistics},
            contexts=CONTEXTS,
            config=config,
            **options,
        )

    return call


CALLS: dict[str, Call] = {
    "alphaedit": _mass(rl.alphaedit, rl.AlphaEditConfig(value=FEWER, threshold=0.1), batch_size=1),
    "answer_log_probs": lambda b: rl.answer_log_probs(
        b.model, [(b.fact.text, b.fact.target)], fwd_hooks=b.edit.fwd_hooks(b.model)
    ),
    "applied_edits": _applied,
    "attribution_trace": lambda b: rl.attribution_trace(b.model, b.fact, samples=2),
    "causal_trace": _trace(),
    "causal_trace, mlp": _trace(component="mlp", window=2),
    "causal_trace, attn": _trace(component="attn"),
    "causal_trace, kl": _trace(metric="kl"),
    "causal_trace, noising": _trace(component="mlp", direction="noising", metric="log_prob"),
    "causal_trace, partners": _trace_with_partners,
    "attribution_trace, noising": lambda b: rl.attribution_trace(
        b.model, b.fact, samples=2, direction="noising", metric="logit_difference"
    ),
    "causal_trace, uniform": _trace(rl.UniformNoise()),
    "causal_trace, Student": _trace(rl.StudentTNoise()),
    "causal_trace, multivariate": _trace(rl.MultivariateGaussianNoise()),
    "causal_trace, subjects": _trace(rl.GaussianNoise(subjects=("Wanda Brandt", "Hugo Kessler"))),
    "causal_trace, replaced": _trace(rl.Replacement(rl.MultivariateGaussianNoise())),
    "check_limits": lambda b: rl.check_limits(
        b.model,
        b.edit,
        b.record,
        others=b.edits[1:2],
        texts=["It rained all day in the city."],
        samples=1,
        new_tokens=2,
    ),
    "check_records": lambda b: rl.check_records(
        b.model, b.records[:1], _editor(b), texts=["It rained."], samples=0, new_tokens=0
    ),
    "collect_key_statistics": lambda b: rl.collect_key_statistics(
        b.model, layer=[1, LAYER], sample_count=8, sample_length=8
    ),
    "collect_key_statistics, texts": lambda b: rl.collect_key_statistics(
        b.model, layer=LAYER, texts=[b.fact.text, "It rained."], batch_size=2
    ),
    "KeyStatistics": lambda b: (
        rl.KeyStatistics.identity(b.model, layer=1),
        b.statistics.solve(b.edit.u, ridge=1e-3),
        b.statistics.condition(ridge=1e-3),
        b.statistics.merged(replace(b.statistics, source="another")),
    ),
    "compare_attention": lambda b: rl.compare_attention(b.model, b.edit, b.fact.text, layer=3),
    "compare_log_probs": lambda b: rl.compare_log_probs(b.model, b.edit, b.fact.text, count=2),
    "compare_text": lambda b: rl.compare_text(b.model, b.edit, [b.fact.text], new_tokens=2),
    "direct_logit_attribution": lambda b: rl.direct_logit_attribution(b.model, b.edit),
    "logit_lens": lambda b: rl.logit_lens(b.model, b.edit, b.records[1]),
    "compare_editors": lambda b: rl.compare_editors(
        b.model, b.records[:1], [rl.Unedited(), rl.InContext(), _editor(b)], generate=0
    ),
    "compare_value": lambda b: rl.compare_value(
        b.model, b.edit, ["Hugo Kessler"], texts=rl.data.texts()[:24]
    ),
    "compare_limits": lambda b: rl.compare_limits(
        b.model,
        b.records[:1],
        [_editor(b), rl.NullEditor(editor=_editor(b)), _mass_editor(b)],
        texts=["It rained."],
        samples=0,
        new_tokens=0,
    ),
    "edit_firing": lambda b: rl.edit_firing(b.model, b.edit, b.fact.text),
    "edit_firings": lambda b: rl.edit_firings(b.model, b.edit, [b.fact.text, "It rained."]),
    "emmet": _mass(rl.emmet, rl.EmmetConfig(value=FEWER)),
    "evaluate": lambda b: rl.evaluate(b.model, b.edit, b.record, generate=4),
    "evaluate_all": lambda b: rl.evaluate_all(b.model, b.edits[:2], b.records[:2]),
    "fine_tune": lambda b: rl.fine_tune(
        b.model, b.fact, layer=LAYER, steps=2, lr=1e-2, norm_constraint=0.1
    ),
    "keep_edits": _kept,
    "knows": lambda b: rl.knows(b.model, b.records[:2]),
    "layer_sweep": lambda b: rl.layer_sweep(
        b.model,
        [record.fact for record in b.records[:2]],
        layers=[LAYER],
        statistics={LAYER: b.statistics},
        samples=2,
        config=FEWER,
        contexts=CONTEXTS,
        progress=False,
    ),
    "memit": _mass(rl.memit, rl.MemitConfig(value=FEWER)),
    "mass_edit_curve": lambda b: (
        rl.mass_edit_curve(
            b.model, b.records[:2], [_mass_editor(b)], counts=[1, 2], scored=1, texts=["It rained."]
        )
        .to_frame()
        .to_dict("list")
    ),
    "null_edit": lambda b: rl.null_edit(
        b.model,
        b.fact,
        layer=LAYER,
        statistics=b.statistics,
        contexts=CONTEXTS,
        config=FEWER,
    ),
    "random_contexts": lambda b: rl.random_contexts(b.model, prefixes=2),
    "rome": _rome(),
    "rome, r-rome": _rome(variant="r-rome", config=rl.RomeConfig(steps=2, norms="centred")),
    "rome_batch": lambda b: rl.rome_batch(
        b.model,
        b.records[:2],
        layer=LAYER,
        statistics=b.statistics,
        contexts=CONTEXTS,
        config=FEWER,
    ),
    "rome, matched": _rome(config=rl.RomeConfig(steps=2, stop="matched")),
    "rome_path": lambda b: rl.rome_path(
        b.model,
        b.fact,
        layer=LAYER,
        statistics=b.statistics,
        contexts=CONTEXTS,
        config=FEWER,
    ),
    "rome_sequence": lambda b: rl.rome_sequence(
        b.model,
        b.records[:2],
        layer=LAYER,
        statistics=b.statistics,
        contexts=CONTEXTS,
        config=FEWER,
    ),
    "row_hooks": lambda b: rl.answer_log_probs(
        b.model,
        [(b.fact.text, b.fact.target)],
        fwd_hooks=rl.row_hooks(b.model, [b.edit]),
    ),
    "severed_trace": lambda b: rl.severed_trace(b.model, b.fact, samples=2),
    "state_dict": lambda b: b.edit.state_dict(b.model),
    "sweep": _sweep,
    "sweep_edits": lambda b: rl.sweep_edits(
        b.model,
        b.records[:1],
        statistics={"collected": {LAYER: b.statistics}},
        config=FEWER,
        contexts=CONTEXTS,
    ),
    "top_answers": lambda b: rl.top_answers(b.model, [b.fact.text, "It rained"]),
    "trace_edit": lambda b: rl.trace_edit(b.model, b.edit),
    "trace_edit, noising": lambda b: rl.trace_edit(
        b.model, b.edit, b.records[1].fact, component="mlp", direction="noising"
    ),
    "trace_facts": lambda b: rl.trace_facts(b.model, b.records[:2], samples=2),
    "Edits.kept": lambda b: rl.Edits(edits=tuple(b.edits[:2])).kept(b.model),
}

# Not called here: they choose settings, or copy a model to a file.
OTHERS = {"preset", "export_hf"}


def public_functions() -> set[str]:
    """The names of all public functions that take a model."""
    functions = {name: getattr(rl, name) for name in rl.__all__}
    return {
        name
        for name, function in functions.items()
        if inspect.isfunction(function) and "model" in inspect.signature(function).parameters
    }


def content(result: Any) -> list[Any]:
    """Everything that a result holds, as a flat list of tensors and plain values."""
    if isinstance(result, dict):
        return [each for key in sorted(result, key=str) for each in content(result[key])]
    if isinstance(result, list | tuple):
        return [each for one in result for each in content(one)]
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return [
            each
            for field in dataclasses.fields(result)
            for each in content(getattr(result, field.name))
        ]
    return [result]


def assert_identical(one: Any, other: Any) -> None:
    """Both results hold the same, bit for bit, in the same types and on the same devices."""
    first, second = content(one), content(other)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        if isinstance(a, Tensor):
            assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
            assert torch.equal(a.nan_to_num(nan=9.0), b.nan_to_num(nan=9.0))
        elif isinstance(a, Path) or callable(a):
            assert type(a) is type(b)
        else:
            assert a == b or (a != a and b != b), (a, b)
