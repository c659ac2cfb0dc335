"""Averages of traces over facts, by the role that a token has in its prompt."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST, Average, average, half_width
from rome_lens.results import Stored
from rome_lens.tracing.many_facts import TracedFacts
from rome_lens.tracing.results import CausalTrace

ROLES = ("first subject", "middle subject", "last subject", "first subsequent", "further", "last")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TraceAverage(Stored):
    """Average effects over facts (Meng et al. 2022, section 2.2 and figure 2).

    Attributes:
        fact_effects: each fact's indirect effect, averaged over its tokens of a role; NaN where it has none.
        clean_scores, corrupted_scores: each fact's probability of the answer.
        subjects: of the facts, in their order; ``unknown`` those of the facts left out since the model answers otherwise.
        component, window, layers, noise, model_fingerprint: as all the traces have them; ``samples`` of each fact.
    """

    component: str
    window: int
    layers: tuple[int, ...]
    roles: tuple[str, ...]
    fact_effects: Float[Tensor, "fact layer role"]
    clean_scores: Float[Tensor, " fact"]
    corrupted_scores: Float[Tensor, " fact"]
    subjects: tuple[str, ...]
    unknown: tuple[str, ...]
    samples: int
    noise: str
    model_fingerprint: str

    def __repr__(self) -> str:
        return (
            f"TraceAverage({self.component!r}, window={self.window}, {len(self.subjects)} facts, "
            f"{len(self.unknown)} not known, ATE {self.total_effect})"
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """How many facts have a token of each role."""
        return tuple(int(self.of_role(role).shape[0]) for role in range(len(self.roles)))

    @property
    def total_effect(self) -> Average:
        """Average total effect (ATE), ``E[clean - corrupted]``."""
        return average((self.clean_scores - self.corrupted_scores).tolist())

    @property
    def clean(self) -> Average:
        """Average probability of the answer in the clean run."""
        return average(self.clean_scores.tolist())

    @property
    def corrupted(self) -> Average:
        """Average probability of the answer in the corrupted runs."""
        return average(self.corrupted_scores.tolist())

    @property
    def indirect_effects(self) -> Float[Tensor, "layer role"]:
        """Average indirect effects (AIE), ``E[score - corrupted]``; NaN for a role that no fact has."""
        return self.fact_effects.nanmean(0)

    @property
    def half_widths(self) -> Float[Tensor, "layer role"]:
        """Half the Student-t 95 % interval of each AIE, over facts; NaN below five facts."""
        halves = []
        for role in range(len(self.roles)):
            effects = self.of_role(role)
            enough = effects.shape[0] >= FEWEST
            halves.append(
                half_width(effects)
                if enough
                else torch.full_like(self.fact_effects[0, :, role], math.nan)
            )
        return torch.stack(halves, dim=1)

    def peak(self, role: str) -> int:
        """The layer of a role's largest AIE.

        Raises:
            ValueError: an unknown role, or one that no fact has.
        """
        if role not in self.roles:
            raise ArgumentError(
                f"The role is {role!r}, expected one of {', '.join(map(repr, self.roles))}."
            )
        column = self.roles.index(role)
        if not self.counts[column]:
            raise ArgumentError(f"No fact has a token of the role {role!r}.")
        return self.layers[int(self.indirect_effects[:, column].argmax())]

    def to_frame(self) -> pd.DataFrame:
        """One row for each layer and role: AIE, half its 95 % interval, and the number of facts."""
        effects, halves, counts = self.indirect_effects, self.half_widths, self.counts
        return pd.DataFrame(
            {
                "layer": layer,
                "role": role,
                "indirect_effect": float(effects[i, j]),
                "half_width": float(halves[i, j]),
                "facts": counts[j],
            }
            for i, layer in enumerate(self.layers)
            for j, role in enumerate(self.roles)
        )

    def of_role(self, role: int) -> Float[Tensor, "fact layer"]:
        """The effects of the facts that have a token of the role."""
        effects = self.fact_effects[:, :, role]
        return effects[~effects[:, 0].isnan()]


def roles_of(subject: tuple[int, int], length: int) -> dict[str, list[int]]:
    """Positions of a prompt by role, each in one alone: the prompt's last token is ``"last"`` whatever else it is, a subject's
    last token ``"last subject"`` even where it is its first, and what stands before the subject has no role."""
    start, end = subject
    roles = {
        "first subject": [start],
        "middle subject": range(start + 1, end - 1),
        "last subject": [end - 1],
        "first subsequent": [end],
        "further": range(end + 1, length - 1),
        "last": [length - 1],
    }
    taken: set[int] = set()
    found: dict[str, list[int]] = {}
    for role in ("last", "last subject", *ROLES):
        if role not in found:
            found[role] = [pos for pos in roles[role] if pos < length and pos not in taken]
            taken.update(found[role])
    return {role: found[role] for role in ROLES}


def average_traces(traces: TracedFacts | Iterable[CausalTrace]) -> TraceAverage:
    """Average total effect, and average indirect effect by layer and role, over traces of many facts.

    Within a fact, the tokens of one role are averaged first. Facts that the model does not know are not among the traces;
    those that :func:`~rome_lens.trace_facts` met are counted in ``unknown``.

    Source: Meng et al. 2022, section 2.2 (AIE and ATE over 1000 facts).

    Raises:
        ValueError: there is no trace, a trace is of heads or of some positions only, or two differ in what was restored, in
            layers, samples or model, or are of one fact.
    """
    listed = tuple(traces)
    unknown = traces.unknown if isinstance(traces, TracedFacts) else ()
    if not listed:
        raise ArgumentError(f"There is no trace to average; facts not known: {len(unknown)}.")
    _check_alike(listed)
    first = listed[0]
    return TraceAverage(
        component=first.component,
        window=first.window,
        layers=first.layers,
        roles=ROLES,
        fact_effects=torch.stack([_by_role(trace) for trace in listed]),
        clean_scores=torch.tensor([trace.clean for trace in listed], dtype=torch.float64),
        corrupted_scores=torch.tensor([trace.corrupted for trace in listed], dtype=torch.float64),
        subjects=tuple(trace.fact.subject for trace in listed),
        unknown=tuple(fact.text for fact, _ in unknown),
        samples=len(first.corrupted_samples),
        noise=first.noise,
        model_fingerprint=first.model_fingerprint,
    )


def _by_role(trace: CausalTrace) -> Float[Tensor, "layer role"]:
    effects = trace.indirect_effects[:, torch.tensor(trace.positions).argsort()]
    columns = [
        effects[:, positions].mean(1)
        for positions in roles_of(trace.subject, len(trace.labels)).values()
    ]
    return torch.stack(columns, dim=1).double()


def _check_alike(traces: Sequence[CausalTrace]) -> None:
    first, seen = traces[0], set()
    for trace in traces:
        for name in (
            "component",
            "window",
            "layers",
            "noise",
            "answer_tokens",
            "model_fingerprint",
        ):
            if getattr(trace, name) != getattr(first, name):
                raise ArgumentError(
                    f"The trace of {trace.fact.text!r} has {name} {getattr(trace, name)!r}, that of {first.fact.text!r} "
                    f"{getattr(first, name)!r}: only traces made alike can be averaged."
                )
        if trace.heads:
            raise ArgumentError("Traces of single heads have no average by role: average 'attn'.")
        if len(trace.corrupted_samples) != len(first.corrupted_samples):
            raise ArgumentError(
                f"{trace.fact.text!r} has {len(trace.corrupted_samples)} samples, expected as many as the first."
            )
        if sorted(trace.positions) != list(range(len(trace.labels))):
            raise ArgumentError(
                f"{trace.fact.text!r} was traced at positions {list(trace.positions)}, expected all."
            )
        if not trace.sample_scores.isfinite().all():
            raise ArgumentError(
                f"The scores of {trace.fact.text!r} hold NaN or infinity: leave it out, or find out why."
            )
        question = (trace.fact.text, trace.fact.target)
        if question in seen:
            raise ArgumentError(f"{trace.fact.text!r} is there twice: a fact counts once.")
        seen.add(question)
