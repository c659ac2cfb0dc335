"""Text from the model itself: random prefixes for contexts, samples for key statistics."""

from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.arguments import texts as texts_of
from rome_lens.arguments import whole_number
from rome_lens.data.facts import FactError
from rome_lens.forward.backend import backend_of
from rome_lens.forward.memory import rows_per_batch
from rome_lens.forward.module_hooks import changing_logits, hooks_on
from rome_lens.forward.readout import finished
from rome_lens.forward.runs import (
    evaluating,
    finite_logits,
    full_precision,
    last_position_logits,
)
from rome_lens.forward.tokens import pad_right, token_ids
from rome_lens.models.door import visits_model
from rome_lens.models.hook_names import Hook, has_hooks_of_others
from rome_lens.models.lens import LensModel, at_least_float32, device
from rome_lens.models.visits import Temporary

_ROWS_PER_BATCH = 64  # on a CPU


def sample_tokens(
    model: LensModel,
    start: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    seed: int,
    top_k: int | None = None,
    temperature: float = 1.0,
) -> Int[Tensor, "batch pos"]:
    """Continue rows of equal length by ``new_tokens`` sampled tokens.

    The model runs in the precision of its weights. The draws come from a generator of their own on
    the CPU, so they are the same on every device, and neither read nor change the global random
    state.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    rows: list[Int[Tensor, " row"]] = []

    def choose(logits: Float[Tensor, "row d_vocab"]) -> Int[Tensor, " row"]:
        rows.append(_drawn(logits.cpu(), generator, top_k=top_k, temperature=temperature))
        return rows[-1]

    tokens = torch.tensor([list(row) for row in start], dtype=torch.long, device=device(model))
    with full_precision(model):
        _generate(model, tokens, choose, new_tokens=new_tokens)
    return torch.cat([tokens.cpu(), torch.stack(rows, dim=1)], dim=1)


def _drawn(
    logits: Float[Tensor, "row d_vocab"],
    generator: torch.Generator,
    *,
    top_k: int | None,
    temperature: float,
) -> Int[Tensor, " row"]:
    """One token per row, drawn from the softmax of its ``top_k`` largest logits, or of all."""
    logits = logits / temperature
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    # Normalised before the softmax, as torch's Categorical does: a draw may hang on the last bit.
    logits = logits.float()
    probabilities = (logits - logits.logsumexp(-1, keepdim=True)).softmax(-1)
    return torch.multinomial(probabilities, 1, replacement=True, generator=generator)[:, 0]


@visits_model
def sample_continuations(
    model: LensModel,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    seeds: Sequence[int | None],
    top_k: int = 5,
    hooks_of_rows: Callable[[Sequence[int]], Sequence[Hook]] | None = None,
    marks: Sequence[int] | None = None,
    stop_at_eos: bool = False,
    prepend_bos: bool | None = None,
) -> list[str]:
    """The text that the model writes after each prompt.

    Every token is drawn from the ``top_k`` most likely ones. Each prompt has its own seed, so its
    text does not depend on the prompts that it is sampled with. Prompts of different lengths share
    a batch without padding: while a shorter prompt is already being continued, a longer one is
    still being read.

    Args:
        new_tokens: how many tokens to write after each prompt.
        seeds: one seed per prompt. None takes the most likely token each time.
        hooks_of_rows: a function from the marks of a batch's rows to the hooks of that batch.
        marks: one number per prompt, such as that of the edit it is continued under.
        stop_at_eos: whether a text ends before its first special token, such as EOS. What a model
            writes after that belongs to another text.
        prepend_bos: whether a BOS token comes first. None means the model's default.

    Raises:
        FactError: a prompt and its new tokens together do not fit the model's context, or a prompt
            is empty.
        ArgumentError: ``new_tokens`` is not a whole number of at least 1.
    """
    new_tokens = whole_number("new_tokens", new_tokens, least=1)
    prompts = texts_of("prompts", prompts, error=FactError)
    rows = [token_ids(model, prompt, prepend_bos=prepend_bos) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row or len(row) + new_tokens > model.cfg.n_ctx:
            raise FactError(
                f"The prompt {prompt!r} has {len(row)} tokens; it and {new_tokens} more must fit "
                f"the model's context of {model.cfg.n_ctx}, and it must not be empty."
            )
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(rows[i]))
    longest = max(map(len, rows), default=0) + new_tokens
    batch = _rows_per_batch(model, longest)
    special = set(model.tokenizer.all_special_ids) if stop_at_eos else set()
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        starts = [rows[i] for i in some]
        noise = torch.stack([_uniform(new_tokens, seeds[i]) for i in some])
        numbers = [0 if marks is None else marks[i] for i in some]
        hooks = () if hooks_of_rows is None else hooks_of_rows(numbers)
        sampled = _sample(model, starts, noise, top_k=top_k, hooks=hooks)
        for i, ids in zip(some, sampled, strict=True):
            own = takewhile(lambda token: token not in special, ids)
            texts[i] = _text_after(model, rows[i], list(own))
    return texts


def _rows_per_batch(model: LensModel, length: int) -> int:
    """How many prompts are continued together, with logits and attention's keys in memory."""
    cfg, place = model.cfg, device(model)
    numbers = cfg.d_vocab + 2 * cfg.n_layers * cfg.d_model * length
    return _ROWS_PER_BATCH if place.type == "cpu" else rows_per_batch(4 * numbers, place)


