"""The probability at which a matched edit stops: that of the true answer before the edit."""

from collections.abc import Sequence

from rome_lens.data.facts import Fact
from rome_lens.editing.prompts import in_context
from rome_lens.forward.answers import answer_log_probs
from rome_lens.models.lens import LensModel


def p_true_answer(
    model: LensModel, fact: Fact, contexts: Sequence[str], prepend_bos: bool | None, *, null: bool
) -> float:
    """The probability of the true target as a whole answer, mean over contexts.

    What a null edit writes is the true target, although it stands in the place of the new one.
    """
    true = fact.new_target if null else fact.target
    assert true is not None
    asked = [(in_context(model, fact, context).text, true) for context in contexts]
    return float(answer_log_probs(model, asked, prepend_bos=prepend_bos).exp().mean())
