"""Every check of one edit at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rome_lens.arguments import several, whole_number
from rome_lens.arguments import texts as several_texts
from rome_lens.checks.answered import text_question
from rome_lens.checks.check import Check, UneditedModel, checked_record, run_checks_of_each
from rome_lens.checks.claims import localisation
from rome_lens.checks.claims.association import Association, Description
from rome_lens.checks.claims.bleed_over import BleedOver
from rome_lens.checks.claims.consequence import Consequence
from rome_lens.checks.claims.direction import Direction
from rome_lens.checks.claims.essence import Essence
from rome_lens.checks.claims.fidelity import Fidelity, other_texts
from rome_lens.checks.claims.generalisation import Generalisation
from rome_lens.checks.claims.overfit import Overfit
from rome_lens.checks.claims.specificity import Specificity
from rome_lens.checks.result import (
    CheckResult,
    average_cells,
    firing_correlation,
    matching_name,
    not_asked,
)
from rome_lens.data.bundled import held_texts
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.data.relations import relation_of
from rome_lens.models.door import visits_model
from rome_lens.models.fingerprints import name_of
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored


@dataclass(frozen=True, kw_only=True, repr=False)
class Limits(Stored):
    """The results of every check of one edit; ``limits["direction"]`` is that of one check."""

    record_id: str
    """The record's ``id``."""
    relation: str
    """The record's relation; its prompt, if the relation has no name."""
    results: tuple[CheckResult, ...]
    """One result for each check, in the order of the README's table."""
    edit: str = ""
    """What made the edit, in words."""
    model_fingerprint: str | None = None
    """Fingerprint of the edited model; None if the edit does not say."""
    model_name: str = ""
    """The name of the model, for titles. Empty in a file of an older version."""
    fact: str = ""
    """The prompt, its true answer and the new one, for titles. Empty in an older file."""

    def __getitem__(self, name: str) -> CheckResult:
        """The result of the check of this name.

        Raises:
            UnknownNameError: there is no check of this name.
        """
        own_name = matching_name(name, [result.name for result in self.results])
        return next(result for result in self.results if result.name == own_name)

    @property
    def firing_correlation(self) -> float | None:
        """Spearman's correlation of ``|u . k| / (u . k*)`` with ``KL(before || after)``.

        It is over all prompts of all checks. If it is high, the edit acts where its key is
        present. This is a correlation: it does not explain why a single alias fails. None below
        five prompts, and for an edit without a key.
        """
        return firing_correlation([row for result in self.results for row in result.rows])

    def to_frame(self) -> pd.DataFrame:
        """One row for each prompt of each check that was asked."""
        frames = [result.to_frame() for result in self.results if result.rows]
        if not frames:
            return self.results[0].to_frame()
        return pd.DataFrame(
            [row for frame in frames for row in frame.to_dict("records")], columns=frames[0].columns
        )

    def table(self) -> pd.DataFrame:
        """One line for each check: effect, effect where known, control, and the sentence."""
        lines = [
            [
                r.name,
                r.effect_is,
                *average_cells([r.effect, r.effect_where_known, r.control], [r]),
                r.reading,
            ]
            for r in self.results
        ]
        return pd.DataFrame(
            lines, columns=["check", "effect is", "effect", "where known", "control", "reading"]
        )


