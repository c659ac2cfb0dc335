"""From a fact to token ids: the prompt, the subject's span, the answers.

The oddities of tokenizers are dealt with here.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rome_lens.arguments import check_characters, one_of
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.joining import Prompt, ends_in_space, joined
from rome_lens.data.record_type import Record, as_fact
from rome_lens.models.door import visits_model
from rome_lens.models.lens import (
    LensModel,
    ModelError,
    check_vocabulary,
    ordinary_default_device,
    starts_with_bos,
)
from rome_lens.models.visits import remembered_ids
from rome_lens.warning import warn

Answer = Literal["first_token", "whole"]


@dataclass(frozen=True, kw_only=True)
class FactTokens:
    """A fact in the tokens of one model."""

    tokens: Int[Tensor, " pos"]
    """Ids of the prompt, with BOS first if it was prepended."""
    labels: tuple[str, ...]
    """The text of each token."""
    subject: tuple[int, int]
    """Half-open span of the tokens that hold any character of the subject."""
    answer: tuple[int, ...]
    """Ids of the target as it continues the prompt."""
    new_answer: tuple[int, ...]
    """Ids of the new target, empty if the fact has none."""

    @property
    def subject_last(self) -> int:
        """Position of the subject's last token, which is ROME's lookup position."""
        return self.subject[1] - 1

    def lookup_position(self, lookup: int) -> int:
        """Position of one of the subject's tokens, counted back from its last, which is -1.

        Raises:
            FactError: the subject has fewer tokens.
        """
        start, end = self.subject
        if lookup < start - end:
            raise FactError(
                f"lookup is {lookup}, but the subject has {end - start} tokens, "
                f"{list(self.labels[start:end])}: expected a number from {start - end} to -1."
            )
        return end + lookup


@visits_model
def encode(model: LensModel, fact: Fact | Record, *, prepend_bos: bool | None = None) -> FactTokens:
    """Tokenise a fact's prompt, find its subject, and tokenise its answers.

    The answers are tokenised as continuations of the prompt.

    Args:
        prepend_bos: whether a BOS token comes first. None means the model's default.

    Raises:
        ModelError: the model has no tokenizer, or one that gives no character offsets.
        FactError: the prompt does not fit the model's context, prompt and answer share a token, or
            the tokenizer does not know characters of the subject.
    """
    fact = as_fact(fact)
    text = fact.text
    ids, spans = token_spans(model, text, prepend_bos=prepend_bos)
    start, end = fact.subject_start, fact.subject_start + len(fact.subject)
    labels = token_labels(model, ids)
    inside = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
    # Some tokenizers add a space before the subject as a token of its own.
    while inside and not labels[inside[0]].strip():
        inside.pop(0)
    decoded = model.tokenizer.decode([ids[i] for i in inside])
    if _normalise(fact.subject) not in _normalise(decoded):
        raise FactError(
            f"The tokens of {text!r} that should hold the subject {fact.subject!r} read "
            f"{decoded!r}: the tokenizer does not know some of its characters. All tokens: "
            f"{labels}."
        )
    return FactTokens(
        tokens=torch.tensor(ids, dtype=torch.long, device="cpu"),
        labels=tuple(labels),
        subject=(inside[0], inside[-1] + 1),
        answer=continuation(model, text, fact.target),
        new_answer=() if fact.new_target is None else continuation(model, text, fact.new_target),
    )


@visits_model
def token_ids(
    model: LensModel, text: str, *, prepend_bos: bool | None = None, truncate: bool = False
) -> list[int]:
    """Ids of ``text``, as the model's own ``to_tokens`` gives them.

    An empty text has no ids, not even BOS. A text that begins with the BOS token's own text, such
    as ``"<bos>"``, gets no second BOS. A warning says so, unless the token stands in the rest of
    the text too, as one that marks the turns of a chat does.

    Args:
        prepend_bos: whether a BOS token comes first. None means the model's default.
        truncate: whether to cut a text that is longer than the model's context.

    Raises:
        ModelError: the model has no tokenizer.
        FactError: the text is longer than the model's context and is not to be cut.
    """
    _check_tokenizer(model)
    check_characters("The text", text, error=FactError)
    bos = starts_with_bos(model, prepend_bos)
    skipped = _second_bos(model, text, prepend_bos)
    ids = [model.tokenizer.bos_token_id] if skipped == len(text) > 0 else []
    text = text[skipped:]
    if text != "":
        ids = _ids(model, text, bos, truncate)
    if len(ids) > model.cfg.n_ctx:
        raise FactError(
            f"The text has {len(ids)} tokens, the model's context only {model.cfg.n_ctx}: "
            f"{text[:80]!r}..."
        )
    check_vocabulary(model, ids)
    return ids


def _ids(model: LensModel, text: str, prepend_bos: bool, truncate: bool) -> list[int]:
    """The model's own ids of a text that is not empty."""
    known, key = remembered_ids(model), (id(model), text, prepend_bos, truncate)
    if key not in known:
        with ordinary_default_device(model):
            tokens = model.to_tokens(text, prepend_bos=prepend_bos, truncate=truncate)
        known[key] = tokens[0].tolist()
    return list(known[key])


