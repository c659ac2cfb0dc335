"""The benchmarks: their baselines compute what the package computes, and their tables hold."""

import copy
import sys
from pathlib import Path
from unittest import mock

import editing
import growth
import key_statistics
import measure
import peers
import pytest
import timed_models
import torch
import tracing

import rome_lens as rl

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
SIZES = {"n_layer": 3, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 1000}


@pytest.fixture(scope="module")
def twin():
    """A tiny GPT-2 and its tokenizer in transformers."""
    return timed_models.random_gpt2(**SIZES)


@pytest.fixture(scope="module")
def model(twin):
    """The same weights in TransformerLens."""
    return timed_models.wrapped(*copy.deepcopy(twin))


def test_the_baseline_of_edits_makes_the_same_edit_with_more_work(model, twin, monkeypatch):
    monkeypatch.setattr(timed_models, "load", lambda *_: model)
    monkeypatch.setattr(timed_models, "twin", lambda _: twin)
    monkeypatch.setattr(editing, "contexts_of", lambda *_: ("{}", "It was raining. {}"))
    setting = editing.Setting("gpt2-small", layer=0, contexts=2, steps=3)
    plain, ours = editing.compared(setting, None, [], rounds=1)
    assert plain.difference < 1e-4
    assert plain.multiply_adds > ours.multiply_adds > 0.5 * ours.least > 0


def test_the_plain_loop_gives_the_scores_of_a_trace(model):
    fact = timed_models.RANDOM_FACT
    plain, ours = tracing.compared(model, fact, "tiny", "resid", rounds=1, cells=3)
    assert ours.difference < 1e-6
    assert plain.multiply_adds > ours.multiply_adds > 0.5 * ours.least > 0


def test_the_plain_loop_gives_the_moment_of_key_statistics(model):
    plain, ours = key_statistics.of_model(model, "tiny", layer=1, keys=64, rounds=1)
    assert ours.difference < 1e-6
    assert plain.multiply_adds > ours.multiply_adds > 0.5 * ours.least > 0


def test_an_exponent_is_the_slope_at_the_largest_sizes():
    costs = [9.9, 3.0, 12.0, 48.0]
    rows = [measure.Row(case="", cpu=cost, multiply_adds=cost**0.5, peak=0.0) for cost in costs]
    assert growth.exponents((1, 10, 20, 40), rows) == "exponents: CPU s 2.00, mult-adds 1.00"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts peak memory")
def test_peak_memory_is_that_of_one_call():
    rows = measure.compare(
        {
            "large": lambda: torch.ones(8_000_000, dtype=torch.float32).sum(),
            "small": lambda: torch.ones(20, dtype=torch.float32).sum(),
        },
        rounds=1,
    )
    assert rows["large"].peak == pytest.approx(0.032, rel=0.2)
    assert rows["small"].peak < 0.01


@pytest.mark.parametrize("place", ["easyeditor/models/rome", "rome"])
def test_a_peer_runs_from_its_checkout_on_the_cpu(place, twin, tmp_path):
    (tmp_path / place).mkdir(parents=True)
    for package in {"easyeditor", "easyeditor/models"} if "/" in place else ():
        (tmp_path / package / "__init__.py").write_text("raise ImportError('it imports too much')")
    (tmp_path / place / "rome_main.py").write_text(
        "import torch\n"
        "def execute_rome(model, tokenizer, request, settings):\n"
        "    u = torch.tensor([1.0, 2.0], device='cuda').to('cuda')\n"
        "    return {'weight': (u, settings.layers[0] * u)}\n"
    )
    options = {"layer": 3, "contexts": ["{}"], "config": rl.RomeConfig()}
    with mock.patch.dict(sys.modules):
        _, edit = peers.peer_rome(tmp_path)
        delta = edit(*twin, timed_models.RANDOM_FACT, **options)
    assert delta.tolist() == [[3.0, 6.0], [6.0, 12.0]]


def test_a_table_goes_into_its_section_of_the_document(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("top\n<!-- benchmark: editing -->\nold\n<!-- end -->\nrest\n")
    measure.publish("editing", measure.table([measure.Row(case="new", cpu=1.0)]), document)
    text = document.read_text()
    assert "old" not in text
    assert "| new | 1 |" in text
    assert text.startswith("top\n")
    assert text.endswith("<!-- end -->\nrest\n")
    with pytest.raises(SystemExit, match="0 sections"):
        measure.publish("tracing", "", document)


@pytest.mark.parametrize("name", ["editing", "tracing", "key statistics", "sweeps", "growth"])
def test_the_document_has_a_section_for_every_table(name):
    assert DOCUMENT.read_text().count(f"<!-- benchmark: {name} -->") == 1
