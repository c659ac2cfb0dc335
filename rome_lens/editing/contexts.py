"""Contexts: templates that put other text before a fact's prompt."""

from rome_lens.arguments import whole_number
from rome_lens.forward.sampling import sample_tokens
from rome_lens.forward.tokens import token_ids
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel


@visits_model
def random_contexts(
    model: LensModel, *, prefixes: int = 20, seed: int = 0, prepend_bos: bool | None = None
) -> tuple[str, ...]:
    """The bare template ``"{}"``, followed by templates with a random prefix.

    Half of the prefixes have 5 tokens and half have 10. Each starts with "The" and continues with
    what the model samples.

    Args:
        model: the model that samples the prefixes.
        prefixes: how many prefixes to return, from 0 to 20. A smaller number returns the first
            prefixes of each length.
        seed: the seed of the samples.
        prepend_bos: whether to sample after a BOS token. None uses the model's default.

    Raises:
        ArgumentError: ``prefixes`` is not a whole number from 0 to 20.
        ModelError: the model has no tokenizer.

    Source: Meng et al. 2022, section 3.1 and appendix E.5. The paper describes prefixes of 2 to 10
    random tokens. The authors' code uses the two lengths above, ten prefixes of each, starts them
    with "The", and samples from the 5 most likely tokens.
    """
    prefixes = whole_number("prefixes", prefixes, least=0, most=20)
    seed = whole_number("seed", seed)
    start = token_ids(model, "The", prepend_bos=prepend_bos)
    skipped = len(start) - len(token_ids(model, "The", prepend_bos=False))
    contexts = ["{}"]
    for length, count in ((5, (prefixes + 1) // 2), (10, prefixes // 2)):
        if not count:
            continue
        # All ten are sampled whatever the number: a smaller number gives the first of them.
        rows = sample_tokens(
            model, [start] * 10, new_tokens=length - 1, seed=seed + length, top_k=5
        )
        for row in rows[:count].tolist():
            text = model.tokenizer.decode(row[skipped:], skip_special_tokens=True)
            text = " ".join(text.replace("{", " ").replace("}", " ").split())
            contexts.append(f"{text}. {{}}")
    return tuple(contexts)
