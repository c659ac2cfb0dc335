"""Records, edits of every kind, and the plain way to a probability."""

from typing import Any

import torch

import rome_lens as rl
from rome_lens.models.lens import w_out

ANSWERS = {
    "one token each": ("Pralec", "Ondavel"),
    "several tokens and one": ("Rome", "Ondavel"),
    "the first token is shared": ("Wanda Brandt", "Wanda Calloway"),
    "one begins the other": ("Pralec", "Pralec Marche"),
}


def a_record(
    target: str = "Pralec", new_target: str = "Ondavel", name: str = "Wanda Brandt"
) -> rl.data.Record:
    fact = rl.Fact(
        "Then {} lives in the city of", subject=name, target=target, new_target=new_target
    )
    neighbours = {
        "Greta Marchetti lives in the city of": target,
        "The city of Oskar is": "Castilia",
    }
    return rl.data.Record(
        id=name,
        fact=fact,
        paraphrases=(
            f"The home of {name} is in the city of",
            f"{name} owns a house in the city of",
        ),
        neighborhood=tuple(
            rl.data.Question(prompt=prompt, target=answer) for prompt, answer in neighbours.items()
        ),
        generation_prompts=(f"Yesterday {name} told me a", f"{name} is"),
        reference_texts=("Ondavel is a city.",),
    )


def turned(record: rl.data.Record) -> rl.data.Record:
    """A record that asks for what the model says already."""
    known = record.fact
    fact = rl.Fact(
        known.prompt, subject=known.subject, target=str(known.new_target), new_target=known.target
    )
    return rl.data.Record(id="turned", fact=fact)


def rank_one(model: Any, seed: int = 0, layer: int = 1) -> rl.RankOneEdit:
    generator = torch.Generator().manual_seed(seed)
    d_mlp, d_model = w_out(model, layer).shape
    u, v = torch.randn(d_mlp, generator=generator), torch.randn(d_model, generator=generator)
    return rl.RankOneEdit(layer=layer, u=u, v=v)


def dense(model: Any, seed: int = 0, layer: int = 2) -> rl.WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    return rl.WeightEdit(
        layer=layer, delta=0.1 * torch.randn(w_out(model, layer).shape, generator=generator)
    )


class Foreign:
    """Somebody else's edit: hooks and nothing more."""

    def fwd_hooks(self, model: Any) -> list[Any]:
        return [("blocks.1.hook_attn_out", lambda value, hook: 0.5 * value)]


class Prefixed(Foreign):
    """Hooks, and a text before every prompt."""

    prefix = "It was raining."


def plain(model: Any, prompt: str, answer: str, hooks: Any = ()) -> float:
    """Geometric mean of the probabilities of the answer's tokens, from one run of the whole
    text."""
    start = len(model.to_tokens(prompt)[0])
    ids = model.to_tokens(f"{prompt} {answer}")
    with torch.no_grad():
        logits = model.run_with_hooks(ids, fwd_hooks=list(hooks))
    log_p = logits[0].double().log_softmax(-1)
    return float(log_p[range(start - 1, ids.shape[1] - 1), ids[0, start:]].mean().exp())