def _sample(
    model: LensModel,
    starts: Sequence[list[int]],
    noise: Float[Tensor, "row token"],
    *,
    top_k: int,
    hooks: Sequence[Hook],
) -> list[list[int]]:
    """The tokens sampled after each start.

    The model first reads all starts up to the length of the shortest. From there on it is fed one
    token per row and step: the next token of a start that is longer, or else a sampled one.

    Args:
        noise: numbers from 0 to 1 that decide which token is drawn, one per new token.
    """
    shortest, new_tokens = min(map(len, starts)), noise.shape[1]
    steps = max(map(len, starts)) - shortest + new_tokens
    unread = torch.tensor(
        [len(start) - shortest for start in starts], dtype=torch.long, device="cpu"
    )
    rest = pad_right([[*start[shortest:], 0] for start in starts])
    fed: list[Int[Tensor, " row"]] = []

    def choose(logits: Float[Tensor, "row d_vocab"]) -> Int[Tensor, " row"]:
        step = len(fed)
        best = at_least_float32(logits).topk(min(top_k, logits.shape[-1]))
        below = best.values.double().softmax(-1).cumsum(-1).cpu()
        drawn = noise.gather(1, (step - unread).clamp(0, new_tokens - 1)[:, None])
        sampled = best.indices.cpu().gather(1, (below[:, :-1] <= drawn).sum(-1, keepdim=True))[:, 0]
        fed.append(torch.where(unread > step, rest[:, min(step, rest.shape[1] - 1)], sampled))
        return fed[-1]

    tokens = torch.tensor(
        [start[:shortest] for start in starts], dtype=torch.long, device=device(model)
    )
    with hooks_on(model, hooks), last_position_logits(model):
        _generate(model, tokens, choose, new_tokens=steps)
    rows = torch.stack(fed, dim=1).tolist()
    return [row[start:][:new_tokens] for row, start in zip(rows, unread.tolist(), strict=True)]


def _generate(
    model: LensModel,
    tokens: Int[Tensor, "row pos"],
    choose: Callable[[Tensor], Tensor],
    *,
    new_tokens: int,
) -> None:
    """Run the model's ``generate``, with tokens that ``choose`` picks from the last logits."""
    with (
        evaluating(model),
        torch.no_grad(),
        backend_of(model).attending_to_all(),
        _choosing(model, choose),
    ):
        model.generate(
            tokens,
            max_new_tokens=new_tokens,
            return_type="tokens",
            do_sample=False,
            stop_at_eos=False,
            prepend_bos=False,
            verbose=False,
            use_past_kv_cache=_uses_cache(model),
        )


def _choosing(model: LensModel, choose: Callable[[Tensor], Tensor]) -> Temporary[None]:
    """Inside, greedy generation takes the tokens that ``choose`` picks from the last logits."""

    def one_hot(logits: Tensor) -> Tensor:
        tokens = choose(finite_logits(finished(model, logits[:, -1])))
        return torch.zeros_like(logits[:, -1:]).scatter(
            -1, tokens.to(logits.device)[:, None, None], 1.0
        )

    return changing_logits(model, one_hot)


def _uses_cache(model: LensModel) -> bool:
    """Whether generation uses a key-value cache.

    It does not while the caller has hooks on the model, because those may act on a position by its
    number. All positions are then run for each new token. The hooks of edits do not do that.
    """
    return backend_of(model).can_generate_from_cache() and not has_hooks_of_others(model)


def _uniform(count: int, seed: int | None) -> Float[Tensor, " token"]:
    """Numbers from 0 to 1. Zeros, which always choose the most likely token, without a seed."""
    if seed is None:
        return torch.zeros(count, dtype=torch.float64, device="cpu")
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")


def _text_after(model: LensModel, start: Sequence[int], ids: Sequence[int]) -> str:
    """The text of ``ids`` as it follows ``start``.

    Decoded alone, some tokenizers drop the space before it.
    """
    head, whole = (
        model.tokenizer.decode(row, skip_special_tokens=True)
        for row in (list(start), [*start, *ids])
    )
    return (
        whole[len(head) :]
        if whole.startswith(head)
        else model.tokenizer.decode(list(ids), skip_special_tokens=True)
    )
