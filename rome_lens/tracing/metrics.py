"""What a trace measures of a run: the metrics of the answer.

The study measures the probability of the answer. Probabilities hide what happens where they are
small, and saturate where they are large. Zhang and Nanda 2023 ("Towards Best Practices of
Activation Patching in Language Models", section 4) compare them with logit differences and KL
divergences, and find that they can point to other components.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from rome_lens.errors import ArgumentError
from rome_lens.forward.memory import on_device, rows_per_batch
from rome_lens.forward.partial import PartialForward
from rome_lens.forward.runs import log_probabilities
from rome_lens.forward.tokens import FactTokens, ScoredAnswer
from rome_lens.models.hook_names import has_hooks_after_blocks

MetricName = Literal["probability", "log_prob", "logit_difference", "kl"]
"""The metrics with a name.

With ``o`` the scored tokens of the answer, and ``o*`` the token of the new target in its place:

* ``"probability"``: ``p(o)``;
* ``"log_prob"``: ``log p(o)``, in nats;
* ``"logit_difference"``: ``logit(o) - logit(o*)``, of one scored token each;
* ``"kl"``: ``-KL(clean || run)`` of the next token's distribution, summed over the positions that
  are read, in nats. It is 0 in the clean run and negative elsewhere. So in every metric, more is
  nearer to the clean run.
"""
Metric: TypeAlias = MetricName | Callable[[Tensor], Tensor]
"""The name of a metric, or a function from the logits ``[row, d_vocab]`` at the last position to
one number for each row, as TransformerLens' patching takes it."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the runs of one fact are scored."""

    metric: Metric
    """The metric."""
    answer: tuple[int, ...]
    """The scored tokens, predicted at the last positions."""
    foil: int | None
    """The token of the new target in the place of the last scored one, for a logit difference."""
    clean: Float[Tensor, "read d_vocab"] | None = None
    """The log probabilities of the clean run, for KL."""

    @property
    def read(self) -> int:
        """The number of positions that are read."""
        return len(self.answer)

    def scores(self, logits: Float[Tensor, "row read d_vocab"]) -> Float[Tensor, " row"]:
        """The score of each row.

        Raises:
            ArgumentError: the metric is a function that does not return one number for each row.
        """
        if self.metric == "logit_difference":
            return logits[:, -1, self.answer[-1]] - logits[:, -1, self.foil]
        if self.metric == "kl":
            assert self.clean is not None
            log_q = logits - logits.logsumexp(-1, keepdim=True)
            return (self.clean.exp() * (log_q - self.clean)).sum((1, 2))
        if callable(self.metric):
            return _of_function(self.metric, logits[:, -1])
        answer = torch.tensor(self.answer, dtype=torch.long, device="cpu").repeat(len(logits))
        log_p = log_probabilities(logits.flatten(0, 1), answer).view(len(logits), -1).sum(1)
        return log_p if self.metric == "log_prob" else log_p.exp()


def reading_of(metric: Metric, encoded: FactTokens, answer: ScoredAnswer) -> Reading:
    """How the runs of a fact are scored by a metric.

    Raises:
        ArgumentError: the metric is unknown; or it is the logit difference, and the fact has no new
            target, or no single token tells its answers apart.
    """
    check_metric(metric)
    foil: int | None = None
    if metric == "logit_difference":
        following = encoded.new_answer[len(answer.given) :]
        if len(answer.tokens) != 1 or not following:
            raise ArgumentError(
                "metric='logit_difference' compares one token of the target with one token of the "
                "new target. This fact has "
                + ("no such pair of tokens." if encoded.new_answer else "no new target: give one.")
            )
        foil = following[0]
    return Reading(metric=metric, answer=answer.tokens, foil=foil)


def check_metric(metric: object) -> None:
    """Refuse what is neither the name of a metric nor a function.

    Raises:
        ArgumentError: it is neither.
    """
    if not callable(metric) and metric not in get_args(MetricName):
        known = ", ".join(map(repr, get_args(MetricName)))
        raise ArgumentError(f"metric is {metric!r}, expected one of {known}, or a function.")


def metric_text(metric: Metric) -> str:
    """The metric as results name it: its name, or that of the function."""
    if isinstance(metric, str):
        return metric
    name = getattr(metric, "__qualname__", None)
    return repr(metric) if name is None else f"{metric.__module__}.{name}"


def row_scores(
    forward: PartialForward,
    readings: Sequence[Reading],
    finals: Float[Tensor, "row read d_model"],
    owners: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """The score of each row, read from the last positions of final streams.

    Args:
        forward: the model.
        readings: how each fact is scored, all by the same metric.
        finals: the last stream at the last positions, at least as many as a fact reads.
        owners: the number of each row's fact.
    """
    if readings[0].metric in ("probability", "log_prob"):
        log_probs = _log_probs(forward, readings, finals, owners)
        return log_probs.exp() if readings[0].metric == "probability" else log_probs
    order, scores = [], []
    for number in owners.unique().tolist():
        reading, rows = readings[number], (owners == number).nonzero()[:, 0]
        streams = finals[on_device(rows, finals.device), -reading.read :]
        most = rows_per_batch(12 * forward.model.cfg.d_vocab * reading.read, finals.device)
        order.append(rows)
        scores += [reading.scores(_logits(forward, some)) for some in streams.split(most)]
    return torch.cat(scores)[torch.cat(order).argsort().to(finals.device)]


def _log_probs(
    forward: PartialForward,
    readings: Sequence[Reading],
    finals: Float[Tensor, "row read d_model"],
    owners: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """The log probability of each row's answer. The logits are never held all at once."""
    lengths = torch.tensor([each.read for each in readings], dtype=torch.long, device="cpu")[owners]
    order, log_probs = [], []
    for read in sorted(set(lengths.tolist())):
        rows = (lengths == read).nonzero()[:, 0]
        answers = torch.tensor(
            [readings[owner].answer for owner in owners[rows].tolist()],
            dtype=torch.long,
            device="cpu",
        )
        order.append(rows)
        log_probs.append(
            forward.answer_log_probs(finals[on_device(rows, finals.device), -read:], answers)
        )
    return torch.cat(log_probs)[torch.cat(order).argsort().to(finals.device)]


def _logits(
    forward: PartialForward, finals: Float[Tensor, "row read d_model"]
) -> Float[Tensor, "row read d_vocab"]:
    rows, read, _ = finals.shape
    if not has_hooks_after_blocks(forward.model):
        return forward.logits(finals.flatten(0, 1)).view(rows, read, -1)
    # These hooks must find all positions in their places.
    whole = pad(finals, (0, 0, forward.length - read, 0))
    row = torch.arange(rows, device="cpu").repeat_interleave(read)
    pos = torch.arange(forward.length - read, forward.length, device="cpu").repeat(rows)
    return forward.logits_at([(whole, row, pos)]).view(rows, read, -1)


def _of_function(
    metric: Callable[[Tensor], Tensor], logits: Float[Tensor, "row d_vocab"]
) -> Float[Tensor, " row"]:
    scores = metric(logits)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        what = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ArgumentError(
            f"The metric {metric_text(metric)} returned {what} for logits {list(logits.shape)}, "
            f"expected a tensor [{len(logits)}] with one number for each row."
        )
    if not torch.isfinite(scores).all():
        raise ArgumentError(f"The metric {metric_text(metric)} returned NaN or infinity.")
    return scores
