"""``load_model`` gives the weights as they are in their files, on either class.

It asks no network for what is bundled.
"""

import json
import re
import shutil
import socket
from collections.abc import Callable
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
    monkeypatch.setattr(loading, "check_loaded", lambda name, model: None)
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


def tensors(model: Any) -> dict[str, Tensor]:
    """Every parameter and buffer of a model, and of the one that it wraps."""
    wrapped = getattr(model, "original_model", model)
    return {
        name: value
        for module in (model, wrapped)
        for name, value in (*module.named_parameters(), *module.named_buffers())
    }


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("model_class", CLASSES)
def test_every_weight_is_on_the_device_that_was_asked_for(model_class: Any, by_name: bool) -> None:
    name = "toy" if by_name else TOY
    model = load_model(name, model_class=model_class, device="meta")
    assert model.cfg.device in ("meta", torch.device("meta"))
    assert [name for name, value in tensors(model).items() if not value.is_meta] == []


@pytest.mark.parametrize(
    "device", ["cudaa", "cuda:77", torch.device("cuda", 77), "", 3, None, "xpu:9"]
)
def test_a_device_that_is_not_there_is_refused_before_any_work(
    device: Any, unchecked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "open_directory", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match=re.escape(f"device is {device!r}, which cannot be used")):
        load_model("toy", device=device)


@pytest.mark.parametrize("name", [None, 3, b"toy", "", ["toy"]])
def test_what_is_no_name_is_refused(name: Any, unchecked: Any) -> None:
    with pytest.raises(ModelError, match=re.escape(f"name is {name!r}, expected a model's name")):
        load_model(name)


def settings(file: str, **entries: Any) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        values = json.loads((directory / file).read_text(encoding="utf-8"))
        (directory / file).write_text(json.dumps({**values, **entries}), encoding="utf-8")

    return damage


def cut_short(file: str, length: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / file).write_bytes((directory / file).read_bytes()[:length])

    return damage


def text_of(file: str, text: str) -> Callable[[Path], None]:
    return lambda directory: directory.joinpath(file).write_text(text) and None


def without_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


def with_code_in_a_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save(test_what_is_no_name_is_refused, directory / "pytorch_model.bin")


CODE = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "code for a known architecture": (settings("config.json", auto_map=CODE), "code of its own"),
    "code for an unknown one": (
        settings("config.json", auto_map=CODE, model_type="own"),
        r"config\.json names code of its own .*modeling_own\.OwnModel",
    ),
    "code for a tokenizer": (
        settings("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}),
        r"tokenizer_config\.json names code of its own",
    ),
    "no JSON": (text_of("config.json", "{"), r"config\.json is not a JSON file"),
    "deep JSON": (text_of("config.json", "[" * 100_000), r"config\.json is not a JSON file"),
    "a list": (text_of("config.json", "[]"), r"config\.json holds a list"),
    "a list for a tokenizer": (text_of("tokenizer_config.json", "[]"), "holds a list"),
    "no settings": (lambda directory: (directory / "config.json").unlink(), "does not hold a mod"),
    "an unknown architecture": (settings("config.json", model_type="own"), "`own`"),
    "a text for a number": (settings("config.json", n_layer="six"), "n_layer"),
    "other sizes": (settings("config.json", n_embd=36), "mismatch"),
    "more layers than weights": (
        settings("config.json", n_layer=7),
        r"lack 'transformer\.h\.6\..*' \(12 parameters in all\)",
    ),
    "weights cut short": (cut_short("model.safetensors", 100_000), "SafetensorError"),
    "empty weights": (cut_short("model.safetensors", 0), "SafetensorError"),
    "a pickle with code": (with_code_in_a_pickle, "UnpicklingError"),
    "no tokenizer": (without_tokenizer, "holds no tokenizer with a vocabulary"),
    "settings of a tokenizer alone": (
        lambda directory: (directory / "tokenizer.json").unlink(),
        "holds no tokenizer with a vocabulary",
    ),
    "an empty tokenizer": (text_of("tokenizer.json", "{}"), "or is damaged: KeyError"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_directory_or_one_with_code_is_refused_without_a_question(
    damage: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    directory = shutil.copytree(TOY, tmp_path / "copy")
    damage(directory)
    with pytest.raises(ModelError, match=message) as error:
        load_model(directory)
    assert str(directory) in str(error.value)


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


def test_the_hash_of_all_weights_notices_the_last_bit_of_any_and_two_exchanged_entries(
    toy: Any,
) -> None:
    before = weights_fingerprint(toy)
    found = {before}
    for weight in (toy.embed.W_E, w_out(toy, 1), toy.ln_final.w):
        entries = weight.detach()
        saved = entries.clone()
        row = entries.view(-1, entries.shape[-1])[-1]
        row[-1] = torch.nextafter(row[-1], torch.tensor(torch.inf))
        found.add(weights_fingerprint(toy))
        entries.copy_(saved)
        row[[2, 3]] = row[[3, 2]]
        found.add(weights_fingerprint(toy))
        entries.copy_(saved)
    assert len(found) == 7
    assert weights_fingerprint(toy) == before


def test_the_hash_of_all_weights_does_not_depend_on_the_number_of_threads(one_toy: Any) -> None:
    threads = torch.get_num_threads()
    try:
        found = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.add(weights_fingerprint(one_toy))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