def _check_tokenizer(model: LensModel) -> None:
    if model.tokenizer is None:
        raise ModelError(
            "The model has no tokenizer, which prompts and answers need: load or construct it with "
            "one."
        )


def begins_with_bos(model: LensModel, text: str) -> bool:
    """Whether a text begins with the BOS token, written out."""
    own = model.tokenizer.bos_token
    return bool(own) and text.startswith(own)


def bos_marks_turns(model: LensModel, text: str) -> bool:
    """Whether a text holds the BOS token after its beginning, as a chat's turns may be marked."""
    own = model.tokenizer.bos_token
    return bool(own) and own in re.sub(f"^(?:{re.escape(own)})+", "", text)


def _second_bos(model: LensModel, text: str, prepend_bos: bool | None) -> int:
    """How many characters at the start of a text write out the BOS that is prepended anyway."""
    if not (starts_with_bos(model, prepend_bos) and begins_with_bos(model, text)):
        return 0
    own = model.tokenizer.bos_token
    length = len(own)
    while text.startswith(own, length):
        length += len(own)
    if not bos_marks_turns(model, text):
        warn(
            f"A text begins with {own!r} ({text[:60]!r}...), and the model prepends this token "
            "itself. It is used once. Leave it out of the text, or set prepend_bos=False.",
            UserWarning,
        )
    return length


def tokenizer_fingerprint(model: LensModel) -> str:
    """A hash of the tokenizer's vocabulary and of the ids of one text.

    The text is one whose ids depend on the settings of a tokenizer, even where the vocabulary is
    the same.
    """
    vocabulary = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    ids = token_ids(
        model, "Then  Ada's café, in 1912, sold Straße-maps", prepend_bos=False, truncate=True
    )
    return hashlib.sha256(repr((vocabulary, ids)).encode()).hexdigest()[:10]


