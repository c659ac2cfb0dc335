"""Texts that a model writes without and with an edit: what a check wants, and the writing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from zlib import crc32

from rome_lens.evaluation.numbered_edits import NumberedEdits, prefixed
from rome_lens.forward.sampling import sample_continuations
from rome_lens.models.lens import LensModel


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """Texts that a check wants the model to write."""

    before: Sequence[str]
    """Prompts to continue without the edit."""
    after: Sequence[str]
    """Prompts to continue with the edit."""
    samples: int
    """Sampled continuations of each prompt."""
    new_tokens: int
    """Tokens of each continuation."""
    seed: int
    """Seed of the draws, which are the same without and with the edit."""
    greedy: bool = False
    """Whether the first text of each prompt is a greedy one, in addition to the samples."""


UneditedTexts: TypeAlias = dict[tuple[str, int | None, int], str]
"""Texts of one model without an edit, by prompt, seed and number of tokens."""


def continuations(
    model: LensModel,
    jobs: Sequence[tuple[Any, Continuations]],
    *,
    unedited: UneditedTexts | None = None,
    prepend_bos: bool | None = None,
) -> list[dict[tuple[str, bool], list[str]]]:
    """For each edit, the continuations of its prompts, by prompt and whether the edit was on.

    All of them are written in one batch. A continuation ends before the first EOS token, because
    what follows is another text.

    Args:
        jobs: pairs of an edit and the texts wanted of it.
        unedited: texts without an edit that are known already. New ones are added.
    """
    unedited = {} if unedited is None else unedited
    numbered = NumberedEdits(model, [edit for edit, _ in jobs])
    written: dict[_Text, str] = {}
    missing: dict[_Text, None] = {}
    wanted = [
        _wanted(edit, its, number)
        for (edit, its), number in zip(jobs, numbered.numbers, strict=True)
    ]
    for text in (each for its in wanted for each in its.values()):
        number, prompt, seed, new_tokens = text
        known = None if number else unedited.get((prompt, seed, new_tokens))
        if known is None:
            missing[text] = None
        else:
            written[text] = known
    for new_tokens in dict.fromkeys(text[-1] for text in missing):
        chosen = [text for text in missing if text[-1] == new_tokens]
        numbers = [number for number, *_ in chosen]
        for some, hooks_of_rows in numbered.together(numbers):
            sampled = sample_continuations(
                model,
                [chosen[k][1] for k in some],
                new_tokens=new_tokens,
                seeds=[chosen[k][2] for k in some],
                marks=[numbers[k] for k in some],
                hooks_of_rows=hooks_of_rows,
                stop_at_eos=True,
                prepend_bos=prepend_bos,
            )
            written |= dict(zip((chosen[k] for k in some), sampled, strict=True))
    unedited |= {text[1:]: its for text, its in written.items() if text[0] == 0}
    return [_by_prompt(its, written) for its in wanted]


_Text = tuple[int, str, int | None, int]
"""The number of an edit, the prompt as it is continued under it, the seed, the number of tokens."""


def _wanted(edit: Any, wanted: Continuations, number: int) -> dict[tuple[str, bool, int], _Text]:
    """The texts of one edit, by prompt, whether the edit is on, and the number of the draw."""
    draws: list[int | None] = [*([None] if wanted.greedy else []), *range(wanted.samples)]
    prompts = [(each, False) for each in wanted.before] + [(each, True) for each in wanted.after]
    found = {}
    for prompt, edited in prompts:
        asked = prefixed(edit, prompt) if edited else prompt
        for k, draw in enumerate(draws):
            seed = _seed(wanted, prompt, draw)
            found[prompt, edited, k] = (number if edited else 0, asked, seed, wanted.new_tokens)
    return found


def _by_prompt(
    wanted: Mapping[tuple[str, bool, int], _Text], written: Mapping[_Text, str]
) -> dict[tuple[str, bool], list[str]]:
    found: dict[tuple[str, bool], list[str]] = {}
    for (prompt, edited, _), text in wanted.items():
        found.setdefault((prompt, edited), []).append(written[text])
    return found


def _seed(wanted: Continuations, prompt: str, draw: int | None) -> int | None:
    """The seed of one continuation; None for the greedy one."""
    return None if draw is None else crc32(f"{wanted.seed} {prompt} {draw}".encode())
