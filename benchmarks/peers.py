"""Run another project's ROME where its checkout lies: EasyEdit, or the authors' own code.

    peer_rome("path/to/EasyEdit")     # github.com/zjunlp/EasyEdit
    peer_rome("path/to/rome")         # github.com/kmeng01/rome

Only the modules of ROME are imported. The packages around them, which import every other method and
its dependencies, are replaced by empty ones. Code that asks for a GPU gets the CPU.
"""

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import rome_lens as rl


def peer_rome(path: str | Path) -> tuple[str, Callable[..., Tensor]]:
    """The peer's name, and a function with the arguments of ``transformers_rome``."""
    path = Path(path).resolve()
    name = "EasyEdit" if (path / "easyeditor").is_dir() else "the authors' code"
    with _importing(path):
        main = importlib.import_module(
            "easyeditor.models.rome.rome_main" if name == "EasyEdit" else "rome.rome_main"
        )

    def edit(
        model: Any,
        tokenizer: Any,
        fact: rl.Fact,
        *,
        layer: int,
        contexts: Sequence[str],
        config: rl.RomeConfig,
    ) -> Tensor:
        main.CONTEXT_TEMPLATES_CACHE = list(contexts)
        target: Any = fact.new_target if name == "EasyEdit" else {"str": fact.new_target}
        request = {"prompt": fact.prompt, "subject": fact.subject, "target_new": target}
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "right"
        model.config.n_embd = model.config.hidden_size
        with _on_cpu(), contextlib.redirect_stdout(None):
            changes = main.execute_rome(model, tokenizer, request, _settings(model, layer, config))
        ((u, v),) = changes.values()
        return torch.outer(u, v)

    return name, edit


def _settings(model: Any, layer: int, config: rl.RomeConfig) -> SimpleNamespace:
    gpt2 = hasattr(model, "transformer")
    block = "transformer.h.{}" if gpt2 else "model.layers.{}"
    return SimpleNamespace(
        layers=[layer],
        fact_token="subject_last",
        v_num_grad_steps=config.steps,
        v_lr=config.lr,
        v_loss_layer=model.config.num_hidden_layers - 1,
        v_weight_decay=config.weight_decay,
        clamp_norm_factor=config.clamp,
        kl_factor=config.kl_factor,
        mom2_adjustment=False,  # C = I
        context_template_length_params=[],
        layer_module_tmp=block,
        mlp_module_tmp=f"{block}.mlp",
        rewrite_module_tmp=f"{block}.mlp.{'c_proj' if gpt2 else 'down_proj'}",
        device="cpu",
    )


@contextlib.contextmanager
def _importing(path: Path) -> Iterator[None]:
    """Inside, the checkout's modules can be imported, without what their packages import."""
    for name in ("easyeditor", "easyeditor.models", "easyeditor.util"):
        package = ModuleType(name)
        package.__path__ = [str(path / name.replace(".", "/"))]
        sys.modules[name] = package
    if importlib.util.find_spec("datasets") is None:  # it would only read texts for statistics
        sys.modules["datasets"] = ModuleType("datasets")
        sys.modules["datasets"].__dict__["load_dataset"] = None
    here = Path.cwd()
    sys.path.insert(0, str(path))
    os.chdir(path)  # the authors' code reads its settings from the working directory
    try:
        yield
    finally:
        os.chdir(here)
        sys.path.remove(str(path))


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Inside, tensors that are put on "cuda" stay on the CPU."""

    def without_cuda(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*args: Any, **options: Any) -> Any:
            args = tuple(
                "cpu" if isinstance(each, str) and each == "cuda" else each for each in args
            )
            if options.get("device") == "cuda":
                options["device"] = "cpu"
            return call(*args, **options)

        return wrapper

    with contextlib.ExitStack() as stack:
        for place, name in ((torch, "tensor"), (torch, "zeros"), (torch.Tensor, "to")):
            stack.enter_context(mock.patch.object(place, name, without_cuda(getattr(place, name))))
        yield
