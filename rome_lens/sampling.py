"""Text from the model itself: random prefixes for an edit's contexts, samples for key statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.forward import evaluating
from rome_lens.models import LensModel, device


def sample_tokens(
    model: LensModel,
    start: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    seed: int,
    top_k: int | None = None,
    temperature: float = 1.0,
) -> Int[Tensor, "batch pos"]:
    """Continue rows of equal length by ``new_tokens`` sampled tokens; the random state outside stays as it was."""
    options: dict[str, Any] = {"do_sample": True, "top_k": top_k, "temperature": temperature, "stop_at_eos": False}
    cuda = [device(model).index or 0] if device(model).type == "cuda" else []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        tokens = torch.tensor([list(row) for row in start], device=device(model))
        out = model.generate(
            tokens, max_new_tokens=new_tokens, return_type="tokens", prepend_bos=False, verbose=False, **options
        )
    return out.clone().cpu()


def random_contexts(model: LensModel, *, seed: int = 0, prepend_bos: bool | None = None) -> tuple[str, ...]:
    """The bare template and 20 random prefixes to it: 10 of 5 and 10 of 10 tokens ("The" and what the model samples).

    Source: Meng et al. 2022, section 3.1 and appendix E.5 (prefixes of 2 to 10 random tokens; the authors' code takes
    these lengths, starts from "The" and samples among the 5 likeliest tokens).
    """
    bos = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    start = [int(i) for i in model.to_tokens("The", prepend_bos=bos)[0]]
    skipped = len(start) - len(model.to_tokens("The", prepend_bos=False)[0])
    contexts = ["{}"]
    for length in (5, 10):
        rows = sample_tokens(model, [start] * 10, new_tokens=length - 1, seed=seed + length, top_k=5)
        for row in rows.tolist():
            text = model.tokenizer.decode(row[skipped:], skip_special_tokens=True)
            text = " ".join(text.replace("{", " ").replace("}", " ").split())
            contexts.append(f"{text}. {{}}")
    return tuple(contexts)
