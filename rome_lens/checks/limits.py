"""Every check of one edit at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rome_lens.checks.asking import fact_of
from rome_lens.checks.claims.association import association, description
from rome_lens.checks.claims.bleed_over import bleed_over
from rome_lens.checks.claims.consequence import consequence
from rome_lens.checks.claims.direction import direction
from rome_lens.checks.claims.dominance import dominance
from rome_lens.checks.claims.essence import essence
from rome_lens.checks.claims.fidelity import fidelity
from rome_lens.checks.claims.localisation import ASKS
from rome_lens.checks.result import CheckResult, firing_correlation, named, not_asked, shown
from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record
from rome_lens.evaluation.numbered_edits import NumberedEdits
from rome_lens.models.lens import LensModel
from rome_lens.results import Stored


@dataclass(frozen=True, kw_only=True, repr=False)
class Limits(Stored):
    """The results of every check on one edit.

    Attributes:
        record_id, relation: of the record.
        results: of each check, in the order of the README's table.
        edit: what made the edit, in words; ``model_fingerprint`` of its model, None where the edit does not say.
    """

    record_id: str
    relation: str
    results: tuple[CheckResult, ...]
    edit: str = ""
    model_fingerprint: str | None = None

    def __getitem__(self, name: str) -> CheckResult:
        found = named(name, [result.name for result in self.results])
        return next(result for result in self.results if result.name == found)

    @property
    def firing_correlation(self) -> float | None:
        """Spearman's correlation of ``|u . k| / (u . k*)`` with ``KL(before || after)`` over all prompts of all checks.

        Where it is high, the edit acts where its key is present. That is a correlation: it does not explain why a single
        alias fails. None with fewer than five prompts, and for an edit that has no key.
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
        """One line for each check: effect, effect where the model could, control, sentence."""
        lines = [
            [
                r.name,
                r.effect_is,
                *shown([r.effect, r.effect_where_known, r.control], [r]),
                r.reading,
            ]
            for r in self.results
        ]
        return pd.DataFrame(
            lines, columns=["check", "effect is", "effect", "where known", "control", "reading"]
        )


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
    """Ask every check about an edit; the weights stay untouched, and hooks that the caller has on stay on.

    Whether tracing tells where to edit takes many facts and layers, and is asked of :func:`rome_lens.layer_sweep`'s result by
    :func:`localisation`; of one edit it is "not asked".

    Args:
        edit: any that :func:`rome_lens.evaluate` takes; what needs a key (firing, norms) is asked of rank-one edits alone.
        others: edits of other facts, the control of :func:`fidelity`.
        texts: other text for it to read; None takes those of ``data.held_texts()`` that fit its context.
        samples: continuations of each open prompt in :func:`dominance`; 0 samples none.
        new_tokens: length of what the model writes in :func:`fidelity`; 0 writes nothing.
        seed: of all sampling.

    Raises:
        ModelError: the edit was made on another model, or is already in this one's weights.
        ValueError: edit or record is none; the record has no new target, or is about another fact than the edit.
    """
    record, _, _ = fact_of(edit, record)
    NumberedEdits(
        model, [edit, *others]
    )  # an edit of another model is refused before anything is asked
    return Limits(
        record_id=str(record.id),
        relation=record.relation,
        edit=getattr(edit, "made_with", "") or repr(edit),
        model_fingerprint=getattr(edit, "model_fingerprint", None),
        results=(
            direction(model, edit, record, prepend_bos=prepend_bos),
            association(model, edit, record, prepend_bos=prepend_bos),
            description(model, edit, record, prepend_bos=prepend_bos),
            dominance(model, edit, record, samples=samples, seed=seed, prepend_bos=prepend_bos),
            bleed_over(model, edit, record, prepend_bos=prepend_bos),
            consequence(model, edit, record, prepend_bos=prepend_bos),
            essence(model, edit, record, seed=seed, prepend_bos=prepend_bos),
            fidelity(
                model,
                edit,
                record,
                others=others,
                texts=texts,
                new_tokens=new_tokens,
                seed=seed,
                prepend_bos=prepend_bos,
            ),
            not_asked(
                "localisation",
                ASKS,
                "it takes many facts and layers, see rl.layer_sweep and rl.checks.localisation",
            ),
        ),
    )
