"""Averages of traces over facts, by the role that a token has in its prompt."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import ClassVar, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rome_lens.arguments import one_of, several
from rome_lens.data.relations import relation_of
from rome_lens.errors import ArgumentError
from rome_lens.intervals import FEWEST, Average, average, cluster_rows, half_width
from rome_lens.models.fingerprints import exact
from rome_lens.models.hook_names import Component
from rome_lens.results import Stored
from rome_lens.tracing.many_facts import TracedFacts
from rome_lens.tracing.results import CausalTrace, Direction

Role = Literal[
    "first subject", "middle subject", "last subject", "first subsequent", "further", "last"
]
"""What a token is in its prompt; the paper's words."""
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TraceAverage(Stored):
    """Average effects over facts (Meng et al. 2022, section 2.2 and figure 2)."""

    axes: ClassVar = {"fact": "subjects", "layer": "layers", "role": "roles"}
    undefined: ClassVar = frozenset({"fact_effects"})

    component: Component
    """The component whose output was restored."""
    window: int
    """The number of layers restored together."""
    layers: tuple[int, ...]
    """The traced layers."""
    roles: tuple[Role, ...]
    """The roles of tokens."""
    fact_effects: Float[Tensor, "fact layer role"]
    """Each fact's indirect effects, averaged over its tokens of a role; NaN where it has none."""
    clean_scores: Float[Tensor, " fact"]
    """Each fact's score in the clean run."""
    corrupted_scores: Float[Tensor, " fact"]
    """Each fact's score in the corrupted runs."""
    subjects: tuple[str, ...]
    """The subjects of the averaged facts, in order."""
    unknown: tuple[str, ...]
    """The prompts of the facts that were left out because the model gives another answer."""
    samples: int
    """The number of noise samples of each fact."""
    noise: str
    """The corruption, as text."""
    model_fingerprint: str
    """The fingerprint of the traced model."""
    relations: tuple[str, ...] = ()
    """The prompt of each fact without its subject. It stands for the relation, by which intervals
    are clustered. Empty in a file of an older version: each fact is a cluster of its own."""
    metric: str = "probability"
    """What the scores are; see :data:`rome_lens.tracing.metrics.MetricName`."""
    direction: Direction = "denoising"
    """The direction of the traces. In noising, an indirect effect is ``clean - score``."""
    model_name: str = ""
    """The name of the traced model, for titles. Empty in a file of an older version."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relations and len(self.relations) != len(self.subjects):
            raise ArgumentError(
                f"There are {len(self.relations)} relations, expected one for each of "
                f"{len(self.subjects)} facts."
            )

    def __repr__(self) -> str:
        return (
            f"TraceAverage({self.component!r}, window={self.window}, {len(self.subjects)} facts, "
            f"{len(self.unknown)} not known, ATE {self.total_effect})"
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of facts that have a token of each role."""
        return tuple(len(self.of_role(column)) for column in range(len(self.roles)))

    @property
    def total_effect(self) -> Average:
        """The average total effect (ATE), ``E[clean - corrupted]``."""
        return average((self.clean_scores - self.corrupted_scores).tolist(), self.clusters)

    @property
    def clean(self) -> Average:
        """The average score of the clean run."""
        return average(self.clean_scores.tolist(), self.clusters)

    @property
    def corrupted(self) -> Average:
        """The average score of the corrupted runs."""
        return average(self.corrupted_scores.tolist(), self.clusters)

    @property
    def indirect_effects(self) -> Float[Tensor, "layer role"]:
        """The average indirect effects (AIE), ``E[score - corrupted]``.

        NaN for a role that no fact has.
        """
        return self.fact_effects.nanmean(0)

    @property
    def half_widths(self) -> Float[Tensor, "layer role"]:
        """Half the width of each AIE's 95 % interval over facts, clustered by relation.

        NaN below five relations; see :func:`rome_lens.intervals.half_width`.
        """
        columns = []
        for column in range(len(self.roles)):
            effects, clusters = self.of_role(column), self.clusters_of_role(column)
            if len(effects) and len(cluster_rows(clusters, len(effects))) >= FEWEST:
                columns.append(half_width(effects, clusters))
            else:
                columns.append(torch.full_like(self.fact_effects[0, :, column], math.nan))
        return torch.stack(columns, dim=1)

    def peak(self, role: Role) -> int:
        """The layer with a role's largest AIE.

        Raises:
            ArgumentError: the role is unknown, or no fact has a token of it.
        """
        one_of("role", role, Role)
        column = self.roles.index(role)
        if not self.counts[column]:
            known = [name for name, count in zip(self.roles, self.counts, strict=True) if count]
            raise ArgumentError(
                f"No fact has a token of the role {role!r}. Roles with tokens: {known}."
            )
        return self.layers[int(self.indirect_effects[:, column].argmax())]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and role: AIE, half its interval's width, and the number of facts."""
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
        """The effects of the facts that have a token of the role ``roles[role]``."""
        return self.fact_effects[self._has_role(role), :, role]

    def clusters_of_role(self, role: int) -> tuple[str, ...] | None:
        """The relations of these facts; None if they are not known."""
        kept = self._has_role(role).tolist()
        return tuple(compress(self.relations, kept)) or None

    @property
    def clusters(self) -> tuple[str, ...] | None:
        """The relation of each fact; None if it is not known."""
        return self.relations or None

    def _has_role(self, role: int) -> Bool[Tensor, " fact"]:
        return ~self.fact_effects[:, 0, role].isnan()


