"""What a model writes without and with an edit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import pandas as pd

from rome_lens.arguments import seed_number, texts, whole_number
from rome_lens.data.facts import Fact, FactError
from rome_lens.evaluation.numbered_edits import NumberedEdits, prefixed
from rome_lens.forward.sampling import sample_continuations
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import name_of
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored

GREEDY = "greedy"


@dataclass(frozen=True, kw_only=True, repr=False)
class TextComparison(Stored):
    """The result of :func:`compare_text`: continuations of prompts, without and with an edit."""

    prompts: tuple[str, ...]
    """The prompts."""
    before: tuple[tuple[str, ...], ...]
    """For each prompt, what the model writes without the edit: first greedily, then sampled."""
    after: tuple[tuple[str, ...], ...]
    """The same with the edit. Sampled texts use the same random numbers as those before."""
    target: str | None
    """The edited fact's true answer; None if the edit names no fact."""
    new_target: str | None
    """Its new answer."""
    new_tokens: int
    """The number of tokens that each text has."""
    seed: int
    """The seed of the sampled texts."""
    edit: str
    """The edit, in words."""
    model_name: str = ""
    """The name of the model, for titles."""

    @property
    def draws(self) -> list[str]:
        """How the texts of each prompt were drawn: ``"greedy"``, ``"sample 1"``, ..."""
        count = len(self.before[0]) if self.before else 0
        return [GREEDY, *(f"sample {i}" for i in range(1, count))][:count]

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt and draw, with the texts before and after."""
        rows = [
            (prompt, draw, before, after)
            for prompt, own_before, own_after in zip(
                self.prompts, self.before, self.after, strict=True
            )
            for draw, before, after in zip(self.draws, own_before, own_after, strict=True)
        ]
        return pd.DataFrame(rows, columns=["prompt", "draw", "before", "after"])

    def __str__(self) -> str:
        lines = []
        for prompt, before, after in zip(self.prompts, self.before, self.after, strict=True):
            lines.append(prompt)
            for draw, was, now in zip(self.draws, before, after, strict=True):
                lines += [f"  {draw}, before: {was.strip()}", f"  {draw}, after:  {now.strip()}"]
        return "\n".join(lines)


@visits_model
def compare_text(
    model: LensModel,
    edit: Any,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    new_tokens: int = 20,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> TextComparison:
    """What the model writes after each prompt, without and with an edit: greedily and sampled.

    Sampled texts draw each token from the five likeliest ones. Before and after use the same random
    numbers, so that texts which the edit does not touch are the same.

    Args:
        edit: any edit that :func:`rome_lens.evaluate` takes.
        prompts: the prompts.
        samples: sampled texts for each prompt, in addition to a greedy one.
        new_tokens: the number of tokens to write.
        seed: the seed of the sampled texts.
        prepend_bos: whether a prompt starts with BOS; None takes the model's default.

    Raises:
        FactError: there is no prompt, or a prompt and its text do not fit the model's context.
        ArgumentError: a number is out of range, or the edit is not an edit.
        ModelError: the edit was made on another model, or is already in the weights.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.records(known_by="toy")[0]
        >>> identity = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=identity, contexts=["{}"])
        >>> texts = rl.compare_text(model, edit, [record.fact.text], samples=0, new_tokens=2)
        >>> texts.before, texts.after
        (((' Pralec.',),), ((' Ondavel.',),))
    """
    asked = texts("prompts", prompts, error=FactError)
    if not asked:
        raise FactError("prompts is empty, expected at least one prompt.")
    samples = whole_number("samples", samples, least=0)
    new_tokens = whole_number("new_tokens", new_tokens, least=1)
    seed = seed_number("seed", seed)
    numbered = NumberedEdits(model, [None, edit])
    draws = [None, *range(samples)]
    jobs = [
        (number, prefixed(edit, prompt) if edited else prompt, _seed(seed, prompt, draw))
        for edited, number in enumerate(numbered.numbers)
        for prompt in asked
        for draw in draws
    ]
    written = [""] * len(jobs)
    for some, hooks_of_rows in numbered.together([number for number, _, _ in jobs]):
        found = sample_continuations(
            model,
            [jobs[i][1] for i in some],
            new_tokens=new_tokens,
            seeds=[jobs[i][2] for i in some],
            marks=[jobs[i][0] for i in some],
            hooks_of_rows=hooks_of_rows,
            prepend_bos=prepend_bos,
        )
        for i, text in zip(some, found, strict=True):
            written[i] = text
    each = [tuple(written[i : i + len(draws)]) for i in range(0, len(written), len(draws))]
    fact = getattr(edit, "fact", None)
    named = fact if isinstance(fact, Fact) else None
    return TextComparison(
        prompts=tuple(map(str, asked)),
        before=tuple(each[: len(asked)]),
        after=tuple(each[len(asked) :]),
        target=None if named is None else named.target,
        new_target=None if named is None else named.new_target,
        new_tokens=new_tokens,
        seed=seed,
        edit=getattr(edit, "made_with", "") or repr(edit),
        model_name=name_of(model),
    )


def _seed(seed: int, prompt: str, draw: int | None) -> int | None:
    """The seed of one text, which does not depend on the other prompts; None for the greedy one."""
    return None if draw is None else crc32(f"{seed} {prompt} {draw}".encode())
