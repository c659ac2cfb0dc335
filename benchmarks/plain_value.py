"""The optimisation of the value, written plainly: each step runs all layers, positions and
logits."""

from typing import Any

import torch

import rome_lens as rl
from rome_lens.editing.prompts import EditRows
from rome_lens.forward.additions import raw_output_hooks


def plain_value(
    model: Any, fact: rl.Fact, *, layer: int, contexts: list[str], config: rl.RomeConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``delta`` and the losses ``[step, 3]``: NLL, weighted KL and weight decay."""
    rows = EditRows.of(model, fact, contexts, None)
    at = torch.arange(len(rows.tokens)), rows.lookups
    outputs: list[torch.Tensor] = []

    def look(keys: torch.Tensor) -> torch.Tensor:
        raw = keys @ model.blocks[layer].mlp.W_out
        bias = getattr(model.blocks[layer].mlp, "b_out", None)
        outputs.append((raw if bias is None else raw + bias)[at].detach())
        return torch.zeros_like(raw)

    with torch.no_grad():
        model.run_with_hooks(rows.tokens, fwd_hooks=raw_output_hooks(model, layer, look))
    start = outputs[0][0]
    delta = torch.zeros_like(start, requires_grad=True)

    def add(keys: torch.Tensor) -> torch.Tensor:
        nothing = keys.new_zeros(*keys.shape[:2], len(start))
        return nothing.index_put(at, delta.expand(len(rows.tokens), -1))

    optimiser = torch.optim.Adam([delta], lr=config.lr)
    losses, initial = [], None
    for step in range(config.steps):
        log_p = model.run_with_hooks(
            rows.tokens, fwd_hooks=raw_output_hooks(model, layer, add)
        ).log_softmax(-1)
        each = []
        for row, positions in enumerate(rows.target_positions, start=1):
            each.append(
                torch.stack(
                    [log_p[row, p, t] for p, t in zip(positions, rows.target, strict=True)]
                ).mean()
            )
        nll = -torch.stack(each).mean()
        essence = log_p[-1, rows.lookups[-1]]
        initial = essence.detach() if initial is None else initial
        kl = config.kl_factor * (essence.exp() * (essence - initial)).sum()
        decay = config.weight_decay * config.norm(delta) / config.norm(start) ** 2
        losses.append((nll.item(), kl.item(), decay.item()))
        if sum(losses[-1]) < config.stop_loss or step == config.steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(nll + kl + decay, [delta])
        optimiser.step()
        with torch.no_grad():
            delta.mul_(min(1.0, float(config.clamp * config.norm(start) / config.norm(delta))))
    return delta.detach(), torch.tensor(losses, dtype=torch.float64)
