"""Every public function with a model refuses, in words, what is not one."""

import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models_for_tests import tiny, tiny_transformers_model, tokenizer

import rome_lens as rl
from rome_lens.models.lens import LensModel

PACKAGES = [
    rl,
    *(
        importlib.import_module(each.name)
        for each in pkgutil.walk_packages(rl.__path__, "rome_lens.")
        if each.ispkg
    ),
]


def public_callables() -> Iterator[tuple[str, Any]]:
    """All public functions, constructors and methods, with their names."""
    for package in PACKAGES:
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if inspect.isclass(value):
                for method in dir(value):
                    if method in ("__init__", "__call__") or not method.startswith("_"):
                        yield f"{package.__name__}.{name}.{method}", getattr(value, method)
            elif callable(value):
                yield f"{package.__name__}.{name}", value


def takes_a_model(function: Any) -> bool:
    """Whether it has an argument ``model`` that is a model, and not the name of one."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "model" in parameters and parameters["model"].annotation in (LensModel, "LensModel")


DOORS = {
    f"{function.__module__}.{function.__qualname__}": function
    for name, function in public_callables()
    if callable(function)
    and takes_a_model(function)
    # A protocol is only a description.
    and not name.endswith(".Editor.__call__")
}


def refusal_of(function: Callable[..., Any], model: Any) -> str:
    """The message of the error that the function raises for this model."""
    arguments = {
        name: None
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if "self" in arguments:
        arguments["self"] = rl.RankOneEdit(layer=0, u=torch.ones(2), v=torch.ones(2))

    def call() -> None:
        result = function(**{**arguments, "model": model})
        if isinstance(result, contextlib.AbstractContextManager):
            with result:
                pass

    with pytest.raises(rl.RomeLensError) as refusal:
        call()
    return str(refusal.value)


def bridge() -> Any:
    return tiny("gpt2", "TransformerBridge")


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "model is None"),
    "a name": (lambda: "gpt2", "rl.load_model('gpt2')"),
    "a number": (lambda: 3, "model is an int"),
    "a class": (lambda: type(bridge()), "the class TransformerBridge"),
    "a transformers model": (
        lambda: tiny_transformers_model("gpt2"),
        "model is a GPT2LMHeadModel",
    ),
    "another module": (lambda: torch.nn.Linear(2, 2), "model is a Linear"),
    "several devices": (lambda: torch.nn.DataParallel(bridge()), "model.module"),
    "compiled": (lambda: torch.compile(bridge(), backend="eager"), "torch.compile"),
    "a tokenizer": (tokenizer, "model is a"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_public_function_says_what_to_pass(kind: str, unchecked: None) -> None:
    make, words = WRONG[kind]
    model = make()
    for function in DOORS.values():
        message = refusal_of(function, model)
        assert words in message
        assert "expected a HookedTransformer or a TransformerBridge" in message


def test_a_model_that_is_compiled_in_place_is_refused(fact: rl.Fact) -> None:
    from models_for_tests import TransformerBridge

    model = TransformerBridge.boot_transformers(
        "tiny-gpt2", hf_model=tiny_transformers_model("gpt2"), tokenizer=tokenizer(), device="cpu"
    )
    model.compile(backend="eager")
    with pytest.raises(rl.models.ModelError, match="compiled"):
        rl.causal_trace(model, fact)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(
    fact: rl.Fact, tmp_path: Path
) -> None:
    model = tiny("gpt2", "TransformerBridge")
    before = model.tokenizer
    larger = tokenizer()
    larger.add_tokens(["Wanda"])
    larger.save_pretrained(tmp_path)
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    try:
        for call in (rl.knows, rl.causal_trace):
            with pytest.raises(rl.RomeLensError, match="tokenizer"):
                call(model, fact)
    finally:
        model.tokenizer = before


def test_signatures_and_docstrings_stay() -> None:
    assert list(inspect.signature(rl.rome).parameters)[:3] == ["model", "fact", "layer"]
    assert rl.rome.__doc__ is not None
    assert rl.rome.__name__ == "rome"


# These return a context manager, which takes the model's lock when its block is entered.
BLOCKS = {
    "applied",
    "differentiating",
    "evaluating",
    "full_precision",
    "last_position_logits",
    "unembedding_only",
}


def test_every_public_function_goes_through_the_door() -> None:
    """Not only the functions that it calls, each by itself: another thread could come between."""
    outside = {name for name, function in DOORS.items() if not visits(function)}
    assert {name.rpartition(".")[2] for name in outside} == BLOCKS


def visits(function: Any) -> bool:
    """Whether ``visits_model`` is written above the function.

    The checks of annotations wrap functions too, so it cannot be seen in the function itself.
    """
    return "@visits_model" in inspect.getsource(function).partition("def ")[0]
