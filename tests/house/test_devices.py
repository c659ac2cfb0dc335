"""Every public function works on a model that is not on the CPU."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from calls_for_tests import CALLS, Bench, content
from devices_for_tests import FakeDevice, is_marked
from models_for_tests import CLASSES

import rome_lens as rl

pytestmark = pytest.mark.proof

# What runs parts of a forward pass, or generates: there the model classes differ.
OF_EACH_CLASS = {
    "attribution_trace",
    "causal_trace",
    "collect_key_statistics",
    "evaluate",
    "fine_tune",
    "random_contexts",
    "rome",
    "severed_trace",
}
CASES = [
    (model_class, name)
    for model_class in CLASSES
    for name in CALLS
    if model_class == CLASSES[0] or name in OF_EACH_CLASS
]


@pytest.fixture(scope="module")
def benches(
    brief_records: list[rl.data.Record],
    toy_statistics: rl.KeyStatistics,
    toy_edits: list[rl.RankOneEdit],
) -> dict[str, Bench]:
    return {
        each: Bench(
            rl.load_model("toy", model_class=each), brief_records, toy_statistics, toy_edits
        )
        for each in CLASSES
    }


@contextmanager
def on_device(bench: Bench) -> Iterator[Bench]:
    with warnings.catch_warnings(), FakeDevice(bench.model):
        # torch.autocast of a device that this machine lacks
        warnings.filterwarnings("ignore", message=".*CUDA is not available")
        yield bench


@pytest.mark.parametrize(("model_class", "name"), CASES)
def test_every_public_function_works_on_another_device(
    benches: dict[str, Bench], model_class: str, name: str
) -> None:
    with on_device(benches[model_class]) as bench:
        result = CALLS[name](bench)
    if name not in ("state_dict", "keep_edits"):  # these are the model's own weights
        tensors = [each for each in content(result) if isinstance(each, torch.Tensor)]
        assert not any(map(is_marked, tensors)), "a result is not on the CPU"


def test_the_fake_device_refuses_what_a_gpu_refuses(one_toy: Any) -> None:
    here = torch.zeros(3)
    with FakeDevice(one_toy):
        there = here.to("cuda")
        assert there.device.type == "cuda"
        assert (there + 1).device.type == "cuda"
        assert there.cpu().device.type == "cpu"
        there[torch.tensor([0])] + 2 * there[0]
        there + torch.tensor(1.0)
        here.copy_(there)
        for wrong in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here[there.long()],
            lambda: there.numpy(),
            lambda: torch.rand(3, generator=torch.Generator("cpu"), device="cuda"),
        ):
            with pytest.raises(RuntimeError, match="fake device"):
                wrong()
