"""ROME on a transformers model itself, written from the paper: the baseline of ``editing.py``.

Each step runs the whole model on all rows: every layer, all positions, all logits. That is what the
authors' code and EasyEdit do. Key statistics are not used (``C = I``).

Source: Meng et al. 2022, section 3.1 and appendix E.5.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import rome_lens as rl


def mlp_projection(model: Any, layer: int) -> torch.nn.Module:
    """The module whose weight ROME edits."""
    if hasattr(model, "transformer"):
        return model.transformer.h[layer].mlp.c_proj
    return model.model.layers[layer].mlp.down_proj


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def rows_of(
    tokenizer: Any, fact: rl.Fact, contexts: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Padded rows (contexts, then the KL prompt), lookup positions, target, positions read."""
    target = tokenizer(" " + fact.new_target, add_special_tokens=False).input_ids
    prompts = [*(context.replace("{}", fact.prompt) for context in contexts), "{} is a"]
    starts = [prompt.split("{}")[0] + fact.subject for prompt in prompts]
    lookups = torch.tensor([len(tokenizer(start).input_ids) - 1 for start in starts])
    rows = [tokenizer(prompt.replace("{}", fact.subject)).input_ids for prompt in prompts]
    ends = torch.tensor([len(row) - 1 for row in rows[:-1]])
    rows = [row + target[:-1] for row in rows[:-1]] + rows[-1:]
    longest = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[i < len(row) for i in range(longest)] for row in rows]),
    }
    return batch, lookups, torch.tensor(target), ends[:, None] + torch.arange(len(target))


def key_and_output(model: Any, layer: int, batch: dict[str, Tensor], lookups: Tensor) -> Any:
    """What the projection reads and writes at the lookup positions."""
    found: list[Tensor] = []

    def look(_: Any, inputs: Any, output: Tensor) -> None:
        at = torch.arange(len(lookups)), lookups
        found.extend([inputs[0][at], output[at]])

    with torch.no_grad(), hooked(mlp_projection(model, layer), look):
        model(**batch)
    return found


def transformers_rome(
    model: Any,
    tokenizer: Any,
    fact: rl.Fact,
    *,
    layer: int,
    contexts: Sequence[str],
    config: rl.RomeConfig,
) -> Tensor:
    """The change of ``W_out``, ``[d_mlp, d_model]``."""
    batch, lookups, target, reads = rows_of(tokenizer, fact, contexts)
    keys, _ = key_and_output(model, layer, batch, lookups)
    bare, at_bare, _, _ = rows_of(tokenizer, fact, ["{}"])
    key, start = (each[0] for each in key_and_output(model, layer, bare, at_bare))
    every = torch.arange(len(lookups))
    delta = torch.zeros_like(start, requires_grad=True)
    optimiser, before = torch.optim.Adam([delta], lr=config.lr), None

    def add(_: Any, __: Any, output: Tensor) -> Tensor:
        return output.index_put((every, lookups), delta.expand(len(every), -1), accumulate=True)

    for step in range(config.steps):
        with hooked(mlp_projection(model, layer), add):
            log_p = model(**batch).logits.log_softmax(-1)
        nll = -log_p[every[:-1, None], reads, target].mean()
        essence = log_p[-1, lookups[-1]]
        before = essence.detach() if before is None else before
        kl = config.kl_factor * (essence.exp() * (essence - before)).sum()
        decay = config.weight_decay * delta.norm() / start.norm() ** 2
        loss = nll + kl + decay
        if loss < config.stop_loss or step == config.steps - 1:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            delta.mul_((config.clamp * start.norm() / delta.norm()).clamp(max=1.0))
    u = keys[:-1].mean(0)
    u = u / u.norm()
    return torch.outer(u, delta.detach() / (u @ key))