def roles_of(subject: tuple[int, int], length: int) -> dict[Role, list[int]]:
    """The positions of a prompt by role.

    Each position has at most one role. The prompt's last token is ``"last"`` whatever else it is.
    The subject's last token is ``"last subject"`` even if it is its first, too. Tokens before the
    subject have no role.
    """
    start, end = subject
    candidates: dict[Role, Iterable[int]] = {
        "first subject": [start],
        "middle subject": range(start + 1, end - 1),
        "last subject": [end - 1],
        "first subsequent": [end],
        "further": range(end + 1, length - 1),
        "last": [length - 1],
    }
    by_priority: tuple[Role, ...] = (
        "last",
        "last subject",
        "first subject",
        "middle subject",
        "first subsequent",
        "further",
    )
    taken: set[int] = set()
    positions: dict[Role, list[int]] = {}
    for role in by_priority:
        positions[role] = [pos for pos in candidates[role] if pos < length and pos not in taken]
        taken.update(positions[role])
    return {role: positions[role] for role in ROLES}


def average_traces(traces: TracedFacts | Iterable[CausalTrace]) -> TraceAverage:
    """The average total effect, and the average indirect effects by layer and role, over facts.

    The tokens of one role are averaged within a fact first. Facts that the model does not know have
    no trace. Those that :func:`~rome_lens.trace_facts` left out are named in ``unknown``.

    Args:
        traces: the result of :func:`~rome_lens.trace_facts`, or traces made with the same options.

    Raises:
        ArgumentError: there is no trace; a trace is of single heads, or does not cover all
            positions; or two traces differ in component, window, layers, noise, samples or model,
            or are of the same fact.

    Source: Meng et al. 2022, section 2.2 (AIE and ATE over 1000 facts).

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> facts = rl.data.records(known_by="toy")[:5]
        >>> average = rl.average_traces(rl.trace_facts(model, facts, samples=2))
        >>> average.indirect_effects.shape, average.roles[2]
        (torch.Size([6, 6]), 'last subject')
        >>> average.peak("last subject"), average.peak("last")
        (2, 5)
    """
    averaged = tuple(several("traces", traces, "several traces, as trace_facts returns them"))
    unknown = traces.unknown if isinstance(traces, TracedFacts) else ()
    if not averaged:
        raise ArgumentError(
            f"There is nothing to average: there is no trace, and the model does not know "
            f"{len(unknown)} of the facts."
        )
    _check_alike(averaged)
    first = averaged[0]
    return TraceAverage(
        component=first.component,
        window=first.window,
        layers=first.layers,
        roles=ROLES,
        fact_effects=torch.stack([_effects_by_role(trace) for trace in averaged]),
        clean_scores=torch.tensor(
            [trace.clean for trace in averaged], dtype=torch.float64, device="cpu"
        ),
        corrupted_scores=torch.tensor(
            [trace.corrupted for trace in averaged], dtype=torch.float64, device="cpu"
        ),
        subjects=tuple(trace.fact.subject for trace in averaged),
        unknown=tuple(fact.text for fact, _ in unknown),
        samples=len(first.corrupted_samples),
        noise=first.noise,
        model_fingerprint=first.model_fingerprint,
        relations=tuple(relation_of(trace.fact) for trace in averaged),
        metric=first.metric,
        direction=first.direction,
        model_name=first.model_name,
    )


def _effects_by_role(trace: CausalTrace) -> Float[Tensor, "layer role"]:
    effects = trace.indirect_effects[
        :, torch.tensor(trace.positions, dtype=torch.long, device="cpu").argsort()
    ]
    columns = [
        effects[:, positions].mean(1)
        for positions in roles_of(trace.subject, len(trace.labels)).values()
    ]
    return torch.stack(columns, dim=1).double()


def _check_alike(traces: Sequence[CausalTrace]) -> None:
    """Refuse traces that were made with different options, and facts that would count twice."""
    first = traces[0]
    seen: set[tuple[str, ...]] = set()
    for trace in traces:
        _check_options(trace, first)
        text = trace.fact.text
        if sorted(trace.positions) != list(range(len(trace.labels))):
            raise ArgumentError(
                f"{text!r} was traced at positions {list(trace.positions)}, expected all positions."
            )
        question = (text, trace.fact.joiner, trace.fact.target, trace.given, trace.answer)
        if question in seen:
            raise ArgumentError(f"{text!r} is given twice, but each fact counts once.")
        seen.add(question)


def _check_options(trace: CausalTrace, first: CausalTrace) -> None:
    # A trace of an older version does not say how its answer was scored.
    scoring = "answer_tokens" if first.scoring is None else "scoring"
    names = ("component", "window", "layers", "noise", scoring, "metric", "direction")
    for name in (*names, "model_fingerprint"):
        own, expected = getattr(trace, name), getattr(first, name)
        if name == "model_fingerprint":  # older versions stored less of it
            own, expected = exact(own), exact(expected)
        if own != expected:
            raise ArgumentError(
                f"The trace of {trace.fact.text!r} has {name} {own!r}, but that of "
                f"{first.fact.text!r} has {expected!r}. Only traces made with the same options can "
                "be averaged."
            )
    if trace.heads:
        raise ArgumentError(
            "Traces of single heads have no average by role: average traces of 'attn' instead."
        )
    if len(trace.corrupted_samples) != len(first.corrupted_samples):
        raise ArgumentError(
            f"The trace of {trace.fact.text!r} has {len(trace.corrupted_samples)} samples, but "
            f"that of {first.fact.text!r} has {len(first.corrupted_samples)}: expected equal "
            "numbers."
        )
