"""What is asked of an edit of many facts: about some of them, and about other texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens import data
from rome_lens.arguments import texts as several_texts
from rome_lens.checks.answered import text_question
from rome_lens.checks.check import run_checks
from rome_lens.checks.claims.essence import Essence
from rome_lens.checks.claims.fidelity import fits_context
from rome_lens.checks.claims.generalisation import OWN as OWN_PROMPT
from rome_lens.checks.claims.generalisation import PARAPHRASE, Generalisation
from rome_lens.data.record_type import Record, names_subject
from rome_lens.data.relations import relation_of
from rome_lens.editing.edit import Edit
from rome_lens.evaluation.evaluating import evaluate_all
from rome_lens.forward.answers import token_log_probs
from rome_lens.models.lens import LensModel


@dataclass(frozen=True, kw_only=True)
class OtherTexts:
    """Texts that every edit is asked to read, and how the unedited model reads them."""

    texts: tuple[str, ...]
    """The texts."""
    before: Float[Tensor, " text"]
    """The unedited model's nats per token of each text."""
    prepend_bos: bool | None
    """Whether they start with a BOS token."""

    @classmethod
    def of(
        cls, model: LensModel, texts: Sequence[str] | None, prepend_bos: bool | None
    ) -> "OtherTexts":
        """The given texts, or the bundled ones that fit the model's context."""
        if texts is None:
            held = data.held_texts()
            read = tuple(text for text in held if fits_context(model, text, prepend_bos))
        else:
            read = several_texts("texts", texts)
        before = _nats_per_token(model, read, prepend_bos)
        return cls(texts=read, before=before, prepend_bos=prepend_bos)


def _nats_per_token(
    model: LensModel, texts: Sequence[str], prepend_bos: bool | None
) -> Float[Tensor, " text"]:
    questions = [text_question(text) for text in texts]
    found = (
        token_log_probs(
            model,
            questions,
            marks=[0] * len(questions),
            hooks_of_rows=lambda _: (),
            prepend_bos=prepend_bos,
        )
        if questions
        else []
    )
    values = [-float(each.double().mean()) for each in found]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def scores_of(
    model: LensModel,
    edit: Edit,
    batch: Sequence[Record],
    scored: Sequence[Record],
    others: OtherTexts,
) -> dict[str, Any]:
    """The scores of an edit, as fields of a ``CurveBatch``.

    Args:
        batch: the edited facts.
        scored: those of them that are asked about.
    """
    scored = [_with_unedited_neighbours(record, batch) for record in scored]
    evaluations = evaluate_all(model, [edit] * len(scored), scored, prepend_bos=others.prepend_bos)
    exact, paraphrases, essence = list[float](), list[float](), list[float]()
    for record in scored:
        written, moved = run_checks(
            [Generalisation(), Essence()], model, edit, record, prepend_bos=others.prepend_bos
        )
        shares = {each.name: each.average.mean for each in written.further}
        exact.append(shares.get(f"exact match, {OWN_PROMPT}", math.nan))
        paraphrases.append(shares.get(f"exact match, {PARAPHRASE}", math.nan))
        essence.append(math.nan if moved.effect is None else moved.effect.mean)
    with edit.applied(model):
        after = _nats_per_token(model, others.texts, others.prepend_bos)
    named = [_names_an_edited_subject(text, batch) for text in others.texts]
    change = (after - others.before).masked_fill(
        torch.tensor(named, dtype=torch.bool, device="cpu"), math.nan
    )

    def tensor(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    return {
        "evaluations": tuple(evaluations),
        "exact": tensor(exact),
        "paraphrases": tensor(paraphrases),
        "essence": tensor(essence),
        "fidelity": change,
    }


def _with_unedited_neighbours(record: Record, batch: Sequence[Record]) -> Record:
    alike = [each for each in batch if relation_of(each) == relation_of(record)]
    unedited = [
        each for each in record.neighborhood if not _names_an_edited_subject(each.prompt, alike)
    ]
    return replace(record, neighborhood=tuple(unedited))


def _names_an_edited_subject(text: str, batch: Sequence[Record]) -> bool:
    return any(names_subject(record.fact.subject, text) for record in batch)
