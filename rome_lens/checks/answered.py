"""What a check reads: what the model answered without the edit and with it."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rome_lens.checks.result import CheckRow, Measure
from rome_lens.data.facts import FactError
from rome_lens.data.joining import Prompt, joined, joiner_of

PromptAnswer = tuple[str, str]
"""A prompt and one answer to it, whose probability is asked for."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question, answered without and with the edit."""

    prompt: str
    """The prompt."""
    answer: str
    """The answer whose probability was asked for."""
    before: float
    """``log p(answer | prompt)`` without the edit, in nats: the sum over the answer's tokens."""
    after: float
    """The same with the edit."""
    rank_before: int
    """Rank of the answer's first token among all tokens without the edit; 1 is most likely.

    Tokens of white space alone, and those that the true and the new answer share, are passed over
    and given to the model.
    """
    rank_after: int
    """The same with the edit."""
    kl: float
    """``KL(before || after)`` of the next token's distribution after the prompt, in nats."""
    tokens: int
    """Number of tokens in the answer."""
    written_before: bool = False
    """Whether the unedited model writes the answer by itself.

    Greedy decoding begins with the answer's tokens exactly if each of them is the likeliest one
    after those before it, so nothing has to be generated.
    """
    written_after: bool = False
    """The same with the edit."""
    firing: float | None = None
    """The edit's strongest firing within the prompt; None if the edit has no key."""
    fires_at: str | None = None
    """The token at which it fires most strongly."""
    added: float | None = None
    """The norm of what the edit adds there, ``|u . k| ||v||``."""

    @property
    def p_before(self) -> float:
        """Probability of the answer without the edit."""
        return math.exp(self.before)

    @property
    def p_after(self) -> float:
        """Probability of the answer with the edit."""
        return math.exp(self.after)

    @property
    def change(self) -> float:
        """``after - before``, in nats."""
        return self.after - self.before

    @property
    def p_change(self) -> float:
        """Change of the answer's probability."""
        return self.p_after - self.p_before

    @property
    def mean_p_before(self) -> float:
        """Geometric mean of the answer's token probabilities without the edit.

        CounterFact's scores compare answers in this way.
        """
        return math.exp(self.before / self.tokens)

    @property
    def mean_p_after(self) -> float:
        """The same with the edit."""
        return math.exp(self.after / self.tokens)

    @property
    def nats_before(self) -> float:
        """``-log p`` per token without the edit; lower is better."""
        return -self.before / self.tokens

    @property
    def nats_after(self) -> float:
        """The same with the edit."""
        return -self.after / self.tokens


def question_key(question: PromptAnswer) -> PromptAnswer:
    """What tells a question from others: its prompt, and the answer with what stands before it.

    Prompts that read alike may join their answers differently; see :class:`Prompt`.
    """
    prompt, answer = question
    return str(prompt), f"{joiner_of(prompt)}{answer}"


class AnsweredQuestions(Mapping[PromptAnswer, Answered]):
    """Answered questions by prompt and answer."""

    def __init__(self, answered: Iterable[tuple[PromptAnswer, Answered]]) -> None:
        self._by_key = {question_key(question): each for question, each in answered}

    def __getitem__(self, question: PromptAnswer) -> Answered:
        return self._by_key[question_key(question)]

    def __iter__(self) -> Iterator[PromptAnswer]:
        return ((each.prompt, each.answer) for each in self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Everything that one check reads. ``answers[prompt, answer]`` is an answered question."""

    answered: Mapping[PromptAnswer, Answered]
    """The check's questions, without and with the edit."""
    under_controls: Sequence[Mapping[PromptAnswer, Answered]] = ()
    """The same questions without and with each of the check's control edits."""
    continuations: Mapping[tuple[str, bool], Sequence[str]] = field(default_factory=dict)
    """By prompt, and whether the edit was on: what the model wrote."""
    measures: Sequence[Measure] = ()
    """Numbers that the check took from the model itself."""

    def __getitem__(self, question: PromptAnswer) -> Answered:
        return self.answered[question]

    def to(self, questions: Iterable[PromptAnswer]) -> list[Answered]:
        """The answers to several questions, in their order."""
        return [self.answered[question] for question in questions]


def prompt_row(
    answered: Answered,
    kind: str,
    *,
    in_nats: bool = False,
    effect: float | None = None,
    control_prompt: str | None = None,
    control: float | None = None,
    known: bool | None = None,
    identified: bool | None = None,
) -> CheckRow:
    """The row of an answered question: its probabilities, or with ``in_nats`` their logarithms."""
    return CheckRow(
        kind=kind,
        prompt=answered.prompt,
        answer=answered.answer,
        before=answered.before if in_nats else answered.p_before,
        after=answered.after if in_nats else answered.p_after,
        effect=effect,
        control_prompt=control_prompt,
        control=control,
        known=known,
        identified=identified,
        kl=answered.kl,
        firing=answered.firing,
        fires_at=answered.fires_at,
        added=answered.added,
        rank_before=answered.rank_before,
        rank_after=answered.rank_after,
    )


def text_row(
    answered: Answered, kind: str, *, effect: float | None = None, control: float | None = None
) -> CheckRow:
    """The row of a whole text, asked by :func:`text_question`, in nats per token."""
    return CheckRow(
        kind=kind,
        prompt=joined(answered.prompt, answered.answer),
        answer="(all but the first word)",
        before=answered.nats_before,
        after=answered.nats_after,
        effect=effect,
        control=control,
    )


def text_question(text: str) -> PromptAnswer:
    """A text as a question: the first word is the prompt, and the rest is the answer.

    Raises:
        FactError: the text has fewer than two words.
    """
    words = re.fullmatch(r"\s*(\S+)(\s+)(\S.*?)\s*", text, re.DOTALL)
    if words is None:
        raise FactError(
            f"The text is {text!r}, expected several words: the first is the prompt for the others."
        )
    first, space, rest = words.groups()
    return Prompt(first, space), rest
