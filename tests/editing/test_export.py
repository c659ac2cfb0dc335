"""An edited model leaves for transformers and is there what it was here."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models_for_tests import (
    CLASSES,
    HOOKED_FAMILIES,
    last_logits,
    tiny,
    tiny_transformers_model,
    tokenizer,
)
from test_rows import dense_edit, random_edit

import rome_lens as rl
from rome_lens.models.lens import ModelError
from rome_lens.storage import StorageError

FAMILIES = ("gpt2", "llama", "gemma3", "neox")
MODELS = [
    (family, cls)
    for family in FAMILIES
    for cls in CLASSES
    if cls != "HookedTransformer" or family in HOOKED_FAMILIES
]
TOKENS = torch.tensor([[1, 5, 3, 8, 2, 13, 7]])


def hf_logits(directory: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(TOKENS).logits[:, -1]


def assert_exported(out: Path, model: Any, edit: rl.Edit) -> None:
    with edit.applied(model):
        expected = last_logits(model, TOKENS)
    torch.testing.assert_close(
        hf_logits(out), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4
    )
    assert (expected - last_logits(model, TOKENS)).abs().max() > 0.05


def some_edits(model: Any) -> rl.Edits:
    return rl.Edits(
        edits=(
            random_edit(model, layer=1),
            dense_edit(model, layer=2),
            random_edit(model, layer=1, seed=3),
        )
    )


@pytest.mark.parametrize(("family", "cls"), MODELS)
def test_the_exported_model_gives_the_edited_models_logits(
    family: str, cls: str, tmp_path: Path, untouched: Any
) -> None:
    model, hf_model = tiny(family, cls), tiny_transformers_model(family)
    untouched(model)
    before = {name: value.clone() for name, value in hf_model.state_dict().items()}
    edits = some_edits(model)
    out = rl.export_hf(edits, hf_model, tmp_path / "in memory", model=model)
    assert_exported(out, model, edits)
    assert all(torch.equal(value, before[name]) for name, value in hf_model.state_dict().items())
    changed = transformers.AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert sum(not torch.equal(value, before[name]) for name, value in changed.items()) == 2

    hf_model.save_pretrained(tmp_path / "source")
    tokenizer().save_pretrained(tmp_path / "source")
    out = rl.export_hf([edits], tmp_path / "source", tmp_path / "from a directory", model=model)
    assert_exported(out, model, edits)
    again = transformers.AutoTokenizer.from_pretrained(out)
    assert again("Wanda lives in").input_ids == tokenizer()("Wanda lives in").input_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridges_own_transformers_model_is_exported(
    family: str, tmp_path: Path, untouched: Any
) -> None:
    model = tiny(family, "TransformerBridge")
    untouched(model)
    edits = some_edits(model)
    out = rl.export_hf(
        edits, model.original_model, tmp_path / "out", model=model, tokenizer=tokenizer()
    )
    assert_exported(out, model, edits)
    assert transformers.AutoTokenizer.from_pretrained(out).bos_token_id == tokenizer().bos_token_id


@pytest.mark.parametrize("inside", [True, False])
def test_only_the_named_edits_are_exported(tmp_path: Path, inside: bool) -> None:
    model = tiny("gpt2", "TransformerBridge")
    named, others = random_edit(model), [random_edit(model, seed=1), random_edit(model, layer=2)]
    source = model.original_model if inside else tiny_transformers_model("gpt2")
    with others[0].applied(model), named.applied(model), others[1].applied(model):
        out = rl.export_hf(named, source, tmp_path / "out", model=model)
    assert_exported(out, model, named)


def test_half_precision_of_the_source_stays(tmp_path: Path) -> None:
    model, hf_model = (
        tiny("llama", "TransformerBridge"),
        tiny_transformers_model("llama").bfloat16(),
    )
    edit = random_edit(model)
    out = rl.export_hf(edit, hf_model, tmp_path / "out", model=model)
    found = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    assert found[name].dtype == torch.bfloat16
    expected = (hf_model.state_dict()[name].float() + edit.delta.T).bfloat16()
    assert torch.equal(found[name], expected)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model, hf_model = tiny("llama", "TransformerBridge"), tiny_transformers_model("llama")
    hf_model.config.tie_word_embeddings = True
    tied = type(hf_model)(hf_model.config).eval()
    tied.load_state_dict(
        {**hf_model.state_dict(), "lm_head.weight": hf_model.get_input_embeddings().weight}
    )
    out = rl.export_hf(random_edit(model), tied, tmp_path / "out", model=model)
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(again.lm_head.weight, hf_model.get_input_embeddings().weight)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: Any
) -> None:
    model, hf_model = tiny("llama", "TransformerBridge"), tiny_transformers_model("llama")
    edit, out = random_edit(model), tmp_path / "out"
    with pytest.raises(ModelError, match=r"One parameter .* none does"):
        rl.export_hf(
            edit, tiny_transformers_model("qwen2"), out, model=tiny("gemma2", "TransformerBridge")
        )
    down = [layer.mlp.down_proj.weight for layer in hf_model.model.layers]
    with torch.no_grad():
        kept = down[3].clone()
        down[3].copy_(down[1])
    with pytest.raises(ModelError, match=r"layers\.1.*layers\.3.* do"):
        rl.export_hf(edit, hf_model, out, model=model)
    with torch.no_grad():
        down[3].copy_(kept)
        down[1].sub_(down[1].mean(0, keepdim=True))  # centred
    with pytest.raises(ModelError, match="processed weights"):
        rl.export_hf(edit, hf_model, out, model=model)
    with pytest.raises(ValueError, match="expected a transformers model or a directory"):
        rl.export_hf(edit, tmp_path / "nowhere", out, model=model)
    with pytest.raises(ValueError, match="does not hold a model"):
        rl.export_hf(edit, tmp_path, out, model=model)
    with pytest.raises(ValueError, match="edits is empty"):
        rl.export_hf([], hf_model, out, model=model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="not an empty directory"):
        rl.export_hf(edit, hf_model, tmp_path / "full", model=model)

    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    words = tokenizer()
    monkeypatch.setattr(type(words), "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rl.export_hf(edit, tiny_transformers_model("llama"), out, model=model, tokenizer=words)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]

    def no_space(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(words), "save_pretrained", no_space)
    with pytest.raises(StorageError, match=f"{out} could not be written .*No space left"):
        rl.export_hf(edit, tiny_transformers_model("llama"), out, model=model, tokenizer=words)
    for place in (tmp_path / "full" / "mine" / "out", "a\0b"):
        with pytest.raises(ValueError, match=r"is not a directory|without a NUL"):
            rl.export_hf(edit, tiny_transformers_model("llama"), place, model=model)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_bridge_with_processed_weights_asks_for_the_directory(tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    hf_model = tiny_transformers_model("gpt2")
    model = TransformerBridge.boot_transformers(
        "tiny-gpt2", hf_model=hf_model, tokenizer=tokenizer(), device="cpu"
    )
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ModelError, match="has processed the weights"):
        rl.export_hf(random_edit(model), model.original_model, tmp_path / "out", model=model)
    with pytest.raises(ModelError, match="processed weights"):
        rl.export_hf(
            random_edit(model), tiny_transformers_model("gpt2"), tmp_path / "out", model=model
        )


def test_a_directory_with_code_of_its_own_is_refused_without_a_question(
    tmp_path: Path,
) -> None:
    model = tiny("gemma2", "TransformerBridge")
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}')
    with pytest.raises(ValueError, match="names code of its own"):
        rl.export_hf(random_edit(model), own, tmp_path / "out", model=model)
