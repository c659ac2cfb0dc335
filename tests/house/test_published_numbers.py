"""The published numbers are those of the tables in the docs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import rome_lens as rl

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


def test_the_tables_of_the_limits_are_those_of_the_published_numbers(tables: ModuleType) -> None:
    text = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert len(tables.TABLE.findall(text)) == 2 * len(tables.TABLES)
    assert tables.page() == text


@pytest.mark.parametrize("model", ["gemma-3-270m", "smollm2-135m"])
def test_the_published_facts_are_the_report_half(model: str) -> None:
    records = {str(r.id): r.relation for r in rl.data.records(known_by=model, half="report")}
    frame = rl.data.published_limits(model)
    assert dict(zip(frame["record"], frame["relation"], strict=True)) == records
    for _, own in frame[frame["check"] == "overfit"].groupby("editor"):
        assert set(own["record"]) == set(records)
    with pytest.raises(rl.RomeLensError, match="no published numbers of 'gpt2'"):
        rl.data.published_limits("gpt2")
    where = pd.read_parquet(ROOT / "docs" / "results" / f"where-{model}.parquet")
    assert set(where["record"]) == set(records)
