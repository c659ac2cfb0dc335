"""From a fact to token ids: the prompt, the subject's span, the answers. Every tokenizer oddity ends here."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.arguments import one_of
from rome_lens.data.facts import Fact, FactError
from rome_lens.models.lens import LensModel, ModelError, starts_with_bos

Answer = Literal["first_token", "whole"]


@dataclass(frozen=True, kw_only=True)
class FactTokens:
    """A fact as one model's tokens.

    Attributes:
        tokens: ids of the prompt, with BOS where asked for.
        labels: one readable text for each token.
        subject: half-open span of the tokens that hold any character of the subject.
        answer: ids of the target as it continues the prompt.
        new_answer: ids of the new target, empty where the fact has none.
    """

    tokens: Int[Tensor, " pos"]
    labels: tuple[str, ...]
    subject: tuple[int, int]
    answer: tuple[int, ...]
    new_answer: tuple[int, ...]

    @property
    def subject_last(self) -> int:
        """Position of the subject's last token, the lookup position of ROME."""
        return self.subject[1] - 1


def encode(model: LensModel, fact: Fact, *, prepend_bos: bool | None = None) -> FactTokens:
    """Tokenise a fact's prompt, find its subject, and tokenise its answers as continuations of the prompt.

    Args:
        prepend_bos: whether a BOS token stands first; None takes the model's default.

    Raises:
        ModelError: the model has no tokenizer.
        FactError: the prompt does not fit the model's context, or prompt and answer share a token.
    """
    text = fact.text
    ids, spans = token_spans(model, text, prepend_bos=prepend_bos)
    start, end = fact.subject_start, fact.subject_start + len(fact.subject)
    labels = token_labels(model, ids)
    inside = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
    while (
        inside and not labels[inside[0]].strip()
    ):  # a space of its own before the subject, which some tokenizers add
        inside.pop(0)
    found = model.tokenizer.decode([ids[i] for i in inside])
    if _folded(fact.subject) not in _folded(found):
        raise FactError(
            f"The tokens of {text!r} that should hold the subject {fact.subject!r} read {found!r}: the tokenizer does not "
            f"know some of its characters. All tokens: {labels}."
        )
    return FactTokens(
        tokens=torch.tensor(ids),
        labels=tuple(labels),
        subject=(inside[0], inside[-1] + 1),
        answer=continuation(model, text, fact.target),
        new_answer=() if fact.new_target is None else continuation(model, text, fact.new_target),
    )


def token_ids(
    model: LensModel, text: str, *, prepend_bos: bool | None = None, truncate: bool = False
) -> list[int]:
    """Ids of ``text`` as the model's own ``to_tokens`` gives them, cut to the model's context only where asked.

    Raises:
        ModelError: the model has no tokenizer.
        FactError: the text is longer than the model's context.
    """
    if model.tokenizer is None:
        raise ModelError(
            "The model has no tokenizer, which prompts and answers need: load or construct it with one."
        )
    bos = starts_with_bos(model, prepend_bos)
    ids = (
        []
        if text == ""
        else [int(i) for i in model.to_tokens(text, prepend_bos=bos, truncate=truncate)[0]]
    )
    if len(ids) > model.cfg.n_ctx:
        raise FactError(
            f"The text has {len(ids)} tokens, the model's context only {model.cfg.n_ctx}: {text[:80]!r}..."
        )
    return ids


def tokenizer_fingerprint(model: LensModel) -> str:
    """A hash of the tokenizer's vocabulary, and of the ids of a text on which settings of one vocabulary differ."""
    vocabulary = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    ids = token_ids(
        model, "Then  Ada's café, in 1912, sold Straße-maps", prepend_bos=False, truncate=True
    )
    return hashlib.sha256(repr((vocabulary, ids)).encode()).hexdigest()[:10]


def token_spans(
    model: LensModel, text: str, *, prepend_bos: bool | None = None
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of ``text`` and, for each, the half-open span of characters that it holds (empty for BOS)."""
    ids = token_ids(model, text, prepend_bos=prepend_bos)
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer {type(tokenizer).__name__} gives no character offsets, which the subject's span is read from. "
            "Use the fast version of it (AutoTokenizer.from_pretrained(..., use_fast=True))."
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    plain = list(encoding["input_ids"])
    special = len(ids) - len(plain)
    if special < 0 or ids[special:] != plain:
        raise ModelError(
            f"The model's to_tokens({text!r}) gives {ids}, its tokenizer {plain}: they differ by more than leading "
            "special tokens, so that the subject cannot be located."
        )
    return ids, [(0, 0)] * special + [(int(a), int(b)) for a, b in encoding["offset_mapping"]]


def continuation(model: LensModel, text: str, answer: str) -> tuple[int, ...]:
    """Ids of ``answer`` as it continues ``text`` after one space.

    Raises:
        FactError: the tokenizer merges the end of the text with the answer, so that the answer has no tokens of its own.
    """
    if not text or text != text.rstrip() or not answer.strip():
        raise FactError(
            f"The prompt {text!r} and the answer {answer!r}: expected words in both, and no white space at the prompt's end, "
            "since one space joins them."
        )
    prompt = token_ids(model, text, prepend_bos=False)
    whole = token_ids(model, f"{text} {answer}", prepend_bos=False)
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise FactError(
            f"The answer {answer!r} shares a token with the end of the prompt {text!r}: {token_labels(model, prompt)} "
            f"against {token_labels(model, whole)}. End the prompt at a word's end."
        )
    return tuple(whole[len(prompt) :])


def token_labels(model: LensModel, ids: Sequence[int]) -> list[str]:
    """The text of each token, one by one; bytes of a split character show as the replacement character."""
    return [model.tokenizer.decode([i]) for i in ids]


def _folded(text: str) -> str:
    """Text without what tokenizers may normalise away: case, width, spaces."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def pad_right(rows: Sequence[Sequence[int]], *, pad: int = 0) -> Int[Tensor, "batch pos"]:
    """Rows of ids as one right-padded tensor. In a causal model what stands to the right changes nothing before it."""
    width = max(len(row) for row in rows)
    return torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows])


def tokens_to_run(
    model: LensModel, fact: Fact, answer: str, *, prepend_bos: bool | None
) -> tuple[FactTokens, tuple[int, ...]]:
    """The encoded fact and the scored tokens of its answer: the first alone, or all of them.

    Raises:
        ValueError: an unknown kind of answer.
        FactError: as :func:`encode` says.
    """
    one_of("answer", answer, Answer)
    encoded = encode(model, fact, prepend_bos=prepend_bos)
    scored = encoded.answer if answer == "whole" else encoded.answer[:1]
    return encoded, scored
