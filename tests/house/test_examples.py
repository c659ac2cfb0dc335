"""Every example in a docstring runs and prints what it says; the functions used most have one."""

import doctest
import functools
import importlib
import pkgutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import statistics_for_tests

import rome_lens as rl
from rome_lens.models.loading import load_model

MOST_USED = (
    rl.Fact,
    rl.load_model,
    rl.top_answers,
    rl.causal_trace,
    rl.trace_facts,
    rl.collect_key_statistics,
    rl.rome,
    rl.RankOneEdit,
    rl.evaluate,
    rl.compare_editors,
    rl.check_limits,
    rl.layer_sweep,
)
MODULES = [name for _, name, _ in pkgutil.walk_packages(rl.__path__, "rome_lens.")]


def examples() -> list[doctest.DocTest]:
    """The examples of every module, each where it is defined."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for name in MODULES:
        if not name.endswith("__main__"):
            found += [t for t in finder.find(importlib.import_module(name)) if t.examples]
    return sorted(found, key=lambda test: test.name)


@functools.cache
def loaded_once(name: str) -> Any:
    """The model of this name. Every example loads the toy model, and none changes it."""
    return load_model(name)


@pytest.mark.real  # the slower part
@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_an_example_prints_what_it_says(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    statistics_for_tests.share(monkeypatch.setattr)
    if not example.name.endswith("load_model"):
        monkeypatch.setattr(rl, "load_model", loaded_once)
    example.globs = {}
    said: list[str] = []
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        failed = doctest.DocTestRunner(optionflags=options).run(example, out=said.append).failed
    assert failed == 0, "".join(said)


def test_what_is_used_most_has_an_example() -> None:
    missing = [each.__name__ for each in MOST_USED if ">>> " not in (each.__doc__ or "")]
    assert missing == []
