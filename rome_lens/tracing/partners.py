"""Counterfactuals for many facts: each subject gives place to that of another fact."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record, as_facts
from rome_lens.forward.tokens import FactTokens, encode
from rome_lens.models.door import visits_model
from rome_lens.models.lens import LensModel
from rome_lens.tracing.corruption import Counterfactual
from rome_lens.tracing.noise import CorruptedPrompt, NoiseError


@dataclass(frozen=True, kw_only=True, repr=False)
class Counterfactuals:
    """Replace each subject's embeddings with those of another fact's subject.

    Unlike noise, this keeps the model on inputs that it knows: the corrupted run is that of another
    true fact. Make it with :meth:`among`.

    Source: Zhang and Nanda 2023, "Towards Best Practices of Activation Patching in Language
    Models", section 2 (symmetric token replacement).

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> records = rl.data.records(known_by="toy")
        >>> swapped = rl.Counterfactuals.among(model, records)
        >>> swapped
        Counterfactuals(9 partners, 1 without, ...)
        >>> facts = swapped.contrasted(records)[:3]
        >>> traced = rl.trace_facts(model, facts, noise=swapped, metric="logit_difference")
        >>> [trace.total_effect > 5 for trace in traced]
        [True, True, True]
    """

    partners: tuple[tuple[Fact, Fact], ...]
    """Each fact that has a partner, and the partner."""
    alone: tuple[Fact, ...] = ()
    """The facts without a partner. They cannot be traced with these."""

    @classmethod
    @visits_model
    def among(
        cls,
        model: LensModel,
        facts: Fact | Record | Iterable[Fact | Record],
        *,
        prepend_bos: bool | None = None,
    ) -> "Counterfactuals":
        """Find a partner for each fact among the same facts.

        A partner has the same prompt template, another subject and another target. The two prompts
        have equally many tokens, and differ in the subject's only. Of several, a fact takes the one
        that follows it in the list, and the last takes the first, so that subjects are used about
        equally often.

        Raises:
            FactError: there is no fact, or one of them cannot be tokenised.
        """
        given = list(dict.fromkeys(as_facts(facts)))
        encoded = [encode(model, fact, prepend_bos=prepend_bos) for fact in given]
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, (fact, each) in enumerate(zip(given, encoded, strict=True)):
            groups.setdefault((fact.prompt, fact.joiner, *_frame(each)), []).append(i)
        found: dict[int, int] = {}
        for members in groups.values():
            for place, i in enumerate(members):
                following = [*members[place + 1 :], *members[:place]]
                others = [j for j in following if _differ(given[i], given[j])]
                if others:
                    found[i] = others[0]
        return cls(
            partners=tuple((given[i], given[j]) for i, j in sorted(found.items())),
            alone=tuple(fact for i, fact in enumerate(given) if i not in found),
        )

    def contrasted(self, facts: Fact | Record | Iterable[Fact | Record]) -> list[Fact]:
        """Those of the facts that have a partner, with the partner's target as the new target.

        A logit difference then compares the fact's answer with that of the corrupted prompt.
        """
        answers = {_key(fact): partner.target for fact, partner in self.partners}
        return [
            Fact(
                fact.prompt,
                subject=fact.subject,
                target=fact.target,
                new_target=answers[_key(fact)],
                joiner=fact.own_joiner,
            )
            for fact in as_facts(facts)
            if _key(fact) in answers
        ]

    @visits_model
    def sample(
        self, model: LensModel, prompt: CorruptedPrompt, *, samples: int
    ) -> Float[Tensor, "sample subject d_model"]:
        """A single sample: the partner's embeddings minus the clean ones.

        Raises:
            NoiseError: the fact has no partner.
        """
        by_fact = {_key(fact): partner.subject for fact, partner in self.partners}
        subject = by_fact.get(_key(prompt.fact))
        if subject is None:
            raise NoiseError(
                f"{prompt.fact.text!r} has no partner among these facts: trace "
                "contrasted(facts), or give more facts of this prompt and length."
            )
        return Counterfactual(subject=subject).sample(model, prompt, samples=samples)

    def __repr__(self) -> str:
        pairs = [(_key(fact), partner.subject) for fact, partner in self.partners]
        digest = hashlib.sha256(repr(pairs).encode()).hexdigest()[:8]
        return f"Counterfactuals({len(pairs)} partners, {len(self.alone)} without, {digest})"


def _differ(fact: Fact, other: Fact) -> bool:
    return fact.subject != other.subject and fact.target != other.target


def _key(fact: Fact) -> tuple[str, str, str]:
    return fact.prompt, fact.subject, fact.target


def _frame(encoded: FactTokens) -> tuple[object, ...]:
    """The subject's span, and the tokens around it."""
    start, end = encoded.subject
    tokens: Sequence[int] = encoded.tokens.tolist()
    return encoded.subject, tuple(tokens[:start]), tuple(tokens[end:])
