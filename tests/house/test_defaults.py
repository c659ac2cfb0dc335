"""Torch's default dtype and device, and its random state, change no result."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from calls_for_tests import CALLS, OTHERS, Bench, assert_identical, public_functions
from models_for_tests import CLASSES

import rome_lens as rl

PACKAGE = Path(rl.__file__).parent
CREATE = {"arange", "empty", "eye", "full", "linspace", "ones", "tensor", "zeros"}
DRAW = {"normal", "rand", "randint", "randn", "randperm"}
TYPED_BY_THEIR_ARGUMENTS = {"arange", "randint", "randperm"}
FROM_A_GENERATOR = {"bernoulli", "multinomial", "poisson"}
GLOBAL = {"manual_seed", "fork_rng", "seed", "get_rng_state", "set_rng_state"}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def float64_on_meta() -> Iterator[None]:
    with default_dtype(torch.float64), torch.device("meta"):  # reading a meta tensor raises
        yield


@pytest.fixture(scope="module")
def bench(
    one_toy: Any,
    brief_records: list[rl.data.Record],
    toy_statistics: rl.KeyStatistics,
    toy_edits: list[rl.RankOneEdit],
) -> Bench:
    return Bench(one_toy, brief_records, toy_statistics, toy_edits)


def test_every_public_function_that_takes_a_model_is_among_the_calls() -> None:
    assert public_functions() - OTHERS <= CALLS.keys()


@pytest.mark.proof
@pytest.mark.parametrize("name", CALLS)
def test_no_result_depends_on_the_default_dtype_or_device(bench: Bench, name: str) -> None:
    expected, state = CALLS[name](bench), torch.get_rng_state()
    with float64_on_meta():
        found = CALLS[name](bench)
    assert_identical(expected, found)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.proof
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("causal_trace")])
def test_noise_is_drawn_alike_under_a_default_in_half_precision(
    bench: Bench, name: str, dtype: torch.dtype
) -> None:
    expected = CALLS[name](bench)
    with default_dtype(dtype):
        found = CALLS[name](bench)
    assert_identical(expected, found)


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_is_loaded_alike_under_every_default(model_class: Any) -> None:
    expected = rl.load_model("toy", model_class=model_class).state_dict()
    state = torch.get_rng_state()
    with float64_on_meta():
        found = rl.load_model("toy", model_class=model_class).state_dict()
    assert_identical(expected, found)
    assert torch.equal(state, torch.get_rng_state())


def _torch_calls() -> Iterator[tuple[str, str, set[str]]]:
    """The place of every call ``torch.name(...)``, the name, and its keywords."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            parts = [] if "(" in function else function.split(".")
            if parts[:1] != ["torch"]:
                continue
            keywords = {word.arg or ast.unparse(word.value) for word in node.keywords}
            if "_DRAWN" in keywords:  # the two keywords under one name, in noise.py
                keywords |= {"dtype", "device"}
            yield f"{path.relative_to(PACKAGE)}:{node.lineno}", parts[-1], keywords


def test_dtype_device_and_generator_are_spelled_out_wherever_a_tensor_is_made() -> None:
    wrong = []
    for place, name, given in _torch_calls():
        needed = set()
        if name in CREATE | DRAW:
            needed |= {"device"}
            needed |= set() if name in TYPED_BY_THEIR_ARGUMENTS else {"dtype"}
        if name in DRAW | FROM_A_GENERATOR:
            needed |= {"generator"}
        if needed - given or (name in GLOBAL and place.split(":")[0] != "models/loading.py"):
            wrong.append(f"{place}: torch.{name} without {sorted(needed - given)}")
    assert not wrong, "\n".join(wrong)
