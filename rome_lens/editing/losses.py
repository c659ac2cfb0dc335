"""The loss of a value, for several facts side by side.

:mod:`rome_lens.editing.value_optimisation` states the equation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.editing.config import RomeConfig
from rome_lens.editing.edited_layer import EditedLayer
from rome_lens.editing.prompts import EditRows


class Terms(NamedTuple):
    """The terms of each fact's loss, and the new target's two probabilities (see ``Step``)."""

    nll: Float[Tensor, " fact"]
    kl: Float[Tensor, " fact"]
    decay: Float[Tensor, " fact"]
    probability: Float[Tensor, " fact"]
    answer_probability: Float[Tensor, " fact"]

    @property
    def loss(self) -> Float[Tensor, " fact"]:
        """The whole loss."""
        return self.nll + self.kl + self.decay


class Losses:
    """The losses of some facts as functions of their ``delta``.

    The first call must be at ``delta = 0``: it compares the later layers with the whole model, and
    keeps the prediction at the KL prompt.

    Args:
        state: the edited layer on the rows of all facts.
        rows: the rows of each fact, all in the same number of contexts.
        config: the hyperparameters.
        starts: ``v_0`` of each fact.
    """

    def __init__(
        self,
        state: EditedLayer,
        rows: Sequence[EditRows],
        config: RomeConfig,
        starts: Float[Tensor, "fact d_model"],
    ) -> None:
        self._state, self._all_rows, self._config, self._starts = state, rows, config, starts
        self._initial: Float[Tensor, "fact d_vocab"] | None = None
        self._keep(range(len(rows)))

    def _keep(self, facts: Sequence[int]) -> None:
        """Have losses of these facts only."""
        if len(facts) < len(self._all_rows):
            self._rows = self._state.rows.of_facts(facts)
        else:
            self._rows = self._state.rows
        self.facts = list(facts)
        self.numbers = torch.tensor(self.facts, dtype=torch.long, device=self._starts.device)
        self._reads = _Reads.of([self._all_rows[i] for i in facts], self._starts)

    def of_facts(self, facts: Sequence[int]) -> "Losses":
        """The losses of some of the facts."""
        others = Losses(self._state, self._all_rows, self._config, self._starts)
        others._initial = self._initial
        others._keep(facts)
        return others

    def __call__(self, deltas: Float[Tensor, "all_facts d_model"]) -> Terms:
        """The terms of the losses.

        Raises:
            ResumeError: at the first call, if the later layers alone do not give what the whole
                model gives.
        """
        config, reads, numbers = self._config, self._reads, self.numbers
        log_p = self._state.log_probs(deltas[numbers], self._rows)
        if self._initial is None:
            self._state.check(log_p)
            self._initial = log_p[reads.of_kl].detach()
        nll, probability, answer = reads.nll_and_probabilities(log_p)
        kl = config.kl_factor * reads.kl(log_p, self._initial[numbers])
        decay = config.weight_decay * config.norm(deltas) / config.norm(self._starts) ** 2
        return Terms(nll, kl, decay[numbers], probability, answer)


@dataclass(frozen=True, kw_only=True)
class _Reads:
    """What the losses take from the log probabilities that :meth:`EditedLayer.log_probs` returns.

    Those of a fact are the predictions of the target's tokens, context by context, and then that of
    the KL prompt.
    """

    of_target: Int[Tensor, " read"]
    """The numbers of the predictions of a target token."""
    target: Int[Tensor, " read"]
    """The token that each of them predicts."""
    context: Int[Tensor, " read"]
    """The context of each of them, counted over all facts."""
    weight: Float[Tensor, " read"]
    """One over the number of tokens of its target."""
    length: Float[Tensor, " fact"]
    """The number of tokens of each fact's target."""
    of_kl: Int[Tensor, " fact"]
    """The number of each fact's prediction at the KL prompt."""
    n_contexts: int
    """The number of contexts of each fact."""

    @classmethod
    def of(cls, rows: Sequence[EditRows], like: Tensor) -> "_Reads":
        """For the predictions of these facts, on the device and in the precision of ``like``."""
        n_contexts = len(rows[0].target_positions)
        of_target, target, lengths, of_kl = [list[int]() for _ in range(4)]
        for each in rows:
            first, count = len(of_target) + len(of_kl), each.target_positions.numel()
            of_target += range(first, first + count)
            target += each.target.tolist() * n_contexts
            lengths += [len(each.target)] * n_contexts
            of_kl.append(first + count)

        def on_device(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long, device=like.device)

        context = [i for i, length in enumerate(lengths) for _ in range(length)]
        return cls(
            of_target=on_device(of_target),
            target=on_device(target),
            context=on_device(context),
            weight=1 / on_device(lengths).to(like)[on_device(context)],
            length=on_device(lengths[::n_contexts]).to(like),
            of_kl=on_device(of_kl),
            n_contexts=n_contexts,
        )

    def nll_and_probabilities(
        self, log_p: Float[Tensor, "read d_vocab"]
    ) -> tuple[Float[Tensor, " fact"], Float[Tensor, " fact"], Float[Tensor, " fact"]]:
        """``mean_contexts mean_target -log p``, and the mean over contexts of both probabilities.

        The first is ``exp mean_target log p``, the second ``exp sum_target log p``.
        """
        weighted = self.weight * log_p[self.of_target, self.target]
        contexts = weighted.new_zeros(self.n_contexts * len(self.of_kl))
        contexts = contexts.index_add(0, self.context, weighted).view(-1, self.n_contexts)
        whole = self.length[:, None] * contexts
        return -contexts.mean(1), contexts.exp().mean(1), whole.exp().mean(1)

    def kl(
        self, log_p: Float[Tensor, "read d_vocab"], initial: Float[Tensor, "fact d_vocab"]
    ) -> Float[Tensor, " fact"]:
        """``KL(p || p_0)`` at the KL prompts, in nats, from ``log p_0``."""
        at_kl = log_p[self.of_kl]
        return (at_kl.exp() * (at_kl - initial)).sum(-1)