def token_spans(
    model: LensModel, text: str, *, prepend_bos: bool | None = None
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of ``text``, and for each token the half-open span of its characters.

    The span of a BOS token is empty.

    Raises:
        ModelError: the model has no tokenizer, one that gives no character offsets, or one whose
            ids differ from the model's by more than leading special tokens.
        FactError: the text is longer than the model's context.
    """
    _check_tokenizer(model)
    skipped = _second_bos(model, text, prepend_bos)
    text = text[skipped:]
    ids = token_ids(model, text, prepend_bos=prepend_bos)
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer {type(tokenizer).__name__} gives no character offsets, which the "
            "subject's span is read from. Use its fast version "
            "(AutoTokenizer.from_pretrained(..., use_fast=True))."
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    plain = list(encoding["input_ids"])
    special = len(ids) - len(plain)
    if special < 0 or ids[special:] != plain:
        raise ModelError(
            f"The model's to_tokens({text!r}) gives {ids}, its tokenizer {plain}: they differ by "
            "more than leading special tokens, so the subject cannot be located."
        )
    spans = [(int(a) + skipped, int(b) + skipped) for a, b in encoding["offset_mapping"]]
    return ids, [(0, 0)] * special + spans


@visits_model
def continuation(model: LensModel, text: str, answer: str) -> tuple[int, ...]:
    """Ids of ``answer`` as it continues ``text``.

    The end of the text decides whether a space stands between them; see
    :func:`rome_lens.data.joining.joiner_after`. White space around the answer is ignored.

    Raises:
        FactError: the answer is blank, the text is empty or ends in a space, or the tokenizer
            merges the end of the text with the answer.
    """
    for name, words in (("prompt", text), ("answer", answer)):
        if not isinstance(words, str):
            raise FactError(f"The {name} is {words!r}, expected words.")
    if not text or (ends_in_space(text) and not isinstance(text, Prompt)) or not answer.strip():
        raise FactError(
            f"The prompt is {text!r} and the answer {answer!r}. Both must contain words. End the "
            "prompt without a space, because the space before an answer is part of its first token."
        )
    prompt = token_ids(model, text, prepend_bos=False)
    whole = token_ids(model, joined(text, answer.strip()), prepend_bos=False)
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise FactError(
            f"The answer {answer!r} shares a token with the end of the prompt {text!r}: the "
            f"prompt's tokens are {token_labels(model, prompt)}, with the answer they are "
            f"{token_labels(model, whole)}. End the prompt at the end of a word."
        )
    return tuple(whole[len(prompt) :])


def token_labels(model: LensModel, ids: Sequence[int]) -> list[str]:
    """The text of each token, decoded alone.

    Where a character is split over several tokens, its bytes show as the replacement character.
    """
    return [model.tokenizer.decode([i]) for i in ids]


def _normalise(text: str) -> str:
    """The text without what tokenizers may change: case, width, spaces."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def pad_right(rows: Sequence[Sequence[int]], *, pad: int = 0) -> Int[Tensor, "batch pos"]:
    """Rows of ids as one tensor, padded on the right.

    In a causal model the padding changes nothing before it.
    """
    width = max(len(row) for row in rows)
    padded = [list(row) + [pad] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long, device="cpu")


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """The tokens of an answer that are scored, and those that are given before them."""

    given: tuple[int, ...]
    """The answer's tokens before the scored ones. They follow the prompt."""
    tokens: tuple[int, ...]
    """The scored tokens."""
    scoring: Answer
    """The choice that led to them."""


def scored_answer(model: LensModel, encoded: FactTokens, answer: str) -> ScoredAnswer:
    """The tokens of a fact's answer that are scored.

    With ``"whole"`` these are all of them.

    With ``"first_token"`` it is the first token that tells the answer apart, given the tokens
    before it. That is the first one in which target and new target differ, or the answer's very
    first token if there is no new target. If that token is nothing but white space, or if the new
    target continues the target, no single token tells the answer apart. Nor does a first token
    that is a part of a number, a part of a character, or punctuation. Then all of them are scored.
    Some tokenizers split numbers in this way: ``" 1945"`` becomes ``" "``, ``"1"``, ``"9"``, ...

    Raises:
        ArgumentError: an unknown kind of answer.
    """
    scoring = one_of("answer", answer, Answer)
    ids, other = encoded.answer, encoded.new_answer
    shared = shared_length(ids, other)
    if scoring == "first_token" and shared < len(ids):
        first, *rest = token_labels(model, ids[shared:])
        if first.strip() if other else _is_telling(first, "".join(rest)):
            return ScoredAnswer(given=ids[:shared], tokens=(ids[shared],), scoring=scoring)
    return ScoredAnswer(given=(), tokens=ids, scoring=scoring)


def shared_length(ids: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers have in common at their beginning."""
    length = 0
    while length < min(len(ids), len(other)) and ids[length] == other[length]:
        length += 1
    return length


def _is_telling(label: str, rest: str) -> bool:
    """Whether an answer's first token is more than punctuation or a part of a number or letter."""
    is_part_of_number = label[-1:].isdigit() and re.match(r"[.,]?\d", rest) is not None
    return any(map(str.isalnum, label)) and not is_part_of_number
