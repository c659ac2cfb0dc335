"""``load_model`` gives the weights as they are in their files, on either class.

It asks no network for what is bundled.
"""

import re
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from models_for_tests import CLASSES
from safetensors.torch import load_file
from torch import Tensor

import rome_lens as rl
from rome_lens.data.record_type import Record
from rome_lens.models import loading
from rome_lens.models.convert import lay_out_for_speed
from rome_lens.models.fingerprints import fingerprint, weights_fingerprint
from rome_lens.models.gguf import SOURCES
from rome_lens.models.lens import ModelError, w_out
from rome_lens.models.loading import TOY, load_model

both_classes = pytest.mark.skipif(
    len(CLASSES) < 2, reason="this TransformerLens has one model class only"
)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The hub is offline. The list collects every address that is asked for all the same."""
    asked: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("the network is off")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The variable is read on import.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def logits_on(model: Any, record: Record) -> Tensor:
    with torch.no_grad():
        return model(model.to_tokens(record.fact.text))


def test_the_toy_model_answers_as_transformers_own_does(toy: Any, toy_record: Record) -> None:
    own = transformers.AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = own(toy.to_tokens(toy_record.fact.text)).logits
    torch.testing.assert_close(logits_on(toy, toy_record), expected, atol=1e-4, rtol=1e-4)


def test_weights_are_those_of_the_file_without_processing(toy: Any) -> None:
    stored = load_file(TOY / "model.safetensors")
    for layer in range(toy.cfg.n_layers):
        assert torch.equal(w_out(toy, layer), stored[f"transformer.h.{layer}.mlp.c_proj.weight"])


def test_a_loaded_model_is_in_evaluation_mode_and_float32(toy: Any) -> None:
    assert [name for name, module in toy.named_modules() if module.training] == []
    assert {parameter.dtype for parameter in toy.parameters()} == {torch.float32}


@both_classes
def test_both_classes_have_one_fingerprint_and_the_same_logits(
    one_toy: Any, toy_record: Record
) -> None:
    other = load_model("toy", model_class=CLASSES[1])
    assert [type(model).__name__ for model in (one_toy, other)] == CLASSES
    assert fingerprint(one_toy) == fingerprint(other)
    torch.testing.assert_close(
        logits_on(one_toy, toy_record), logits_on(other, toy_record), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("model_class", CLASSES)
def test_nothing_is_asked_of_a_network_for_the_toy_model(
    model_class: Any, no_network: list[Any]
) -> None:
    load_model("toy", model_class=model_class)
    assert no_network == []


def test_a_directory_loads_as_the_toy_model_does(
    one_toy: Any, toy_record: Record, tmp_path: Path
) -> None:
    other = load_model(str(shutil.copytree(TOY, tmp_path / "copy")))
    assert fingerprint(other) == fingerprint(one_toy)
    assert torch.equal(logits_on(other, toy_record), logits_on(one_toy, toy_record))


def test_a_directory_called_toy_does_not_hide_the_bundled_model(
    one_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    model = load_model("toy")
    assert fingerprint(model) == fingerprint(one_toy)
    # Where this TransformerLens has HookedTransformer, that is the class.
    assert type(model).__name__ == CLASSES[0]


def test_the_names_of_real_models_are_looked_up_in_the_cache_that_was_given(
    one_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def directory(source: Any, *, cache_dir: Any) -> Path:
        asked.append((source, cache_dir))
        return TOY

    monkeypatch.setattr(loading, "transformers_directory", directory)
    for name in SOURCES:
        assert fingerprint(load_model(name, cache_dir=tmp_path)) == fingerprint(one_toy)
    assert asked == [(source, tmp_path) for source in SOURCES.values()]


@pytest.mark.parametrize("model_class", CLASSES)
def test_an_unknown_name_is_answered_with_what_needs_no_hub(
    model_class: Any, no_network: list[Any]
) -> None:
    known = ["'toy'", *(f"{name!r} ({source.install})" for name, source in SOURCES.items())]
    for name in ("no-such-model", "nobody/no-such-model"):
        with pytest.raises(ModelError, match=f"No model '{name}' could be loaded") as error:
            load_model(name, model_class=model_class)
        assert [each for each in known if each not in str(error.value)] == []
    assert no_network == []


def test_hooked_transformer_is_refused_where_transformer_lens_lacks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "hooked_transformer_class", lambda: None)
    message = "This TransformerLens has no HookedTransformer: install transformer-lens 3.9, or use"
    with pytest.raises(ModelError, match=re.escape(f"{message} TransformerBridge.")):
        load_model("toy", model_class="HookedTransformer")
    assert type(load_model("toy")).__name__ == "TransformerBridge"


def test_an_unknown_class_is_refused(unchecked: Any) -> None:
    with pytest.raises(ModelError, match="'Bridge', expected one of HookedTransformer, Transform"):
        load_model("toy", model_class="Bridge")  # type: ignore[arg-type]


@both_classes
def test_the_layout_for_speed_changes_no_bit_of_weights_and_no_logit(toy_record: Record) -> None:
    model = load_model("toy", model_class="HookedTransformer")
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    logits = logits_on(model, toy_record)
    lay_out_for_speed(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(logits_on(model, toy_record), logits, atol=1e-4, rtol=1e-5)
    for weight in (model.blocks[0].mlp.W_in, model.blocks[0].mlp.W_out, model.unembed.W_U):
        assert weight.T.is_contiguous()


def test_an_edit_changes_no_fingerprint_so_that_other_edits_still_fit(
    toy: Any, toy_edits: list[rl.RankOneEdit]
) -> None:
    first, second, *_ = toy_edits
    before, weights = fingerprint(toy), weights_fingerprint(toy)
    with first.applied(toy):
        assert fingerprint(toy) == before
        assert weights_fingerprint(toy) != weights
        second.check(toy)
