"""Ctrl-C at any instruction, and errors at any hook point, leave everything as it was.

A short seeded choice runs always. ``ROME_LENS_FAULTS=500`` strikes about that often on each model
class.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from faults_for_tests import calls, choose, differences, places_of, raw_state_of, state_of, strike

import rome_lens as rl
from rome_lens.models import visits

pytestmark = pytest.mark.proof

FAULTS = int(os.environ.get("ROME_LENS_FAULTS", "0"))
SEED = int(os.environ.get("ROME_LENS_FAULTS_SEED", "0"))
QUICK = ("attribution_trace", "answer_log_probs", "applied", "apply and revert")
# Where clean-ups are, so that a few faults strike many of them.
CLEANING = (
    "visits.py",
    "door.py",
    "module_hooks.py",
    "apply_and_revert.py",
    "contextlib.py",
    "hook_points.py",
    "HookedRootModule.py",
    "bridge.py",
)


@pytest.fixture
def reference(toy: Any, toy_record: rl.data.Record) -> Callable[[], torch.Tensor]:
    return lambda: rl.causal_trace(toy, toy_record, layers=[1, 2], samples=2).scores


def test_an_interrupt_leaves_everything_as_it_was(
    toy: Any,
    toy_records: list[rl.data.Record],
    toy_edit: rl.RankOneEdit,
    reference: Callable[[], torch.Tensor],
    unchecked: None,
) -> None:
    every = calls(toy, toy_records, toy_edit)
    chosen = every if FAULTS else {name: every[name] for name in QUICK}
    each = -(-FAULTS // len(every)) if FAULTS else 2
    expected = reference()
    left = []
    for name, call in chosen.items():
        call()  # the first run of a Bridge installs hooks of TransformerLens' own
        before, places = state_of(toy), places_of(call)
        if not FAULTS:
            places = {p: n for p, n in places.items() if p[0].co_filename.endswith(CLEANING)}
        for place, turn in choose(places, each, SEED):
            strike(call, place, turn)
            if name == "apply and revert":  # all or nothing: the edit may be in, but as a whole
                for edit in rl.applied_edits(toy):
                    edit.revert(toy)
            changed = differences(before, state_of(toy))
            if changed or not torch.equal(reference(), expected):
                where = (place[0].co_filename, place[0].co_name, place[1])
                left.append((name, where, turn, changed or "the next trace"))
                before, expected = state_of(toy), reference()
    assert left == []


class Fault(Exception):
    """An error that no code catches."""


@pytest.mark.parametrize("fault", [Fault, KeyboardInterrupt])
def test_a_hook_that_raises_leaves_everything_as_it_was(
    toy: Any,
    toy_records: list[rl.data.Record],
    toy_edit: rl.RankOneEdit,
    reference: Callable[[], torch.Tensor],
    fault: type[BaseException],
    unchecked: None,
) -> None:
    every = calls(toy, toy_records, toy_edit)
    names = [
        "hook_embed",
        "blocks.2.mlp.hook_post",
        "blocks.3.hook_resid_post",
        "ln_final.hook_normalized",
    ]
    chosen = (
        every if FAULTS else {name: every[name] for name in ("causal_trace", "rome", "applied")}
    )
    expected = reference()
    for call in chosen.values():
        for name in names if FAULTS else names[1:3]:
            for turn in (1, 3) if FAULTS else (2,):
                left = [turn]

                def hook_fn(value: torch.Tensor, hook: Any, left: list[int] = left) -> None:
                    left[0] -= 1
                    if left[0] == 0:
                        raise fault

                with toy.hooks(fwd_hooks=[(name, hook_fn)]):
                    before = state_of(toy)
                    # Some calls refuse a model with hooks.
                    with contextlib.suppress(fault, rl.RomeLensError):
                        call()
                    assert differences(before, state_of(toy)) == []
    assert torch.equal(reference(), expected)


def test_a_call_ends_what_an_interrupted_clean_up_has_left(
    toy: Any,
    toy_record: rl.data.Record,
    reference: Callable[[], torch.Tensor],
    monkeypatch: Any,
    unchecked: None,
) -> None:
    """So many interrupts in one clean-up are too many for the call itself."""
    expected, before = reference(), state_of(toy)
    take_back, strikes = visits.Temporary.close, [1000]

    def interrupted(change: Any) -> None:
        if strikes[0] > 0:
            strikes[0] -= 1
            raise KeyboardInterrupt
        take_back(change)

    monkeypatch.setattr(visits.Temporary, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rl.attribution_trace(toy, toy_record, samples=2)
    strikes[0] = 0
    assert differences(before, raw_state_of(toy)) != []
    assert torch.equal(reference(), expected)
    assert differences(before, state_of(toy)) == []
