"""The published numbers are those of the tables in the docs, and of the facts that they name."""

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import rome_lens as rl
from rome_lens.commands.choices import first_of_each_relation

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    path = ROOT / "scripts" / "limits_tables.py"
    spec = importlib.util.spec_from_file_location("limits_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.real  # the slower part
def test_the_tables_of_the_pages_are_those_of_the_published_numbers(tables: ModuleType) -> None:
    for page in tables.PAGES:
        text = page.path.read_text(encoding="utf-8")
        found = [(name, model) for _, name, model, *_ in tables.TABLE.findall(text)]
        names = [*page.tables, *(["differences"] if page.path.stem == "later-editors" else [])]
        assert sorted(found) == sorted(itertools.product(names, tables.MODELS))
        assert tables.made_again(page) == text


@pytest.mark.parametrize("model", ["gemma-3-270m", "smollm2-135m"])
def test_the_published_facts_are_the_report_half(model: str) -> None:
    listed = rl.data.records(known_by=model, half="report")
    records = {str(each.id): each.relation for each in listed}
    some = {str(each.id) for each in first_of_each_relation(listed, 5)}
    frame = rl.data.published_limits(model)
    assert dict(zip(frame["record"], frame["relation"], strict=True)) == records
    own = frame[frame["check"] == "overfit"]
    asked = {editor: set(rows["record"]) for editor, rows in own.groupby("editor")}
    later = {"MEMIT", "EMMET", "AlphaEdit", "MEMIT unstopped", "AlphaEdit unstopped"}
    assert asked == {editor: some if editor in later else set(records) for editor in asked}
    assert later < set(asked)
    with pytest.raises(rl.RomeLensError, match="no published numbers of 'gpt2'"):
        rl.data.published_limits("gpt2")
    where = pd.read_parquet(ROOT / "docs" / "results" / f"where-{model}.parquet")
    assert set(where["record"]) == set(records)


@pytest.mark.parametrize("model", ["toy", "smollm2-135m"])
def test_the_published_curves_are_of_known_facts(model: str) -> None:
    curve = rl.MassCurve.load(rl.data.published_curve(model))
    assert curve.editors == ("ROME", "MEMIT", "EMMET", "AlphaEdit")
    facts = (
        rl.data.toy_people()[:120]  # of as many people
        if model == "toy"
        else rl.data.records(known_by=model, half="report")
    )
    scored = {each.case_id for batch in curve.batches for each in batch.evaluations}
    assert scored
    assert scored <= {each.id for each in facts}
    with pytest.raises(rl.RomeLensError, match="No curve of 'gpt2' is published"):
        rl.data.published_curve("gpt2")
