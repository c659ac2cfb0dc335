"""Every public function takes a fact or a record, and refuses what is neither, before any work."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rome_lens as rl
from rome_lens import editing, evaluation, keys, localisation, tracing
from rome_lens.editing import contexts, mass_values, side_by_side

pytestmark = pytest.mark.usefixtures("unchecked")

MODULES: list[ModuleType] = [
    rl,
    *(rl.checks, rl.data, rl.forward, rl.models, rl.viz),
    *(tracing, editing, evaluation, localisation, keys),
]
ONE = ("fact", "record")
SEVERAL = ("facts", "records")
NO_FACTS: list[Any] = [None, "The Louvre is in", 3, {}, rl.Fact, object(), ("The Louvre", "Paris")]
NO_EDITS: list[Any] = ["an edit", 3, rl.RankOneEdit, object()]  # None means no edit
NO_EDIT_LISTS: list[Any] = [None, "edits", 3, ["edit"], [rl.RankOneEdit], [object()]]


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions and callable objects of all wings, without the classes of results."""
    seen = set()
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            is_function = inspect.isfunction(value) or hasattr(value, "__wrapped__")
            if is_function and id(value) not in seen:
                seen.add(id(value))
                yield name, value
    for editor in (rl.InContext(), rl.FineTuning(layer=2), rl.Unedited()):
        yield type(editor).__name__, editor


@pytest.fixture
def fill(
    one_toy: Any,
    toy_record: rl.data.Record,
    toy_edit: rl.RankOneEdit,
    toy_statistics: rl.KeyStatistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    """Good arguments for the parameters of a function that have no default.

    What takes long must not be called, because something wrong is among the arguments.
    """
    good = {
        "model": one_toy,
        **dict.fromkeys((*ONE, *SEVERAL), toy_record),
        "edit": toy_edit,
        "edits": [toy_edit],
        "layer": 2,
        "layers": [2],
        "statistics": toy_statistics,
        "severed": "mlp",
        "directory": tmp_path / "sweep",
        "editor": lambda _model, _fact: toy_edit,
        "editors": [rl.Unedited()],
        "settings": [],
        "texts": ["Wanda Brandt lives"],
        "text": "Wanda Brandt lives",
        "prompts": ["Wanda Brandt lives"],
        "source": tmp_path,
        "out_directory": tmp_path / "out",
        "model_name": "toy",
        "traces": [rl.causal_trace(one_toy, toy_record, samples=1)],
        "path": tmp_path / "page.html",
    }

    def work(*_arguments: Any, **_options: Any) -> None:
        pytest.fail("long work was done before the argument was refused")

    monkeypatch.setattr(contexts, "sample_tokens", work)
    monkeypatch.setattr(side_by_side, "optimised_values", work)
    monkeypatch.setattr(mass_values, "optimised_values", work)

    def filled(function: Callable[..., Any], **changed: Any) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty]
        return {**{name: good[name] for name in needed if name not in changed}, **changed}

    return filled


def not_refused(
    fill: Callable[..., dict[str, Any]], names: tuple[str, ...], values: list[Any]
) -> tuple[list[Any], int]:
    wrong, calls = [], 0
    for function_name, function in public_functions():
        parameters = inspect.signature(function).parameters
        for name in set(parameters) & set(names):
            for value in values:
                if value is None and parameters[name].default is None:
                    continue  # it stands for the edit's own fact
                calls += 1
                try:
                    function(**fill(function, **{name: value}))
                    wrong.append((function_name, name, value, "taken"))
                except rl.RomeLensError:
                    continue
                except Exception as error:
                    wrong.append((function_name, name, value, repr(error)[:200]))
    return wrong, calls


def test_what_is_no_fact_is_refused_everywhere(fill: Callable[..., dict[str, Any]]) -> None:
    wrong, calls = not_refused(fill, ONE, NO_FACTS)
    assert wrong == []
    assert calls > 15 * len(NO_FACTS)


def test_what_is_no_list_of_facts_is_refused_everywhere(
    fill: Callable[..., dict[str, Any]],
) -> None:
    several = [value for value in NO_FACTS if not isinstance(value, tuple)]
    wrong, calls = not_refused(fill, SEVERAL, [*several, [], *([value] for value in several)])
    assert wrong == []
    assert calls > 6 * len(several)


def test_what_is_no_edit_is_refused_everywhere(fill: Callable[..., dict[str, Any]]) -> None:
    wrong, calls = not_refused(fill, ("edit",), NO_EDITS)
    listed, more = not_refused(fill, ("edits",), NO_EDIT_LISTS)
    assert wrong + listed == []
    assert calls > 10 * len(NO_EDITS)
    assert more > 2 * len(NO_EDIT_LISTS)


def test_one_fact_or_record_stands_for_a_list_of_one(
    one_toy: Any, toy_record: rl.data.Record
) -> None:
    one: dict[str, Any] = {"samples": 1, "layers": [0]}
    for alone in (toy_record, toy_record.fact):
        assert rl.knows(one_toy, alone) == [True]
        assert len(rl.trace_facts(one_toy, alone, **one).traces) == 1
