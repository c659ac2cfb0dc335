"""A sweep in other processes makes the same table, and survives the death of any of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeps_for_tests import small_sweep

import rome_lens as rl
from rome_lens.sweeps.results import TABLE

pytestmark = pytest.mark.proof
SOURCE = rl.ModelSource(name="toy", model_class="TransformerBridge")
SLOWEST = 300.0


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("expected")
    small_sweep(SOURCE, directory)
    return (directory / TABLE).read_bytes()


def wait_until(condition: Any) -> None:
    end = time.monotonic() + SLOWEST
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def units(directory: Path) -> dict[str, int]:
    """The finished units with the times of their files."""
    paths = (directory / "units").glob("*.safetensors")
    return {path.name: path.stat().st_mtime_ns for path in paths}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_sweep_leaves_no_process_and_goes_on(tmp_path: Path, expected: bytes) -> None:
    code = f"import sweeps_for_tests as s\nif __name__ == '__main__': s.main({str(tmp_path)!r})"
    script = tmp_path.with_suffix(".py")
    script.write_text(code)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    victim = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": path})
    try:
        wait_until(lambda: len(units(tmp_path)) > 9 or victim.poll() is not None)
        workers = psutil.Process(victim.pid).children(recursive=True)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert len(workers) >= 2
    wait_until(lambda: not any(each.is_running() for each in workers))
    before = units(tmp_path)
    assert not (tmp_path / TABLE).exists()
    small_sweep(SOURCE, tmp_path)
    assert (tmp_path / TABLE).read_bytes() == expected
    assert before.items() <= units(tmp_path).items()


def test_a_dask_cluster_of_two_workers_makes_the_same_table(
    tmp_path: Path, expected: bytes
) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=None
        ) as cluster,
        Client(cluster) as client,
    ):
        small_sweep(SOURCE, tmp_path, executor=client.get_executor())
    assert (tmp_path / TABLE).read_bytes() == expected
