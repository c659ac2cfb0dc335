"""Fixtures: the toy model, the reference model and tiny models, on every model class at hand."""

import dataclasses
from typing import Any

import annotations_for_tests  # noqa: F401  (before the first import of the package)
import jaxtyping
import pytest
import torch
from models_for_tests import CLASSES, FEW_TINY, TINY, reference_model, tiny

import rome_lens as rl

# Two processes share two cores. See conftest.py.
torch.set_num_threads(1)


@pytest.fixture(scope="session", params=CLASSES)
def toy(request: pytest.FixtureRequest) -> Any:
    return rl.load_model("toy", model_class=request.param)


@pytest.fixture(scope="session")
def one_toy() -> Any:
    """The toy model on one model class, for what the class cannot change."""
    return rl.load_model("toy", model_class=CLASSES[0])


@pytest.fixture(scope="session")
def toy_records() -> list[rl.data.Record]:
    return rl.data.records(known_by="toy")


@pytest.fixture(scope="session")
def toy_record(toy_records: list[rl.data.Record]) -> rl.data.Record:
    return toy_records[0]


def with_few_prompts(record: rl.data.Record, count: int = 1) -> rl.data.Record:
    """The record with the first prompts of each kind, since each prompt is asked and costs time."""
    kinds = ("paraphrases", "neighborhood", "reverse", "open_prompts", "exemplars", "consequences")
    return dataclasses.replace(record, **{kind: getattr(record, kind)[:count] for kind in kinds})


@pytest.fixture(scope="session")
def brief_records(toy_records: list[rl.data.Record]) -> list[rl.data.Record]:
    """Toy records with one prompt of each kind, for what the number of prompts cannot change."""
    return [with_few_prompts(record) for record in toy_records]


@pytest.fixture(scope="session")
def toy_statistics(one_toy: Any) -> rl.KeyStatistics:
    """Key statistics of layer 2, which fit both model classes."""
    return rl.collect_key_statistics(one_toy, layer=2, sample_count=64, sample_length=32)


@pytest.fixture(scope="session")
def toy_edits(
    one_toy: Any, toy_records: list[rl.data.Record], toy_statistics: rl.KeyStatistics
) -> list[rl.RankOneEdit]:
    """Edits of the first four toy records, in their order; they fit both model classes."""
    return [
        rl.rome(
            one_toy,
            record,
            layer=2,
            statistics=toy_statistics,
            contexts=("{}",),
            config=rl.RomeConfig(steps=8),
        )
        for record in toy_records[:4]
    ]


@pytest.fixture(scope="session")
def toy_edit(toy_edits: list[rl.RankOneEdit]) -> rl.RankOneEdit:
    return toy_edits[0]


@pytest.fixture(scope="session", params=TINY, ids=lambda pair: "-".join(pair))
def tiny_model(request: pytest.FixtureRequest) -> Any:
    """Every tiny model, for laws that hold against a plain loop."""
    return tiny(*request.param)


@pytest.fixture(scope="session", params=FEW_TINY, ids=lambda pair: "-".join(pair))
def few_tiny_models(request: pytest.FixtureRequest) -> Any:
    """Three tiny models that differ most, for laws that follow from others."""
    return tiny(*request.param)


@pytest.fixture(scope="session", params=CLASSES)
def reference64(request: pytest.FixtureRequest) -> Any:
    return reference_model(request.param, torch.float64)


@pytest.fixture(scope="session", params=CLASSES)
def reference32(request: pytest.FixtureRequest) -> Any:
    return reference_model(request.param, torch.float32)


@pytest.fixture
def fact() -> rl.Fact:
    """A fact for models that know nothing."""
    return rl.Fact(
        "Then {} lives in the city of",
        subject="Wanda Brandt",
        target="Pralec",
        new_target="Ondavel",
    )


@pytest.fixture
def unchecked() -> Any:
    """Annotations are not checked, as outside the tests.

    For arguments of a type that the package itself accepts or refuses.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def untouched() -> Any:
    """Call it with a model; at the end of the test the model must be what it was then."""
    checks = []

    def watch(model: Any) -> None:
        with torch.no_grad():
            model(
                torch.tensor([[0, 1]])
            )  # the Bridge puts hooks of its own into its modules on the first run
        before = snapshot(model)
        checks.append(lambda: assert_same(before, snapshot(model)))

    yield watch
    assert checks, "the test watches no model"
    for check in checks:
        check()


def snapshot(model: Any) -> dict[str, Any]:
    """All of a model that a public call must leave as it was."""
    tokenizer = model.tokenizer
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "gradient flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": {
            name: len(point.fwd_hooks) + len(point.bwd_hooks)
            for name, point in model.hook_dict.items()
        },
        "module hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
        ],
        "contexts": {name: dict(point.ctx) for name, point in model.hook_dict.items()},
        "bos": model.cfg.default_prepend_bos,
        "padding": None if tokenizer is None else tokenizer.padding_side,
        "random": torch.get_rng_state(),
        "gradient mode": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        if name == "weights":
            assert value.keys() == after[name].keys()
            for key in value:
                assert torch.equal(value[key], after[name][key]), f"weight {key} changed"
        elif name == "random":
            assert torch.equal(value, after[name]), "the random state changed"
        else:
            assert value == after[name], f"{name} changed"
