"""A run that was killed at any moment is resumed, with the result of a run that was not killed.

Each victim is a fork of this process, because to import torch takes longer than to run one. It is
killed with SIGKILL either after a random time, or at one of the places where files come and go:
before a write, in the middle of it, after it, before or after a rename, or after a removal.

ROME_LENS_KILLS is the number of kills, 7 unless it is set; ROME_LENS_KILLS_SEED varies them.
"""

import dataclasses
import hashlib
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

import rome_lens as rl
from rome_lens import results
from rome_lens.results import Stored

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        not hasattr(os, "fork") or sys.platform == "darwin",
        reason="a process cannot be forked safely",
    ),
]
KILLS = int(os.environ.get("ROME_LENS_KILLS", "7"))
SEED = os.environ.get("ROME_LENS_KILLS_SEED", "0")
SLOWEST = 300.0  # seconds after which a victim is taken to hang

CONFIG = rl.RomeConfig(steps=2)


def identity(model: Any, *layers: int) -> dict[int, rl.KeyStatistics]:
    return {layer: rl.KeyStatistics.identity(model, layer=layer) for layer in layers}


def editor(model: Any) -> rl.RomeEditor:
    statistics = identity(model, 2)[2]
    return rl.RomeEditor(statistics=statistics, contexts=["{}"], config=CONFIG)


def traces(model: Any, records: Any, directory: Path) -> Any:
    unknown = rl.Fact(records[0].fact.prompt, subject=records[0].fact.subject, target="Ondavel")
    facts = [*records[:2], unknown]
    traced = rl.trace_facts(model, facts, samples=2, layers=[0, 3], directory=directory)
    return rl.average_traces(traced)


def key_statistics(model: Any, records: Any, directory: Path) -> Any:
    return rl.collect_key_statistics(
        model,
        layer=[1, 2],
        texts=[record.fact.text for record in records] * 20,
        cache=directory,
        checkpoint_every=250,
    )


def comparison(model: Any, records: Any, directory: Path) -> Any:
    editors = [rl.Unedited(), editor(model)]
    return rl.compare_editors(model, records[:2], editors, directory=directory)


def settings(model: Any, records: Any, directory: Path) -> Any:
    return rl.sweep_edits(
        model,
        records[:1],
        statistics={"C = I": identity(model, 2, 3)},
        stop_probabilities=[None, 0.5],
        config=CONFIG,
        contexts=["{}"],
        directory=directory,
    )


def limits(model: Any, records: Any, directory: Path) -> Any:
    return rl.check_records(
        model,
        records[:1],
        editor(model),
        texts=["It rained in the city of Pralec."],
        samples=0,
        new_tokens=0,
        directory=directory,
    )


def layers(model: Any, records: Any, directory: Path) -> Any:
    return rl.layer_sweep(
        model,
        records[:2],
        layers=[2, 3],
        statistics=identity(model, 2, 3),
        samples=2,
        config=CONFIG,
        contexts=["{}"],
        directory=directory,
    )


def sweep(model: Any, records: Any, directory: Path) -> Any:
    swept = rl.sweep(
        model,
        records[:2],
        layers=[2, 3],
        statistics=identity(model, 2, 3),
        stages=["trace", "evaluate"],
        samples=2,
        config=CONFIG,
        contexts=["{}"],
        directory=directory,
    )
    return swept.rows.to_dict("list")


RUNS = (traces, key_statistics, comparison, settings, limits, layers, sweep)


def content(value: Any) -> Any:
    """All that a result holds, with tensors and floats bit for bit."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return [(content(key), content(each)) for key, each in value.items()]
    if isinstance(value, tuple | list):
        return [content(each) for each in value]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return (type(value).__name__, [(name, content(getattr(value, name))) for name in names])
    return repr(value)


class Places:
    """The places where files come and go, at one of which the process kills itself."""

    def __init__(self, fatal: int | None) -> None:
        self.passed, self.fatal = 0, fatal
        for owner, name in ((os, "replace"), (Path, "unlink"), (Path, "mkdir")):
            self.watch(owner, name)
        self.watch(results, "save_file", half=lambda _tensors, path, **_: path)
        self.watch(Path, "write_text", half=lambda path, *_, **__: path)

    def watch(self, owner: Any, name: str, half: Callable[..., Path] | None = None) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.here()
            result = original(*args, **kwargs)
            if half is not None and self.passed == self.fatal:
                path = Path(half(*args, **kwargs))
                os.truncate(path, path.stat().st_size // 2)
            self.here()
            self.here()
            return result

        setattr(owner, name, watched)

    def here(self) -> None:
        if self.passed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1


def fork(run: Callable[[], Any], out: Path, fatal: int | None = None) -> int:
    """Run in a process of its own, which writes the hash of the result, and return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        places = Places(fatal)
        digest = hashlib.sha256(repr(content(run())).encode()).hexdigest()
        with out.open("w") as file:
            file.write(f"{digest} {places.passed}")
        status = 0
    except BaseException:
        with out.open("w") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The exit status of a victim; minus the signal if it was killed."""
    end = time.monotonic() + SLOWEST
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("a victim hangs")


def finish(run: Callable[[], Any], out: Path) -> list[str]:
    """The hash of the result of a run to its end, and the number of places that it passed."""
    assert wait(fork(run, out)) == 0, out.read_text()
    return out.read_text().split()


def assert_nothing_torn(directory: Path) -> None:
    """Every file that has its final name is complete."""
    types = results._stored_types(Stored)
    for path in directory.rglob("*.safetensors"):
        if not path.name.startswith("."):
            with safe_open(path, framework="pt") as file:
                kind = file.metadata()["type"]
            types[kind].load(path)


@pytest.mark.parametrize("function", RUNS)
def test_a_killed_run_is_resumed_bit_for_bit(
    function: Any, one_toy: Any, toy_records: Any, tmp_path: Path
) -> None:
    rng, out, number = random.Random(f"{function.__name__} {SEED}"), tmp_path / "out", 0
    started = time.monotonic()
    expected, passed = finish(lambda: function(one_toy, toy_records, tmp_path / "whole"), out)
    took, kills, done = time.monotonic() - started, 0, 0
    while kills < KILLS // len(RUNS):
        number, directory = number + 1, tmp_path / str(number)

        def run(directory: Path = directory) -> Any:
            return function(one_toy, toy_records, directory)

        for _ in range(min(rng.choice((1, 1, 2, 3)), KILLS // len(RUNS) - kills)):
            if rng.random() < 0.25:
                child = fork(run, out)
                time.sleep(rng.uniform(0.0, took))
                os.kill(child, signal.SIGKILL)
            else:
                child = fork(run, out, fatal=rng.randrange(int(passed)))
            killed = wait(child) == -signal.SIGKILL
            kills, done = kills + killed, done + (not killed)
            if directory.exists():
                assert_nothing_torn(directory)
        assert finish(run, out)[0] == expected, f"seed {SEED}, directory {number}"
        assert_nothing_torn(directory)
        assert list(directory.rglob("*.unfinished*.safetensors")) == []
    print(f"{function.__name__}: {kills} kills, {done} finished before, {number} resumed")
