"""Faults at chosen instructions, what a model has to be like after them, and calls to strike."""

import random
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy
import torch
import transformer_lens

import rome_lens as rl

PACKAGE = str(Path(rl.__file__).parent)
TRANSFORMER_LENS = str(Path(transformer_lens.__file__).parent)
# Where interrupts are injected: this package, the machinery of its with statements, and
# TransformerLens' own hooks.
_FILES = ("contextlib.py", "hook_points.py", "HookedRootModule.py", "defaults_utils.py")
_BRIDGE_FUNCTIONS = {"hooks", "_hooks_context", "add_hook_to_point", "apply_hooks"}

Place = tuple[CodeType, int]
"""An instruction: its code, and its offset there."""


def _is_target(code: CodeType) -> bool:
    name = code.co_filename
    if name.startswith(PACKAGE) or name.endswith(_FILES):
        return True
    return name.startswith(TRANSFORMER_LENS) and code.co_name in _BRIDGE_FUNCTIONS


class tracing:
    """Inside, the function is called before every instruction of the target files."""

    def __init__(self, at_instruction: Callable[[Place], None]) -> None:
        self._at_instruction = at_instruction

    def _local(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "opcode":
            self._at_instruction((frame.f_code, frame.f_lasti))
        return self._local

    def _enter(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        if not _is_target(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._local

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._enter)

    def __exit__(self, *_error: Any) -> None:
        sys.settrace(self._before)


def places_of(call: Callable[[], Any]) -> dict[Place, int]:
    """Every instruction that a call comes to, and how often."""
    counts: dict[Place, int] = {}

    def count(place: Place) -> None:
        counts[place] = counts.get(place, 0) + 1

    with tracing(count):
        call()
    return counts


def strike(call: Callable[[], Any], place: Place, turn: int) -> bool:
    """Interrupt a call when it comes to an instruction the ``turn``-th time; whether it did."""
    struck: list[int] = []

    def at_instruction(each: Place) -> None:
        nonlocal turn
        turn -= each == place
        if turn == 0 and not struck:
            struck.append(1)
            raise KeyboardInterrupt

    try:
        with tracing(at_instruction):
            call()
    except KeyboardInterrupt:
        return True
    return bool(struck)


def choose(places: dict[Place, int], count: int, seed: int) -> list[tuple[Place, int]]:
    """A seeded choice of instructions, and of one of the times that a call comes there.

    Every instruction is equally likely, so clean-ups are struck as often as loops.
    """
    dice = random.Random(seed)
    ordered = sorted(places, key=_order)
    chosen = [dice.choice(ordered) for _ in range(count)]
    return [(place, dice.randint(1, places[place])) for place in chosen]


def _order(place: Place) -> tuple[str, int, str, int]:
    code, offset = place
    return (code.co_filename, code.co_firstlineno, code.co_name, offset)


def all_modules(model: Any) -> list[torch.nn.Module]:
    """The modules of the model, and on a bridge also those of the model that it wraps."""
    wrapped = getattr(model, "original_model", None)
    every = [*model.modules(), *(() if wrapped is None else wrapped.modules())]
    return list({id(module): module for module in every}.values())


def state_of(model: Any) -> dict[str, Any]:
    """All of a model, and of torch, that a call must leave as it was."""
    return {**raw_state_of(model), "edits": rl.applied_edits(model), "lock": is_locked(model)}


def raw_state_of(model: Any) -> dict[str, Any]:
    """The same, as far as it can be read without a call of the package, which would mend it."""
    modules = all_modules(model)
    tokenizer = model.tokenizer
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "gradient flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "training": [module.training for module in modules],
        "hooks": [list(module._forward_hooks) for module in modules],
        "pre-hooks": [list(module._forward_pre_hooks) for module in modules],
        "hooks' options": [
            (list(m._forward_hooks_with_kwargs), list(m._forward_pre_hooks_with_kwargs))
            for m in modules
        ],
        "backward hooks": [list(module._backward_hooks) for module in modules],
        "hook points": [
            [id(handle) for handle in point.fwd_hooks] for point in model.hook_dict.values()
        ],
        "contexts": [set(point.ctx) for point in model.hook_dict.values()],
        "level": model.context_level,
        "own methods": sorted({"forward", "get_residual"} & set(vars(model))),
        "stops": [vars(block).get("_stop_at_layer_idx") for block in model.blocks],
        "cache": vars(model).get("_capture_hf_cache", False),
        "bos": model.cfg.default_prepend_bos,
        "padding": (tokenizer.padding_side, tokenizer.truncation_side),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(numpy.random.get_state()),  # noqa: NPY002
        "python's random state": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def is_locked(model: Any) -> bool:
    """Whether another thread would have to wait."""
    got_in = threading.Event()

    def visit() -> None:
        rl.models.device(model)
        got_in.set()

    thread = threading.Thread(target=visit, daemon=True)
    thread.start()
    thread.join(timeout=10)
    return not got_in.is_set()


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two states, in words."""
    weights, new = before["weights"], after["weights"]
    assert weights.keys() == new.keys()
    changed = [f"weight {name}" for name in weights if not torch.equal(weights[name], new[name])]
    others = [name for name in before if name != "weights" and name in after]
    return changed + [name for name in others if before[name] != after[name]]


def calls(model: Any, records: Sequence[rl.data.Record], edit: rl.RankOneEdit) -> dict[str, Any]:
    """Every public function that runs a model, with as little work as possible."""
    record, other = records[0], records[1]
    fact = record.fact
    identity = rl.KeyStatistics.identity(model, layer=2)
    brief = rl.RomeConfig(steps=2)
    tuning = rl.FineTuning(layer=2, steps=2)
    editor = rl.RomeEditor(statistics=identity, config=brief, contexts=("{}",))
    tracing = {"layers": [1, 2], "samples": 2}
    making = {"layer": 2, "statistics": identity, "contexts": ("{}",), "config": brief}
    prompts = [fact.text, other.fact.text]

    def in_block() -> None:
        with edit.applied(model):
            model(model.to_tokens(fact.text))

    def nested_blocks() -> None:
        with edit.applied(model), edit.applied(model):
            rl.knows(model, fact)

    def and_back() -> None:
        edit.apply(model)
        edit.revert(model)

    checks = {
        name: lambda check=getattr(rl.checks, name): check(model, edit, record)
        for name in ("direction", "association", "bleed_over", "essence")
    }
    return {
        "causal_trace": lambda: rl.causal_trace(model, fact, **tracing),
        "causal_trace of heads": lambda: rl.causal_trace(model, fact, component="z", **tracing),
        "severed_trace": lambda: rl.severed_trace(model, fact, **tracing),
        "attribution_trace": lambda: rl.attribution_trace(model, fact, samples=2),
        "trace_facts": lambda: rl.trace_facts(model, [fact], at="subject_last", **tracing),
        "rome": lambda: rl.rome(model, fact, **making),
        "rome_sequence": lambda: rl.rome_sequence(model, [fact, other.fact], **making),
        "fine_tune": lambda: rl.fine_tune(model, fact, layer=2, steps=2),
        "random_contexts": lambda: rl.random_contexts(model, prefixes=2),
        "row_hooks": lambda: rl.row_hooks(model, [None, edit]),
        "edit_firing": lambda: rl.edit_firing(model, edit, fact.text),
        "edit_firings": lambda: rl.edit_firings(model, edit, prompts),
        "evaluate": lambda: rl.evaluate(model, edit, record, generate=3),
        "evaluate_all": lambda: rl.evaluate_all(model, [edit], [record]),
        "compare_editors": lambda: rl.compare_editors(model, [record], [tuning]),
        "sweep_edits": lambda: rl.sweep_edits(
            model, [record], statistics={"I": {2: identity}}, config=brief, contexts=("{}",)
        ),
        "layer_sweep": lambda: rl.layer_sweep(
            model, [fact], layers=[2], config=brief, contexts=("{}",), samples=2, window=1
        ),
        "check_limits": lambda: rl.check_limits(model, edit, record, samples=1, new_tokens=2),
        "check_records": lambda: rl.check_records(model, [record, other], editor, new_tokens=2),
        **checks,
        "knows": lambda: rl.knows(model, [fact, other.fact]),
        "top_answers": lambda: rl.top_answers(model, prompts),
        "answer_log_probs": lambda: rl.answer_log_probs(model, [(fact.text, fact.target)]),
        "collect_key_statistics": lambda: rl.collect_key_statistics(
            model, layer=2, sample_count=2, sample_length=4
        ),
        "statistics of texts": lambda: rl.collect_key_statistics(model, layer=2, texts=prompts),
        "fitted": lambda: rl.GaussianNoise(subjects=(fact.subject,)).fitted(model),
        "fwd_hooks": lambda: edit.fwd_hooks(model),
        "state_dict": lambda: edit.state_dict(model),
        "applied": in_block,
        "applied twice": nested_blocks,
        "apply and revert": and_back,
    }