@visits_model
def check_limits(
    model: LensModel,
    edit: Any,
    record: Fact | Record,
    *,
    others: Sequence[Any] = (),
    texts: Sequence[str] | None = None,
    samples: int = 4,
    new_tokens: int = 30,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> Limits:
    """The results of every check of an edit.

    The questions of all checks are asked together, without and with the edit. The weights stay
    untouched. Hooks that the caller has on stay on, and are part of both. A check whose prompts the
    record lacks is "not asked". A bare fact has prompts for :func:`rome_lens.checks.overfit` and
    :func:`rome_lens.checks.essence` only, and :func:`rome_lens.checks.fidelity` needs none.

    Whether tracing tells where to edit takes many facts and layers. Of one edit it is "not asked":
    call :func:`rome_lens.checks.localisation` with the result of :func:`rome_lens.layer_sweep`.

    Args:
        edit: any edit that :func:`rome_lens.evaluate` takes. Only rank-one edits have a key, so
            only they have a firing.
        record: the record that the edit was made from, or a bare fact.
        others: edits of other facts, the control of :func:`rome_lens.checks.fidelity`.
        texts: other texts for fidelity to read. None takes those of ``rl.data.held_texts()`` that
            fit the model's context. Texts that name the edited subject are left out, and counted.
        samples: sampled continuations of each open prompt in :func:`rome_lens.checks.overfit`, in
            addition to a greedy one; 0 writes nothing.
        new_tokens: length of what the model writes in fidelity; 0 writes nothing.
        seed: seed of all draws.
        prepend_bos: whether prompts start with a BOS token; None takes the model's own default.

    Raises:
        ArgumentError: the edit is not an edit, or the record is not a record; the record is about
            another fact than the edit; ``samples`` or ``new_tokens`` is negative.
        RecordError: the record's fact has no new target.
        FactError: a text is a single word.
        ModelError: the edit was made on another model, or is already in this model's weights; or
            the caller has a hook on the very output that the edit adds to.

    Example:
        >>> import rome_lens as rl
        >>> model = rl.load_model("toy")
        >>> record = rl.data.records(known_by="toy")[0]
        >>> C = rl.KeyStatistics.identity(model, layer=2)
        >>> edit = rl.rome(model, record, layer=2, statistics=C, contexts=["{}"])
        >>> limits = rl.check_limits(model, edit, record, samples=0, new_tokens=0)
        >>> [result.name for result in limits.results if result.asked]
        ['generalisation', 'direction', 'association', 'description', 'overfit', ...]
        >>> round(limits["association"].effect.mean, 2)  # an alias keeps nothing of the edit
        0.0
        >>> round(limits["description"]["share kept, description with the name"].mean, 1)
        1.0
    """
    settings = LimitsSettings(
        texts=texts, samples=samples, new_tokens=new_tokens, seed=seed, prepend_bos=prepend_bos
    )
    return next(limits_of_each(model, [(edit, record)], settings, others=others))


@dataclass(frozen=True, kw_only=True)
class LimitsSettings:
    """The arguments of :func:`check_limits` that edits checked together share.

    Raises:
        ArgumentError: a number is out of range, or ``texts`` is a single text.
        FactError: a text is a single word.
    """

    texts: Sequence[str] | None
    """Other texts to read; None takes the bundled ones."""
    samples: int
    """Sampled continuations of each open prompt."""
    new_tokens: int
    """Length of what the model writes in fidelity."""
    seed: int
    """Seed of all draws."""
    prepend_bos: bool | None
    """Whether the questions start with a BOS token."""

    def __post_init__(self) -> None:
        for name in ("samples", "new_tokens"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=0))
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        if self.texts is not None:
            object.__setattr__(self, "texts", several_texts("texts", self.texts))
        for text in self.texts or ():
            text_question(text)

    def stored_as(self) -> tuple[object, ...]:
        """What a stored result depends on."""
        read = tuple(held_texts() if self.texts is None else self.texts)
        return (read, self.samples, self.new_tokens, self.seed, self.prepend_bos)


def limits_of_each(
    model: LensModel,
    edits: Sequence[tuple[Any, Fact | Record]],
    settings: LimitsSettings,
    *,
    others: Sequence[Any] = (),
    unedited: UneditedModel | None = None,
) -> Iterator[Limits]:
    """What :func:`check_limits` returns for each pair of an edit and its record.

    The texts of all edits are written in one batch, at the first step.

    Args:
        unedited: as for :func:`rome_lens.checks.check.run_checks_of_each`.
    """
    cases = [(edit, checked_record(edit, record)) for edit, record in edits]
    jobs = [(_checks(model, *case, settings, others), *case) for case in cases]
    found = run_checks_of_each(model, jobs, unedited=unedited, prepend_bos=settings.prepend_bos)
    for (edit, record), results in zip(cases, found, strict=True):
        yield Limits(
            record_id=str(record.id),
            relation=relation_of(record),
            edit=getattr(edit, "made_with", "") or repr(edit),
            model_fingerprint=getattr(edit, "model_fingerprint", None),
            model_name=name_of(model),
            fact=f"{record.fact.text} {record.fact.target} → {record.fact.new_target}",
            results=(
                *results,
                not_asked(
                    localisation.NAME,
                    localisation.ASKS,
                    "it takes many facts and layers, see rl.layer_sweep and rl.checks.localisation",
                ),
            ),
        )


def _checks(
    model: LensModel, edit: Any, record: Record, settings: LimitsSettings, others: Sequence[Any]
) -> list[Check]:
    read, left_out = other_texts(model, edit, record, settings.texts, settings.prepend_bos)
    return [
        Generalisation(),
        Direction(),
        Association(),
        Description(),
        Overfit(samples=settings.samples, seed=settings.seed),
        BleedOver(),
        Consequence(),
        Specificity(seed=settings.seed),
        Essence(seed=settings.seed),
        Fidelity(
            others=tuple(several("others", others, "a list of edits of other facts")),
            texts=read,
            left_out=left_out,
            new_tokens=settings.new_tokens,
            seed=settings.seed,
        ),
    ]
