"""The result of :func:`rome_lens.trace_edit`."""

from dataclasses import dataclass
from typing import ClassVar

import scipy

from rome_lens.errors import ArgumentError
from rome_lens.tracing.results import CausalTrace

_PRESENT = 0.3


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class EditTrace(CausalTrace):
    """The result of :func:`trace_edit`.

    ``clean`` is the score of the edited model, and ``corrupted`` that of the unedited one. There is
    no noise, so there is a single sample. In denoising, an edited state is put into the unedited
    run; in noising, an unedited state is put into the edited run.
    """

    unbounded: ClassVar = frozenset({"firing"})

    edited_layers: tuple[int, ...]
    """The layers whose ``W_out`` the edit changes."""
    firing: tuple[float, ...] = ()
    """The edit's firing at every token of the prompt; 1 is the firing on its own fact. Empty for an
    edit that is not of rank one or names no key."""
    begins_with_bos: bool = False
    """Whether the first token is BOS."""
    overtakes: bool | None = None
    """Whether the edited model finds the new target likelier than the true one, at the first token
    in which the two differ. None if one is the other's beginning, and in a file of an older
    version."""

    @property
    def strongest_firing(self) -> tuple[int, float] | None:
        """The position where the edit fires most strongly, and how strongly; None if unknown.

        A BOS token at the start is left out, because its key is the same in every prompt.
        """
        counted = range(int(self.begins_with_bos), len(self.firing))
        if not counted:
            return None
        pos = max(counted, key=lambda i: abs(self.firing[i]))
        return pos, self.firing[pos]

    def path_correlation(self, natural: CausalTrace) -> float:
        """Spearman's rank correlation of the edit's effects with those of a causal trace.

        It is over the cells from the first edited layer and the first traced subject token on.
        Earlier cells cannot carry the edit. With the trace of the true target in the unedited
        model, it tells whether the new target takes the path that the true one took.

        Args:
            natural: a causal trace of the same prompt, component and window, such as
                ``rl.causal_trace(model, fact)``.

        Returns:
            The correlation; NaN if fewer than five common cells are left, or if either trace is the
            same in all of them.

        Raises:
            ArgumentError: the trace is of another prompt, component, window or heads.
        """
        for name in ("labels", "component", "window", "heads"):
            if getattr(natural, name) != getattr(self, name):
                raise ArgumentError(
                    f"The causal trace has {name} {getattr(natural, name)!r}, but the edit's trace "
                    f"has {getattr(self, name)!r}: trace the same prompt with the same options."
                )
        layers = [
            each
            for each in self.layers
            if each >= min(self.edited_layers) and each in natural.layers
        ]
        positions = [
            pos for pos in self.positions if pos >= natural.subject[0] and pos in natural.positions
        ]
        if len(layers) * len(positions) < 5:
            return float("nan")
        own, other = (
            trace.indirect_effects[[trace.layers.index(each) for each in layers]][
                :, [trace.positions.index(pos) for pos in positions]
            ]
            for trace in (self, natural)
        )
        if own.unique().numel() < 2 or other.unique().numel() < 2:
            return float("nan")
        return float(scipy.stats.spearmanr(own.flatten(), other.flatten()).statistic)

    @property
    def reading(self) -> str:
        """In one or two sentences, how far the edit gets on this prompt.

        An edit that fires with less than 0.3 is called absent. One that fires is called not read
        out if the true target stays at least as likely as the new one (:attr:`overtakes`), whatever
        the metric. So where the new target is the model's first choice, it is read out, however far
        its probability is from 1.
        """
        layer, pos, *_ = self.peak()
        what = (
            f"{self.metric} of {self.answer.strip()!r}: {self.corrupted:.3f} without the edit, "
            f"{self.clean:.3f} with it."
        )
        strongest = self.strongest_firing
        if strongest is not None and abs(strongest[1]) < _PRESENT:
            return (
                f"{what} The key is absent: it fires {strongest[1]:.2f} at most "
                f"(at {self.labels[strongest[0]]!r}), so there is little to read out."
            )
        at = f"layer {layer}, {self.labels[pos]!r}"
        verb = "suffices" if self.direction == "denoising" else "is needed"
        fired = "" if strongest is None else f"The key fires {strongest[1]:.2f}. "
        if self.overtakes is False:
            return f"{what} {fired}What is written is not read out. What {verb} most is at {at}."
        return f"{what} {fired}What {verb} most is at {at}."
